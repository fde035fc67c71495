"""Finds children that live and do not serve: stuck, so that they answer nobody, or spinning at others' cost.

A child that serves its guest goes to sleep at least once an interval, and the kernel counts how often it did
(`voluntary_ctxt_switches`). The count costs the child nothing, and neither it nor another can forge it: one
that spins never sleeps, one that is stopped or blocked does not wake up to sleep again.

How long it ran on a processor is counted by the kernel, too. An honest child whose guest floods it rests
three times as long as it reads (`process.FLOOD_REST`), and so uses a quarter of a processor at most. What a
child uses beyond CPU_SHARE runs up a debt, which is paid back by using less. One that owes more than
CPU_DEBT_MAX has been taken over by its guest, however short its naps.

/proc/PID/status, which has the sleeps, is the dearest of these files to read. A child that has run, and so
little that it must have slept, or that has not run at all, needs no look at its sleeps. psutil reads the same
count in 28 to 171 µs, `count_sleeps` in 10: with thousands of children that is the difference between a round
that is seen in the master's lateness and one that is not.

A few children are looked at in every round, so that the master is never away for long. After a round that
came late this host stood still, and its children with it: every count is taken anew.
"""

from __future__ import annotations

import math
import os
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from guestmtce.daemon.loop import Loop

ROUND = 1.0  # s
ROUNDS = 5  # in which every child is looked at once
LATE = 1.0  # s; a round that comes so late was held up
STATUS_MAX = 4096  # bytes; the file has about 1,500
RAN_LITTLE = 0.01  # s of a processor between two looks: who used so little, and ran, has slept
CPU_SHARE = 0.3  # of one processor, for ever
CPU_DEBT_MAX = 10.0  # s of a processor beyond it: one that never sleeps is found after about 15 s
NANOSECONDS = 1e9
COUNT = b"\nvoluntary_ctxt_switches:"


class _Seen(NamedTuple):
    """What was seen of a child: since when it has not slept; the processor time it used, and owes. In s.

    `runs` counts how often it got a processor. `sleeps` is from when it was looked at last for that.
    """

    pid: int
    sleeps: int
    since: float
    used: float
    runs: int
    looked_at: float
    debt: float


class StuckChildren:
    """`pids()` gives each child by its guest's uuid, `patience(uuid)` the s within which it must have slept.

    `on_stuck(uuid)` is told of one that has not, `on_spinning(uuid, why)` of one that uses too much of a
    processor.
    """

    def __init__(
        self,
        loop: Loop,
        pids: Callable[[], Dict[str, int]],
        patience: Callable[[str], float],
        on_stuck: Callable[[str], None],
        on_spinning: Callable[[str, str], None],
    ) -> None:
        self.stuck = 0
        self._loop = loop
        self._pids = pids
        self._patience = patience
        self._on_stuck = on_stuck
        self._on_spinning = on_spinning
        self._seen: Dict[str, _Seen] = {}
        self._not_looked_at: List[str] = []
        self._due = 0.0

    def start_rounds(self) -> None:
        """Begin the rounds."""
        self._due = time.monotonic() + ROUND
        self._loop.at(self._due, self._round)

    def _round(self) -> None:
        now = time.monotonic()
        if now - self._due > LATE:
            self._seen = {}
        pids = self._pids()
        if not self._not_looked_at:
            # Once in ROUNDS, so that what is kept of guests that are gone does not grow.
            self._not_looked_at = list(pids)
            self._seen = {uuid: seen for uuid, seen in self._seen.items() if uuid in pids}
        share = math.ceil(len(pids) / ROUNDS)
        looked_at, self._not_looked_at = self._not_looked_at[:share], self._not_looked_at[share:]
        for uuid in looked_at:
            if uuid in pids:
                self._look(uuid, pids[uuid], now)
        self._due = now + ROUND
        self._loop.at(self._due, self._round)

    def _look(self, uuid: str, pid: int, now: float) -> None:
        used, runs = read_processor_use(pid)
        seen = self._seen.get(uuid)
        # A first look judges nothing: it is what the next one is compared with.
        if seen is None or seen.pid != pid:
            sleeps = count_sleeps(pid)
            if sleeps is not None:
                self._seen[uuid] = _Seen(pid, sleeps, now, used, runs, now, 0.0)
            return
        sleeps, since = self._find_last_sleep(seen, pid, used, runs, now)
        debt = max(0.0, seen.debt + used - seen.used - CPU_SHARE * (now - seen.looked_at))
        self._seen[uuid] = _Seen(pid, sleeps, since, used, runs, now, debt)
        if now - since > self._patience(uuid):
            # Its successor begins without its past.
            del self._seen[uuid]
            self.stuck += 1
            self._on_stuck(uuid)
        elif debt > CPU_DEBT_MAX:
            del self._seen[uuid]
            self._on_spinning(uuid, "%.0f s of a processor beyond its share" % debt)

    def _find_last_sleep(
        self, seen: _Seen, pid: int, used: float, runs: int, now: float
    ) -> Tuple[int, float]:
        """Its count of sleeps, and when it was seen to have grown."""
        # `used` 0: this kernel keeps no schedstat, and the sleeps themselves are to be read.
        if used and runs == seen.runs:
            return seen.sleeps, seen.since  # it has not even run
        if used and used - seen.used < RAN_LITTLE:
            return seen.sleeps, now
        sleeps = count_sleeps(pid)
        if sleeps is None:
            return seen.sleeps, now  # it has ended, and its parent will hear of it
        return sleeps, seen.since if sleeps == seen.sleeps else now


def read_processor_use(pid: int) -> Tuple[float, int]:
    """How long the process has run, s, and how often; (0, 0): no such process, or nobody counts that here."""
    try:
        ran, _, runs = _read("/proc/%d/schedstat" % pid).split()
        return int(ran) / NANOSECONDS, int(runs)
    except (OSError, ValueError):
        return 0.0, 0


def count_sleeps(pid: int) -> Optional[int]:
    """How often the process has gone to sleep by itself; None if there is no such process."""
    try:
        status = _read("/proc/%d/status" % pid)
    except OSError:
        return None
    start = status.find(COUNT) + len(COUNT)
    return int(status[start : status.index(b"\n", start)]) if start >= len(COUNT) else None


def _read(path: str) -> bytes:
    """A small file of the kernel's, without a file object, which would cost more. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, STATUS_MAX)
    finally:
        os.close(descriptor)
