"""The port to the host: a virtio-serial device (or another character device), or a UNIX socket to connect to.

A virtio port stays open when the host hangs up; reads then give nothing, and polling reports a hang-up
without end, so it is not polled but looked at again (`probe_first`, doubling to `probe_max`). A port that
fails, and a socket that ends, is closed and opened again (`reopen_first` to `reopen_max`).

Nothing here waits: what the host does not read is kept, message by message, up to WAITING_MAX, and then the
oldest goes. Of answers to challenges only the newest ever counts.
"""

import collections
import errno
import os
import select
import socket
import stat
import time
from typing import Callable, Deque, NamedTuple, Optional

from guestmtce.common import NEVER
from guestmtce.common.back_off import BackOff
from guestmtce.guest.log import Log
from guestmtce.guest.loop import Loop
from guestmtce.guest.settings import Settings

READ_SIZE = 65536  # bytes
WAITING_MAX = 16384  # bytes that the host has not read yet

VIRTIO_FOLDER = "/dev/virtio-ports"  # udev's links, by the ports' names
VIRTIO_PORTS = "/sys/class/virtio-ports"  # the kernel's own list, where there is no udev

DEVICE_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class PortListener(NamedTuple):
    """What is called when a host is there, when it is gone, and with what it sends."""

    note_opened: Callable[[], None]
    note_closed: Callable[[], None]
    receive: Callable[[bytes], None]


class VirtioPort:
    """See the module's text. A part of the loop; to be started with its first `tick`."""

    def __init__(self, loop: Loop, path: str, settings: Settings, log: Log, listener: PortListener) -> None:
        self._listener = listener
        self.deadline = 0.0
        self.dropped = 0
        self._loop = loop
        self._path = path
        self._log = log
        self._reopen = BackOff(settings.reopen_first, settings.reopen_max)
        self._probe = BackOff(settings.probe_first, settings.probe_max)
        self._descriptor: Optional[int] = None
        self._is_socket = False
        self._attached = False  # a host is at the other end
        self._waiting: Deque[bytes] = collections.deque()
        self._begun = False  # part of the first waiting message is written
        self._why_closed = ""  # what the log has said of it

    # --- coming and going --------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Open the port, or look whether the host is back."""
        self.deadline = NEVER
        try:
            if self._descriptor is None:
                self._descriptor = self._open_path()
            # A device without a host is not in the selector, so nothing else would show that it has failed.
            elif self._has_failed():
                raise OSError("the port has failed")
        except OSError as error:
            self._name_once(str(error.strerror or error))
            self._close_and_retry()
        else:
            self._attach_host() if self._is_socket else self._read_device()

    def _name_once(self, why: str) -> None:
        """A port that is not there may not be there for years."""
        if why != self._why_closed:
            self._log("%s: %s" % (self._path, why))
        self._why_closed = why

    def _open_path(self) -> int:
        """Raises OSError."""
        path = _locate_device(self._path)
        mode = os.stat(path).st_mode
        self._is_socket = stat.S_ISSOCK(mode)
        if self._is_socket:
            return _connect_socket(path)
        if not stat.S_ISCHR(mode):
            raise OSError(errno.ENODEV, "it is no device and no socket: waiting for one")
        descriptor = os.open(path, DEVICE_FLAGS)
        if os.isatty(descriptor):
            _make_raw(descriptor)
        return descriptor

    def _has_failed(self) -> bool:
        """Whether the device will never speak again, as a terminal whose other side is gone."""
        watched = select.poll()
        watched.register(self._descriptor or 0, 0)
        return any(events & (select.POLLERR | select.POLLNVAL) for _, events in watched.poll(0))

    def _attach_host(self) -> None:
        """The host is there."""
        if self._attached or self._descriptor is None:
            return
        try:
            self._loop.watch(self._descriptor, self._serve_device)
        except OSError as error:  # /dev/zero and its like
            self._log("%s: it cannot be waited for: %s" % (self._path, error.strerror), "open")
            self._close_and_retry()
            return
        self._attached = True
        self._reopen.reset()
        self._probe.reset()
        self._why_closed = ""
        self._log("%s: connected" % self._path, "connected")
        self._listener.note_opened()

    def _detach_host(self) -> None:
        """The host is not there; a device stays open and is looked at again."""
        if self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
        # What waited was for the host that hung up. To the next one it would be late answers, or half a
        # message.
        self._waiting.clear()
        self._begun = False
        self.deadline = time.monotonic() + self._probe.next_delay()
        if self._attached:
            self._attached = False
            self._log("%s: the host hung up" % self._path, "hung up")
            self._listener.note_closed()

    def _close_and_retry(self) -> None:
        """The port is of no more use: it is opened again."""
        self._detach_host()
        self.close()
        self.deadline = time.monotonic() + self._reopen.next_delay()

    def close(self) -> None:
        """Give back the descriptor."""
        if self._descriptor is not None:
            self._loop.unwatch(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    # --- reading and writing -----------------------------------------------------------------------

    def _serve_device(self) -> None:
        self._write_waiting()
        self._read_device()

    def _read_device(self) -> None:
        if self._descriptor is None:
            return
        try:
            # What a read gives tells the state of a virtio port: bytes or EAGAIN, a host is there; nothing,
            # none is.
            data = os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:
            self._attach_host()
        except OSError as error:
            self._log("%s: %s" % (self._path, error.strerror), "read")
            self._close_and_retry()
        else:
            self._handle_data(data)

    def _handle_data(self, data: bytes) -> None:
        if data:
            self._attach_host()
            if self._attached:
                self._listener.receive(data)
        elif self._is_socket:
            self._close_and_retry()
        else:
            self._detach_host()

    def send(self, message: bytes) -> None:
        """Write `message` now or as soon as the host reads; without a host it is gone."""
        if not self._attached:
            return
        self._waiting.append(message)
        # Two stay whatever their sizes: the one that has begun, and the newest, which is the answer that
        # counts.
        while sum(map(len, self._waiting)) > WAITING_MAX and len(self._waiting) > 2:
            self._drop_oldest()
        # Behind others it waits for the port to become writable, which the selector tells.
        if len(self._waiting) == 1:
            self._write_waiting()

    def _drop_oldest(self) -> None:
        """Not the one of which the host has a part: it would take the next for the rest."""
        del self._waiting[1 if self._begun else 0]
        self.dropped += 1
        self._log("the host does not read: a message was dropped", "dropped")

    def _write_waiting(self) -> None:
        """Write what waits, as far as it goes."""
        while self._waiting and self._descriptor is not None:
            try:
                written = os.write(self._descriptor, self._waiting[0])
            except BlockingIOError:
                # Watched for writing only while something waits: a port that takes more would wake the loop
                # without end.
                self._loop.watch(self._descriptor, self._serve_device, writing=True)
                return
            except OSError as error:
                self._log("%s: %s" % (self._path, error.strerror), "write")
                self._close_and_retry()
                return
            self._note_written(written)
        if self._attached and self._descriptor is not None:
            self._loop.watch(self._descriptor, self._serve_device)

    def _note_written(self, count: int) -> None:
        rest = self._waiting[0][count:]
        self._begun = bool(rest)
        if rest:
            self._waiting[0] = rest
        else:
            self._waiting.popleft()

    @property
    def waits(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._waiting)


def _locate_device(path: str) -> str:
    """The device of a virtio port that udev has not named; any other path as it is."""
    folder, name = os.path.split(path)
    if folder != VIRTIO_FOLDER or os.path.exists(path):
        return path
    try:
        # The names are the host's configuration: small images have no udev that makes links of them.
        for port in os.listdir(VIRTIO_PORTS):
            with open(os.path.join(VIRTIO_PORTS, port, "name"), encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name:
                    return "/dev/" + port
    except OSError:
        pass
    return path


def _connect_socket(path: str) -> int:
    """A socket's descriptor, connected. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        link.connect(path)
        return link.detach()
    finally:
        link.close()


def _make_raw(descriptor: int) -> None:
    """A terminal (a serial line, a test) must neither echo nor change a byte."""
    import tty  # for these only: a virtio port is no terminal

    tty.setraw(descriptor)
