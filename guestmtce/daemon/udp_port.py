"""UDP sockets and what is read from them, for both daemons.

A socket for every address speaks IPv6 and IPv4 where the host has both. An IPv4 address is always spelled
as one.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from typing import Callable, Dict, Optional

from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import IPV4_MAPPED, Resolver, is_address, plain

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes; without root the kernel grants what its limit allows
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; the socket module has no name for it
DATAGRAMS_A_TURN = 64
# What a host without IPv6 says of it.
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, socket.EAI_ADDRFAMILY, socket.EAI_FAMILY)
DATAGRAM_MAX = 2048  # bytes read of one; longer ones are too long for anybody here
OWN_ADDRESS_PERIOD = 60.0  # s for which the route to a peer is taken to be the same
ADDRESSES_MAX = 8192  # peers of whom anything is remembered; more than hosts in any cloud


class UdpPort:
    """A UDP socket in a loop: `serve(data, address)` gets each datagram.

    `address` is what to listen on: empty for all, an address, or a name that `resolver` looks up. With a name
    the socket is bound as soon as an address is known, and until then nothing is heard or sent. May raise
    OSError.
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        port: int,
        serve: Callable[[bytes, str], None],
        resolver: Optional[Resolver] = None,
    ) -> None:
        self.received = self.sent = 0
        self.address = ""  # the one that it is bound to, if only to one
        self._loop = loop
        self._port = port
        self._serve = serve
        self._throttle = Throttle(log)
        self._socket: Optional[socket.socket] = None
        self._family = socket.AF_UNSPEC  # what it reaches
        self._spellings: Dict[str, str] = {}
        self._own: Dict[str, str] = {}
        self._own_since = 0.0
        if not address or is_address(address):
            self._open(address)
        elif resolver is not None:
            self._name, self._resolver = address, resolver
            resolver.watch(address, self._open_by_name)
        else:
            raise OSError("cannot bind UDP port %d: %s is no address" % (port, address))

    def send(self, data: bytes, address: str, port: int) -> None:
        """Send a datagram; one that cannot be sent is lost, and logged. Never waits; for any thread."""
        try:
            if self._socket is None:
                raise OSError("the address to listen on is not known yet")
            # An address, never a name: sendto() would wait for a name service in this thread.
            self._socket.sendto(data, (self._spelled(address), port))
            self.sent += 1
        except OSError as error:
            # Not raised: what matters is repeated until it is confirmed, and one peer must not disturb the
            # others.
            # docs/protocol/2-datagrams.md#confirmed-and-repeated
            self._throttle.warning("send", "cannot send to %s port %d: %s", address, port, error)

    def reaches(self, address: str) -> bool:
        """Whether something can be sent from this socket to such an address."""
        return self._family in (socket.AF_UNSPEC, socket.AF_INET6 if ":" in address else socket.AF_INET)

    def own_address(self, towards: str) -> str:
        """The address that `towards` sees us under, or nothing. Remembered for a while."""
        now = time.monotonic()
        if now - self._own_since > OWN_ADDRESS_PERIOD or len(self._own) >= ADDRESSES_MAX:
            # Whole: routes change together, as when an interface comes up.
            self._own.clear()
            self._own_since = now
        if towards not in self._own:
            self._own[towards] = _own_address(towards)
        return self._own[towards]

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._loop.unwatch(self._socket)
            self._socket.close()

    def _open(self, address: str) -> None:
        """Bind and listen. Raises OSError."""
        self._socket = open_socket(address, self._port)
        both = self._socket.family == socket.AF_INET6 and not address
        self._family = socket.AF_UNSPEC if both else self._socket.family
        self.address = address
        self._loop.watch(self._socket, self._read)

    def _open_by_name(self) -> None:
        """The name's addresses are known; the first that this host has is taken."""
        for address in self._resolver.addresses(self._name):
            if self._socket is None:
                try:
                    self._open(address)
                    log.info("listening on %s (%s) port %d", address, self._name, self._port)
                except OSError as error:
                    self._throttle.warning("bind", "%s", error)

    def _spelled(self, address: str) -> str:
        """As this socket wants it. Raises OSError for a name: the system would look it up."""
        spelling = self._spellings.get(address)
        if spelling is None:
            if not is_address(address):
                raise OSError("it is no address")
            # Addresses come from whoever sends here, so the table has a bound.
            if len(self._spellings) >= ADDRESSES_MAX:
                self._spellings.clear()
            maps = self._socket is not None and self._socket.family == socket.AF_INET6 and ":" not in address
            spelling = self._spellings[address] = IPV4_MAPPED + address if maps else address
        return spelling

    def _read(self) -> None:
        assert self._socket is not None
        # A flood of datagrams must not keep the loop from its timers: the selector names the socket again.
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, address = self._socket.recvfrom(DATAGRAM_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                self._throttle.warning("receive", "cannot receive: %s", error)
                return
            self.received += 1
            self._serve(data, plain(str(address[0])))


def _own_address(towards: str) -> str:
    if not is_address(towards):
        return ""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # connect() of a UDP socket sends nothing: it only chooses the route. 9 is the port of `discard`.
            probe.connect((towards, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def open_socket(address: str, port: int) -> socket.socket:
    """A non-blocking UDP socket bound to `address` (IPv4 or IPv6; empty: all of both). Raises OSError."""
    if address:
        return _bound(address, port)
    try:
        return _bound("::", port)
    except OSError as error:
        # A port that is taken is no reason to hear only half of the peers.
        if error.errno not in NO_IPV6:
            raise
        return _bound("0.0.0.0", port)


def _bound(address: str, port: int) -> socket.socket:
    try:
        # AI_NUMERICHOST: a name here would wait for a name service.
        found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror as error:
        raise OSError(error.errno, "%s is no address here: %s" % (address, error.strerror)) from None
    # `where` has the number of an IPv6 address's interface, which a pair of address and port has not.
    family, _, _, _, where = found[0]
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        # Some hosts have net.ipv6.bindv6only=1: then "::" alone would hear no IPv4.
        if address == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Before bind: no datagram is lost to the small buffer.
        _enlarge_buffer(bound)
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, "cannot bind UDP %s port %d: %s" % (address, port, error.strerror)
        ) from None
    return bound


def _enlarge_buffer(bound: socket.socket) -> None:
    """A burst, as of all hosts of a cloud, fits in. Root is not bound by the system's limit."""
    try:
        bound.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
