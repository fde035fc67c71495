"""Processes of our own: forked and left to themselves.

guestClient has one thread, so a fork is safe. Nothing here waits for a process: what exec, a disk or a file
system takes is the new process's time, and the heartbeat goes on meanwhile.
"""

import os
import signal
from typing import Callable, Collection, List

DESCRIPTORS = "/proc/self/fd"
DESCENDANTS_MAX = 1000  # looked for; a fork bomb has more, and its group is killed as one
DESCRIPTORS_MAX = 4096  # closed one by one where there is no /proc
FAILED = 127  # exit status of one that did not become what it was to be
IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ", "SIGXFZ")


def fork(become: Callable[[], None]) -> int:
    """The pid of a new process that does `become` and never returns from it. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    try:
        become()
    finally:
        os._exit(FAILED)


def rename(name: str) -> None:
    """Give this process a name of its own, up to 15 bytes: by its command line it is guestClient."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode("ascii"))
    except OSError:
        pass


def reset_ignored_signals() -> None:
    """What Python ignores and other programs do not expect to be ignored."""
    for name in IGNORED_BY_PYTHON:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def close_others(kept: Collection[int]) -> None:
    """Close every descriptor but these: the port above all, which only one process may have open."""
    try:
        found = [int(name) for name in os.listdir(DESCRIPTORS)]
    except OSError:
        found = list(range(DESCRIPTORS_MAX))
    for descriptor in found:
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # it was the one that listed them


def descendants(pid: int) -> List[int]:
    """The processes that `pid` has started, and theirs; those whose parent has ended are nobody's.

    Nothing where the kernel does not list them.
    """
    found: List[int] = []
    asked = [pid]
    while asked and len(found) < DESCENDANTS_MAX:
        one = asked.pop()
        try:
            with open("/proc/%d/task/%d/children" % (one, one), encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
        found += children
        asked += children
    return found


def exit_status(status: int) -> int:
    """The exit status, or the signal as a negative number, of what waitpid gave."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
