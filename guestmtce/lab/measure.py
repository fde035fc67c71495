"""What a measurement is made of: a histogram that costs little to fill, quantiles, memory, processor time.

Times are s, monotonic, unless a name says otherwise; memory is kB of 1024 bytes, as in /proc.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import psutil

RESOLUTION = 1e-5  # s, the step of a histogram
MS = 1000.0  # ms per s
MS_DECIMALS = 3  # of a time in ms: µs
BYTES_PER_KB = 1024
QUANTILES = {"p50": 0.5, "p99": 0.99}  # the name of a figure → the share of all values that it is not below


class Histogram:
    """How often which value (s) came, in steps of RESOLUTION; the largest is kept exactly.

    `steps`: a value's number of steps → how often it came.
    """

    def __init__(self) -> None:
        self.steps: Dict[int, int] = {}
        self.largest: Optional[float] = None

    @classmethod
    def of(cls, steps: Dict[str, int], largest: Optional[float]) -> Histogram:
        """The histogram whose attributes went through JSON, which makes strings of the steps."""
        histogram = cls()
        histogram.steps = {int(step): count for step, count in steps.items()}
        histogram.largest = largest
        return histogram

    def add(self, value: float) -> None:
        """Count one value."""
        # The memory grows with the spread of the values, not with their number.
        step = round(value / RESOLUTION)
        self.steps[step] = self.steps.get(step, 0) + 1
        if self.largest is None or value > self.largest:
            self.largest = value

    def spread_ms(self) -> Dict[str, Optional[float]]:
        """The QUANTILES by their names and `max`, in ms; None for each without values."""
        spread = {name: self._value_at(share) for name, share in QUANTILES.items()}
        spread["max"] = self.largest
        return {
            name: None if value is None else round(value * MS, MS_DECIMALS) for name, value in spread.items()
        }

    def _value_at(self, share: float) -> Optional[float]:
        """The smallest value that at least this share of all does not exceed, to the nearest step."""
        wanted, seen = share * sum(self.steps.values()), 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            # A step is rounded: no quantile may be above the largest value.
            if seen >= wanted and self.largest is not None:
                return min(step * RESOLUTION, self.largest)
        return None


def spread_ms(values: Iterable[float]) -> Dict[str, Optional[float]]:
    """`Histogram.spread_ms` of some times (s)."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram.spread_ms()


# --- processes -------------------------------------------------------------------------------------


class ProcessMemory(NamedTuple):
    """One process's memory, kB: its own (USS), with its share of what is shared (PSS), all it maps (RSS)."""

    uss: int
    pss: int
    rss: int


def read_memory(pid: int) -> ProcessMemory:
    """What a process occupies; one that is not dumpable shows it to root only. Raises psutil.Error."""
    sizes = psutil.Process(pid).memory_full_info()
    return ProcessMemory(sizes.uss // BYTES_PER_KB, sizes.pss // BYTES_PER_KB, sizes.rss // BYTES_PER_KB)


def read_memories(pids: Iterable[int]) -> List[ProcessMemory]:
    """The memory of those processes that still run and may be read."""
    memories: List[ProcessMemory] = []
    for pid in pids:
        try:
            memories.append(read_memory(pid))
        # A process that ended meanwhile, or that only root may look at.
        except psutil.Error:
            pass
    return memories


def read_cpu_ns(pid: int) -> int:
    """The processor time of a process so far, kernel included, as the scheduler counts it. Raises OSError.

    Not by psutil: it reads /proc/PID/stat, which counts ticks of 10 ms; a heartbeat takes 0.1 ms.
    """
    tasks = "/proc/%d/task" % pid
    return sum(_read_task_ns(os.path.join(tasks, task)) for task in os.listdir(tasks))


def _read_task_ns(folder: str) -> int:
    """The first field of schedstat: ns on a processor (Linux, Documentation/scheduler/sched-stats.rst)."""
    with open(os.path.join(folder, "schedstat"), encoding="ascii") as file:
        return int(file.read().split()[0])


def read_cpu_times(pids: Iterable[int]) -> Dict[int, int]:
    """The processor time, ns, of those processes that still run, by their pids."""
    times: Dict[int, int] = {}
    for pid in pids:
        try:
            times[pid] = read_cpu_ns(pid)
        except OSError:
            pass
    return times


def spent_ns(before: Dict[int, int], after: Dict[int, int]) -> int:
    """The processor time, ns, between two readings, of the processes that are in both."""
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys())


def read_holdings(pid: int) -> Dict[str, Any]:
    """What a daemon must not gather: descriptors, dead children that nobody reaped, and memory.

    Raises psutil.Error.
    """
    process = psutil.Process(pid)
    memory = read_memory(pid)
    zombies = [child for child in process.children() if child.status() == psutil.STATUS_ZOMBIE]
    return {
        "descriptors": process.num_fds(),
        "zombies": len(zombies),
        "uss_kb": memory.uss,
        "rss_kb": memory.rss,
    }
