"""Processes of our own: forked and left to themselves.

guestClient has one thread, so a fork is safe. Nothing here waits for a process: what exec, a disk or a file
system takes is the new process's time, and the heartbeat goes on meanwhile.
"""

import os
import signal
from typing import Callable, Collection, List

DESCRIPTORS = "/proc/self/fd"
DESCENDANTS_MAX = 1000  # looked for at once; a fork bomb has more
DESCRIPTORS_MAX = 4096  # closed one by one where there is no /proc
FAILED = 127  # exit status of one that did not become what it was to be
IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFSZ", "SIGXFZ")
# Who ends the client, or says something to it, does not mean the processes that it has forked.
UNWANTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def fork(become: Callable[[], None]) -> int:
    """The pid of a new process that does `become` and never returns from it. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    try:
        become()
    finally:
        # Never back into the caller's loop: two processes would share its port and its descriptors.
        os._exit(FAILED)


def rename(name: str) -> None:
    """Give this process a name of its own, up to 15 bytes: by its command line it is guestClient."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode("ascii"))
    except OSError:
        pass


def ignore_unwanted_signals() -> None:
    """What is meant for the client is not for this process."""
    for signum in UNWANTED:
        signal.signal(signum, signal.SIG_IGN)


def reset_signals() -> None:
    """What Python or a process of ours ignores, and other programs do not expect to be ignored."""
    python = [getattr(signal, name) for name in IGNORED_BY_PYTHON if hasattr(signal, name)]
    for signum in (*UNWANTED, *python):
        signal.signal(signum, signal.SIG_DFL)


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
    """The processes that `pid` has started, and theirs, up to DESCENDANTS_MAX."""
    found: List[int] = []
    asked = [pid]
    while asked and len(found) < DESCENDANTS_MAX:
        children = _children(asked.pop())
        found += children
        asked += children
    return found


def _children(pid: int) -> List[int]:
    """The children that the kernel lists. Those of a thread that is not the first are left out."""
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid), encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return _children_by_parent(pid)
    except (OSError, ValueError):
        return []


def _children_by_parent(pid: int) -> List[int]:
    """For a kernel without CONFIG_PROC_CHILDREN: every process is asked for its parent."""
    if _has_children_file():
        return []  # it is only that this process has ended
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    return [int(name) for name in names if name.isdigit() and _parent(name) == pid]


def _has_children_file() -> bool:
    return os.path.exists("/proc/self/task/%d/children" % os.getpid())


def _parent(name: str) -> int:
    try:
        with open("/proc/%s/stat" % name, "rb") as file:
            # The name in brackets may hold brackets and blanks: the fields begin behind the last bracket
            # (proc(5)).
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0  # it has ended


def exit_status(status: int) -> int:
    """The exit status, or the signal as a negative number, of what waitpid gave."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
