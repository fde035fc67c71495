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

# Bytes that wait for a side that does not read, as measured with QEMU
# (docs/protocol/1-guest-channel.md#what-qemu-and-libvirt-do).
KEPT_MAX = 600_000
READ_SIZE = 65536  # bytes
BACKLOG = 1  # QEMU serves one client; the next one waits
ROUND = 0.01  # s at most between two looks at everything


class _Side:
    """One side: where it listens, who is connected, and what waits for it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.waiting = b""
        self.connection: Optional[socket.socket] = None
        self.listener: Optional[socket.socket] = None

    def listen(self) -> None:
        """Make the socket, unless it is there."""
        if self.listener is None:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.setblocking(False)
            self.listener.bind(self.path)
            self.listener.listen(BACKLOG)

    def accept(self) -> bool:
        """Accept a client, if one waits and none is connected; returns whether it did."""
        if self.connection is not None or self.listener is None:
            return False
        try:
            self.connection, _ = self.listener.accept()
        except BlockingIOError:
            return False
        self.connection.setblocking(False)
        return True

    def drop(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def read(self) -> Optional[bytes]:
        """What the client sent; empty when it has hung up, None when there is nothing now."""
        try:
            return self.connection.recv(READ_SIZE) if self.connection is not None else None
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def write(self) -> None:
        """Give the client what waits, as far as it takes it."""
        try:
            if self.connection is not None and self.waiting:
                self.waiting = self.waiting[self.connection.send(self.waiting) :]
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
        # Before the sides are closed: from here on no other thread uses them.
        self._thread.join()
        self._host.close()
        self._guest.close()

    def _run(self) -> None:
        while self._running:
            self._wait_for_work()
            self.connections += self._host.accept()
            self._guest.accept()
            self._pump_bytes(self._host, self._guest)
            self._pump_bytes(self._guest, self._host)
            if self._host.connection is not None:
                # A virtio port without a host gives the guest an end of file: here its device is not there at
                # all.
                self._guest.listen()
            else:
                self._guest.close()
                # What the guest wrote for the host that hung up is not for the next one.
                self._host.waiting = b""

    def _wait_for_work(self) -> None:
        """Until something can be read, or written to a side for which something waits; at most ROUND."""
        with selectors.DefaultSelector() as selector:
            for source, events in self._collect_interests().items():
                selector.register(source, events)
            selector.select(ROUND)

    def _collect_interests(self) -> Dict[socket.socket, int]:
        interests: Dict[socket.socket, int] = {}
        for side, other in ((self._host, self._guest), (self._guest, self._host)):
            if side.connection is None and side.listener is not None:
                interests[side.listener] = selectors.EVENT_READ
            elif side.connection is not None:
                # A side is not read while the other has no room, so that its writer is held up as by QEMU.
                room = len(other.waiting) < KEPT_MAX
                interests[side.connection] = selectors.EVENT_READ if room else 0
                interests[side.connection] |= selectors.EVENT_WRITE if side.waiting else 0
        # A selector takes no descriptor without an event.
        return {source: events for source, events in interests.items() if events}

    def _pump_bytes(self, source: _Side, target: _Side) -> None:
        data = source.read() if len(target.waiting) < KEPT_MAX else None
        if data:
            target.waiting += data
        # The end, as against None, which is nothing for now.
        elif data == b"":
            source.drop()
        target.write()
