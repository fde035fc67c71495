"""Writes the log's lines to a file by a process of its own: a file system may stand still, and we may not.

The process gets its lines through a pipe, and ends when that does. A line for which the pipe has no room, as
the file system takes none, is lost, and the log counts it. A writer that was killed is replaced with the next
line.
"""

import fcntl
import os
import time
from typing import Callable, Optional

from guestmtce.guest import process

CHUNK = 65536  # bytes, a whole pipe
CLOSE_WAIT = 0.2  # s


def keep_open(descriptor: int) -> Callable[[], int]:
    """For a FileWriter: an open file, kept beyond the standard ones, which the background replaces."""
    kept = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    return lambda: kept


class FileWriter:
    """`write` gives a line to the process that writes to what `open_file` opens, in that process."""

    def __init__(self, open_file: Callable[[], int]) -> None:
        self.pid = 0
        self._open_file = open_file
        self._pipe: Optional[int] = None

    def write(self, line: bytes) -> None:
        """Raises OSError for a line that is lost."""
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            # A line of at most PIPE_BUF bytes is written whole or not at all (pipe(7)).
            if os.write(self._pipe, line) < len(line):
                raise BlockingIOError
        except BrokenPipeError:  # it was killed
            self._end()
            raise

    def close(self) -> None:
        """No more lines come. The process has a moment for the last ones; it goes on if that is too short."""
        pid, self.pid = self.pid, 0
        self._end()
        until = time.monotonic() + CLOSE_WAIT
        while pid and time.monotonic() < until:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return  # its parent was the process that has gone into the background
            time.sleep(0.005)

    def _start(self) -> None:
        lines, self._pipe = os.pipe()
        # Only our end: the process may wait for its lines.
        os.set_blocking(self._pipe, False)
        try:
            self.pid = process.fork(lambda: _write_all(lines, self._open_file))
        except OSError:
            self._end()
            raise
        finally:
            os.close(lines)

    def _end(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self.pid:
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # its parent was the process that has gone into the background
            self.pid = 0


def _write_all(lines: int, open_file: Callable[[], int]) -> None:
    process.ignore_unwanted_signals()  # whoever ends the client wants its last lines
    os.setsid()
    process.rename("guestClient-log")
    descriptor = open_file()
    process.close_others({lines, descriptor})
    while True:
        data = os.read(lines, CHUNK)
        if not data:
            os._exit(0)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            pass  # a full disk: these are lost, and nobody could be told
