"""Going into the background, and the pid file: one guest client runs at a time."""

import fcntl
import os
import signal
from typing import Optional

MODE = 0o644


class AlreadyRunning(Exception):
    """Another guest client has the pid file; the text names its pid."""


class PidFile:
    """A file with our pid, locked as long as we live. Raises OSError, AlreadyRunning."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise AlreadyRunning("it runs already, with pid %s" % pid) from None

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
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                os.unlink(self._path)
        except FileNotFoundError:
            pass
        os.close(self._descriptor)


def go_background(pid_file: Optional[PidFile]) -> None:
    """Leave the terminal; the process that was started ends with status 0 once the pid file is written."""
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    if pid_file is not None:
        pid_file.write_if_possible()
    os.write(tell, b"1")
    os.close(tell)
