"""The log of the guest client: stderr, a file or syslog. A log that nobody reads costs lines, never time.

This does without the `logging` package, which would be a tenth of the client's memory.
"""

import os
import select
import socket
import sys
import time
from typing import Callable, Dict, Optional, Tuple

NAME = "guestClient"
SYSLOG_SOCKET = "/dev/log"
SYSLOG_INFO = b"<30>"  # facility daemon, severity info
TEXT_MAX = 400  # characters of a line
KEYS_MAX = 100  # subjects remembered at once


def printable(text: str) -> str:
    """`text` made harmless for a log: ASCII, no control characters, at most TEXT_MAX characters."""
    cut = text[:TEXT_MAX].encode("unicode_escape").decode("ascii")[:TEXT_MAX]
    return cut + ("..." if len(text) > len(cut) else "")


class Log:
    """Writes lines with `write`; of lines about the same thing one per `period` s."""

    def __init__(self, write: Callable[[str], None], period: float) -> None:
        self._write = write
        self._period = period
        self._said: Dict[str, Tuple[float, int]] = {}

    def __call__(self, text: str, about: str = "") -> None:
        """Log `text`; with `about`, at most one line about that in each period."""
        more = self._held_back(about) if about else 0
        if more is not None:
            self._write(printable(text) + (" (and %d more like it)" % more if more else ""))

    def _held_back(self, about: str) -> Optional[int]:
        """How many lines about this were held back; None: this one is to be held back too."""
        now = time.monotonic()
        last, more = self._said.get(about, (-self._period, 0))
        if now - last < self._period:
            self._said[about] = (last, more + 1)
            return None
        if len(self._said) >= KEYS_MAX:
            self._said.clear()
        self._said[about] = (now, 0)
        return more


def to_file(descriptor: int) -> Callable[[str], None]:
    """Writes lines with the time to a descriptor, unless it takes none at the moment."""
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)

    def write(text: str) -> None:
        line = "%s %s[%d] %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), NAME, os.getpid(), text)
        try:
            if ready.poll(0):
                os.write(descriptor, line.encode("ascii"))
        except OSError:
            pass

    return write


def to_syslog(text: str) -> None:
    """Sends a line to syslog; a connection of its own each time survives a syslog that restarts."""
    line = "%s[%d]: %s" % (NAME, os.getpid(), text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.setblocking(False)
        try:
            link.sendto(SYSLOG_INFO + line.encode("ascii"), SYSLOG_SOCKET)
        except OSError:
            pass


def open_log(foreground: bool, path: str, period: float) -> Log:
    """The log in the file `path`, or on stderr in the foreground, or in syslog. Raises OSError."""
    if path:
        return Log(to_file(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)), period)
    return Log(to_file(sys.stderr.fileno()) if foreground else to_syslog, period)
