"""What a kernel can take from a child for good: system calls (seccomp) and files (Landlock).

Both are prepared once, in the spawner, as `Step`s: a C function and its arguments, so that a child only
calls. What this kernel does not have raises Missing, with the reason.

The filter is a program for the kernel's classic BPF machine. It looks at the architecture (a number means
another call on another), then at the call's number, and for three calls at an argument: memory may not
become executable, and of ioctl only the making of a socket non-blocking is left.

The Landlock ruleset handles every right that the kernel knows and grants none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from guestmtce.server import syscalls

# linux/seccomp.h
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER = 1
# Without it kernels 4.17 to 5.15 slow a filtered process down, against the code that a browser would run.
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
KILL = 0x80000000  # the process; before 4.14 the thread, of which a child has one
REFUSE = 0x00050000 | errno.EPERM
ALLOW = 0x7FFF0000

# linux/audit.h: ELF machine, 64 bits, little endian
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000  # asm/unistd.h: another ABI of x86_64, with numbers of its own

# struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits
NUMBER_AT = 0
ARCHITECTURE_AT = 4
ARGUMENTS_AT = 16

# linux/bpf_common.h: load a word, jump if equal / not below / any bit in common, return
LOAD = 0x20
JUMP_EQUAL = 0x15
JUMP_FROM = 0x35
JUMP_BITS = 0x45
RETURN = 0x06
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if so, jump if not, constant

PROT_EXEC = 4
PROT_ARGUMENT = 2  # of mmap and of mprotect
IOCTL_ARGUMENT = 1
FIONBIO = 0x5421  # asm-generic/ioctls.h

SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}

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

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Missing(Exception):
    """This kernel, or this machine, does not have it; the text says why."""


class Step(NamedTuple):
    """A C call, ready to be made, and what it returns when it worked; None: it need not."""

    what: str
    call: Any
    arguments: Tuple[Any, ...]
    wanted: Optional[int] = 0


# --- the filter ------------------------------------------------------------------------------------

# An instruction before its jumps are numbers: code, where to if so, where to if not, constant. A place is
# a label; None is the next instruction.
Line = Tuple[int, Optional[str], Optional[str], int]


def filter_program(machine: str) -> bytes:
    """The BPF program for `machine`, a key of ARCHITECTURES."""
    code: List[Union[str, Line]] = [
        (LOAD, None, None, ARCHITECTURE_AT),
        (JUMP_EQUAL, None, "kill", ARCHITECTURES[machine]),
        (LOAD, None, None, NUMBER_AT),
        *_search(_ranges(machine)),
        *("memory", (LOAD, None, None, ARGUMENTS_AT + 8 * PROT_ARGUMENT)),
        (JUMP_BITS, "refuse", "allow", PROT_EXEC),
        *("ioctl", (LOAD, None, None, ARGUMENTS_AT + 8 * IOCTL_ARGUMENT)),
        (JUMP_EQUAL, "allow", "refuse", FIONBIO),
        *("allow", (RETURN, None, None, ALLOW)),
        *("refuse", (RETURN, None, None, REFUSE)),
        *("kill", (RETURN, None, None, KILL)),
    ]
    return assemble(code)


def _ranges(machine: str) -> List[Tuple[int, str]]:
    """From which number on which label holds, in order."""
    labels: Dict[int, str] = {}
    kinds = ((syscalls.NEEDED, "allow"), (syscalls.DEADLY, "kill"), (syscalls.MEMORY, "memory"))
    for calls, label in (*kinds, ({"ioctl": syscalls.IOCTL}, "ioctl")):
        numbers = (getattr(one, machine) for one in calls.values())
        labels.update((number, label) for number in numbers if number is not None)
    borders = {number + after for number in labels for after in (0, 1)} | {0}
    ranges = [(border, labels.get(border, "refuse")) for border in sorted(borders)]
    if machine == "x86_64":
        ranges.append((X32_BIT, "kill"))
    return [one for before, one in zip([(0, ""), *ranges], ranges) if before[1] != one[1]]


def _search(ranges: List[Tuple[int, str]]) -> List[Union[str, Line]]:
    """To the label of the range that the number is in, by halves.

    Not one by one: when it takes a filter, the kernel walks it once for every call that there is.
    """
    middle = len(ranges) // 2
    (below, below_code), (above, above_code) = map(_half, (ranges[:middle], ranges[middle:]))
    return [(JUMP_FROM, above, below, ranges[middle][0]), *below_code, *above_code]


def _half(ranges: List[Tuple[int, str]]) -> Tuple[str, List[Union[str, Line]]]:
    """Where to go for these, and the code that is needed there."""
    if len(ranges) == 1:
        return ranges[0][1], []
    label = "%d from %d" % (len(ranges), ranges[0][0])
    return label, [label, *_search(ranges)]


def assemble(code: List[Union[str, Line]]) -> bytes:
    """Instructions, with labels (words) before some of them, as the kernel takes them."""
    places: Dict[str, int] = {}
    lines: List[Line] = []
    for one in code:
        if isinstance(one, str):
            places[one] = len(lines)
        else:
            lines.append(one)

    def distance(label: Optional[str], here: int) -> int:
        return 0 if label is None else places[label] - here - 1

    return b"".join(
        INSTRUCTION.pack(word, distance(yes, here), distance(no, here), constant)
        for here, (word, yes, no, constant) in enumerate(lines)
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def machine_name() -> str:
    """This machine's key of ARCHITECTURES. Raises Missing for any other."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES or sys.maxsize < 2**32 or sys.byteorder != "little":
        raise Missing("there is no filter for %s of %d bits" % (machine, sys.maxsize.bit_length() + 1))
    return machine


def seccomp_step() -> Step:
    """Install the filter. Raises Missing."""
    machine = machine_name()
    return install_step(machine, filter_program(machine))


def install_step(machine: str, program: bytes) -> Step:
    """Install `program` by the best way that the kernel has: asked without an address, it says EFAULT.

    Raises Missing.
    """
    ready = ctypes.byref(_Program(len(program) // INSTRUCTION.size, program))
    number, mode = ctypes.c_long(SYS_SECCOMP[machine]), ctypes.c_long(SECCOMP_SET_MODE_FILTER)
    nowhere = ctypes.c_void_p(None)
    for flags in (ctypes.c_long(SECCOMP_FILTER_FLAG_SPEC_ALLOW), ctypes.c_long(0)):
        _libc.syscall(number, mode, flags, nowhere)
        if ctypes.get_errno() == errno.EFAULT:
            return Step("seccomp", _libc.syscall, (number, mode, flags, ready))
    option, mode = ctypes.c_long(PR_SET_SECCOMP), ctypes.c_long(SECCOMP_MODE_FILTER)
    _libc.prctl(option, mode, nowhere, nowhere, nowhere)
    if ctypes.get_errno() != errno.EFAULT:
        raise Missing("not in this kernel")
    return Step("seccomp", _libc.prctl, (option, mode, ready, nowhere, nowhere))


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
    abi = _libc.syscall(create, none, zero, ctypes.c_long(LANDLOCK_CREATE_RULESET_VERSION))
    descriptor = -1
    if abi > 0:
        # Longer than an older kernel knows it is fine while the rest is zero.
        ruleset = _Ruleset(*landlock_rights(abi))
        size = ctypes.c_size_t(ctypes.sizeof(ruleset))
        descriptor = _libc.syscall(create, ctypes.byref(ruleset), size, ctypes.c_long(0))
    if descriptor < 0:
        raise Missing(_why_no_landlock(ctypes.get_errno()))
    return int(descriptor)


def landlock_step(descriptor: int) -> Step:
    """Live under the ruleset at `descriptor`; it takes "no new privileges" before."""
    restrict = ctypes.c_long(SYS_LANDLOCK_RESTRICT_SELF)
    return Step("landlock", _libc.syscall, (restrict, ctypes.c_long(descriptor), ctypes.c_long(0)))


def _why_no_landlock(number: int) -> str:
    known = {errno.ENOSYS: "not in this kernel", errno.EOPNOTSUPP: "disabled when this kernel started"}
    return known.get(number, os.strerror(number))
