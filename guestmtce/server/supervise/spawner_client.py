"""The master's side of the spawner: its process, what is asked of it, and its replacement.

A few requests are with the spawner at any moment (`has_room`): its socket holds 278 of them (measured), and
thousands of guests may want their children at once. A spawner that answers nothing for too long, or ends, is
replaced, and `SpawnerHandlers.failed` is called: whoever waits for a child starts again. What it writes to
stderr is kept for the log: it is the reason of its end.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, NamedTuple, Optional, Sequence, Set, Tuple

from guestmtce.common.back_off import BackOff
from guestmtce.daemon.log import Throttle, printable
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.server.child import confine, page_layout, session_types, spawner
from guestmtce.server.supervise.scope import GuestsScope
from guestmtce.server.supervise.spawner_code import SpawnerCode

log = logging.getLogger(__name__)

# What the dynamic linker binds late, it would bind in every child anew.
ENVIRONMENT = {"LANG": "C.UTF-8", "LD_BIND_NOW": "1"}
ANSWER_MAX = 4096  # bytes
RESPAWN_FIRST = 0.05  # s until a dead spawner is replaced; doubles while replacements die young
RESPAWN_MAX = 5.0
STABLE_AFTER = 10.0  # s that a spawner must last for its end to be replaced without back-off
IN_FLIGHT_MAX = 32  # requests that the spawner has and has not answered
# The spawner's time to answer is divided into so many looks; one more without an answer finds it stuck. A
# look that is late by a whole period does not count: the master, or this host, stood still.
SILENT_LOOKS_MAX = 4
LINE_PERIOD = 60.0  # s between two lines about spawners that end, or cannot be started
START_TRIES = 3  # at the start of the daemon, which fails after them
LAST_WORDS_MAX = 65536  # bytes of stderr, all that a pipe holds
REASON_MAX = 300  # characters of it in a line of the log


class SpawnerSettings(NamedTuple):
    """What a spawner is started with. `timeout` (s): one that answers nothing for so long is replaced.

    `page_layout`: whether it lays its memory out so that children share more of it.
    """

    session: session_types.SessionSettings
    means: confine.Means
    timeout: float
    page_layout: bool = True


class SpawnerHandlers(NamedTuple):
    """Whom to tell: what children are confined with (name → "yes" or "no (why)"), a birth (serial, pid), a
    fork that failed (serial, why), that all requests have failed, and that there is room for more.
    """

    greeted: Callable[[Any], None]
    forked: Callable[[int, int], None]
    fork_failed: Callable[[int, str], None]
    failed: Callable[[], None]
    room: Callable[[], None]


class SpawnerClient:
    """See the module's text. `pid` is 0 while there is no spawner; `started` counts how many there were."""

    def __init__(self, loop: Loop, settings: SpawnerSettings, handlers: SpawnerHandlers) -> None:
        self.pid = 0
        self.started = 0
        self._loop = loop
        self._settings = settings
        self._handlers = handlers
        self._control: Optional[socket.socket] = None
        self._asked: Set[int] = set()
        self._greeted = False
        self._silent_looks = 0
        self._started_at = 0.0
        self._back_off = BackOff(RESPAWN_FIRST, RESPAWN_MAX)
        self._timer: Optional[Timer] = None
        self._code = SpawnerCode()
        self._scope = GuestsScope(loop)
        self._stderr = -1
        self._throttle = Throttle(log, LINE_PERIOD)

    def open(self) -> None:
        """Start a spawner. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = self._start(theirs)
        except OSError:
            ours.close()
            raise
        # Before its first child: children are born in the control group of their spawner.
        self._scope.move(self.pid)
        self._greeted = False
        self._started_at = time.monotonic()
        self.started += 1
        ours.setblocking(False)
        self._control = ours
        self._loop.watch(ours, self.read_answer)

    def _start(self, theirs: socket.socket) -> int:
        # Python closes every descriptor at an exec(2) that is not named like this (PEP 446).
        os.set_inheritable(theirs.fileno(), True)
        # -I: no PYTHON* variable and no folder of a user's is obeyed by what root starts. -OO: docstrings
        # would be pages of every spawner.
        arguments = [sys.executable, "-I", "-S", "-OO", "-c", spawner.BOOT, self._code.prepare_path()]
        arguments += [str(theirs.fileno()), str(os.getpid())]
        arguments += [json.dumps(vars(self._settings.session)), spawner.encode_means(self._settings.means)]
        arguments.append(page_layout.LAID_OUT if self._settings.page_layout else page_layout.PLAIN)
        self._drop_stderr()
        self._stderr, writer = _pipe_for_last_words()
        try:
            redirect = [(os.POSIX_SPAWN_DUP2, writer, 2)]
            # The master has threads (log, names): a fork of it would inherit their locks.
            return os.posix_spawn(sys.executable, arguments, ENVIRONMENT, file_actions=redirect)
        finally:
            os.close(writer)

    def await_greeting(self) -> None:
        """Wait until the spawner serves: for the daemon's start, when there is nobody else to serve.

        It is replaced a few times. Raises OSError with the last one's own reason.
        """
        for tries_left in reversed(range(START_TRIES)):
            if self._control is not None and _has_data(self._control, self._settings.timeout):
                self.read_answer()
            if self._greeted:
                return
            self._hang_up_and_kill()
            reason = self._read_last_words(os.waitpid(self.pid, 0)[1])
            self.pid = 0
            if not tries_left:
                raise OSError(
                    "the process that makes the guests' processes does not start: %s"
                    % printable(reason, REASON_MAX)
                )
            self.open()

    def fork_now(self, packet: bytes, descriptors: Sequence[int]) -> int:
        """The pid of a child, made while there is no loop to tell of it. Raises OSError."""
        assert self._control is not None
        socket.send_fds(self._control, [packet], descriptors)
        if not _has_data(self._control, self._settings.timeout):
            raise OSError("the spawner did not answer in %g s" % self._settings.timeout)
        answer = self._control.recv(ANSWER_MAX)
        if not answer:
            raise OSError("the spawner ended while it forked a guest's process")
        _, pid = spawner.BIRTH.unpack(answer)
        if pid < 0:
            raise OSError(-pid, "cannot fork a guest's process: %s" % os.strerror(-pid))
        return int(pid)

    def close(self) -> None:
        """End it; who waits for it is told that it failed."""
        self._hang_up()
        if self.pid:
            kill_process(self.pid)
        self._scope.close()
        self._drop_stderr()
        self._code.remove_copy()
        self._asked.clear()
        self._handlers.failed()

    def handle_end(self, status: int = 0) -> None:
        """It was reaped; `status` as waitpid(2) has it."""
        self.pid = 0
        # The daemon starts or ends: `await_greeting` and `close` see to it themselves.
        if not self._loop.running:
            return
        self._throttle.warning("end", "the spawner ended (%s): replacing it", self._read_last_words(status))
        self.close()
        if time.monotonic() - self._started_at > STABLE_AFTER:
            self._back_off.reset()
        self._replace_later()

    def _replace_later(self) -> None:
        self._loop.after(self._back_off.next_delay(), self._replace)

    def _replace(self) -> None:
        try:
            self.open()
        except OSError as error:
            self._throttle.warning("start", "cannot start a spawner, trying again: %s", error)
            self._replace_later()

    # --- requests ----------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether it can be asked for one more child."""
        return self._control is not None and len(self._asked) < IN_FLIGHT_MAX

    def request_child(self, serial: int, packet: bytes, descriptors: Sequence[int]) -> None:
        """Have a child forked: `spawner.encode_request`, with its socket and its pipe. Raises OSError."""
        if self._control is None:
            raise OSError("there is no spawner at the moment")
        socket.send_fds(self._control, [packet], descriptors)
        # The first that waits: silence before it was no silence of the spawner's.
        if not self._asked:
            self._silent_looks = 0
        self._asked.add(serial)
        self._start_timer()

    # --- answers -----------------------------------------------------------------------------------

    def read_answer(self) -> None:
        """One answer; at the end of the connection the spawner has ended or soon will."""
        assert self._control is not None
        try:
            packet = self._control.recv(ANSWER_MAX)
        except OSError:
            packet = b""
        if not packet:
            self._hang_up_and_kill()
            return
        if not self._greeted:
            self._read_greeting(packet)
            return
        serial, pid = spawner.BIRTH.unpack(packet)
        self._silent_looks = 0
        self._asked.discard(serial)
        if pid > 0:
            self._handlers.forked(serial, pid)
        else:
            self._handlers.fork_failed(serial, os.strerror(-pid))
        self._handlers.room()

    def _read_greeting(self, packet: bytes) -> None:
        # Looked at after it has imported: an upgrade while it did so is seen, and half of it would be worse
        # than all.
        if not self._code.is_copied and not self._code.is_on_disk():
            log.warning(
                "guestServer was upgraded on disk: the new spawner gets the code of this guestServer instead"
            )
            self._hang_up_and_kill()
            return
        self._code.remove_copy()
        self._greeted = True
        self._handlers.greeted(json.loads(packet))
        self._handlers.room()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.after(self._settings.timeout / SILENT_LOOKS_MAX, self._look_for_answer)

    def _look_for_answer(self) -> None:
        """It is stuck while it answers nothing, not while many wait, nor while we do not read or run."""
        timer, self._timer = self._timer, None
        if not self._asked or self._control is None or timer is None:
            return
        on_time = time.monotonic() < timer.when + self._settings.timeout / SILENT_LOOKS_MAX
        # There is an answer that we have not read: it is we who are late.
        if _has_data(self._control, 0):
            self._silent_looks = 0
        elif on_time:
            self._silent_looks += 1
        if self._silent_looks <= SILENT_LOOKS_MAX:
            self._start_timer()
        else:
            log.error("the spawner did not answer in %g s: replacing it", self._settings.timeout)
            self.close()

    def _read_last_words(self, status: int) -> str:
        """The last line that the dead spawner wrote to stderr, Python's own reason; else how it ended."""
        try:
            lines = os.read(self._stderr, LAST_WORDS_MAX).decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        self._drop_stderr()
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:REASON_MAX] if said else "exit status %d" % os.waitstatus_to_exitcode(status)

    def _drop_stderr(self) -> None:
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    def _hang_up_and_kill(self) -> None:
        """Its reaping does the rest."""
        if self.pid:
            kill_process(self.pid)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.unwatch(self._control)
            self._control.close()
            self._control = None


def kill_process(pid: int) -> None:
    """SIGKILL to a process that may be gone."""
    assert pid > 0  # 0 is our own group
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _has_data(source: socket.socket, wait: float) -> bool:
    """Whether there is something to read, or the end, within `wait` s."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(wait * 1000))


def _pipe_for_last_words() -> Tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer
