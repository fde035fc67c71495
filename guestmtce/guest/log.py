"""The log of the guest client: stderr, a file or syslog. A log that nobody reads costs lines, never time.

This does without the `logging` package, which would be a tenth of the client's memory.
"""

import errno
import os
import select
import socket
import stat
import sys
import time
from typing import Callable

from guestmtce.common.log_line import LogLine
from guestmtce.common.throttle import Throttle
from guestmtce.guest.errand import Errand
from guestmtce.guest.log_text import printable
from guestmtce.guest.writer import FileWriter, keep_open

NAME = "guestClient"
SYSLOG_SOCKET = "/dev/log"
SYSLOG_INFO = b"<30>"  # facility daemon, severity info
OPEN_WAIT = 0.25  # s; a file system that takes longer to tell of a file stands still
LOCAL_TIME = ":/etc/localtime"  # the C library's own default, spelt out
SUBJECTS_MAX = 100  # remembered at once


class Log:
    """Writes lines with `write`; of lines about the same subject one per `period` s.

    A `write` that raises an OSError has lost its line. The next line that gets through says how many.
    """

    def __init__(
        self, write: Callable[[str], None], period: float, close: Callable[[], None] = lambda: None
    ) -> None:
        self.close = close  # no more lines come
        self._write = write
        self._throttle = Throttle(period, SUBJECTS_MAX)
        self._lost = 0

    def write(self, line: LogLine) -> None:
        """Log what a pure module wants logged."""
        self(line.text % line.values, line.subject)

    def __call__(self, text: str, subject: str = "") -> None:
        """Log `text`; with a `subject`, at most one line about that in each period."""
        held_back = self._throttle.admit(subject, time.monotonic()) if subject else 0
        if held_back is None:
            return
        # Escaped here, once and for all callers: text of the host, of scripts and of processes forges no
        # line.
        line = printable(text) + (" (and %d more like it)" % held_back if held_back else "")
        if self._lost:
            line += " (%d lines before it were lost)" % self._lost
        try:
            self._write(line)
            self._lost = 0
        except OSError:
            self._lost += 1


def log_to(descriptor: int, period: float) -> Log:
    """Lines with the time go to a descriptor; one is lost that it does not take at the moment.

    A file's file system may stand still and says nothing of that before: a process of its own writes to it.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return _file_log(keep_open(descriptor), period)
    return Log(_with_time(_to_stream(descriptor)), period)


def _file_log(open_file: Callable[[], int], period: float) -> Log:
    writer = FileWriter(open_file)
    return Log(_with_time(writer.write), period, writer.close)


def _with_time(put: Callable[[bytes], None]) -> Callable[[str], None]:
    def write(text: str) -> None:
        line = "%s %s[%d] %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), NAME, os.getpid(), text)
        put(line.encode("ascii"))

    return write


def _to_stream(descriptor: int) -> Callable[[bytes], None]:
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)

    def write(line: bytes) -> None:
        # poll, not O_NONBLOCK: stderr is shared with whoever started this, and so are its flags.
        if not ready.poll(0) or os.write(descriptor, line) < len(line):
            raise BlockingIOError

    return write


def to_syslog(text: str) -> None:
    """Sends a line to syslog; a connection of its own each time survives a syslog that restarts.

    Raises OSError for one that is lost.
    """
    line = SYSLOG_INFO + ("%s[%d]: %s" % (NAME, os.getpid(), text)).encode("ascii")
    try:
        _send(socket.SOCK_DGRAM, line)
    except OSError as error:
        # EPROTOTYPE: the syslog daemon listens on a stream socket.
        if error.errno != errno.EPROTOTYPE:
            raise
        _send(socket.SOCK_STREAM, line + b"\0")


def _send(kind: int, message: bytes) -> None:
    """At once, or not at all. Raises OSError."""
    with socket.socket(socket.AF_UNIX, kind) as link:
        link.setblocking(False)
        link.connect(SYSLOG_SOCKET)
        if link.send(message) < len(message):
            raise BlockingIOError


def _is_file(path: str) -> bool:
    """Whether it is, or may become, a file that we may write to; or its file system stands still."""
    try:
        errand = Errand(lambda: b"yes" if _may_be_written(path) else b"no")
    except OSError:
        return _may_be_written(path)
    try:
        return not errand.wait(OPEN_WAIT) or errand.result() == b"yes"
    finally:
        errand.close()


def _may_be_written(path: str) -> bool:
    """Raises OSError; waits for the file system."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.W_OK)
    except FileNotFoundError:
        return os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK)


def keep_time_zone() -> None:
    """Read the time zone once. The C library looks at /etc/localtime with every line else, and may wait."""
    os.environ.setdefault("TZ", LOCAL_TIME)
    time.tzset()


def open_log(foreground: bool, path: str, period: float) -> Log:
    """The log in the file `path`, or on stderr in the foreground, or in syslog. Raises OSError."""
    if path:
        # O_NONBLOCK: a pipe that nobody reads is refused, and not waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
        if not _is_file(path):
            return log_to(os.open(path, flags, 0o640), period)
        # To open it, or make it, may take as long as its file system stands still.
        return _file_log(lambda: os.open(path, flags, 0o640), period)
    return log_to(sys.stderr.fileno(), period) if foreground else Log(to_syslog, period)
