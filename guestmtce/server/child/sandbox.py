"""What a kernel can take from a child for good: system calls (seccomp) and files (Landlock).

Both are prepared once, in the spawner, as `Step`s: a C function and its arguments, so that a child only
calls. What this kernel does not have raises Missing, with the reason.

The filter comes from the master (`seccomp`). The Landlock ruleset handles every right that the kernel knows
and grants none.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

from guestmtce.server.child.libc import libc

# linux/seccomp.h
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
# Without it kernels 4.17 to 5.15 slow a filtered process down, against the code that a browser would run.
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
INSTRUCTION_SIZE = 8  # bytes; struct sock_filter of linux/filter.h

# linux/landlock.h; the numbers are the same on every architecture
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
# ABI → the rights that came with it, as bits: of files, of the network, of reaching other processes
LANDLOCK_RIGHTS: Dict[int, Tuple[int, int, int]] = {
    1: ((1 << 13) - 1, 0, 0),
    2: (1 << 13, 0, 0),  # to move a file to another folder
    3: (1 << 14, 0, 0),  # to truncate
    4: (0, 0b11, 0),  # to bind and to connect TCP
    5: (1 << 15, 0, 0),  # ioctl on devices
    6: (0, 0, 0b11),  # abstract UNIX sockets, signals
}


class Missing(Exception):
    """This kernel, or this machine, does not have it; the text says why."""


class Step(NamedTuple):
    """A C call, ready to be made: `call(*arguments)`; `name` says in an error what it is for.

    `success` is what it returns when it worked; None: it need not work.
    """

    name: str
    call: Any
    arguments: Tuple[Any, ...]
    success: Optional[int] = 0


class Filter(NamedTuple):
    """A program for the kernel's classic BPF machine, and the number of seccomp(2), which installs it.

    Without a program `absence` says why: `no (…)`.
    """

    program: bytes
    install_call: int
    absence: str = ""


# --- the filter ------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_step(wanted: Filter) -> Step:
    """Install the filter by the best way that the kernel has. Raises Missing.

    A way that the kernel knows is found by asking without an address: it says EFAULT, and not EINVAL or
    ENOSYS. seccomp(2) with SPEC_ALLOW comes first, then without, then prctl(2) of kernels before 3.17.
    """
    ready = ctypes.byref(_Program(len(wanted.program) // INSTRUCTION_SIZE, wanted.program))
    call, mode = ctypes.c_long(wanted.install_call), ctypes.c_long(SECCOMP_SET_MODE_FILTER)
    nowhere = ctypes.c_void_p(None)
    for flags in (ctypes.c_long(SECCOMP_FILTER_FLAG_SPEC_ALLOW), ctypes.c_long(0)):
        libc.syscall(call, mode, flags, nowhere)
        if ctypes.get_errno() == errno.EFAULT:
            return Step("seccomp", libc.syscall, (call, mode, flags, ready))
    option, mode = ctypes.c_long(PR_SET_SECCOMP), ctypes.c_long(SECCOMP_MODE_FILTER)
    libc.prctl(option, mode, nowhere, nowhere, nowhere)
    if ctypes.get_errno() != errno.EFAULT:
        raise Missing("not in this kernel")
    return Step("seccomp", libc.prctl, (option, mode, ready, nowhere, nowhere))


# --- Landlock --------------------------------------------------------------------------------------


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("reach", ctypes.c_uint64))


def landlock_rights(abi: int) -> Tuple[int, int, int]:
    """Every right that a kernel of this ABI knows: of files, of the network, of reaching processes."""
    files = network = reach = 0
    for came_with, rights in LANDLOCK_RIGHTS.items():
        if came_with <= abi:
            files, network, reach = files | rights[0], network | rights[1], reach | rights[2]
    return files, network, reach


def landlock_ruleset() -> int:
    """The descriptor of a ruleset that handles every right and grants none. Raises Missing."""
    create = ctypes.c_long(SYS_LANDLOCK_CREATE_RULESET)
    none, zero = ctypes.c_void_p(None), ctypes.c_size_t(0)
    abi = libc.syscall(create, none, zero, ctypes.c_long(LANDLOCK_CREATE_RULESET_VERSION))
    descriptor = -1
    if abi > 0:
        # Longer than an older kernel knows it is fine while the rest is zero.
        ruleset = _Ruleset(*landlock_rights(abi))
        size = ctypes.c_size_t(ctypes.sizeof(ruleset))
        descriptor = libc.syscall(create, ctypes.byref(ruleset), size, ctypes.c_long(0))
    if descriptor < 0:
        raise Missing(_explain_no_landlock(ctypes.get_errno()))
    return int(descriptor)


def landlock_step(descriptor: int) -> Step:
    """Live under the ruleset at `descriptor`; it takes "no new privileges" before."""
    restrict = ctypes.c_long(SYS_LANDLOCK_RESTRICT_SELF)
    return Step("landlock", libc.syscall, (restrict, ctypes.c_long(descriptor), ctypes.c_long(0)))


def _explain_no_landlock(code: int) -> str:
    known = {errno.ENOSYS: "not in this kernel", errno.EOPNOTSUPP: "disabled when this kernel started"}
    return known.get(code, os.strerror(code))
