"""Forking a sibling: a process that is the child of our parent, not ours.

`os.fork` would take two forks and a wait for the kernel to hand the orphan over, and what the process in
the middle and the interpreter's own clean-up after a fork write to would be private memory of every child
(150 kB). So the call is made directly, and it is only for a process like the spawner: with one thread, no
at-fork hooks, and nothing pending.
"""

from __future__ import annotations

import ctypes
import os
import signal

CLONE_PARENT = 0x8000  # linux/sched.h

# The number of clone(2), which glibc has no plain function for (asm/unistd.h).
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "loongarch64": 220, "ppc64le": 120}

# PyDLL keeps the interpreter's lock while it calls: the child goes on with it.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_arguments = [ctypes.c_long(_CLONE.get(os.uname().machine, -1)), ctypes.c_long(CLONE_PARENT | signal.SIGCHLD)]
_arguments += [ctypes.c_long(0)] * 4  # no stack of its own, nothing to be told


def fork_sibling() -> int:
    """Fork a child of our parent: 0 in that child, its pid here. Raises OSError."""
    pid = _syscall(*_arguments)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, "cannot fork for the master: " + os.strerror(number))
    return int(pid)
