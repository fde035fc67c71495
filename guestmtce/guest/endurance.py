"""Being the last to starve: the client's memory stays in place, and its scripts are processes like any other.

The client as a service has a high priority, and is the last that the kernel kills when there is no memory.
Both pass to what it starts, and a script that eats all memory must not be spared. guestClient.service gives
both; other ways to start it often cannot, so the client sees to it as well.
"""

import os
import resource
from typing import Callable

NICE = -10  # as in guestClient.service
OOM_SCORE = -900  # likewise; -1000 would be never
OOM_SCORE_FILE = "/proc/self/oom_score_adj"
# <sys/mman.h> of Linux, on every processor but Alpha, PowerPC and SPARC.
MCL_CURRENT, MCL_FUTURE = 1, 2


def may_lock_memory() -> bool:
    """Whether locked memory is unlimited: below a limit the next allocation would fail, whatever is free."""
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY


def lock_memory() -> str:
    """Keep all pages of this process in memory; to be called after the last fork, which would undo it.

    Returns a line for the log; nothing to say is an empty one.
    """
    if not may_lock_memory():
        return ""
    try:
        import ctypes  # a megabyte, for this only; small builds of Python lack it

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(MCL_CURRENT | MCL_FUTURE) == 0:
            return "memory is locked"
        why = os.strerror(ctypes.get_errno())
    except (ImportError, OSError, AttributeError) as error:
        why = str(error)
    return "memory is not locked, and may be slow to reach when little is free: mlockall: " + why


def take_precedence() -> None:
    """Have a high priority and be killed last, unless whoever started us has set either. Raises nothing."""
    _change(lambda nice: nice == 0, NICE, lambda score: score == 0, OOM_SCORE)


def become_ordinary() -> None:
    """Give up both in a process that is to run a script, before exec. Raises nothing."""
    _change(lambda nice: nice < 0, 0, lambda score: score < 0, 0)


def _change(
    wrong_nice: Callable[[int], bool], nice: int, wrong_score: Callable[[int], bool], score: int
) -> None:
    """Set what is wrong; what a container forbids is left as it is."""
    try:
        if wrong_nice(os.getpriority(os.PRIO_PROCESS, 0)):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:
        pass
    try:
        with open(OOM_SCORE_FILE, "r+b", buffering=0) as file:
            if wrong_score(int(file.read())):
                file.write(b"%d" % score)
    except (OSError, ValueError):
        pass
