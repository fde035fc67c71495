"""Being the last to starve: the client's memory stays in place, and its scripts are processes like any other.

Whoever starts the client (guestClient.service, heartbeat_init) gives it its priority, its place with the
kernel's killer of processes, and the right to lock memory. All three pass to what it starts, and a script
that eats all memory must not be spared.
"""

import os
import resource

OOM_SCORE = "/proc/self/oom_score_adj"
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


def become_ordinary() -> None:
    """Give up the client's privileges in a process that is to run a script, before exec. Raises nothing."""
    try:
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        with open(OOM_SCORE, "r+b", buffering=0) as score:
            if int(score.read()) < 0:
                score.write(b"0")
    except (OSError, ValueError):
        pass  # a kernel without it, or a sandbox that forbids it: the script runs all the same
