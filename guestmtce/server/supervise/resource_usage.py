"""What the children cost, for the health report: of a sample, so that the master is not away for long."""

from __future__ import annotations

import math
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


def format_usage(pids: Sequence[int]) -> str:
    """`children N …`: processor time and private memory per child, and the age of the oldest."""
    found = [figures for pid in _choose_sample(pids) for figures in _read_figures(pid)]
    text = "children %d" % len(pids)
    if not found:
        return text
    cpu = _mean_max(figures.cpu for figures in found)
    age = _mean_max(figures.age for figures in found)
    text += " cpu %s s age %s s" % (cpu, age)
    seen = [figures.uss / KB for figures in found if figures.uss >= 0]
    text += " uss " + (_mean_max(seen) + " kB" if seen else "unknown (needs root)")
    return text + (" (of %d)" % len(found) if len(found) < len(pids) else "")


def _choose_sample(pids: Sequence[int]) -> Sequence[int]:
    return pids[:: math.ceil(len(pids) / SAMPLE)] if pids else ()


def _read_figures(pid: int) -> List[_Figures]:
    """One, or none for a child that has ended."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return [_Figures(times.user + times.system, _read_age(pid), _read_uss(process))]
    except (psutil.NoSuchProcess, FileNotFoundError):
        return []


def _read_age(pid: int) -> float:
    """By the clock of the boot: psutil's is the wall's, which may be set."""
    with open("/proc/%d/stat" % pid, "rb") as file:
        # The name before them may have blanks and brackets in it: the fields are counted from its last
        # bracket.
        started = int(file.read().rpartition(b")")[2].split()[STARTED_AT])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _read_uss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return -1


def _mean_max(values: Iterable[float]) -> str:
    known = list(values)
    return "mean %.4g max %.4g" % (sum(known) / len(known), max(known))
