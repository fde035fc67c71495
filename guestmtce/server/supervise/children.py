"""The master's side of its children: the spawner, one pipe per child, and the reaping of both.

A child is known by its guest's uuid. It starts with `start`, reports through `on_report`, and ends in
`on_end` with the reason; after `drop` nothing more is heard of it. The master is the children's parent
(the spawner forks siblings), so a pid stays valid until it is reaped here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

from guestmtce.common.rate_limit import Bucket
from guestmtce.daemon.loop import Loop
from guestmtce.server.child import confine, fork_sibling, pipe_protocol, process, session_types, spawner
from guestmtce.server.state import guest
from guestmtce.server.supervise import confinement_trial, spawner_client
from guestmtce.server.supervise.uid_pool import Uids

log = logging.getLogger(__name__)

CLOSE_WAIT = 1.0  # s for killed children to be gone
CLOSE_POLL = 0.005
# Twice what an honest child sends, whatever its guest makes it say (`child.PACE`).
REPORTS_PER_SECOND = 2 * process.PACE
REPORTS_BURST = 2 * process.PACE_BURST


class Child:
    """One process. `pid` is None until the spawner reports it; until then `channel` is kept open."""

    __slots__ = ("channel", "credit", "doomed", "pid", "pipe", "reaped", "serial", "uid", "uuid")

    def __init__(
        self,
        uuid: str,
        serial: int,
        channel: socket.socket,
        results: socket.socket,
        uid: Optional[int] = None,
    ) -> None:
        self.uuid = uuid
        self.serial = serial
        self.uid = uid
        self.pid: Optional[int] = None
        self.channel: Optional[socket.socket] = channel
        self.pipe = results
        self.doomed = self.reaped = False
        self.credit = Bucket(REPORTS_PER_SECOND, REPORTS_BURST, time.monotonic())

    def kill(self) -> None:
        """End it, as soon as its pid is known; one that was reaped is left alone."""
        self.doomed = True
        if self.pid is not None and not self.reaped:
            spawner_client.kill(self.pid)


class Handlers(NamedTuple):
    """Whom to tell: of a start (uuid), a report (uuid, report), an end (uuid, why, detail), and that there
    is room for more.
    """

    started: Callable[[str], None]
    report: Callable[[str, session_types.Report], None]
    end: Callable[[str, str, str], None]
    room: Callable[[], None]


class Children:
    """See the module's text. With `uids` each child has a uid of its own instead of the identity's."""

    def __init__(
        self,
        loop: Loop,
        settings: session_types.SessionSettings,
        means: confine.Means,
        spawn_timeout: float,
        handlers: Handlers,
        uids: Optional[Uids] = None,
        uids_required: bool = True,
    ) -> None:
        self.rule_breakers = 0
        self.confinement: Dict[str, str] = {}  # a means → "yes", or "no (why)"
        self._loop = loop
        self._handlers = handlers
        births = spawner_client.Handlers(
            self._greeted, self._reported_birth, self._unborn, self._spawner_failed, handlers.room
        )
        self.spawner = spawner_client.SpawnerLink(loop, settings, means, spawn_timeout, births)
        self._uids = uids if means.identity is not None else None
        self._uids_required = uids_required
        self._by_uuid: Dict[str, Child] = {}
        self._by_pid: Dict[int, Child] = {}
        self._awaited: Dict[int, Child] = {}  # serial → asked for, pid not reported
        self._abandoned: Dict[int, Optional[int]] = {}  # serial → uid, dropped before its pid was reported
        self._uid_of: Dict[int, int] = {}  # pid → uid, not reaped
        self._reaped_early: Dict[int, int] = {}  # pid → status, reaped before it was reported
        self._serial = 0

    def open(self) -> None:
        """Start the spawner. Raises OSError."""
        fork_sibling.adopt_orphans()
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self.spawner.open()

    def prove(self) -> None:
        """Have a child made for trial before there are guests. Raises OSError if none can be had here.

        Where the uids of their own are what fails, children go on without them, if nobody asked for these.
        """
        self.spawner.await_greeting()
        if self._uids is not None:
            try:
                for uid in {self._uids.first, self._uids.last}:
                    confinement_trial.try_child(self.spawner, uid)
                return
            except OSError as error:
                if self._uids_required:
                    raise
                log.error("client.child_uids %s: %s: children share one user", self._uids.text, error)
                self._uids = None
        confinement_trial.try_child(self.spawner, None)

    @property
    def uids(self) -> str:
        """The range of uids that children have, each its own; empty: they share a user."""
        return self._uids.text if self._uids is not None else ""

    def close(self) -> None:
        """End every child and the spawner."""
        for uuid in list(self._by_uuid):
            self.drop(uuid)
        self.spawner.close()
        until = time.monotonic() + CLOSE_WAIT
        while _any_left() and time.monotonic() < until:
            time.sleep(CLOSE_POLL)

    def start(self, uuid: str, channel: socket.socket, resume: Optional[session_types.Resume]) -> None:
        """Have a child forked that serves `channel`, which is closed here. Raises OSError if that fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        uid = None
        try:
            with theirs:
                uid = self._uids.take() if self._uids is not None else None
                packet = spawner.request(self._serial + 1, uuid, uid, resume)
                self.spawner.ask(self._serial + 1, packet, [channel.fileno(), theirs.fileno()])
        except OSError:
            channel.close()
            ours.close()
            self._free(uid)
            raise
        self._serial += 1
        newborn = Child(uuid, self._serial, channel, ours, uid)
        self._by_uuid[uuid] = self._awaited[self._serial] = newborn
        self._loop.watch(ours, lambda: self._read(newborn))

    def command(self, uuid: str, command: pipe_protocol.Command) -> None:
        """Give the guest's child a command. One that does not take it is replaced: it would judge wrongly."""
        commanded = self._by_uuid.get(uuid)
        if commanded is None:
            return
        try:
            commanded.pipe.send(pipe_protocol.encode(command))
        except OSError as error:
            log.warning("%s: the child takes no command and is replaced: %s", uuid, error)
            commanded.kill()

    def drop(self, uuid: str) -> None:
        """End the guest's child, if it has one; nothing more is heard of it."""
        dropped = self._by_uuid.pop(uuid, None)
        if dropped is None:
            return
        self._let_go(dropped)
        if dropped.pid is None:
            self._awaited.pop(dropped.serial)
            self._abandoned[dropped.serial] = dropped.uid
        else:
            self._by_pid.pop(dropped.pid)
            dropped.kill()

    def replace(self, uuid: str) -> None:
        """Kill the guest's child; its end is told like any other."""
        culprit = self._by_uuid.get(uuid)
        if culprit is not None:
            culprit.kill()

    def punish(self, uuid: str, why: str) -> None:
        """Kill the guest's child, which has broken the rules; its end is told like any other."""
        culprit = self._by_uuid.get(uuid)
        if culprit is not None:
            self._punish(culprit, why)

    def pids(self) -> Dict[str, int]:
        """The pid of every guest's child."""
        return {uuid: one.pid for uuid, one in self._by_uuid.items() if one.pid is not None}

    # --- births ------------------------------------------------------------------------------------

    def _spawner_failed(self) -> None:
        """Whether what it was asked for lives, and as which pid, will not be heard."""
        for uid in [*self._abandoned.values(), *(one.uid for one in self._awaited.values())]:
            if self._uids is not None and uid is not None:
                self._uids.give_back_later(uid)
        self._abandoned.clear()
        for waiting in list(self._awaited.values()):
            if waiting.serial in self._awaited:  # an end may have dropped another
                self._end(waiting, guest.UNBORN, ": the spawner failed")

    def _reported_birth(self, serial: int, pid: int) -> None:
        born = self._awaited.pop(serial, None)
        if born is not None:
            self._born(born, pid)
        else:
            self._born_in_vain(pid, self._abandoned.pop(serial, None))
        if not self._awaited and not self._abandoned:
            self._reaped_early.clear()

    def _unborn(self, serial: int, why: str) -> None:
        waiting = self._awaited.pop(serial, None)
        self._free(waiting.uid if waiting is not None else self._abandoned.pop(serial, None))
        if waiting is not None:
            self._end(waiting, guest.UNBORN, ": it could not be forked: " + why)

    def _born_in_vain(self, pid: int, uid: Optional[int]) -> None:
        if self._reaped_early.pop(pid, None) is None:
            self._note_uid(pid, uid)
            spawner_client.kill(pid)
        else:
            self._free(uid)

    def _greeted(self, words: Any) -> None:
        """The spawner says what children are confined with; what is missing is logged, once."""
        words = {str(name): str(word) for name, word in dict(words).items()}
        if words != self.confinement:
            self.confinement = words
            missing = ["%s %s" % pair for pair in words.items() if pair[1] != "yes"]
            if missing:
                log.warning("children are confined without: %s", ", ".join(missing))

    def _born(self, born: Child, pid: int) -> None:
        born.pid = pid
        self._by_pid[pid] = born
        status = self._reaped_early.pop(pid, None)
        born.reaped = status is not None
        if born.reaped:
            self._free(born.uid)
        else:
            self._note_uid(pid, born.uid)
        if born.channel is not None:
            # QEMU would not see the child's end of the connection while we hold a copy.
            born.channel.close()
            born.channel = None
        if born.doomed:
            born.kill()
        self._handlers.started(born.uuid)
        if status is not None:
            self._ended(born, status)

    # --- one child ---------------------------------------------------------------------------------

    def _read(self, speaker: Child) -> None:
        """Reports of one child; at the pipe's end the child has ended or soon will."""
        # All that an honest child may have said while this process stood still: what is unread is not judged.
        for _ in range(REPORTS_BURST):
            try:
                packet = speaker.pipe.recv(pipe_protocol.PACKET_MAX + 1)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.unwatch(speaker.pipe)
                speaker.kill()  # a child that closed its pipe and lives on is of no use
                return
            try:
                if not speaker.credit.spend(time.monotonic()):
                    raise pipe_protocol.BrokenRules("more than %d reports a second" % REPORTS_PER_SECOND)
                report = pipe_protocol.decode_report(packet)
            except pipe_protocol.BrokenRules as broken:
                self._punish(speaker, str(broken))
                return
            self._handlers.report(speaker.uuid, report)
            if self._by_uuid.get(speaker.uuid) is not speaker:
                return  # dropped meanwhile

    def _punish(self, culprit: Child, why: str) -> None:
        log.error("%s: the child broke the rules and is killed: %s", culprit.uuid, why)
        self.rule_breakers += 1
        self._loop.unwatch(culprit.pipe)
        culprit.kill()

    def _reap(self) -> None:
        """Until nothing is left. Unknown pids are not yet reported, or a dead spawner's last child."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._free(self._uid_of.pop(pid, None))
            if pid == self.spawner.pid:
                self.spawner.ended(status)
            elif pid in self._by_pid:
                self._ended(self._by_pid[pid], status)
            elif self._awaited or self._abandoned:
                self._reaped_early[pid] = status

    def _note_uid(self, pid: int, uid: Optional[int]) -> None:
        if uid is not None:
            self._uid_of[pid] = uid

    def _free(self, uid: Optional[int]) -> None:
        if self._uids is not None and uid is not None:
            self._uids.give_back(uid)

    def _ended(self, dead: Child, status: int) -> None:
        dead.reaped = True
        try:
            # Its last words come before its end, unless it lost the right to speak.
            while self._by_uuid.get(dead.uuid) is dead and not dead.doomed:
                if not dead.pipe.recv(1, socket.MSG_PEEK):
                    break
                self._read(dead)
        except OSError:
            pass
        if self._by_uuid.get(dead.uuid) is dead:
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGSYS:
                self.rule_breakers += 1
            why = {process.END_PEER_CLOSED: guest.PEER_CLOSED, process.END_RECONNECT: guest.GAVE_UP}.get(code)
            self._end(dead, why or guest.DIED, "" if why else _how(code))

    def _end(self, dead: Child, why: str, detail: str) -> None:
        del self._by_uuid[dead.uuid]
        self._awaited.pop(dead.serial, None)
        if dead.pid is not None:
            del self._by_pid[dead.pid]
        self._let_go(dead)
        self._handlers.end(dead.uuid, why, detail)

    def _let_go(self, done: Child) -> None:
        self._loop.unwatch(done.pipe)
        done.pipe.close()
        if done.channel is not None:
            done.channel.close()


def _any_left() -> bool:
    """Reap what has ended; whether some child of this process still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    except ChildProcessError:
        return False


def _how(code: int) -> str:
    if code == -signal.SIGSYS:
        return ": it made a system call that no honest child makes"
    if code < 0:
        return " of signal %d" % -code
    return {process.END_BOOT_FAILURE: ": it could not start"}.get(code, " with status %d" % code)
