"""The user's scripts: run as processes of their own, and never waited for, not even for their start.

A script gets a clean environment, `/` as its folder, no descriptors but 0 to 2 and a process group of its
own, which is killed when its time is up. It has ended when its process has, whatever it left behind in the
background. Of its output (both streams) the first line counts, and the rest is read and thrown away.
"""

import errno
import fcntl
import os
import select
import signal
import time
from typing import Callable, List, NamedTuple, Optional

from guestmtce.guest import process
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
UNKILLABLE_AFTER = 1.0  # s; a script that is still there so long after it was killed waits for a disk
DYING_MAX = 2  # such scripts of one purpose
KILLED_MAX = 16  # scripts of one purpose that were killed and are still there
LEFT_MAX = 8  # scripts of notices that go on though nobody waits for them; of more the oldest is killed
LOOK_PERIOD = 0.25  # s; while the health script runs we look so often whether we stood still
STALL = 0.1  # s; a look that is later than that was missed by us
# Why no process can be made, or become a script, in a guest that is not well. All else is a fault of the
# configuration, for which nobody is rebooted.
GUEST_IS_ILL = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit statuses by which a shell says that it could not


class Ended(NamedTuple):
    """How a script ended: its exit status (negative: the signal), and the first line that it wrote.

    `killed`: by us, when its time was up. `error`: the errno for which it could not be executed, or 0.
    """

    status: int
    line: str
    killed: bool
    error: int = 0

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
    """One run of a script; raises OSError when no process can be made for it."""

    def __init__(self, arguments: List[str]) -> None:
        self._kept = b""
        self._status: Optional[int] = None
        self.killed_at = NEVER
        self.output, output = os.pipe()
        try:
            self._trouble, trouble = os.pipe()
        except OSError:
            os.close(self.output)
            os.close(output)
            raise
        try:
            self.pid = process.fork(lambda: _become(arguments, output, trouble))
        except OSError:
            self.close()
            raise
        finally:
            os.close(output)
            os.close(trouble)
        os.set_blocking(self.output, False)
        os.set_blocking(self._trouble, False)

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
        """Kill it, all of its process group, and those that have left that for another session."""
        self.killed_at = time.monotonic()
        others = process.descendants(self.pid)
        for kill in (os.killpg, os.kill):  # it has no group of its own before it runs
            _try(kill, self.pid)
        for pid in others:
            _try(os.kill, pid)

    def poll(self) -> Optional[int]:
        """Its exit status (negative: the signal), once it has ended."""
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
        for _ in range(LAST_CHUNKS):
            if not self.read():
                break
        return Ended(status, self.line, False, self._error())

    def _error(self) -> int:
        try:
            return int(os.read(self._trouble, 16) or b"0")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Give back the descriptors."""
        os.close(self.output)
        os.close(self._trouble)


def _try(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended


def _become(arguments: List[str], output: int, trouble: int) -> None:
    """The new process becomes the script, or says why not."""
    trouble = fcntl.fcntl(trouble, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        process.rename("guestClient-run")
        process.reset_ignored_signals()
        become_ordinary()
        os.setsid()
        os.chdir("/")
        null, output = os.open(os.devnull, os.O_RDONLY), _open_for_good(output)
        for standard, source in ((0, null), (1, output), (2, output)):
            os.dup2(source, standard)
        process.close_others({0, 1, 2, trouble})
        os.execve(arguments[0], arguments, ENVIRONMENT)
    except OSError as error:
        os.write(trouble, b"%d" % (error.errno or errno.EIO))


def _open_for_good(output: int) -> int:
    """The pipe in a way that a script which outlives us can write to."""
    try:
        return os.open("/proc/self/fd/%d" % output, os.O_RDWR)
    except OSError:
        return output


class Runner:
    """Runs one script at a time for one purpose. `reap` is to be called on SIGCHLD."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._script: Optional[Script] = None
        self._dying: List[Script] = []
        self._left: List[Script] = []
        self._done: Callable[[Ended], None] = lambda ended: None

    @property
    def runs(self) -> bool:
        """Whether a script runs that somebody waits for."""
        return self._script is not None

    def start(self, arguments: List[str], done: Callable[[Ended], None]) -> None:
        """Start a script; `done` is told how it ends. Raises OSError if no process can be made."""
        self.stop()
        self._dying = [script for script in self._dying if script.poll() is None]
        long_ago = time.monotonic() - UNKILLABLE_AFTER
        stuck = sum(script.killed_at <= long_ago for script in self._dying)
        if stuck >= DYING_MAX or len(self._dying) >= KILLED_MAX:
            raise OSError(
                errno.EIO, "%d runs of it cannot be killed: they wait for a disk" % len(self._dying)
            )
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
        self._dying = [script for script in self._dying if script.poll() is None]
        for script in [one for one in self._left if one.poll() is not None]:
            self._end_left(script)
        ended = self._script.ended() if self._script is not None else None
        if ended is not None and self._script is not None:
            self._forget(self._script)
            self._script = None
            self._done(ended)

    def stop(self) -> None:
        """Kill the script, if one runs; nobody is told."""
        if self._script is not None:
            self._script.kill()
            self._dying.append(self._script)
            self._forget(self._script)
            self._script = None

    def leave(self) -> None:
        """Let the script go on to its end, if one runs; nobody is told."""
        if self._script is not None:
            script, self._script = self._script, None
            self._left.append(script)
            self._loop.watch(script.output, lambda: self._read_left(script))
        if len(self._left) > LEFT_MAX:
            oldest = self._left[0]
            oldest.kill()
            self._dying.append(oldest)
            self._end_left(oldest)

    def close(self) -> None:
        """We end. A process that stays reads what a notice's script says: it would wait else."""
        self.stop()
        outputs = [script.output for script in self._left]
        if outputs:
            try:
                process.fork(lambda: _read_to_the_end(outputs))
            except OSError:
                pass  # it has the room of a pipe

    def _read(self) -> None:
        if self._script is not None and self._script.read() == 0:
            self._loop.unwatch(self._script.output)

    def _read_left(self, script: Script) -> None:
        if script.read() == 0:
            self._loop.unwatch(script.output)

    def _end_left(self, script: Script) -> None:
        self._left.remove(script)
        self._forget(script)

    def _forget(self, script: Script) -> None:
        self._loop.unwatch(script.output)
        script.close()


def _read_to_the_end(outputs: List[int]) -> None:
    """All that comes from there, by a process of its own, which ends with the last of the writers."""
    process.rename("guestClient-run")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    process.close_others(set(outputs))
    left = list(outputs)
    while left:
        for output in select.select(left, [], [])[0]:
            if not os.read(output, CHUNK):
                left.remove(output)
    os._exit(0)


class HealthScript:
    """Runs the health script every `interval` s and tells how the guest feels: None is well.

    A script that hangs is killed when the next run is due, and that is an illness; time in which we stood
    still is not counted. So is one for which no process can be made: a guest that cannot fork is not well.
    One that cannot be executed is a fault of the configuration, which no corrective action would cure: it is
    only logged, and what it said before counts no more.
    """

    def __init__(
        self, runner: Runner, config: Config, feel: Callable[[Optional[Illness]], None], log: Log
    ) -> None:
        self._due = time.monotonic() if config.health_check_script else NEVER  # the next run
        self._looked_at = 0.0
        self._runner = runner
        self._config = config
        self._feel = feel
        self._log = log

    @property
    def deadline(self) -> float:
        """When to look next."""
        return min(self._due, self._looked_at + LOOK_PERIOD) if self._runner.runs else self._due

    def configure(self, config: Config) -> None:
        """From now on this configuration counts: another script runs at once, and none says nothing more.

        A run of the same script goes on to its end: it is not late because the configuration was read.
        """
        before, self._config = self._config, config
        if before.health_check_script != config.health_check_script:
            self._runner.stop()
        if not config.health_check_script:
            self._due = NEVER
            self._feel(None)
        elif before != config and not self._runner.runs:
            self._due = time.monotonic()

    def tick(self, now: float) -> None:
        """The next run is due, or it is time to see whether we, and perhaps the script, stood still."""
        if self._runner.runs:
            late = now - self._looked_at - LOOK_PERIOD
            if late > STALL:
                self._due += late
        self._looked_at = now
        if now >= self._due:
            self._run(now)

    def _run(self, now: float) -> None:
        self._due = now + self._config.health_check_interval
        self._runner.expire()
        try:
            self._runner.start([self._config.health_check_script], self._ended)
        except OSError as error:
            self._not_started(error.errno or errno.EIO, str(error.strerror))

    def _not_started(self, number: int, why: str) -> None:
        if number in GUEST_IS_ILL:
            self._tell_ill("cannot start the health script: " + why)
        else:
            path = self._config.health_check_script
            self._log("HEALTH_CHECK_SCRIPT %s cannot be started: %s" % (path, why), "check")
            self._feel(None)

    def _ended(self, ended: Ended) -> None:
        if ended.error:
            self._not_started(ended.error, ended.reason)
        elif ended.killed or ended.status != 0:
            self._tell_ill(ended.reason)
        else:
            self._feel(None)

    def _tell_ill(self, reason: str) -> None:
        self._feel(Illness(self._config.corrective_action, reason))


class EventScript:
    """Runs the event script for the open question and tells what it says: (question, result, reason).

    Exit status 0 agrees, any other up to 125 rejects. What has crashed, was not found or cannot be executed
    has said nothing: that is an error, and no veto.
    """

    def __init__(self, runner: Runner, path: str, tell: Callable[[int, str, str], None], log: Log) -> None:
        self._runner = runner
        self._path = path
        self._tell = tell
        self._log = log
        self._number = 0
        self._is_notice = False

    def put(self, number: int, notification_type: str, event_type: str) -> None:
        """Ask the script. It may run until the question is withdrawn."""
        self._number = number
        self._is_notice = notification_type == channel.NOTICE
        try:
            self._runner.start([self._path, notification_type, event_type], self._ended)
        except OSError as error:
            self._tell_error(str(error.strerror))

    def _ended(self, ended: Ended) -> None:
        if ended.error:
            self._tell_error(ended.reason)
        elif ended.failed:
            self._log("EVENT_NOTIFICATION_SCRIPT %s failed: %s" % (self._path, ended.reason), "event")
            self._tell(self._number, ERROR, ended.reason)
        elif ended.status == 0:
            self._tell(self._number, ACCEPT, ended.line)
        else:
            self._tell(self._number, REJECT, ended.reason)

    def _tell_error(self, why: str) -> None:
        text = "EVENT_NOTIFICATION_SCRIPT %s cannot be started: %s" % (self._path, why)
        self._log(text, "event")
        self._tell(self._number, ERROR, text)

    def configure(self, path: str) -> None:
        """The next question is put to this script."""
        self._path = path

    def withdraw(self, number: int, expired: bool) -> None:
        """Nobody waits for the answer to question `number` any more.

        A notice's script is in the middle of what the notice is for, and goes on, unless its time is up.
        """
        if number != self._number:
            return
        if self._is_notice and not expired:
            self._runner.leave()
        else:
            self._runner.stop()
