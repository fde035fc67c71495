"""UDP sockets and what is read from them, for both daemons.

A socket for every address speaks IPv6 and IPv4 where the host has both. An IPv4 address is always spelled
as one.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import Callable

from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes; the kernel grants what its limit allows
DATAGRAMS_A_TURN = 64
IPV4_MAPPED = "::ffff:"
# What a host without IPv6 says of it.
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, socket.EAI_ADDRFAMILY, socket.EAI_FAMILY)
DATAGRAM_MAX = 2048  # bytes read of one; longer ones are too long for anybody here


class Port:
    """A bound UDP socket in a loop: `serve(data, address)` gets each datagram. May raise OSError."""

    def __init__(self, loop: Loop, address: str, port: int, serve: Callable[[bytes, str], None]) -> None:
        self.received = self.sent = 0
        self._loop = loop
        self._serve = serve
        self._throttle = Throttle(log)
        self._socket = open_socket(address, port)
        both = self._socket.family == socket.AF_INET6 and not address
        self._reaches = socket.AF_UNSPEC if both else self._socket.family
        loop.watch(self._socket, self._read)

    def send(self, data: bytes, address: str, port: int) -> None:
        """Send a datagram; what cannot be sent is logged, throttled. Any thread may call it."""
        try:
            self._socket.sendto(data, (self._spelled(address), port))
            self.sent += 1
        except OSError as error:
            self._throttle.warning(address, "cannot send to %s port %d: %s", address, port, error)

    def resolve(self, name: str) -> str:
        """An address of `name` that this socket reaches, or nothing, with a line in the log."""
        try:
            return str(socket.getaddrinfo(name, None, self._reaches, socket.SOCK_DGRAM)[0][4][0])
        except OSError as error:
            self._throttle.warning(name, "cannot resolve %s: %s", name, error)
            return ""

    def own_address(self, towards: str) -> str:
        """The address that `towards` sees us under, or nothing."""
        family = socket.AF_INET6 if ":" in towards else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((towards, 9))
                return str(probe.getsockname()[0])
            except OSError:
                return ""

    def close(self) -> None:
        """Close the socket."""
        self._loop.unwatch(self._socket)
        self._socket.close()

    def _spelled(self, address: str) -> str:
        """As this socket wants it."""
        mapped = self._socket.family == socket.AF_INET6 and ":" not in address
        return IPV4_MAPPED + address if mapped else address

    def _read(self) -> None:
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, address = self._socket.recvfrom(DATAGRAM_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                self._throttle.warning("receive", "cannot receive: %s", error)
                return
            self.received += 1
            self._serve(data, _plain(str(address[0])))


def _plain(address: str) -> str:
    return address[len(IPV4_MAPPED) :] if address.startswith(IPV4_MAPPED) else address


def open_socket(address: str, port: int) -> socket.socket:
    """A non-blocking UDP socket bound to `address` (IPv4 or IPv6; empty: all of both). Raises OSError."""
    if address:
        return _bound(address, port)
    try:
        return _bound("::", port)
    except OSError as error:
        if error.errno not in NO_IPV6:
            raise
        return _bound("0.0.0.0", port)


def _bound(address: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise OSError(error.errno, "cannot resolve %s: %s" % (address, error.strerror)) from None
    family, _, _, _, where = found[0]
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        if address == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, "cannot bind UDP %s port %d: %s" % (address, port, error.strerror)
        ) from None
    return bound
