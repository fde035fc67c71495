"""Going into the background, and the pid file: one guest client runs at a time."""

import os
import signal
from typing import Optional

from guestmtce.common import background, lock_file

MODE = 0o644
PID_DIGITS = 20  # read at most
STARTED = b"1"  # what the client says to the process that was started


class AlreadyRunning(Exception):
    """Another guest client has the pid file; the text names its pid."""


class PidFile:
    """A file with our pid, locked as long as we live. Raises OSError, AlreadyRunning.

    The lock is on the pid file itself, as deployed init scripts expect it; the daemons lock a file beside it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._descriptor = lock_file.open_locked(path, MODE)
        except lock_file.Held:
            raise AlreadyRunning("it runs already, with pid %s" % _read_pid(path)) from None

    def write(self) -> None:
        """Put our pid in; after going into the background, which keeps the lock. Raises OSError."""
        line = b"%d\n" % os.getpid()
        try:
            os.pwrite(self._descriptor, line, 0)  # over an old one: this needs no room
            os.ftruncate(self._descriptor, len(line))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None

    def write_if_possible(self) -> None:
        """The lock counts, and a file without a pid names nobody: no guest is lost for a full disk."""
        try:
            self.write()
        except OSError:
            pass

    def remove(self) -> None:
        """We end. A file that was cleaned away, or is another's by now, is not ours to remove."""
        if lock_file.is_at(self._descriptor, self._path):
            os.unlink(self._path)
        os.close(self._descriptor)


def _read_pid(path: str) -> str:
    """What stands in the pid file; its holder may have removed it meanwhile."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(PID_DIGITS).strip()
    except FileNotFoundError:
        return "?"


def go_background(pid_file: Optional[PidFile]) -> None:
    """Leave the terminal; the process that was started ends with status 0 once the pid file is written."""
    started = background.go_background(_await_start)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The daemon keeps no file system busy that somebody wants to unmount.
    os.chdir("/")
    if pid_file is not None:
        pid_file.write_if_possible()
    # After the pid file: an init script that has seen status 0 may read it at once.
    os.write(started, STARTED)
    os.close(started)


def _await_start(descriptor: int) -> int:
    """The exit status of the process that was started."""
    return 0 if os.read(descriptor, 1) else 1
