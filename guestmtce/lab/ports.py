"""Ports that a laboratory's daemons may listen on, though they are told of them before they start."""

from __future__ import annotations

import itertools
import os
import random
import socket
from typing import Iterator, List, Optional, Tuple

# Below what Linux gives to outgoing connections, and to whoever binds port 0: these may take a port between
# the look and its use. No daemon of the platform listens here by default.
FIRST, LAST = 10_000, 29_999

# By process: two that look at once begin at different places, and go on from there.
_candidates: Tuple[int, Optional[Iterator[int]]] = (0, None)


def free_ports(count: int, address: str = "127.0.0.1") -> List[int]:
    """So many ports on which nobody listens at `address` at the moment, for UDP and TCP.

    They come in turn, so that none is given again soon. Raises OSError where there are too few.
    """
    ports: List[int] = []
    for _ in range(LAST - FIRST):
        port = next(_list_candidates())
        if _is_free(address, port):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError("no %d free ports from %d to %d at %s" % (count, FIRST, LAST, address))


def _list_candidates() -> Iterator[int]:
    global _candidates
    owner, candidates = _candidates
    # A forked process must not go on where its parent does.
    if candidates is None or owner != os.getpid():
        begin = random.SystemRandom().randint(FIRST, LAST)
        candidates = itertools.cycle([*range(begin, LAST + 1), *range(FIRST, begin)])
        _candidates = os.getpid(), candidates
    return candidates


def _is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
