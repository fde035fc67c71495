"""The master's side of the spawner: its process, what is asked of it, and its replacement.

A few requests are with the spawner at any moment (`has_room`): what its socket holds is little (278 requests,
measured), and thousands of guests may want their children at once. A spawner that answers nothing for too
long, or ends, is replaced; who waited for it is told that it failed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Set

import setproctitle

import guestmtce
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.server import confine, reports, spawner

log = logging.getLogger(__name__)

# What the dynamic linker binds late, it would bind in every child anew.
ENVIRONMENT = {"LANG": "C.UTF-8", "LD_BIND_NOW": "1"}
ANSWER_MAX = 4096  # bytes
RESPAWN_FIRST = 0.05  # s until a dead spawner is replaced; doubles while replacements die young
RESPAWN_MAX = 5.0
SETTLED = 10.0  # s after which a spawner counts as sound
IN_FLIGHT_MAX = 32  # requests that the spawner has and has not answered


class Handlers(NamedTuple):
    """Whom to tell: what the spawner said of itself, a birth (serial, pid), a fork that failed (serial, why),
    that all requests have failed, and that there is room for more.
    """

    greeted: Callable[[Any], None]
    born: Callable[[int, int], None]
    unborn: Callable[[int, str], None]
    failed: Callable[[], None]
    room: Callable[[], None]


class SpawnerLink:
    """See the module's text. `timeout` is in s."""

    def __init__(
        self,
        loop: Loop,
        settings: reports.Settings,
        identity: Optional[confine.Identity],
        timeout: float,
        handlers: Handlers,
    ) -> None:
        self.pid = 0  # 0: there is none at the moment
        self.started = 0
        self._loop = loop
        self._settings = settings
        self._identity = identity or confine.Identity(-1, -1)
        self._timeout = timeout
        self._handlers = handlers
        self._control: Optional[socket.socket] = None
        self._asked: Set[int] = set()
        self._greeted = False
        self._heard = 0.0  # when it last answered, or was first asked
        self._since = 0.0
        self._respawn_delay = RESPAWN_FIRST
        self._timer: Optional[Timer] = None

    def open(self) -> None:
        """Start a spawner. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.pid = self._start(theirs)
        except OSError:
            ours.close()
            raise
        self._greeted = False
        self._since = time.monotonic()
        self.started += 1
        ours.setblocking(False)
        self._control = ours
        self._loop.watch(ours, self.read)

    def _start(self, theirs: socket.socket) -> int:
        os.set_inheritable(theirs.fileno(), True)
        arguments = [sys.executable, "-I", "-S", "-OO", "-c", spawner.BOOT, import_path()]
        arguments += [str(theirs.fileno()), str(os.getpid()), *map(str, self._identity)]
        arguments += [json.dumps(vars(self._settings))]
        return os.posix_spawn(sys.executable, arguments, ENVIRONMENT)

    def close(self) -> None:
        """End it; who waits for it is told that it failed."""
        self._hang_up()
        if self.pid:
            kill(self.pid)
        self._asked.clear()
        self._handlers.failed()

    def ended(self) -> None:
        """It was reaped."""
        self.pid = 0
        if not self._loop.running:
            return
        log.error("the spawner ended: replacing it")
        self.close()
        if time.monotonic() - self._since > SETTLED:
            self._respawn_delay = RESPAWN_FIRST
        self._replace_later()

    def _replace_later(self) -> None:
        self._loop.after(self._respawn_delay, self._replace)
        self._respawn_delay = min(2 * self._respawn_delay, RESPAWN_MAX)

    def _replace(self) -> None:
        try:
            self.open()
        except OSError as error:
            log.error("cannot start a spawner, trying again: %s", error)
            self._replace_later()

    # --- requests ----------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether it can be asked for one more child."""
        return self._control is not None and len(self._asked) < IN_FLIGHT_MAX

    def ask(self, serial: int, packet: bytes, descriptors: Sequence[int]) -> None:
        """Have a child forked: `spawner.request`, with its socket and its pipe. Raises OSError."""
        if self._control is None:
            raise OSError("there is no spawner at the moment")
        socket.send_fds(self._control, [packet], descriptors)
        if not self._asked:
            self._heard = time.monotonic()
        self._asked.add(serial)
        self._watch_time()

    # --- answers -----------------------------------------------------------------------------------

    def read(self) -> None:
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
            self._greeted = True
            self._handlers.greeted(json.loads(packet))
            self._handlers.room()
            return
        serial, pid = spawner.BORN.unpack(packet)
        self._heard = time.monotonic()
        self._asked.discard(serial)
        if pid > 0:
            self._handlers.born(serial, pid)
        else:
            self._handlers.unborn(serial, os.strerror(-pid))
        self._handlers.room()

    def _watch_time(self) -> None:
        if self._timer is None:
            self._timer = self._loop.at(self._heard + self._timeout, self._check)

    def _check(self) -> None:
        """It is stuck while it answers nothing, not while many wait."""
        self._timer = None
        if not self._asked:
            return
        if time.monotonic() < self._heard + self._timeout:
            self._watch_time()
        else:
            log.error("the spawner did not answer in %g s: replacing it", self._timeout)
            self.close()

    def _hang_up_and_kill(self) -> None:
        """Its reaping does the rest."""
        if self.pid:
            kill(self.pid)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.unwatch(self._control)
            self._control.close()
            self._control = None


def kill(pid: int) -> None:
    """SIGKILL to a process that may be gone."""
    assert pid > 0  # 0 is our own group
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def import_path() -> str:
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
