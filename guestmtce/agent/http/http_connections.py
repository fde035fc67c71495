"""The connections of an HTTP server that are not with a worker, and for how long they may be there."""

from __future__ import annotations

import collections
import socket
import time
from typing import NamedTuple, Optional

from guestmtce.wire import vim_http
from guestmtce.wire.http_request import RequestReader
from guestmtce.wire.vim_http import Failure

READ_SIZE = 64 * 1024  # bytes


class Caller(NamedTuple):
    """Who has connected, in words for the log, and why all that it asks for is refused, if it is."""

    name: str
    refusal: Optional[Failure] = None


class Connection:
    """One client. `deadline`: for what it has to do next (s, monotonic)."""

    __slots__ = ("address", "caller", "deadline", "drained", "kept", "reader", "response",
                 "sock", "waits_in", "watched")  # fmt: skip

    def __init__(self, sock: socket.socket, address: str, caller: Caller) -> None:
        self.sock = sock
        self.address = address
        self.caller = caller
        self.reader = RequestReader(vim_http.BODY_MAX)
        self.response = b""  # what of it is still to be sent
        self.deadline = 0.0
        self.drained = 0  # bytes that came after the response
        self.kept = 0  # bytes of its request, as they were counted last
        self.watched = 0  # events, as the selector knows them
        self.waits_in: Optional[DeadlineQueue] = None

    def receive(self) -> Optional[bytes]:
        """What has come; None: nothing yet; no bytes: the client has ended, or is gone."""
        try:
            # One call a turn: a client that sends without end must not keep the thread from the others.
            return self.sock.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send_some(self) -> bool:
        """Send of the response what can be sent now. Returns whether the client is there."""
        try:
            sent = self.sock.send(self.response)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.response = self.response[sent:]
        return True

    def end_sending(self) -> None:
        """Tell the client that nothing more will come."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone, which reading tells


class DeadlineQueue:
    """Connections that all have `seconds` for the same thing, the oldest first."""

    def __init__(self, seconds: float, most: int) -> None:
        self.most = most
        self._seconds = seconds
        # All have the same time, so that the order of arrival is that of the deadlines: no heap, and each is
        # taken out at once from wherever it stands.
        self._connections: collections.OrderedDict[Connection, None] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def oldest(self) -> Optional[Connection]:
        """The connection that has been here for the longest."""
        return next(iter(self._connections), None)

    def add(self, connection: Connection) -> None:
        """Its time begins."""
        connection.deadline = time.monotonic() + self._seconds
        connection.waits_in = self
        self._connections[connection] = None

    def is_full(self) -> bool:
        """Whether one of them must go before another may come."""
        return len(self._connections) >= self.most

    def remove(self, connection: Connection) -> None:
        """It does not wait any more."""
        del self._connections[connection]
        connection.waits_in = None
