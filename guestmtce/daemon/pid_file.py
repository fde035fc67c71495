"""The pid file: one daemon of a name at a time (docs/protocol/4-host.md#pid-file).

The pid file itself is written atomically. Who may write it is settled by a lock on a file beside it,
which the kernel releases however the holder ends. Both are made again when somebody cleans them away.
"""

from __future__ import annotations

import os
from typing import Optional

from guestmtce.common import lock_file
from guestmtce.daemon import atomic_file

LOCK_MODE = 0o600


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
        try:
            self._refuse_other()
        except AlreadyRunning:
            os.close(lock)
            raise
        self._lock = lock

    def _refuse_other(self) -> None:
        """A daemon that knows no lock, as the one that this one replaces, is known by its title."""
        other = self.read()
        # The title tells a daemon from a process that has the pid of one that ended long ago.
        if other is not None and other != os.getpid() and _title(other) == self._name:
            raise AlreadyRunning(str(other))

    def _open_lock(self) -> int:
        """The lock file's descriptor, locked. Raises AlreadyRunning, OSError."""
        try:
            return lock_file.open_locked(self._lock_path, LOCK_MODE)
        except lock_file.Held:
            raise AlreadyRunning(str(self.read() or "?")) from None

    def write(self) -> None:
        """Write this process's pid. Raises OSError.

        On a full file system it goes over the pid of a daemon that was killed, if there is one.
        """
        atomic_file.write_or_overwrite(self.path, "%d\n" % os.getpid())

    def restore(self) -> bool:
        """Make the files again where they were cleaned away, and their folder; whether that was so.

        Raises OSError, and AlreadyRunning if another daemon of the name has started meanwhile.
        """
        if self._keeps_lock() and self.read() == os.getpid():
            return False
        # The run folder itself may have been cleaned away.
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        if not self._keeps_lock():
            lock = self._open_lock()
            # The old lock is on a file that has no name any more: nobody can meet it there.
            if self._lock is not None:
                os.close(self._lock)
            self._lock = lock
        self._refuse_other()
        self.write()
        return True

    def _keeps_lock(self) -> bool:
        """Whether the file at the lock's path is the one that we have locked."""
        return self._lock is not None and lock_file.is_at(self._lock, self._lock_path)

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
            # A pid file that somebody else has written since is that daemon's.
            if self.read() == os.getpid():
                atomic_file.remove(self.path)
            if self._keeps_lock():
                atomic_file.remove(self._lock_path)
            os.close(self._lock)
            self._lock = None


def _title(pid: int) -> str:
    try:
        with open("/proc/%d/cmdline" % pid, encoding="utf-8", errors="replace") as file:
            # A zombie has no command line: it is not running.
            return os.path.basename(file.read(256).split("\0")[0])
    except OSError:
        return ""
