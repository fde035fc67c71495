"""The children's filter of system calls, as libseccomp makes it from their names.

It is made once, in the master, and handed to the spawner as bytes: no child maps the library. Whatever is on
none of the three lists is refused with EPERM: a new C library must not cost a guest its heartbeat.

ALLOWED is what children were seen to call (strace of CPython 3.9 to 3.13 with glibc, under beats, questions,
floods, SIGSTOP and SIGCONT), and the same calls as other architectures, C libraries and clock sources have
them. None of them names a file, a process or an address.

DEADLY is what an honest child never calls, not even while it dies (so tgkill, which abort(3) makes, is not
among it): who calls one of these is no longer ours.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import termios
from typing import Any, Sequence, Tuple

from guestmtce.server.child.sandbox import Filter

LIBRARY = "libseccomp.so.2"
REMEDY = "install libseccomp2 (Debian) or libseccomp (RPM), or start with --no-seccomp"
FILTER_MAX = 65536  # bytes: the kernel takes 4096 instructions of 8 bytes, and a pipe holds as much

# seccomp.h of libseccomp
ACT_KILL_PROCESS = 0x80000000
ACT_KILL = 0x00000000  # the thread, of which a child has one: for kernels before 4.14
ACT_REFUSE = 0x00050000 | errno.EPERM
ACT_ALLOW = 0x7FFF0000
ATTRIBUTE_BAD_ARCHITECTURE = 2
ATTRIBUTE_OPTIMIZE = 8  # since 2.5.0; before it the rules are walked one by one
BINARY_TREE = 2
COMPARE_MASKED_EQUAL = 7
UNKNOWN_CALL = -1  # this version of the library has no such name
NATIVE = 0

ALLOWED = (
    *("read", "write", "poll", "ppoll", "ppoll_time64", "restart_syscall", "getrandom"),
    # sleep(): clock_nanosleep from Python 3.11 on, select before
    *("clock_nanosleep", "clock_nanosleep_time64", "select", "_newselect", "pselect6", "pselect6_time64"),
    *("clock_gettime", "clock_gettime64"),  # where the clock source does not let the vDSO answer
    *("brk", "munmap", "mremap", "madvise"),
    "exit_group",
)

DEADLY = (
    *("execve", "execveat", "fork", "vfork", "clone", "clone3"),
    *("kill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal", "pidfd_getfd"),
    *("ptrace", "process_vm_readv", "process_vm_writev"),
    *("socket", "socketpair", "socketcall", "connect", "bind", "listen", "accept", "accept4"),
    *("mount", "unshare", "setns", "bpf", "perf_event_open", "io_uring_setup", "userfaultfd"),
    *("add_key", "request_key", "keyctl", "init_module", "finit_module"),
)

LOW_WORD = 0xFFFFFFFF  # an int argument: the kernel does not look at what is above


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


# Calls that are allowed with some arguments only: memory does not become executable, and of ioctl the making
# of a descriptor non-blocking is left.
NO_EXECUTABLE = _Comparison(2, COMPARE_MASKED_EQUAL, mmap.PROT_EXEC, 0)
NON_BLOCKING = _Comparison(1, COMPARE_MASKED_EQUAL, LOW_WORD, termios.FIONBIO)
CHECKED: Tuple[Tuple[str, _Comparison], ...] = (
    ("mmap", NO_EXECUTABLE),
    ("mmap2", NO_EXECUTABLE),
    ("mprotect", NO_EXECUTABLE),
    ("ioctl", NON_BLOCKING),
)


class Unavailable(Exception):
    """libseccomp is not there, or cannot make the filter; the text says why."""


def choose_filter(forbidden: bool, required: bool) -> Filter:
    """The children's filter; none, with the reason, where it is forbidden, or not to be had and not required.

    Raises OSError with the remedy.
    """
    if forbidden:
        return Filter(b"", 0, "no (--no-seccomp)")
    try:
        return build_filter()
    except Unavailable as why:
        if required:
            raise OSError(
                "no filter of system calls for the guests' processes: %s: %s" % (why, REMEDY)
            ) from None
        return Filter(b"", 0, "no (%s)" % why)


def build_filter(architecture: str = "") -> Filter:
    """The filter for this machine, or for another that libseccomp knows by this name. Raises Unavailable."""
    library = _load()
    context = library.seccomp_init(ctypes.c_uint32(ACT_REFUSE))
    if not context:
        raise Unavailable("libseccomp makes no filter here")
    try:
        token = _choose_architecture(library, context, architecture)
        kill = _add_rules(library, context)
        _set(library, context, ATTRIBUTE_BAD_ARCHITECTURE, kill)
        _set(library, context, ATTRIBUTE_OPTIMIZE, BINARY_TREE, needed=False)
        return Filter(_export(library, context), _resolve(library, "seccomp", token))
    finally:
        library.seccomp_release(context)


def _load() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unavailable("%s is not there" % LIBRARY) from None
    library.seccomp_init.restype = ctypes.c_void_p
    for name in ("rule_add_array", "attr_set", "arch_add", "arch_remove", "export_bpf", "release"):
        function = getattr(library, "seccomp_" + name)
        function.argtypes = (ctypes.c_void_p, *_ARGUMENTS[name])
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    library.seccomp_arch_resolve_name.restype = library.seccomp_arch_native.restype = ctypes.c_uint32
    return library


# What follows the context among the arguments of each of libseccomp's functions.
_ARGUMENTS = {
    "rule_add_array": (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p),
    "attr_set": (ctypes.c_int, ctypes.c_uint32),
    "arch_add": (ctypes.c_uint32,),
    "arch_remove": (ctypes.c_uint32,),
    "export_bpf": (ctypes.c_int,),
    "release": (),
}


def _choose_architecture(library: Any, context: int, name: str) -> int:
    if not name:
        return NATIVE
    token = int(library.seccomp_arch_resolve_name(name.encode("ascii")))
    if token == 0:
        raise Unavailable("libseccomp knows no architecture %s" % name)
    if token != library.seccomp_arch_native():
        _check(library.seccomp_arch_remove(context, NATIVE), "another architecture")
        _check(library.seccomp_arch_add(context, token), name)
    return token


def _add_rules(library: Any, context: int) -> int:
    """Returns the action that kills, as strong as this kernel has it."""
    for name in ALLOWED:
        _add(library, context, ACT_ALLOW, name)
    for name, comparison in CHECKED:
        _add(library, context, ACT_ALLOW, name, [comparison])
    kill = ACT_KILL_PROCESS
    for name in DEADLY:
        try:
            _add(library, context, kill, name)
        except Unavailable:
            if kill == ACT_KILL:
                raise
            kill = ACT_KILL
            _add(library, context, kill, name)
    return kill


def _add(library: Any, context: int, action: int, name: str, comparisons: Sequence[_Comparison] = ()) -> None:
    """A call that this architecture, or this version of the library, does not have needs no rule."""
    number = _resolve(library, name)
    if number != UNKNOWN_CALL:
        array = (_Comparison * len(comparisons))(*comparisons)
        _check(library.seccomp_rule_add_array(context, action, number, len(comparisons), array), name)


def _resolve(library: Any, name: str, token: int = NATIVE) -> int:
    return int(library.seccomp_syscall_resolve_name_arch(token, name.encode("ascii")))


def _set(library: Any, context: int, attribute: int, value: int, needed: bool = True) -> None:
    result = library.seccomp_attr_set(context, attribute, value)
    if needed:
        _check(result, "attribute %d" % attribute)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise Unavailable("libseccomp does not take %s: %s" % (what, os.strerror(-result)))


def _export(library: Any, context: int) -> bytes:
    reader, writer = os.pipe()
    try:
        # About 1 kB, which a pipe holds: nobody has to read while it is written.
        result = library.seccomp_export_bpf(context, writer)
        os.close(writer)
        _check(result, "the filter")
        return os.read(reader, FILTER_MAX)
    finally:
        os.close(reader)
