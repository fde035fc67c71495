"""Ports that a laboratory's daemons may listen on, though they are told of them before they start."""

from __future__ import annotations

import functools
import itertools
import os
import random
import socket
from typing import Iterator, List

# Below what Linux gives to outgoing connections, and to whoever binds port 0: these may take a port between
# the look and its use. No daemon of the platform listens here by default.
FIRST, LAST = 10_000, 29_999


def free_ports(count: int, address: str = "127.0.0.1") -> List[int]:
    """So many ports on which nobody listens at `address` at the moment, for UDP and TCP.

    They come in turn, so that none is given again soon. Raises OSError where there are too few.
    """
    ports: List[int] = []
    for _ in range(LAST - FIRST):
        port = next(_list_candidates(os.getpid()))
        if _is_free(address, port):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError("no %d free ports from %d to %d at %s" % (count, FIRST, LAST, address))


@functools.lru_cache(maxsize=1)
def _list_candidates(pid: int) -> Iterator[int]:
    """Each process has its own: two that look at once begin at different places, forked ones too."""
    begin = random.SystemRandom().randint(FIRST, LAST)
    return itertools.cycle([*range(begin, LAST + 1), *range(FIRST, begin)])


def _is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
