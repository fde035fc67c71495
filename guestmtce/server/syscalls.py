"""The system calls that the filter in `sandbox` names, by number on each architecture.

Source: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (which
arm64 uses). Numbers never change once given, and no table that Python has names them all.

NEEDED is what a session makes, and what the interpreter and the C library may make on their own behalf
while it runs, over their versions: another kind of sleep, memory in another way, a signal's return. None of
them names a file, a process or an address.

DEADLY is what an honest child never makes, not even while it dies (so tgkill, which abort(3) makes, is
not among it): who makes one of these is no longer ours. Whatever is on neither list is refused, as a kernel
would that does not have it: a new C library must not cost a guest its heartbeat.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional


class Numbers(NamedTuple):
    """Of one system call; None where the architecture does not have it."""

    x86_64: Optional[int]
    aarch64: Optional[int]


NEEDED: Dict[str, Numbers] = {
    "recvfrom": Numbers(45, 207),
    "sendto": Numbers(44, 206),
    "poll": Numbers(7, None),
    "ppoll": Numbers(271, 73),
    "getrandom": Numbers(318, 278),
    "clock_gettime": Numbers(228, 113),
    "clock_nanosleep": Numbers(230, 115),
    "munmap": Numbers(11, 215),
    "mremap": Numbers(25, 216),
    "madvise": Numbers(28, 233),
    "brk": Numbers(12, 214),
    "futex": Numbers(202, 98),
    "read": Numbers(0, 63),
    "write": Numbers(1, 64),
    "readv": Numbers(19, 65),
    "writev": Numbers(20, 66),
    "close": Numbers(3, 57),
    "shutdown": Numbers(48, 210),
    "fstat": Numbers(5, 80),
    "getsockname": Numbers(51, 204),
    "getsockopt": Numbers(55, 209),
    "nanosleep": Numbers(35, 101),
    "select": Numbers(23, None),
    "pselect6": Numbers(270, 72),
    "clock_getres": Numbers(229, 114),
    "gettimeofday": Numbers(96, 169),
    "time": Numbers(201, None),
    "sched_yield": Numbers(24, 124),
    "getpid": Numbers(39, 172),
    "getppid": Numbers(110, 173),
    "gettid": Numbers(186, 178),
    "getuid": Numbers(102, 174),
    "geteuid": Numbers(107, 175),
    "getgid": Numbers(104, 176),
    "getegid": Numbers(108, 177),
    "rt_sigaction": Numbers(13, 134),
    "rt_sigprocmask": Numbers(14, 135),
    "rt_sigreturn": Numbers(15, 139),
    "sigaltstack": Numbers(131, 132),
    "restart_syscall": Numbers(219, 128),
    "exit": Numbers(60, 93),
    "exit_group": Numbers(231, 94),
}

# Needed, but with some arguments only; `sandbox` says with which.
MEMORY: Dict[str, Numbers] = {"mmap": Numbers(9, 222), "mprotect": Numbers(10, 226)}
IOCTL = Numbers(16, 29)

DEADLY: Dict[str, Numbers] = {
    "execve": Numbers(59, 221),
    "execveat": Numbers(322, 281),
    "fork": Numbers(57, None),
    "vfork": Numbers(58, None),
    "clone": Numbers(56, 220),
    "clone3": Numbers(435, 435),
    "kill": Numbers(62, 129),
    "rt_sigqueueinfo": Numbers(129, 138),
    "rt_tgsigqueueinfo": Numbers(297, 240),
    "pidfd_open": Numbers(434, 434),
    "pidfd_send_signal": Numbers(424, 424),
    "pidfd_getfd": Numbers(438, 438),
    "ptrace": Numbers(101, 117),
    "process_vm_readv": Numbers(310, 270),
    "process_vm_writev": Numbers(311, 271),
    "socket": Numbers(41, 198),
    "socketpair": Numbers(53, 199),
    "connect": Numbers(42, 203),
    "bind": Numbers(49, 200),
    "listen": Numbers(50, 201),
    "accept": Numbers(43, 202),
    "accept4": Numbers(288, 242),
    "mount": Numbers(165, 40),
    "unshare": Numbers(272, 97),
    "setns": Numbers(308, 268),
    "bpf": Numbers(321, 280),
    "perf_event_open": Numbers(298, 241),
    "io_uring_setup": Numbers(425, 425),
    "userfaultfd": Numbers(323, 282),
    "add_key": Numbers(248, 217),
    "request_key": Numbers(249, 218),
    "keyctl": Numbers(250, 219),
    "init_module": Numbers(175, 105),
    "finit_module": Numbers(313, 273),
}
