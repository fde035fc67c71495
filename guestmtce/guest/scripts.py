"""The user's scripts: run as processes of their own, and never waited for.

A script gets a clean environment, `/` as its folder, no descriptors but 0 to 2 and a process group of its
own, which is killed when its time is up. It has ended when its process has, whatever it left behind in the
background. Of its output (both streams) the first line counts, and the rest is read and thrown away.
"""

import os
import signal
import subprocess
import time
from typing import Callable, List, NamedTuple, Optional

from guestmtce.guest.ballot import ACCEPT, ERROR, REJECT
from guestmtce.guest.config import Config
from guestmtce.guest.endurance import become_ordinary
from guestmtce.guest.health import Illness
from guestmtce.guest.log import Log
from guestmtce.guest.loop import NEVER, Loop
from guestmtce.wire import channel

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
KEPT = 1024  # bytes of a script's output that are kept
CHUNK = 65536  # bytes read at once: a script that floods us gets one turn like everybody else
LAST_CHUNKS = 16  # read from a script that has ended; more is what it left behind in the background


class Ended(NamedTuple):
    """How a script ended: its exit status (negative: the signal), and the first line that it wrote."""

    status: int
    line: str
    killed: bool

    @property
    def reason(self) -> str:
        """Why it says no, in words."""
        if self.killed:
            return "the script was killed: it did not end in time"
        if self.line:
            return self.line
        how = "was killed by signal %d" % -self.status if self.status < 0 else "exited %d" % self.status
        return "the script " + how


class Script:
    """One run of a script; raises OSError when it cannot be started."""

    def __init__(self, arguments: List[str]) -> None:
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=become_ordinary,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._kept = b""

    def read(self) -> Optional[int]:
        """Take what it wrote: how many bytes. 0: there will be no more; None: nothing now."""
        try:
            data = os.read(self.output, CHUNK)
        except BlockingIOError:
            return None
        self._kept += data[: KEPT - len(self._kept)]
        return len(data)

    @property
    def line(self) -> str:
        """The first line that it wrote."""
        text = self._kept.partition(b"\n")[0].decode("utf-8", "replace")
        return channel.clean(text.strip())

    def kill(self) -> None:
        """Kill it and all of its process group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass  # it has ended

    def ended(self) -> Optional[Ended]:
        """How it ended, once it has."""
        status = self.process.poll()
        if status is None:
            return None
        for _ in range(LAST_CHUNKS):
            if not self.read():
                break
        return Ended(status, self.line, False)

    def close(self) -> None:
        """Give back the descriptor."""
        if self.process.stdout is not None:
            self.process.stdout.close()


class Runner:
    """Runs one script at a time for one purpose. `reap` is to be called on SIGCHLD."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._script: Optional[Script] = None
        self._dying: List[Script] = []
        self._done: Callable[[Ended], None] = lambda ended: None

    def start(self, arguments: List[str], done: Callable[[Ended], None]) -> None:
        """Start a script; `done` is told how it ends. Raises OSError."""
        self.stop()
        self._script = Script(arguments)
        self._done = done
        self._loop.watch(self._script.output, self._read)

    def expire(self) -> None:
        """Its time is up. One that cannot be killed at once, as it waits for a disk, is not waited for."""
        if self._script is not None:
            line = self._script.line
            self.stop()
            self._done(Ended(-signal.SIGKILL, line, True))

    def reap(self) -> None:
        """A process has ended, perhaps ours."""
        self._dying = [script for script in self._dying if script.process.poll() is None]
        ended = self._script.ended() if self._script is not None else None
        if ended is not None:
            self._forget()
            self._done(ended)

    def stop(self) -> None:
        """Kill the script, if one runs; nobody is told."""
        if self._script is not None:
            self._script.kill()
            self._dying.append(self._script)
            self._forget()

    def _read(self) -> None:
        if self._script is not None and self._script.read() == 0:
            self._loop.unwatch(self._script.output)

    def _forget(self) -> None:
        if self._script is not None:
            self._loop.unwatch(self._script.output)
            self._script.close()
            self._script = None


class HealthScript:
    """Runs the health script every `interval` s and tells how the guest feels: None is well.

    A script that hangs is killed when the next run is due, and that is an illness. One that cannot be
    started is a fault of the configuration, which no corrective action would cure: it is only logged, and
    what it said before counts no more.
    """

    def __init__(
        self, runner: Runner, config: Config, feel: Callable[[Optional[Illness]], None], log: Log
    ) -> None:
        self.deadline = time.monotonic() if config.health_check_script else NEVER
        self._runner = runner
        self._config = config
        self._feel = feel
        self._log = log

    def tick(self, now: float) -> None:
        """The next run is due."""
        interval = self._config.health_check_interval
        self.deadline = now + interval
        self._runner.expire()
        path = self._config.health_check_script
        try:
            self._runner.start([path], self._ended)
        except OSError as error:
            self._log("HEALTH_CHECK_SCRIPT %s cannot be started: %s" % (path, error.strerror), "check")
            self._feel(None)

    def _ended(self, ended: Ended) -> None:
        ill = ended.killed or ended.status != 0
        self._feel(Illness(self._config.corrective_action, ended.reason) if ill else None)


class EventScript:
    """Runs the event script for the open question and tells what it says: (question, result, reason)."""

    def __init__(self, runner: Runner, path: str, tell: Callable[[int, str, str], None], log: Log) -> None:
        self._runner = runner
        self._path = path
        self._tell = tell
        self._log = log
        self._number = 0

    def put(self, number: int, notification_type: str, event_type: str) -> None:
        """Ask the script. It may run until the question is withdrawn."""
        self._number = number
        try:
            self._runner.start([self._path, notification_type, event_type], self._ended)
        except OSError as error:
            text = "EVENT_NOTIFICATION_SCRIPT %s cannot be started: %s" % (self._path, error.strerror)
            self._log(text, "event")
            self._tell(number, ERROR, text)

    def _ended(self, ended: Ended) -> None:
        if ended.status == 0:
            self._tell(self._number, ACCEPT, ended.line)
        else:
            self._tell(self._number, REJECT, ended.reason)

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer to question `number` any more."""
        if number == self._number:
            self._runner.stop()
