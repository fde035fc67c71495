"""The pid file: one daemon of a name at a time (spec 4, "Being supervised").

The pid file itself is written atomically. Who may write it is settled by a lock on a file beside it,
which the kernel releases however the holder ends.
"""

from __future__ import annotations

import fcntl
import os
from typing import Optional

from guestmtce.daemon import files


class AlreadyRunning(Exception):
    """Another process of the name runs; `str()` of it is its pid or `?`."""


class PidFile:
    """`claim` before anything slow; `release` at the end."""

    def __init__(self, run_dir: str, name: str) -> None:
        self.path = os.path.join(run_dir, name + ".pid")
        self._name = name
        self._lock_path = os.path.join(run_dir, name + ".lock")
        self._lock: Optional[int] = None

    def claim(self) -> None:
        """Make this process the one. Takes a stale file over. Raises AlreadyRunning, OSError."""
        lock = self._open_lock()
        other = self.read()
        if other is not None and other != os.getpid() and _title(other) == self._name:
            os.close(lock)  # a daemon of this name that knows no lock: an old one
            raise AlreadyRunning(str(other))
        self._lock = lock

    def _open_lock(self) -> int:
        """The lock file's descriptor, locked. The file may be removed by its last holder as we open it."""
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise AlreadyRunning(str(self.read() or "?")) from None
            try:
                if os.path.samestat(os.fstat(lock), os.stat(self._lock_path)):
                    return lock
            except FileNotFoundError:
                pass
            os.close(lock)

    def write(self) -> None:
        """Write this process's pid. Raises OSError."""
        files.write_atomically(self.path, "%d\n" % os.getpid())

    def read(self) -> Optional[int]:
        """The pid in the file, if there is one."""
        try:
            with open(self.path, encoding="ascii") as file:
                return int(file.read(32))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Remove the file, if it is ours."""
        if self._lock is not None:
            if self.read() == os.getpid():
                files.remove(self.path)
            files.remove(self._lock_path)
            os.close(self._lock)
            self._lock = None


def _title(pid: int) -> str:
    try:
        with open("/proc/%d/cmdline" % pid, encoding="utf-8", errors="replace") as file:
            return os.path.basename(file.read(256).split("\0")[0])
    except OSError:
        return ""
