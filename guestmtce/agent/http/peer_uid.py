"""Whose process is at the other end of a TCP connection within this host.

The kernel's sock_diag answers one query about one connection by its addresses and ports (6 µs); the whole
table in /proc/self/net is read only where the kernel has no sock_diag (a module that is missing, a filter).

A socket that its process has closed is still shown while it waits for its end (FIN_WAIT2, TIME_WAIT), with
uid 0 and inode 0. That 0 is not root: only a socket with an inode has an owner. And as long as our own end
lives, no later connection can have the same addresses and ports.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import struct
from typing import NamedTuple, Optional, Tuple, Union

import psutil

# include/uapi/linux: netlink.h, sock_diag.h, inet_diag.h; include/net/tcp_states.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR = 2
NLM_F_REQUEST = 1
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
IDENTITY = struct.Struct("!HH16s16s")  # ports and addresses of the socket that is looked for
INTERFACE_AND_COOKIE = struct.Struct("=III")
# struct inet_diag_msg: what is skipped is timer, retransmissions, identity, expiry and two lengths of queues.
OWNER = struct.Struct("=BBxx48x12xII")  # family, state, …, uid, inode
# INET_DIAG_NOCOOKIE: any socket with these addresses and ports.
NO_COOKIE = 0xFFFFFFFF
ALL_STATES = 0xFFFFFFFF
ANSWER_MAX = 8192  # bytes
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT = 1, 4, 5, 8
HELD = (ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT)  # FIN_WAIT: a client that has ended its request so
ALIVE = (ESTABLISHED, CLOSE_WAIT)

TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address within IPv6
LOOPBACK_V4 = 127
LOOPBACK_V6 = bytes(15) + b"\1"


class NoUid(enum.Enum):
    """Why there is no uid."""

    GONE = "its socket is closed already"
    ELSEWHERE = "it is not on this host"
    NO_MEANS = "this kernel does not say who it is"


class End(NamedTuple):
    """One end of a connection: 4 or 16 bytes of address, port, interface (0: any)."""

    address: bytes
    port: int
    interface: int = 0


class Owner(NamedTuple):
    """What the kernel knows about a socket; `inode` 0: no process holds it, and `uid` means nothing."""

    state: int
    uid: int
    inode: int


# --- pure ------------------------------------------------------------------------------------------


def parse_end(name: Tuple[object, ...]) -> End:
    """The end of which getsockname() or getpeername() is `name`. An IPv4 address within IPv6 is IPv4."""
    host, port = str(name[0]).partition("%")[0], int(str(name[1]))
    if ":" not in host:
        return End(socket.inet_pton(socket.AF_INET, host), port)
    address = socket.inet_pton(socket.AF_INET6, host)
    if address.startswith(MAPPED):
        return End(address[len(MAPPED) :], port)
    return End(address, port, int(str(name[3])))


def build_query(near: End, far: End, sequence: int) -> bytes:
    """Asks for the socket that is at `near` and is connected to `far`."""
    family = socket.AF_INET if len(near.address) == 4 else socket.AF_INET6
    body = (
        REQUEST.pack(family, socket.IPPROTO_TCP, 0, ALL_STATES)
        + IDENTITY.pack(near.port, far.port, near.address, far.address)
        + INTERFACE_AND_COOKIE.pack(near.interface, NO_COOKIE, NO_COOKIE)
    )
    return HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, sequence, 0) + body


def parse_answer(data: bytes) -> Tuple[int, Optional[Owner]]:
    """Which query is answered, and the socket; None: there is none, or no sock_diag. Raises OSError."""
    try:
        _, kind, _, sequence, _ = HEADER.unpack_from(data)
        if kind == NLMSG_ERROR:
            (error,) = struct.unpack_from("=i", data, HEADER.size)
            # The one error that may mean two things: no such socket, or no sock_diag (see _find_owner).
            if -error != errno.ENOENT:
                raise OSError(-error, os.strerror(-error))
            return sequence, None
        return sequence, Owner(*OWNER.unpack_from(data, HEADER.size)[1:])
    except struct.error:
        raise OSError(errno.EBADMSG, "an answer of %d bytes" % len(data)) from None


def find_in_table(table: str, near: End, far: End) -> Optional[Owner]:
    """The socket at `near` that is connected to `far`, from the text of /proc/net/tcp or tcp6."""
    # An IPv4 connection of a socket for both families stands in tcp6, with mapped addresses.
    wanted = {
        " %s %s " % (_show_end(near, mapped), _show_end(far, mapped))
        for mapped in (False, True)
        if not mapped or len(near.address) == 4
    }
    for line in table.splitlines():
        if any(words in line for words in wanted):
            fields = line.split()
            return Owner(int(fields[3], 16), int(fields[7]), int(fields[9]))
    return None


def _show_end(end: End, mapped: bool) -> str:
    """An end as the tables show it: words of the machine's own byte order."""
    address = MAPPED + end.address if mapped else end.address
    return "%s:%04X" % ("".join("%08X" % word for (word,) in struct.iter_unpack("=I", address)), end.port)


# --- the kernel ------------------------------------------------------------------------------------


class PeerUids:
    """Asks the kernel; for one thread. `means` says, for the health report, what the last uid came from."""

    def __init__(self) -> None:
        self.means = "sock_diag"
        self._sequence = 0
        self._netlink: Optional[socket.socket] = None
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
            self._netlink.setblocking(False)  # the kernel has answered when send() returns
            self._netlink.connect((0, 0))
        except OSError:
            self.close()

    def close(self) -> None:
        """Give back the descriptor; from now on the tables are read."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def look_up(self, connection: socket.socket) -> Union[int, NoUid]:
        """The uid at the other end of `connection`, which was accepted, or why there is none."""
        try:
            near, far = parse_end(connection.getsockname()), parse_end(connection.getpeername())
            # The socket that is looked for is the other one: what is near to it is far from us.
            found = self._find_owner(far, near)
            if _tcp_state(connection) not in ALIVE:  # asked last: what was found before was its peer
                return NoUid.GONE
        except OSError:
            return NoUid.GONE  # reset before it was accepted
        if isinstance(found, Owner):
            return found.uid if found.inode != 0 and found.state in HELD else NoUid.GONE
        # Not found, though our end is: a caller from an address of this host has closed its socket.
        return NoUid.GONE if found is NoUid.ELSEWHERE and _is_own_address(far.address) else found

    def _find_owner(self, near: End, far: End) -> Union[Owner, NoUid]:
        """The socket at `near`; ELSEWHERE: it is not here, but our own at `far` is."""
        # "No such entry" is also what a kernel without sock_diag answers: hence the look for our own end.
        found = self._query_kernel(near, far) or (self._query_kernel(far, near) and NoUid.ELSEWHERE)
        if found:
            self.means = "sock_diag"
            return found
        table = _read_tables()
        found = find_in_table(table, near, far) or (find_in_table(table, far, near) and NoUid.ELSEWHERE)
        self.means = TABLES[0] if found else "NOTHING: all are served"
        return found or NoUid.NO_MEANS

    def _query_kernel(self, near: End, far: End) -> Optional[Owner]:
        """What sock_diag says; None: there is no such socket, or no sock_diag."""
        if self._netlink is None:
            return None
        self._sequence += 1
        try:
            self._netlink.send(build_query(near, far, self._sequence))
            while True:
                sequence, owner = parse_answer(self._netlink.recv(ANSWER_MAX))
                # An answer to an earlier query is skipped.
                if sequence == self._sequence:
                    return owner
        except OSError:
            return None


def _read_tables() -> str:
    """All TCP sockets; nothing where /proc does not show them."""
    text = ""
    for path in TABLES:
        try:
            with open(path, encoding="ascii") as file:
                text += file.read()
        except OSError:
            pass  # a kernel without IPv6 has one table
    return text


def _tcp_state(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _is_own_address(address: bytes) -> bool:
    if address == LOOPBACK_V6 or (len(address) == 4 and address[0] == LOOPBACK_V4):
        return True
    own = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
    shown = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
    return any(shown == text.partition("%")[0] for text in own)
