"""QEMU's end of a lab guest's channel: what it makes, accepts and notices.

docs/protocol/1-guest-channel.md#what-qemu-and-libvirt-do
"""

from __future__ import annotations

import os
import select
import socket
from typing import Callable, Optional

from guestmtce.daemon.loop import Loop

HANG_UP_POLL = 0.02  # s between two looks whether the client of a paused machine has hung up
BACKLOG = 1  # QEMU serves one client; the next one waits
READ_SIZE = 65536  # bytes


class Qemu:
    """A socket at `path` that serves one client at a time; the next one waits in the backlog.

    `connected` is called for each client, `received` with what it sends. While the machine is paused nothing
    is read, and what is sent piles up; that the client hangs up is noticed all the same.
    """

    def __init__(
        self, loop: Loop, path: str, connected: Callable[[], None], received: Callable[[bytes], None]
    ) -> None:
        self.paused = False
        self._loop = loop
        self._path = path
        self._connected = connected
        self._received = received
        self._conn: Optional[socket.socket] = None
        self._listener: Optional[socket.socket] = None

    @property
    def has_client(self) -> bool:
        """Whether a client is connected."""
        return self._conn is not None

    @property
    def runs(self) -> bool:
        """Whether it was started, paused or not."""
        return self._listener is not None

    def start(self, paused: bool = False) -> None:
        """Make the socket, in the place of a stale one."""
        if os.path.exists(self._path):
            os.unlink(self._path)
        self.paused = paused
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # From bind to listen a connection is refused, as with QEMU right after the file has appeared.
        # docs/protocol/1-guest-channel.md#what-qemu-and-libvirt-do
        self._listener.bind(self._path)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._loop.watch(self._listener, self._accept_client)

    def end(self, unlink: bool = True) -> None:
        """QEMU ends. Without `unlink` the stale file stays, as after a kill -9 without libvirt."""
        self._hang_up()
        if self._listener is not None:
            self._loop.unwatch(self._listener)
            self._listener.close()
            self._listener = None
            if unlink and os.path.exists(self._path):  # its folder may have been removed
                os.unlink(self._path)

    def pause(self) -> None:
        """As QEMU's `stop` does."""
        if not self.paused:
            self.paused = True
            if self._conn is not None:
                self._loop.unwatch(self._conn)
                self._watch_hang_up()

    def resume(self) -> None:
        """As QEMU's `cont` does: what has piled up is read."""
        if self.paused:
            self.paused = False
            if self._conn is not None:
                self._loop.watch(self._conn, self._read_data)

    def write(self, data: bytes) -> int:
        """Write what the client's side takes; returns how many bytes these were."""
        try:
            return self._conn.send(data) if self._conn is not None else 0
        except BlockingIOError:
            return 0
        except OSError:
            self._hang_up()
            return 0

    def _accept_client(self) -> None:
        assert self._listener is not None
        if self._conn is not None:
            return
        try:
            self._conn, _ = self._listener.accept()
        except BlockingIOError:
            return
        # A host that does not read must not stop all the guests of this process.
        self._conn.setblocking(False)
        # As QEMU: the next client connects into the backlog, and hears nothing until this one leaves.
        self._loop.unwatch(self._listener)
        if self.paused:
            self._watch_hang_up()
        else:
            self._loop.watch(self._conn, self._read_data)
        self._connected()

    def _read_data(self) -> None:
        assert self._conn is not None
        try:
            data = self._conn.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._conn is not None:
            self._loop.unwatch(self._conn)
            self._conn.close()
            self._conn = None
            if self._listener is not None:
                self._loop.watch(self._listener, self._accept_client)

    def _watch_hang_up(self) -> None:
        if self.paused and self._conn is not None:
            poll = select.poll()
            # Not by reading: what the client has sent must still be there for the machine that goes on.
            poll.register(self._conn, select.POLLRDHUP)
            if poll.poll(0):
                self._hang_up()
            else:
                self._loop.after(HANG_UP_POLL, self._watch_hang_up)
