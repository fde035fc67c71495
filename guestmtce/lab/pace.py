"""How much slower this machine is at the moment than one that has nothing else to do.

Bounds of time are meant for a machine that is not busy. A test or demo that judges by them stretches them by
`slowness`, so that a busy machine makes no failure of what is right.
"""

from __future__ import annotations

import os
import time

SPIN = 0.02  # s of processor time that a look takes
SLOWEST = 20.0  # the largest factor by which a bound is stretched
BUSY = 1.5  # the factor from which on the reader is told


def slowness() -> float:
    """The factor by which work takes longer now: 1 (the machine is not busy) … SLOWEST."""
    # The larger of two views: a spin may run on a processor of its own while others wait, and the load
    # average's tasks say nothing of a hypervisor that takes the processor away.
    return min(SLOWEST, max(1.0, _measure_lost_time(), _count_waiting_tasks()))


def stretched(seconds: float) -> float:
    """A bound of `seconds`, as long as this machine needs now."""
    return seconds * slowness()


def within(seconds: float, took: float) -> bool:
    """Whether something that took `took` s would have taken less than `seconds` where nothing else runs."""
    # The pace is measured only where the bound itself is exceeded.
    return took < seconds or took < stretched(seconds)


def remark() -> str:
    """A line for the reader about a machine that is busy; empty where it is not."""
    factor = slowness()
    return "this machine is busy: work takes %.1f times its time" % factor if factor > BUSY else ""


def _measure_lost_time() -> float:
    """How long a piece of work takes here, s per s of processor time: the rest goes to other processes."""
    began, used = time.monotonic(), time.process_time()
    # By processor time: on a busy machine the same work takes more of the clock's.
    while time.process_time() - used < SPIN:
        pass
    return (time.monotonic() - began) / (time.process_time() - used)


def _count_waiting_tasks() -> float:
    """Tasks that want to run, for each processor that we may use (proc(5), /proc/loadavg, fourth field)."""
    try:
        with open("/proc/loadavg") as file:
            running = int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1.0
    return running / len(os.sched_getaffinity(0))
