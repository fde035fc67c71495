"""The children's filter, walked as the kernel walks it, on several architectures; and without libseccomp."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import termios

import pytest

from guestmtce.lab.cluster import Cluster
from guestmtce.server.supervise import seccomp
from guestmtce.server.supervise.seccomp import ACT_ALLOW, ACT_KILL_PROCESS, ACT_REFUSE, ALLOWED, DEADLY

# linux/audit.h: what the kernel calls the architecture of a call.
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
I386 = 0x40000003
X32_BIT = 0x40000000
NUMBERS = 1100  # more than any architecture has calls


def run_program(program, number, arguments, audit):
    """What the program returns for a call, as linux/filter.h says it runs."""
    six = [argument % 2**64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("=IIQ6Q", number % 2**32, audit, 0x7F0000000000, *six)
    lines = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, constant = lines[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x05:
            at += constant
        else:
            holds = {
                0x15: accumulator == constant,
                0x25: accumulator > constant,
                0x35: accumulator >= constant,
            }
            at += yes if holds[code] else no


class Filter:
    def __init__(self, architecture):
        self.program = seccomp.build_filter(architecture).program
        self.audit = AUDIT[architecture]
        library = seccomp._load()
        token = library.seccomp_arch_resolve_name(architecture.encode())
        self.numbers = {}
        for name in (*ALLOWED, *DEADLY, *(name for name, _ in seccomp.CHECKED)):
            number = seccomp._resolve(library, name, token)
            if number >= 0:
                self.numbers[name] = number

    def __call__(self, call, *arguments, audit=None):
        number = self.numbers[call] if isinstance(call, str) else call
        return run_program(self.program, number, arguments, self.audit if audit is None else audit)

    def there(self, names):
        return [name for name in names if name in self.numbers]


@pytest.fixture(params=sorted(AUDIT))
def judge(request):
    try:
        return Filter(request.param)
    except seccomp.Unavailable as why:
        pytest.skip(str(why))


def test_what_a_session_needs_is_allowed_whatever_its_arguments(judge):
    assert len(judge.there(ALLOWED)) > 10
    for name in judge.there(ALLOWED):
        assert judge(name) == judge(name, -1, -1, -1, -1, -1, -1) == ACT_ALLOW, name


def test_what_no_honest_child_calls_ends_it(judge):
    assert {"execve", "clone", "socket", "ptrace", "kill"} <= set(judge.there(DEADLY))
    for name in judge.there(DEADLY):
        assert judge(name) == ACT_KILL_PROCESS, name


def test_every_other_number_is_refused(judge):
    unknown = [number for number in range(NUMBERS) if number not in judge.numbers.values()]
    assert len(unknown) > NUMBERS - 100
    assert {judge(number) for number in unknown} == {ACT_REFUSE}


def test_memory_is_not_made_executable(judge):
    for name in judge.there(["mmap", "mprotect"]):
        for others in (0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, 0x01000000):
            assert judge(name, 0x7F0000000000, 4096, others) == ACT_ALLOW
            assert judge(name, 0, 4096, others | mmap.PROT_EXEC) == ACT_REFUSE


def test_of_ioctl_only_a_descriptor_s_waiting_is_left(judge):
    assert judge("ioctl", 0, termios.FIONBIO, 0x7FFF0000) == ACT_ALLOW
    assert judge("ioctl", 0, termios.FIONBIO | 2**40, 0x7FFF0000) == ACT_ALLOW  # the kernel sees 32 bits
    for request in (0, 0x5401, 0x5412, termios.FIONBIO + 1, 2**32 - 1):
        assert judge("ioctl", 0, request) == ACT_REFUSE


def test_another_architecture_s_calls_end_the_child(judge):
    """Their numbers mean other calls: 45 receives on x86_64, and is brk on a i386."""
    for other in (0, I386, *(audit for audit in AUDIT.values() if audit != judge.audit)):
        assert judge("read", audit=other) == ACT_KILL_PROCESS


def test_the_third_abi_of_x86_64_ends_the_child():
    judge = Filter("x86_64")
    for number in judge.numbers.values():
        assert judge(number | X32_BIT) == ACT_KILL_PROCESS


def test_no_call_that_a_child_was_never_seen_to_make_is_left():
    """Read and write do for both descriptors, and nothing waits for another thread or runs a handler."""
    for name in (
        "recvfrom",
        "sendto",
        "recvmsg",
        "sendmsg",
        "shutdown",
        "futex",
        "rt_sigaction",
        "rt_sigreturn",
    ):
        assert name not in ALLOWED
    assert not set(ALLOWED) & set(DEADLY)


def test_the_filter_of_this_machine_is_small():
    """The kernel walks it once for every call there is when it takes it."""
    assert 50 < len(seccomp.build_filter().program) // 8 < 200


def test_an_unknown_architecture_is_said():
    with pytest.raises(seccomp.Unavailable, match="no architecture vax"):
        seccomp.build_filter("vax")


# --- without libseccomp ------------------------------------------------------------------------------


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(seccomp, "LIBRARY", "libseccomp.so.none")


def test_root_without_libseccomp_is_told_the_remedy(no_library):
    with pytest.raises(
        OSError, match=r"libseccomp.so.none is not there: install libseccomp2 .* --no-seccomp"
    ):
        seccomp.choose_filter(forbidden=False, required=True)


def test_who_is_not_root_goes_on_without_and_says_so(no_library):
    found = seccomp.choose_filter(forbidden=False, required=False)
    assert (found.program, found.absence) == (b"", "no (libseccomp.so.none is not there)")


def test_who_wants_none_gets_none():
    assert seccomp.choose_filter(forbidden=True, required=True).absence == "no (--no-seccomp)"


def test_a_kernel_that_cannot_kill_a_process_kills_the_thread(monkeypatch):
    """Before Linux 4.14 libseccomp does not take that action."""
    real = seccomp._check
    refused = []

    def check(result, what):
        real(result, what)
        if what == "execve" and not refused:
            refused.append(what)
            raise seccomp.Unavailable("not in this kernel")

    monkeypatch.setattr(seccomp, "_check", check)
    library = seccomp._load()
    context = library.seccomp_init(ACT_REFUSE)
    assert seccomp._add_rules(library, ctypes.c_void_p(context)) == seccomp.ACT_KILL
    library.seccomp_release(context)


class Bare(Cluster):
    server_words = ("--no-seccomp",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked for it")
def test_guests_are_watched_without_a_filter_where_it_is_wanted_so():
    with Bare(1, 1, 400) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        assert "seccomp no (--no-seccomp)" in cluster.hosts[0].server.health()["confinement"]
