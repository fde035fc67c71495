"""Logging for both daemons: syslog LOCAL5 under the daemon's exact name, or stderr in the foreground.

Text that came from a guest or from the network passes through `printable` before it is logged, and what
somebody else can provoke is logged through a `Throttle`, so that nobody forges lines or fills the disk.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import List

from guestmtce.common import throttle
from guestmtce.common.log_line import LogLine
from guestmtce.common.log_line import printable as printable  # most who log need both
from guestmtce.daemon import log_writer

SYSLOG_SOCKET = "/dev/log"
THROTTLE_PERIOD = 10.0  # s between two lines about the same thing
THROTTLE_SUBJECTS = 4096  # remembered at once


class Throttle:
    """Lets one line per subject and period pass, and tells how many it held back since."""

    def __init__(self, logger: logging.Logger, period: float = THROTTLE_PERIOD) -> None:
        self._logger = logger
        self._throttle = throttle.Throttle(period, THROTTLE_SUBJECTS)

    def warning(self, subject: str, text: str, *values: object) -> None:
        """Log a warning about `subject` unless one was logged within the period."""
        self.write(LogLine(logging.WARNING, text, values, subject))

    def write(self, line: LogLine) -> None:
        """Log a line, if its subject is not held back. Strings among its values are made printable."""
        held_back = self._throttle.admit(line.subject, time.monotonic()) if line.subject else 0
        if held_back is None:
            return
        # Numbers stay numbers: the format may say %d or %.1f.
        safe = tuple(
            printable(value) if isinstance(value, (str, Exception)) else value for value in line.values
        )
        more = " (and %d more like it)" % held_back if held_back else ""
        self._logger.log(line.level, line.text + more, *safe)


def set_up(name: str, foreground: bool, to_file: bool, log_dir: str, level: int) -> None:
    """Send this process's log to stderr, or to syslog, or (asked, or without syslog) to `log_dir`/`name`.log.

    Where stderr is systemd's journal, each line has its level, and the journal's time stamp is the only one.
    Nobody who logs waits for any of them (see `log_writer`). Raises OSError.
    """
    form = "%(asctime)s " + name + " %(levelname)s %(message)s"
    if foreground and log_writer.is_journal(sys.stderr.fileno()):
        handler = log_writer.Handler(log_writer.to_journal)
        form = "%(levelname)s %(message)s"
    elif foreground:
        handler = log_writer.Handler(log_writer.to_stderr)
    elif os.path.exists(SYSLOG_SOCKET) and not to_file:
        handler = log_writer.Handler(log_writer.to_syslog(SYSLOG_SOCKET, name))
        form = "%(levelname)s %(message)s"
    else:
        path = os.path.join(log_dir, name + ".log")
        handler = log_writer.Handler(lambda: log_writer.to_file(path))
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    # A reload or a test sets up again: each line must come once.
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, log_writer.Handler):
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
    # Else `logging` prints its own failures to stderr, which may be nobody's.
    logging.raiseExceptions = False


def set_level(level: int) -> None:
    """Log what is of this level, and above."""
    logging.getLogger().setLevel(level)


def lost() -> int:
    """How many lines of this process's log were lost."""
    return sum(handler.lost for handler in _handlers())


def flush(seconds: float) -> None:
    """Let what was logged be written, for so long at most."""
    for handler in _handlers():
        handler.flush(seconds)


def _handlers() -> List[log_writer.Handler]:
    return [each for each in logging.getLogger().handlers if isinstance(each, log_writer.Handler)]
