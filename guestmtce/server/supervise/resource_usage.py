"""What the children cost, for the health report: of a sample, so that the master is not away for long."""

from __future__ import annotations

import os
import time
from typing import Iterable, List, NamedTuple, Sequence

import psutil

SAMPLE = 64  # children; each takes 0.3 ms to look at
KB = 1024
STARTED_AT = 19  # field of /proc/PID/stat, after the name: in clock ticks since the boot


class _Figures(NamedTuple):
    """`cpu` and `age` in s, `uss` (memory that is the child's alone) in bytes; -1 if we may not see it."""

    cpu: float
    age: float
    uss: int


def line(pids: Sequence[int]) -> str:
    """`children N …`: processor time and private memory per child, and the age of the oldest."""
    found = [one for pid in _sample(pids) for one in _figures(pid)]
    words = "children %d" % len(pids)
    if not found:
        return words
    words += " cpu %s s age %s s" % (_mean_max(one.cpu for one in found), _mean_max(one.age for one in found))
    seen = [one.uss / KB for one in found if one.uss >= 0]
    words += " uss " + (_mean_max(seen) + " kB" if seen else "unknown (needs root)")
    return words + (" (of %d)" % len(found) if len(found) < len(pids) else "")


def _sample(pids: Sequence[int]) -> Sequence[int]:
    return pids[:: -(-len(pids) // SAMPLE)] if pids else ()


def _figures(pid: int) -> List[_Figures]:
    """One, or none for a child that has ended."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return [_Figures(times.user + times.system, _age(pid), _uss(process))]
    except (psutil.NoSuchProcess, FileNotFoundError):
        return []


def _age(pid: int) -> float:
    """By the clock of the boot: psutil's is the wall's, which may be set."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[STARTED_AT])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _uss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return -1


def _mean_max(values: Iterable[float]) -> str:
    known = list(values)
    return "mean %.4g max %.4g" % (sum(known) / len(known), max(known))
