"""Logging for both daemons: syslog LOCAL5 under the daemon's exact name, or stderr in the foreground.

Text that came from a guest or from the network passes through `printable` before it is logged, and what
somebody else can provoke is logged through a `Throttle`, so that nobody forges lines or fills the disk.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Dict, List, Tuple

from guestmtce.daemon import log_writer

SYSLOG_SOCKET = "/dev/log"
TEXT_MAX = 200  # characters of foreign text in a line
THROTTLE_PERIOD = 10.0  # s between two lines about the same thing
THROTTLE_KEYS = 4096  # things remembered at once


def printable(text: object, limit: int = TEXT_MAX) -> str:
    """Foreign text made harmless for a log: ASCII, no control characters, at most `limit` characters."""
    words = str(text)
    cut = words[:limit].encode("unicode_escape").decode("ascii")
    return cut[:limit] + ("..." if len(words) > limit or len(cut) > limit else "")


class Throttle:
    """Lets one line per key and period pass, and tells how many it held back since."""

    def __init__(self, logger: logging.Logger, period: float = THROTTLE_PERIOD) -> None:
        self.held_back = 0
        self._logger = logger
        self._period = period
        self._keys: Dict[str, Tuple[float, int]] = {}

    def warning(self, key: str, text: str, *values: object) -> None:
        """Log a warning about `key` unless one was logged within the period. Strings are made printable."""
        now = time.monotonic()
        last, more = self._keys.get(key, (-self._period, 0))
        if now - last < self._period:
            self._keys[key] = (last, more + 1)
            self.held_back += 1
            return
        if len(self._keys) >= THROTTLE_KEYS:
            self._keys.clear()
        self._keys[key] = (now, 0)
        safe = tuple(printable(value) if isinstance(value, (str, Exception)) else value for value in values)
        self._logger.warning(text + (" (and %d more like it)" % more if more else ""), *safe)


def set_up(name: str, foreground: bool, to_file: bool, log_dir: str, level: int) -> None:
    """Send this process's log to stderr, or to syslog, or (asked, or without syslog) to `log_dir`/`name`.log.

    Where stderr is systemd's journal, each line has its level, and the journal's time stamp is the only one.
    Nobody who logs waits for any of them (see `logwriter`). Raises OSError.
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
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, log_writer.Handler):
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
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
