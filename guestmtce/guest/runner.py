"""Scripts as the client sees them: one run, how it ended, and the runs for one purpose.

A script is a process of its own with a clean environment, `/` as its folder and no descriptors but 0 to 2. It
is never waited for, not even for its start. It has ended when its process has, whatever it left behind in the
background; when its time is up it is killed with all that it has started (`reaper`).
"""

import errno
import os
import signal
import time
from typing import Callable, List, NamedTuple, Optional

from guestmtce.common import NEVER
from guestmtce.guest import process
from guestmtce.guest.reaper import KILL_ORDER, Report, become_reaper, unpack
from guestmtce.wire import json_lines

REPORT_MAX = 4096  # bytes; a report is shorter
UNKILLABLE_AFTER = 1.0  # s; what is still there so long after it was killed waits for a disk
DYING_MAX = 2  # such scripts of one purpose
KILLED_MAX = 16  # scripts of one purpose that were killed and are still there
LEFT_MAX = 8  # scripts of notices that go on though nobody waits for them; of more the oldest is killed
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit statuses by which a shell says that it could not


class Ended(NamedTuple):
    """How a script ended: its exit status (negative: the signal), and the first line that it wrote.

    `killed`: by us, when its time was up. `error`: the errno for which it could not be executed, or 0.
    `adopts`: whether its reaper had the means to kill all that it started.
    """

    status: int
    line: str
    killed: bool
    error: int = 0
    adopts: bool = True

    @property
    def failed(self) -> bool:
        """Whether it came to no result: it was never a script, or crashed."""
        return self.killed or self.error != 0 or self.status < 0 or self.status in (NOT_EXECUTABLE, NOT_FOUND)

    @property
    def reason(self) -> str:
        """Why it says no, in words."""
        if self.killed:
            return "the script was killed: it did not end in time"
        if self.error:
            return os.strerror(self.error)
        if self.line:
            return self.line
        how = "was killed by signal %d" % -self.status if self.status < 0 else "exited %d" % self.status
        return "the script " + how


class Script:
    """One run of a script, and the reaper that runs it; raises OSError when no process can be made for it.

    `outlives_us`: it goes on when the client dies.
    """

    def __init__(self, arguments: List[str], outlives_us: bool = False) -> None:
        self._status: Optional[int] = None
        self.killed_at = NEVER
        # Read before the fork: the reaper compares it with its parent, which tells whether the client still
        # lives.
        client = 0 if outlives_us else os.getpid()
        self._report, report = os.pipe()
        try:
            self.pid = process.fork(lambda: become_reaper(arguments, report, client))
        except OSError:
            self.close()
            raise
        finally:
            os.close(report)
        os.set_blocking(self._report, False)

    def kill(self) -> None:
        """Have it killed with all that it has started, soon."""
        self.killed_at = time.monotonic()
        if self._status is None:
            # The reaper was not waited for yet, so its pid is no other process's.
            os.kill(self.pid, KILL_ORDER)

    def poll(self) -> Optional[int]:
        """The exit status of its reaper (negative: the signal), once that has ended."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                pid, status = self.pid, 0
            if pid:
                self._status = process.exit_status(status)
        return self._status

    def ended(self) -> Optional[Ended]:
        """How it ended, once it has."""
        status = self.poll()
        if status is None:
            return None
        report = self._read_report()
        if report is None:  # the reaper was killed, or came to nothing
            return Ended(status, "", False, 0 if status < 0 else errno.ECHILD)
        line = report.output.partition(b"\n")[0].decode("utf-8", "replace")
        return Ended(report.status, json_lines.clean_text(line.strip()), False, report.error, report.adopts)

    def _read_report(self) -> Optional[Report]:
        try:
            return unpack(os.read(self._report, REPORT_MAX))
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self._report)


class Runner:
    """Runs one script at a time for one purpose. `reap` is to be called on SIGCHLD."""

    def __init__(self, note_no_subreaper: Callable[[], None]) -> None:
        self._note_no_subreaper: Optional[Callable[[], None]] = note_no_subreaper  # called once
        self._script: Optional[Script] = None
        self._dying: List[Script] = []
        self._left: List[Script] = []
        self._done: Callable[[Ended], None] = lambda ended: None

    @property
    def runs(self) -> bool:
        """Whether a script runs that somebody waits for."""
        return self._script is not None

    def start(self, arguments: List[str], done: Callable[[Ended], None], outlives_us: bool = False) -> None:
        """Start a script; `done` is told how it ends. Raises OSError if no process can be made."""
        self.stop()
        self._dying = [script for script in self._dying if script.poll() is None]
        long_ago = time.monotonic() - UNKILLABLE_AFTER
        # A script that dies slowly is no evidence; one that is still there after UNKILLABLE_AFTER s is.
        stuck = sum(script.killed_at <= long_ago for script in self._dying)
        if stuck >= DYING_MAX or len(self._dying) >= KILLED_MAX:
            raise OSError(
                errno.EIO, "%d runs of it cannot be killed: they wait for a disk" % len(self._dying)
            )
        self._script = Script(arguments, outlives_us)
        self._done = done

    def expire(self) -> None:
        """Its time is up. One that cannot be killed at once, as it waits for a disk, is not waited for."""
        if self._script is not None:
            self.stop()
            self._done(Ended(-signal.SIGKILL, "", True))

    def reap(self) -> None:
        """A process has ended, perhaps ours."""
        self._dying = [script for script in self._dying if script.poll() is None]
        for script in [script for script in self._left if script.poll() is not None]:
            self._left.remove(script)
            script.close()
        # Its time may be up before it is reaped: `expire` has told of it then, and nobody is told twice.
        ended = self._script.ended() if self._script is not None else None
        if ended is not None and self._script is not None:
            self._script.close()
            self._script = None
            self._report_end(ended)

    def _report_end(self, ended: Ended) -> None:
        if not ended.adopts and self._note_no_subreaper is not None:
            self._note_no_subreaper()
            self._note_no_subreaper = None
        self._done(ended)

    def stop(self) -> None:
        """Kill the script, if one runs; nobody is told."""
        if self._script is not None:
            self._kill(self._script)
            self._script = None

    def leave(self) -> None:
        """Let the script go on to its end, if one runs; nobody is told."""
        if self._script is not None:
            # Not killed: a notice's script may be in the middle of a shutdown that the notice is for.
            self._left.append(self._script)
            self._script = None
        # The oldest: the notice that it is for is longest ago.
        if len(self._left) > LEFT_MAX:
            self._kill(self._left.pop(0))

    def _kill(self, script: Script) -> None:
        script.kill()
        script.close()
        self._dying.append(script)
