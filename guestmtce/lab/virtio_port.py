"""A virtio-serial port without a virtual machine: QEMU's socket on one side, a device on the other.

guestServer connects to `socket_path` as to QEMU's; a guestClient opens `device`, which is a UNIX socket too,
and there as long as the host's side is connected. As with QEMU the host's side takes one client at a time, is
told nothing of the guest, and what it writes is kept while the guest does not read.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from typing import Dict, Optional

KEPT_MAX = 600000  # bytes that wait for a side that does not read, as measured with QEMU
READ_SIZE = 65536  # bytes
ROUND = 0.01  # s at most between two looks at everything


class _Side:
    """One side: where it listens, who is connected, and what waits for it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.waiting = b""
        self.link: Optional[socket.socket] = None
        self.listener: Optional[socket.socket] = None

    def listen(self) -> None:
        """The socket comes into being."""
        if self.listener is None:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.setblocking(False)
            self.listener.bind(self.path)
            self.listener.listen(1)

    def accept(self) -> bool:
        """Take a client, if one waits and there is room for it."""
        if self.link is not None or self.listener is None:
            return False
        try:
            self.link, _ = self.listener.accept()
        except BlockingIOError:
            return False
        self.link.setblocking(False)
        return True

    def drop(self) -> None:
        """The connection has ended."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def read(self) -> Optional[bytes]:
        """What its peer says; empty at the end, None for nothing now."""
        try:
            return self.link.recv(READ_SIZE) if self.link is not None else None
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def write(self) -> None:
        """Give it what waits, as far as it takes it."""
        try:
            if self.link is not None and self.waiting:
                self.waiting = self.waiting[self.link.send(self.waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self.drop()

    def close(self) -> None:
        """Connection and socket are gone, and what waited is lost."""
        self.drop()
        self.waiting = b""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
            os.unlink(self.path)


class VirtioPort:
    """See the module's text. A context manager; it is served by a thread of its own."""

    def __init__(self, socket_path: str, device: str) -> None:
        self.device = device
        self.connections = 0  # of the host
        self._host = _Side(socket_path)
        self._guest = _Side(device)
        self._host.listen()
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> VirtioPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """QEMU ends: both sides lose their connection, and the socket is gone."""
        self._running = False
        self._thread.join()
        self._host.close()
        self._guest.close()

    def _run(self) -> None:
        while self._running:
            self._wait()
            self.connections += self._host.accept()
            self._guest.accept()
            self._pump(self._host, self._guest)
            self._pump(self._guest, self._host)
            if self._host.link is not None:
                self._guest.listen()
            else:
                self._guest.close()
                self._host.waiting = b""

    def _wait(self) -> None:
        """Until something can be read, or written for whom something waits."""
        with selectors.DefaultSelector() as selector:
            for source, events in self._interests().items():
                selector.register(source, events)
            selector.select(ROUND)

    def _interests(self) -> Dict[socket.socket, int]:
        found: Dict[socket.socket, int] = {}
        for side, other in ((self._host, self._guest), (self._guest, self._host)):
            if side.link is None and side.listener is not None:
                found[side.listener] = selectors.EVENT_READ
            elif side.link is not None:
                room = len(other.waiting) < KEPT_MAX
                found[side.link] = selectors.EVENT_READ if room else 0
                found[side.link] |= selectors.EVENT_WRITE if side.waiting else 0
        return {source: events for source, events in found.items() if events}

    def _pump(self, source: _Side, target: _Side) -> None:
        data = source.read() if len(target.waiting) < KEPT_MAX else None
        if data:
            target.waiting += data
        elif data == b"":
            source.drop()
        target.write()
