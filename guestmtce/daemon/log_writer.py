"""A log that never waits: lines go into a queue, and a thread of their own writes them.

Whoever logs takes no lock that is held over a write: a syslog daemon that stands still, a terminal that is
stopped or a file on a server that hangs costs lines, and nothing else. Lines that the queue has no room for,
and those that could not be written, are counted, and the next line that gets through says how many they were.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import select
import socket
import stat
import sys
import threading
from typing import Any, Callable, NamedTuple, Optional, Union

LINES_MAX = 1000  # that wait to be written
PATIENCE = 5.0  # s for which a target may take nothing before a line for it is lost
OPEN_WAIT = 2.0  # s in which a target can say at the start that it cannot be used
END_WAIT = 0.2  # s that the last lines have to be written
FILE_MODE = 0o640
LOCAL5 = 21 << 3  # syslog(3)
SEVERITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
DEBUG_SEVERITY = 7

# Writes the text of one record of this level. Raises OSError if it, or a part of it, is lost.
Write = Callable[[int, str], None]


class _Line(NamedTuple):
    """`dropped`: how many lines before it had no room in the queue."""

    level: int
    text: str
    dropped: int


class Handler(logging.Handler):
    """Gives lines to the thread. `target` is called in it, and gives `write`; raises what `target` raises."""

    def __init__(self, target: Callable[[], Write]) -> None:
        super().__init__()
        self._dropped = self._failed = 0
        self._counting = threading.Lock()  # never held over a write
        self._queue: queue.SimpleQueue[Union[_Line, threading.Event, None]] = queue.SimpleQueue()
        self._error: Optional[OSError] = None
        # The target is opened in the thread: a file system that stands still does not hold up the start.
        opened = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(target, opened), name="log", daemon=True)
        self._thread.start()
        opened.wait(OPEN_WAIT)  # a target that needs longer is not waited for
        if self._error is not None:
            raise self._error

    @property
    def lost(self) -> int:
        """How many lines were lost."""
        return self._dropped + self._failed

    def handle(self, record: logging.LogRecord) -> bool:
        """`logging` would hold its lock here: this needs none."""
        # Several threads may be here at once and pass the bound by as many lines: no lock is worth that.
        if self._queue.qsize() < LINES_MAX:
            self._queue.put(_Line(record.levelno, self._text(record), self._dropped))
        else:
            with self._counting:
                self._dropped += 1
        return True

    def _text(self, record: logging.LogRecord) -> str:
        """The line's text. A caller does not fail because the values of its line do not fit the format."""
        try:
            return self.format(record)
        except Exception:  # noqa: BLE001 - whatever the values are, the line is only a line
            return "%s line %d: this line cannot be formatted: %r" % (
                record.pathname,
                record.lineno,
                record.msg,
            )

    def emit(self, record: logging.LogRecord) -> None:
        """As `handle`."""
        self.handle(record)

    def flush(self, seconds: float = END_WAIT) -> None:
        """Wait until what was logged has been written, for so long at most."""
        written = threading.Event()
        self._queue.put(written)
        # A thread that has ended, as its target failed at the start, would never set the event.
        if self._thread.is_alive():
            written.wait(seconds)

    def close(self) -> None:
        """What is in the queue is written still, if this process lives so long."""
        self._queue.put(None)
        super().close()

    def _run(self, target: Callable[[], Write], opened: threading.Event) -> None:
        try:
            write = target()
        except OSError as error:
            self._error = error
            return
        finally:
            opened.set()
        said = 0
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                # What was lost is told before the line that follows the gap, and where that fails, before the
                # next one.
                lost = item.dropped + self._failed
                if lost > said:
                    write(logging.WARNING, self._told_of_lost(lost - said))
                    said = lost
                write(item.level, item.text)
            except OSError:
                self._failed += 1

    def _told_of_lost(self, count: int) -> str:
        text = "%d lines of this log were lost before the next one"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)
        return self.format(record)


# --- targets ---------------------------------------------------------------------------------------


def _write_all(descriptor: int, text: str) -> None:
    data = (text + "\n").encode("utf-8", "replace")
    ready = select.poll()  # select() takes no descriptor above 1023
    ready.register(descriptor, select.POLLOUT)
    while data:
        # This thread may wait; the queue behind it fills up, and lines are counted as lost.
        if not ready.poll(PATIENCE * 1000):
            raise OSError(errno.EAGAIN, "nobody reads it")
        data = data[os.write(descriptor, data) :]


def to_stderr() -> Write:
    """A line to whatever stderr is."""
    descriptor = sys.stderr.fileno()
    return lambda _, text: _write_all(descriptor, text)


def is_journal(descriptor: int) -> bool:
    """Whether `descriptor` is the stream to the journal that systemd has opened for us (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        there = os.fstat(descriptor)
        return (int(device), int(inode)) == (there.st_dev, there.st_ino)
    except (OSError, ValueError):
        return False


def to_journal() -> Write:
    """A line to stderr that begins with its level (sd-daemon(3)), each line of a longer text, too."""
    descriptor = sys.stderr.fileno()

    def write(level: int, text: str) -> None:
        prefix = "<%d>" % _severity(level)
        _write_all(descriptor, "\n".join(prefix + line for line in text.splitlines()))

    return write


def _severity(level: int) -> int:
    """That of syslog(3)."""
    return next((severity for least, severity in SEVERITIES if level >= least), DEBUG_SEVERITY)


def to_file(path: str) -> Write:
    """Append to the file `path`, and to the new one once it was rotated away. Raises OSError."""
    return _File(path).write


class _File:
    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _open_file(path)

    def write(self, _: int, text: str) -> None:
        # logrotate renames the file, or somebody removes it: no signal is needed for that.
        if not self._is_there():
            os.close(self._descriptor)
            self._descriptor = -1
        if self._descriptor < 0:
            self._descriptor = _open_file(self._path)
        _write_all(self._descriptor, text)

    def _is_there(self) -> bool:
        try:
            return self._descriptor < 0 or os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def _open_file(path: str) -> int:
    """Raises OSError, also for a pipe and the like, which would wait for a reader."""
    # O_NONBLOCK: opening a pipe without a reader fails with ENXIO instead of waiting for one.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    remedy = "the log must be a plain file or a device"
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, remedy, path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, remedy, path)
    return descriptor


def to_syslog(path: str, name: str) -> Callable[[], Write]:
    """A message a line to the syslog daemon at the socket `path`, as `name`, facility LOCAL5."""
    return lambda: _Syslog(path, name).write


class _Syslog:
    """The socket may be of either kind, and its daemon may come and go."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._socket: Any = None

    def write(self, level: int, text: str) -> None:
        prefix = "<%d>%s: " % (LOCAL5 + _severity(level), self._name)
        for line in text.splitlines():
            self._send((prefix + line + "\0").encode("utf-8", "replace"))

    def _send(self, message: bytes) -> None:
        """The second attempt is for a daemon that was started again."""
        try:
            if self._socket is not None:
                self._socket.sendall(message)
                return
        except OSError as error:
            self._hang_up()
            # The daemon is there and takes nothing: a second attempt would wait as long again.
            if isinstance(error, socket.timeout):
                raise
        try:
            self._connect()
            self._socket.sendall(message)
        except OSError:
            self._hang_up()
            raise

    def _connect(self) -> None:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            self._socket = socket.socket(socket.AF_UNIX, kind)
            self._socket.settimeout(PATIENCE)
            try:
                self._socket.connect(self._path)
                return
            except OSError as error:
                self._hang_up()
                # EPROTOTYPE: the socket is of the other kind.
                if error.errno != errno.EPROTOTYPE:
                    raise
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE), self._path)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
