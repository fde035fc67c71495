"""How much slower this machine is at the moment than one that has nothing else to do.

Bounds of time are meant for a machine that is not busy. What judges by them stretches them by `slowness`.
"""

from __future__ import annotations

import os
import time

SPIN = 0.02  # s of processor time that a look takes
SLOWEST = 20.0  # a machine that is slower than that is not waited for
BUSY = 1.5  # from here on it is worth a word


def slowness() -> float:
    """By how much more time a piece of work takes now: 1 (the machine is not busy) … SLOWEST."""
    return min(SLOWEST, max(1.0, _by_spinning(), _by_counting()))


def stretched(seconds: float) -> float:
    """This many s, on this machine, now."""
    return seconds * slowness()


def within(seconds: float, took: float) -> bool:
    """Whether something that took `took` s would have taken less than `seconds` where nothing else runs."""
    return took < seconds or took < stretched(seconds)


def remark() -> str:
    """What is to be said of a machine that is busy; empty where it is not."""
    factor = slowness()
    return "this machine is busy: work takes %.1f times its time" % factor if factor > BUSY else ""


def _by_spinning() -> float:
    """What is lost to others while we want to run: s per s of processor time."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < SPIN:
        pass
    return (time.monotonic() - began) / (time.process_time() - used)


def _by_counting() -> float:
    """Tasks that want to run, for each processor that we may use."""
    try:
        with open("/proc/loadavg") as file:
            running = int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1.0
    return running / len(os.sched_getaffinity(0))
