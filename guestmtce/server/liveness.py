"""Children that live but are stuck: they answer nobody, and no end of theirs tells of it.

A child that serves its guest goes to sleep at least once an interval, and the kernel counts how often it did
(`voluntary_ctxt_switches`). The count costs the child nothing, and neither it nor another can forge it: one
that spins never sleeps, one that is stopped or blocked does not wake up to sleep again.

A few children are looked at in every round, so that the master is never away for long. After a round that
came late this host stood still, and its children with it: every count is taken anew.
"""

from __future__ import annotations

import os
import time
from typing import Callable, Dict, List, NamedTuple, Optional

from guestmtce.daemon.loop import Loop

ROUND = 1.0  # s
ROUNDS = 5  # in which every child is looked at once
LATE = 1.0  # s; a round that comes so late was held up
STATUS_MAX = 4096  # bytes; the file has about 1,500
COUNT = b"\nvoluntary_ctxt_switches:"


class _Seen(NamedTuple):
    pid: int
    sleeps: int
    since: float


class Liveness:
    """`pids()` gives each child by its guest's uuid, `patience(uuid)` the s within which it must have slept.

    `on_stuck(uuid)` is told of one that has not.
    """

    def __init__(
        self,
        loop: Loop,
        pids: Callable[[], Dict[str, int]],
        patience: Callable[[str], float],
        on_stuck: Callable[[str], None],
    ) -> None:
        self.stuck = 0
        self._loop = loop
        self._pids = pids
        self._patience = patience
        self._on_stuck = on_stuck
        self._seen: Dict[str, _Seen] = {}
        self._left: List[str] = []
        self._due = 0.0

    def start(self) -> None:
        """Begin the rounds."""
        self._due = time.monotonic() + ROUND
        self._loop.at(self._due, self._round)

    def _round(self) -> None:
        now = time.monotonic()
        if now - self._due > LATE:
            self._seen = {}
        pids = self._pids()
        if not self._left:
            self._left = list(pids)
            self._seen = {uuid: seen for uuid, seen in self._seen.items() if uuid in pids}
        share = -(-len(pids) // ROUNDS)
        looked_at, self._left = self._left[:share], self._left[share:]
        for uuid in looked_at:
            if uuid in pids:
                self._look(uuid, pids[uuid], now)
        self._due = now + ROUND
        self._loop.at(self._due, self._round)

    def _look(self, uuid: str, pid: int, now: float) -> None:
        sleeps = count_sleeps(pid)
        if sleeps is None:
            return  # it has ended, and its parent will hear of it
        seen = self._seen.get(uuid)
        if seen is None or (seen.pid, seen.sleeps) != (pid, sleeps):
            self._seen[uuid] = _Seen(pid, sleeps, now)
        elif now - seen.since > self._patience(uuid):
            del self._seen[uuid]
            self.stuck += 1
            self._on_stuck(uuid)


def count_sleeps(pid: int) -> Optional[int]:
    """How often the process has gone to sleep by itself; None if there is no such process."""
    try:
        descriptor = os.open("/proc/%d/status" % pid, os.O_RDONLY)
        try:
            status = os.read(descriptor, STATUS_MAX)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    start = status.find(COUNT) + len(COUNT)
    return int(status[start : status.index(b"\n", start)]) if start >= len(COUNT) else None
