"""Which VIM listens: a number for its listening socket (docs/protocol/2-datagrams.md#marks)."""

from __future__ import annotations

import socket
import sys
import zlib
from typing import Optional
from urllib.parse import urlsplit

LISTEN = "0A"  # the state in /proc/net/tcp
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def identify_listener(base: str) -> int:
    """A number, 1 … 2³²−1, for the socket that listens on this host at `base`, an http URL.

    A VIM that was restarted has another one, and so has one on another host. 0: not known, as for a VIM that
    is reached by a name or over IPv6.
    """
    place = urlsplit(base)
    try:
        inode = _find_listening_inode(socket.inet_aton(place.hostname or ""), place.port or 80)
        with open(BOOT_ID, "rb") as file:
            # With the boot's id: an inode's number is unique within one boot of one host only, and the other
            # controller compares it, too.
            return (zlib.crc32(file.read() + b"%d" % inode) or 1) if inode else 0
    except (OSError, ValueError, IndexError):
        return 0


def _find_listening_inode(address: bytes, port: int) -> Optional[int]:
    """The inode of the socket that listens there; the kernel lists those that listen before all others."""
    # The table shows an address as one word of the machine's byte order.
    hosts = {"%08X" % int.from_bytes(address, sys.byteorder)}
    if address[0] == 127:
        # A VIM that listens on all addresses is reached at loopback, too.
        hosts.add("00000000")
    with open("/proc/net/tcp", encoding="ascii") as file:
        next(file, None)
        for line in file:
            fields = line.split()
            if fields[3] != LISTEN:
                break
            host, _, where = fields[1].partition(":")
            if int(where, 16) == port and host in hosts:
                return int(fields[9])
    return None
