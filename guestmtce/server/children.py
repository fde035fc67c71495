"""The master's side of its children: the spawner, one pipe per child, and the reaping of both.

A child is known by its guest's uuid. It starts with `start`, reports through `on_report`, and ends in
`on_end` with the reason; after `drop` nothing more is heard of it. The master is the children's parent
(it is the subreaper of what the spawner forks), so a pid stays valid until it is reaped here.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import setproctitle

import guestmtce
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.server import child, confine, guest, pipe, reports, spawner
from guestmtce.server.uids import Uids

log = logging.getLogger(__name__)

RESPAWN_FIRST = 0.05  # s until a dead spawner is replaced; doubles while replacements die young
RESPAWN_MAX = 5.0
SPAWNER_SETTLED = 10.0  # s after which a spawner counts as sound
CLOSE_WAIT = 1.0  # s for killed children to be gone
CLOSE_POLL = 0.005
# Reports read from one child before the others get their turn.
REPORTS_A_TURN = 16
# An honest child of the fastest guest sends a few reports a second, and a handful at once.
REPORTS_PER_SECOND = 20
REPORTS_BURST = 200


class Child:
    """One process. `pid` is None until the spawner reports it; until then `channel` is kept open."""

    __slots__ = ("channel", "credit", "credit_at", "doomed", "pid", "pipe", "reaped", "serial", "uid", "uuid")

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
        self.credit = float(REPORTS_BURST)
        self.credit_at = time.monotonic()

    def spend(self) -> bool:
        """Whether the child may send one more report now."""
        now = time.monotonic()
        self.credit = min(REPORTS_BURST, self.credit + (now - self.credit_at) * REPORTS_PER_SECOND) - 1
        self.credit_at = now
        return self.credit >= 0

    def kill(self) -> None:
        """End it, as soon as its pid is known; one that was reaped is left alone."""
        self.doomed = True
        if self.pid is not None and not self.reaped:
            _kill(self.pid)


class Handlers(NamedTuple):
    """Whom to tell: of a start (uuid), a report (uuid, report), an end (uuid, why, detail)."""

    started: Callable[[str], None]
    report: Callable[[str, reports.Report], None]
    end: Callable[[str, str, str], None]


class Children:
    """See the module's text. `identity` is the user that children become, None to keep the present one.

    With `uids` each child has a uid of its own instead of the identity's.
    """

    def __init__(
        self,
        loop: Loop,
        settings: reports.Settings,
        identity: Optional[confine.Identity],
        spawn_timeout: float,
        handlers: Handlers,
        uids: Optional[Uids] = None,
    ) -> None:
        self.rule_breakers = 0
        self.spawners = 0
        self.confinement: Dict[str, str] = {}  # a means → "yes", or "no (why)"
        self._loop = loop
        self._settings = settings
        self._identity = identity
        self._spawn_timeout = spawn_timeout
        self._handlers = handlers
        self._uids = uids if identity is not None else None
        self._by_uuid: Dict[str, Child] = {}
        self._by_pid: Dict[int, Child] = {}
        self._awaited: Dict[int, Child] = {}  # serial → asked for, pid not reported
        self._abandoned: Dict[int, Optional[int]] = {}  # serial → uid, dropped before its pid was reported
        self._uid_of: Dict[int, int] = {}  # pid → uid, not reaped
        self._reaped_early: Dict[int, int] = {}  # pid → status, reaped before it was reported
        self._serial = 0
        self._spawner_pid = 0
        self._spawner_since = 0.0
        self._respawn_delay = RESPAWN_FIRST
        self._control: Optional[socket.socket] = None
        self._spawn_timer: Optional[Timer] = None
        self._spawner_heard = 0.0  # when it last answered, or was first asked

    def open(self) -> None:
        """Start the spawner."""
        confine.become_subreaper()
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._start_spawner()

    def close(self) -> None:
        """End every child and the spawner."""
        for uuid in list(self._by_uuid):
            self.drop(uuid)
        self._stop_spawner()
        until = time.monotonic() + CLOSE_WAIT
        while _any_left() and time.monotonic() < until:
            time.sleep(CLOSE_POLL)

    def start(self, uuid: str, channel: socket.socket, resume: Optional[reports.Resume]) -> None:
        """Have a child forked that serves `channel`, which is closed here. Raises OSError if that fails."""
        try:
            if self._control is None:
                raise OSError("there is no spawner at the moment")
            uid = self._uids.take() if self._uids is not None else None
        except OSError:
            channel.close()
            raise
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            self._serial += 1
            request = json.dumps([self._serial, uuid, uid, spawner.dump_resume(resume)]).encode("ascii")
            try:
                socket.send_fds(self._control, [request], [channel.fileno(), theirs.fileno()])
            except OSError:
                channel.close()
                ours.close()
                self._free(uid)
                raise
        newborn = Child(uuid, self._serial, channel, ours, uid)
        if not self._awaited:
            self._spawner_heard = time.monotonic()
        self._by_uuid[uuid] = self._awaited[self._serial] = newborn
        self._loop.watch(ours, lambda: self._read(newborn))
        if self._spawn_timer is None:
            self._spawn_timer = self._loop.after(self._spawn_timeout, self._spawner_stuck)

    def ask(self, uuid: str, ask: pipe.Ask) -> None:
        """Give the guest's child a question. A pipe that is full loses it; its deadline settles it."""
        asked = self._by_uuid.get(uuid)
        try:
            if asked is not None:
                asked.pipe.send(pipe.encode(ask))
        except OSError as error:
            log.warning("%s: the child takes no question: %s", uuid, error)

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

    def pids(self) -> Dict[str, int]:
        """The pid of every guest's child."""
        return {uuid: one.pid for uuid, one in self._by_uuid.items() if one.pid is not None}

    @property
    def spawner_pid(self) -> int:
        """The spawner's pid, 0 when there is none at the moment."""
        return self._spawner_pid

    # --- the spawner -------------------------------------------------------------------------------

    def _start_spawner(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            identity = self._identity or confine.Identity(-1, -1)
            arguments = [sys.executable, "-I", "-S", "-c", spawner.BOOT, _import_path()]
            arguments += [str(theirs.fileno()), str(os.getpid()), str(identity.uid), str(identity.gid)]
            arguments += [json.dumps(self._settings)]
            self._spawner_pid = os.posix_spawn(sys.executable, arguments, {"LANG": "C.UTF-8"})
        self._spawner_since = time.monotonic()
        self.spawners += 1
        ours.setblocking(False)
        self._control = ours
        self._loop.watch(ours, self._read_control)

    def _stop_spawner(self) -> None:
        """Close and kill it; who waited for it is told that it failed."""
        if self._control is not None:
            self._loop.unwatch(self._control)
            self._control.close()
            self._control = None
        if self._spawner_pid:
            _kill(self._spawner_pid)
        self._rest_uids()
        self._abandoned.clear()
        for waiting in list(self._awaited.values()):
            if waiting.serial in self._awaited:  # an end may have dropped another
                self._end(waiting, guest.DIED, ": the spawner failed")

    def _rest_uids(self) -> None:
        """Whether what the spawner was asked for lives, and as which pid, will not be heard."""
        assumed = [*self._abandoned.values(), *(one.uid for one in self._awaited.values())]
        for uid in assumed:
            if self._uids is not None and uid is not None:
                self._uids.give_back_later(uid)

    def _spawner_stuck(self) -> None:
        """It is while it answers nothing, not while many wait."""
        self._spawn_timer = None
        if not self._awaited:
            return
        answer_due = self._spawner_heard + self._spawn_timeout
        if time.monotonic() < answer_due:
            self._spawn_timer = self._loop.at(answer_due, self._spawner_stuck)
        else:
            log.error("the spawner did not answer in %g s: replacing it", self._spawn_timeout)
            self._stop_spawner()

    def _spawner_ended(self) -> None:
        self._spawner_pid = 0
        if not self._loop.running:
            return
        log.error("the spawner ended: replacing it")
        self._stop_spawner()
        if time.monotonic() - self._spawner_since > SPAWNER_SETTLED:
            self._respawn_delay = RESPAWN_FIRST
        self._loop.after(self._respawn_delay, self._start_spawner)
        self._respawn_delay = min(2 * self._respawn_delay, RESPAWN_MAX)

    def _read_control(self) -> None:
        assert self._control is not None
        try:
            packet = self._control.recv(spawner.REQUEST_MAX)
        except OSError:
            packet = b""
        if not packet:
            if self._spawner_pid:
                _kill(self._spawner_pid)  # its reaping does the rest
            self._loop.unwatch(self._control)
            self._control.close()
            self._control = None
            return
        serial, pid = json.loads(packet)
        if serial == spawner.GREETING:
            self._greeted(pid)
            return
        self._spawner_heard = time.monotonic()
        born = self._awaited.pop(serial, None)
        if not self._awaited and self._spawn_timer is not None:
            self._spawn_timer.cancel()
            self._spawn_timer = None
        if born is None:
            uid = self._abandoned.pop(serial, None)
            if self._reaped_early.pop(pid, None) is None:
                self._note_uid(pid, uid)
                _kill(pid)
            else:
                self._free(uid)
        else:
            self._born(born, pid)
        if not self._awaited and not self._abandoned:
            self._reaped_early.clear()

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
        for _ in range(REPORTS_A_TURN):
            try:
                packet = speaker.pipe.recv(pipe.PACKET_MAX + 1)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.unwatch(speaker.pipe)
                speaker.kill()  # a child that closed its pipe and lives on is of no use
                return
            try:
                if not speaker.spend():
                    raise pipe.BrokenRules("more than %d reports a second" % REPORTS_PER_SECOND)
                report = pipe.decode_report(packet)
            except pipe.BrokenRules as broken:
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
        """Until nothing is left. Unknown pids are middle processes of a dead spawner, or not yet reported."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._free(self._uid_of.pop(pid, None))
            if pid == self._spawner_pid:
                self._spawner_ended()
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
            why = {child.END_PEER_CLOSED: guest.PEER_CLOSED, child.END_RECONNECT: guest.GAVE_UP}.get(code)
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
    return {child.END_BOOT_FAILURE: ": it could not start"}.get(code, " with status %d" % code)


def _kill(pid: int) -> None:
    assert pid > 0  # 0 is our own group
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _import_path() -> str:
    """The folders that hold our package and setproctitle: all that the spawner needs besides the library."""
    folders: List[str] = []
    for module in (guestmtce, setproctitle):
        assert module.__file__ is not None
        folder = os.path.dirname(os.path.abspath(module.__file__))
        if os.path.basename(module.__file__).startswith("__init__."):
            folder = os.path.dirname(folder)
        if folder not in folders:
            folders.append(folder)
    return ":".join(folders)
