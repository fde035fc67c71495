"""Forking a sibling: a process that is the child of our parent, not ours.

`os.fork` would take two forks and a wait for the kernel to hand the orphan over, and what the process in
the middle and the interpreter's own clean-up after a fork write to would be private memory of every child
(150 kB). So clone(2) is called directly, and Python's at-fork hooks do not run. That is safe only in a
process like the spawner: it has one thread, nothing pending, and no module that needs its hook (`preload`).

Where clone's number is not known the two forks do. The master must be a subreaper then (`adopt_orphans`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time

from guestmtce.server.child.libc import libc

CLONE_PARENT = 0x8000  # linux/sched.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
HAND_OVER_POLL = 0.0005  # s
PID = struct.Struct("=i")  # from the process in the middle: the child's pid, or minus errno

# The number of clone(2), which glibc has no plain function for (asm/unistd.h).
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120}
UNKNOWN = -1
clone_number = _CLONE.get(os.uname().machine, UNKNOWN)

# Bound here, and the arguments made, so that a fork makes and looks up nothing.
_syscall = libc.syscall
_arguments = [ctypes.c_long(clone_number), ctypes.c_long(CLONE_PARENT | signal.SIGCHLD)]
_arguments += [ctypes.c_long(0)] * 4  # no stack of its own, nothing to be told


def fork_sibling() -> int:
    """Fork a child of our parent: 0 in that child, its pid here. Raises OSError."""
    if clone_number == UNKNOWN:
        return _fork_twice()
    pid = _syscall(*_arguments)
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, "cannot fork for the master: " + os.strerror(code))
    return int(pid)


def adopt_orphans() -> None:
    """For the master, before it has a spawner: who is forked twice becomes its child. Raises OSError."""
    if clone_number == UNKNOWN and libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot adopt children on this machine")


def _fork_twice() -> int:
    """The child of a process that ends at once: it is handed over to our parent, or to another subreaper."""
    reader, writer = os.pipe()
    try:
        middle = os.fork()
        if middle == 0:
            os.close(reader)
            return _fork_in_the_middle(writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    # It ends at once by itself; unreaped it would stay the spawner's zombie.
    os.waitpid(middle, 0)
    answer = os.read(reader, PID.size)
    os.close(reader)
    (pid,) = PID.unpack(answer) if answer else (-errno.EAGAIN,)
    if pid < 0:
        raise OSError(-pid, "cannot fork for the master: " + os.strerror(-pid))
    return int(pid)


def _fork_in_the_middle(writer: int) -> int:
    """Returns in the child alone, when it has its new parent."""
    middle = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid != 0:
        os.write(writer, PID.pack(pid))
        os._exit(0)
    # Not earlier: the confinement demands that its parent is the master, and asks to die with it.
    while os.getppid() == middle:
        time.sleep(HAND_OVER_POLL)
    return 0
