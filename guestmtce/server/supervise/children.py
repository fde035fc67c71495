"""The master's side of its children: the spawner, one pipe per child, and the reaping of both.

A child is known by its guest's uuid. It starts with `start_child`, reports through `on_report`, and ends in
`on_end` with the reason; after `drop_child` nothing more is heard of it. The master is the children's parent
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
from guestmtce.server.child import fork_sibling, pipe_protocol, process, session_types, spawner
from guestmtce.server.supervise import confinement_trial
from guestmtce.server.supervise.spawner_client import (
    SpawnerClient,
    SpawnerHandlers,
    SpawnerSettings,
    kill_process,
)
from guestmtce.server.supervise.uid_pool import UidPool

log = logging.getLogger(__name__)

CLOSE_WAIT = 1.0  # s for killed children to be gone
CLOSE_POLL = 0.005
# Twice what an honest child sends, whatever its guest makes it say.
REPORTS_PER_SECOND = 2 * process.REPORTS_PER_SECOND
REPORTS_BURST = 2 * process.REPORTS_BURST
# Exit statuses that are no crash, and what the master calls them.
_NO_CRASHES = {
    pipe_protocol.END_PEER_CLOSED: session_types.PEER_CLOSED,
    pipe_protocol.END_RECONNECT: session_types.GAVE_UP,
}


class ChildHandle:
    """One process. `pid` is None until the spawner reports it; until then `guest_socket` is kept open.

    `doomed`: it is to be killed, or has been. `reaped`: its pid may be another process's by now.
    """

    __slots__ = ("doomed", "guest_socket", "pid", "reaped", "report_pipe", "reports_allowed", "serial", "uid",
                 "uuid")  # fmt: skip

    def __init__(
        self,
        uuid: str,
        serial: int,
        guest_socket: Optional[socket.socket],
        report_pipe: socket.socket,
        uid: Optional[int] = None,
    ) -> None:
        self.uuid = uuid
        self.serial = serial
        self.uid = uid
        self.pid: Optional[int] = None
        self.guest_socket = guest_socket
        self.report_pipe = report_pipe
        self.doomed = self.reaped = False
        self.reports_allowed = Bucket(REPORTS_PER_SECOND, REPORTS_BURST, time.monotonic())

    def kill(self) -> None:
        """End it, as soon as its pid is known; one that was reaped is left alone."""
        self.doomed = True
        if self.pid is not None and not self.reaped:
            kill_process(self.pid)


class ChildrenHandlers(NamedTuple):
    """Whom to tell: of a start (uuid), a report (uuid, report), an end (uuid, why, detail), and that there
    is room for more.
    """

    started: Callable[[str], None]
    report: Callable[[str, session_types.Report], None]
    end: Callable[[str, str, str], None]
    room: Callable[[], None]


class Children:
    """See the module's text. With `uids` each child has a uid of its own instead of the identity's.

    `uids_required`: it is an error if these cannot be had; else children share the identity's user then.
    """

    def __init__(
        self,
        loop: Loop,
        settings: SpawnerSettings,
        handlers: ChildrenHandlers,
        uids: Optional[UidPool] = None,
        uids_required: bool = True,
    ) -> None:
        self.rule_breakers = 0
        self.confinement: Dict[str, str] = {}  # a means → "yes", or "no (why)"
        self._loop = loop
        self._handlers = handlers
        spawner_handlers = SpawnerHandlers(
            self._keep_confinement,
            self._identify_child,
            self._fork_failed,
            self._spawner_failed,
            handlers.room,
        )
        self.spawner = SpawnerClient(loop, settings, spawner_handlers)
        self._uids = uids if settings.means.identity is not None else None
        self._uids_required = uids_required
        self._by_uuid: Dict[str, ChildHandle] = {}
        self._by_pid: Dict[int, ChildHandle] = {}
        self._awaited: Dict[int, ChildHandle] = {}  # by serial: the pid is not reported yet
        self._abandoned: Dict[int, Optional[int]] = {}  # serial → uid, dropped before its pid was reported
        self._uid_of: Dict[int, int] = {}  # pid → uid, not reaped
        self._reaped_early: Dict[int, int] = {}  # pid → status, reaped before it was reported
        self._serial = 0

    def open(self) -> None:
        """Start the spawner. Raises OSError."""
        # Before there is a spawner: an orphan goes to the subreaper that exists when its parent ends.
        fork_sibling.adopt_orphans()
        self._loop.on_signal(signal.SIGCHLD, self._reap_children)
        self.spawner.open()

    def prove_confinement(self) -> None:
        """Have a child made for trial before there are guests. Raises OSError if none can be had here.

        Where the uids of their own are what fails, children go on without them, if nobody asked for these.
        """
        self.spawner.await_greeting()
        if self._uids is not None:
            try:
                # Both ends: a user namespace may map a part of the range.
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
            self.drop_child(uuid)
        self.spawner.close()
        until = time.monotonic() + CLOSE_WAIT
        while _reap_until_one_runs() and time.monotonic() < until:
            time.sleep(CLOSE_POLL)

    def start_child(
        self, uuid: str, guest_socket: socket.socket, resume: Optional[session_types.Resume]
    ) -> None:
        """Have a child forked that serves `guest_socket`, which is closed here. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        uid = None
        try:
            with theirs:
                uid = self._uids.lease() if self._uids is not None else None
                packet = spawner.encode_request(self._serial + 1, uuid, uid, resume)
                self.spawner.request_child(self._serial + 1, packet, [guest_socket.fileno(), theirs.fileno()])
        except OSError:
            guest_socket.close()
            ours.close()
            self._free_uid(uid)
            raise
        # Counted only now: a request that was never sent gets no answer.
        self._serial += 1
        newborn = ChildHandle(uuid, self._serial, guest_socket, ours, uid)
        self._by_uuid[uuid] = self._awaited[self._serial] = newborn
        self._loop.watch(ours, lambda: self._read_reports(newborn))

    def send_command(self, uuid: str, command: pipe_protocol.Command) -> None:
        """Give the guest's child a command. One that does not take it is replaced: it would judge wrongly."""
        commanded = self._by_uuid.get(uuid)
        if commanded is None:
            return
        try:
            commanded.report_pipe.send(pipe_protocol.encode(command))
        except OSError as error:
            log.warning("%s: the child takes no command and is replaced: %s", uuid, error)
            commanded.kill()

    def drop_child(self, uuid: str) -> None:
        """End the guest's child, if it has one; nothing more is heard of it."""
        dropped = self._by_uuid.pop(uuid, None)
        if dropped is None:
            return
        self._close_descriptors(dropped)
        if dropped.pid is None:
            self._awaited.pop(dropped.serial)
            # The spawner may have forked it, or will: it is killed when its pid is reported.
            self._abandoned[dropped.serial] = dropped.uid
        else:
            self._by_pid.pop(dropped.pid)
            dropped.kill()

    def replace_child(self, uuid: str) -> None:
        """Kill the guest's child; its end is told like any other."""
        culprit = self._by_uuid.get(uuid)
        if culprit is not None:
            culprit.kill()

    def kill_rule_breaker(self, uuid: str, why: str) -> None:
        """Kill the guest's child, which has broken the rules; its end is told like any other."""
        culprit = self._by_uuid.get(uuid)
        if culprit is not None:
            self._kill_rule_breaker(culprit, why)

    def list_pids(self) -> Dict[str, int]:
        """The pid of every guest's child."""
        return {uuid: child.pid for uuid, child in self._by_uuid.items() if child.pid is not None}

    # --- births ------------------------------------------------------------------------------------

    def _spawner_failed(self) -> None:
        """The spawner died with requests outstanding: their pids will never be reported."""
        for uid in [*self._abandoned.values(), *(child.uid for child in self._awaited.values())]:
            if self._uids is not None and uid is not None:
                self._uids.give_back_later(uid)
        self._abandoned.clear()
        for waiting in list(self._awaited.values()):
            if waiting.serial in self._awaited:  # an end may have dropped another
                self._report_end(waiting, session_types.FORK_FAILED, ": the spawner failed")

    def _identify_child(self, serial: int, pid: int) -> None:
        born = self._awaited.pop(serial, None)
        if born is not None:
            self._adopt_child(born, pid)
        else:
            self._kill_unwanted_child(pid, self._abandoned.pop(serial, None))
        # No report is outstanding: what is left here is no child of a guest's, and its pid may be given
        # again.
        if not self._awaited and not self._abandoned:
            self._reaped_early.clear()

    def _fork_failed(self, serial: int, why: str) -> None:
        waiting = self._awaited.pop(serial, None)
        self._free_uid(waiting.uid if waiting is not None else self._abandoned.pop(serial, None))
        if waiting is not None:
            self._report_end(waiting, session_types.FORK_FAILED, ": it could not be forked: " + why)

    def _kill_unwanted_child(self, pid: int, uid: Optional[int]) -> None:
        if self._reaped_early.pop(pid, None) is None:
            self._note_uid(pid, uid)
            kill_process(pid)
        else:
            self._free_uid(uid)

    def _keep_confinement(self, means: Any) -> None:
        """The spawner says what children are confined with; what is missing is logged, once."""
        means = {str(name): str(availability) for name, availability in dict(means).items()}
        if means != self.confinement:
            self.confinement = means
            missing = ["%s %s" % pair for pair in means.items() if pair[1] != "yes"]
            if missing:
                log.warning("children are confined without: %s", ", ".join(missing))

    def _adopt_child(self, born: ChildHandle, pid: int) -> None:
        born.pid = pid
        self._by_pid[pid] = born
        status = self._reaped_early.pop(pid, None)
        # A child may have ended before the spawner's word of it was read.
        born.reaped = status is not None
        if born.reaped:
            self._free_uid(born.uid)
        else:
            self._note_uid(pid, born.uid)
        if born.guest_socket is not None:
            # QEMU would not see the child's end of the connection while we hold a copy.
            born.guest_socket.close()
            born.guest_socket = None
        if born.doomed:
            born.kill()
        # Of a child that has ended already, too: the table hears of each start before its end.
        self._handlers.started(born.uuid)
        if status is not None:
            self._handle_end(born, status)

    # --- one child ---------------------------------------------------------------------------------

    def _read_reports(self, speaker: ChildHandle) -> None:
        """Reports of one child; at the pipe's end the child has ended or soon will."""
        # All that an honest child may have said while this process stood still: what is unread is not judged.
        for _ in range(REPORTS_BURST):
            try:
                # One byte more than a report may have: SOCK_SEQPACKET would cut a longer one, unseen.
                packet = speaker.report_pipe.recv(pipe_protocol.PACKET_MAX + 1)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.unwatch(speaker.report_pipe)
                speaker.kill()  # a child that closed its pipe and lives on is of no use
                return
            try:
                if not speaker.reports_allowed.spend(time.monotonic()):
                    raise pipe_protocol.BrokenRules("more than %d reports a second" % REPORTS_PER_SECOND)
                report = pipe_protocol.decode_report(packet)
            except pipe_protocol.BrokenRules as broken:
                self._kill_rule_breaker(speaker, str(broken))
                return
            self._handlers.report(speaker.uuid, report)
            if self._by_uuid.get(speaker.uuid) is not speaker:
                return  # dropped meanwhile

    def _kill_rule_breaker(self, culprit: ChildHandle, why: str) -> None:
        log.error("%s: the child broke the rules and is killed: %s", culprit.uuid, why)
        self.rule_breakers += 1
        self._loop.unwatch(culprit.report_pipe)
        culprit.kill()

    def _reap_children(self) -> None:
        """Until nothing is left. Signals are not counted: one SIGCHLD may stand for many ends.

        waitpid(-1) meets pids that are not known: those of children that the spawner has forked and whose
        report is still on its way, and the last child of a spawner that has died.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # Not before: until it is reaped a process of that uid exists, and could be signalled by the next
            # one.
            self._free_uid(self._uid_of.pop(pid, None))
            if pid == self.spawner.pid:
                self.spawner.handle_end(status)
            elif pid in self._by_pid:
                self._handle_end(self._by_pid[pid], status)
            elif self._awaited or self._abandoned:
                self._reaped_early[pid] = status

    def _note_uid(self, pid: int, uid: Optional[int]) -> None:
        if uid is not None:
            self._uid_of[pid] = uid

    def _free_uid(self, uid: Optional[int]) -> None:
        if self._uids is not None and uid is not None:
            self._uids.give_back(uid)

    def _handle_end(self, dead: ChildHandle, status: int) -> None:
        dead.reaped = True
        try:
            # Its last words come before its end, unless it lost the right to speak.
            while self._by_uuid.get(dead.uuid) is dead and not dead.doomed:
                # Looked at and not read: `_read_reports` is to find each packet whole.
                if not dead.report_pipe.recv(1, socket.MSG_PEEK):
                    break
                self._read_reports(dead)
        except OSError:
            pass
        if self._by_uuid.get(dead.uuid) is dead:
            code = os.waitstatus_to_exitcode(status)
            # The filter kills with SIGSYS: an honest child makes no such call, so its guest has taken it
            # over.
            if code == -signal.SIGSYS:
                self.rule_breakers += 1
            why = _NO_CRASHES.get(code, session_types.DIED)
            self._report_end(dead, why, "" if code in _NO_CRASHES else _exit_reason(code))

    def _report_end(self, dead: ChildHandle, why: str, detail: str) -> None:
        # Taken out before its end is told: the table may ask for the next child from within.
        del self._by_uuid[dead.uuid]
        self._awaited.pop(dead.serial, None)
        if dead.pid is not None:
            del self._by_pid[dead.pid]
        self._close_descriptors(dead)
        self._handlers.end(dead.uuid, why, detail)

    def _close_descriptors(self, done: ChildHandle) -> None:
        self._loop.unwatch(done.report_pipe)
        done.report_pipe.close()
        if done.guest_socket is not None:
            done.guest_socket.close()


def _reap_until_one_runs() -> bool:
    """Reap what has ended; whether some child of this process still runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    except ChildProcessError:
        return False


def _exit_reason(code: int) -> str:
    """What follows "the child died" in the log; `code` as os.waitstatus_to_exitcode has it."""
    if code == -signal.SIGSYS:
        return ": it made a system call that no honest child makes"
    if code < 0:
        return " of signal %d" % -code
    return {pipe_protocol.END_BOOT_FAILURE: ": it could not start"}.get(code, " with status %d" % code)
