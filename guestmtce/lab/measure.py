"""What a measurement is made of: a histogram that costs little to fill, quantiles, and /proc read with care.

Times are s, monotonic, unless a name says otherwise; memory is kB.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import psutil

RESOLUTION = 1e-5  # s, the step of a histogram
MS = 1000.0  # ms per s
QUANTILES = {"p50": 0.5, "p99": 0.99}
PRIVATE = ("Private_Clean", "Private_Dirty", "Private_Hugetlb")


class Histogram:
    """How often which value (s) came, in steps of RESOLUTION; the largest is kept as it was."""

    def __init__(self) -> None:
        self.steps: Dict[int, int] = {}
        self.largest: Optional[float] = None

    @classmethod
    def of(cls, steps: Dict[str, int], largest: Optional[float]) -> Histogram:
        """The one that was told in JSON."""
        histogram = cls()
        histogram.steps = {int(step): count for step, count in steps.items()}
        histogram.largest = largest
        return histogram

    def add(self, value: float) -> None:
        """Count one value."""
        step = round(value / RESOLUTION)
        self.steps[step] = self.steps.get(step, 0) + 1
        if self.largest is None or value > self.largest:
            self.largest = value

    def spread_ms(self) -> Dict[str, Optional[float]]:
        """Quantiles and the largest value in ms, None without values."""
        found = {name: self._ranked(share) for name, share in QUANTILES.items()}
        found["max"] = self.largest
        return {name: None if value is None else round(value * MS, 3) for name, value in found.items()}

    def _ranked(self, share: float) -> Optional[float]:
        """The smallest value that at least this share of all does not exceed, to the nearest step."""
        wanted, seen = share * sum(self.steps.values()), 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if seen >= wanted and self.largest is not None:
                return min(step * RESOLUTION, self.largest)
        return None


def spread_ms(values: Iterable[float]) -> Dict[str, Optional[float]]:
    """Quantiles and the largest of some times (s), in ms."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram.spread_ms()


# --- processes -------------------------------------------------------------------------------------


class ProcessMemory(NamedTuple):
    """One process's memory: its own (USS), with its share of what is shared (PSS), all it touches (RSS)."""

    uss: int
    pss: int
    rss: int


def read_memory(pid: int) -> ProcessMemory:
    """What a process occupies. A process that is not dumpable shows that to root only. Raises OSError."""
    sizes: Dict[str, int] = {}
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii", errors="replace") as file:
        for line in file.readlines()[1:]:
            name, _, rest = line.partition(":")
            sizes[name] = int(rest.split()[0])
    return ProcessMemory(sum(sizes.get(name, 0) for name in PRIVATE), sizes["Pss"], sizes["Rss"])


def read_cpu_ns(pid: int) -> int:
    """The processor time of a process so far, kernel included, as the scheduler counts it. Raises OSError."""
    tasks = "/proc/%d/task" % pid
    return sum(_task_ns(os.path.join(tasks, task)) for task in os.listdir(tasks))


def _task_ns(folder: str) -> int:
    with open(os.path.join(folder, "schedstat"), encoding="ascii") as file:
        return int(file.read().split()[0])


def read_cpu_times(pids: Iterable[int]) -> Dict[int, int]:
    """The processor time, ns, of those processes that still run."""
    times: Dict[int, int] = {}
    for pid in pids:
        try:
            times[pid] = read_cpu_ns(pid)
        except OSError:
            pass
    return times


def spent_ns(before: Dict[int, int], after: Dict[int, int]) -> int:
    """The time between two readings, of the processes that are in both."""
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys())


def read_memories(pids: Iterable[int]) -> List[ProcessMemory]:
    """The memory of those processes that still run."""
    found: List[ProcessMemory] = []
    for pid in pids:
        try:
            found.append(read_memory(pid))
        except OSError:
            pass
    return found


def read_holdings(pid: int) -> Dict[str, Any]:
    """What a daemon must not gather: descriptors, dead children that nobody reaped, and memory."""
    process = psutil.Process(pid)
    held = read_memory(pid)
    zombies = [child for child in process.children() if child.status() == psutil.STATUS_ZOMBIE]
    return {
        "descriptors": process.num_fds(),
        "zombies": len(zombies),
        "uss_kb": held.uss,
        "rss_kb": held.rss,
    }
