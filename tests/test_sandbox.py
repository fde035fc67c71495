"""The filter's program, walked as the kernel walks it, for both architectures; and what Landlock handles."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct

import pytest

from guestmtce.server import sandbox, syscalls
from guestmtce.server.sandbox import ALLOW, KILL, REFUSE

MACHINES = sorted(sandbox.ARCHITECTURES)
HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
I386 = 0x40000003
CALLS = {**syscalls.NEEDED, **syscalls.MEMORY, "ioctl": syscalls.IOCTL, **syscalls.DEADLY}


def walk(program, number, *arguments, architecture):
    """What the program returns for a call, as linux/filter.h says it runs."""
    six = [argument % 2**64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("=IIQ6Q", number % 2**32, architecture, 0x7F0000000000, *six)
    lines = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, constant = lines[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        else:
            holds = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: accumulator & constant != 0,
            }
            at += yes if holds[code] else no


class Filter:
    def __init__(self, machine):
        self.machine = machine
        self.program = sandbox.filter_program(machine)

    def __call__(self, call, *arguments, architecture=None):
        number = call if type(call) is int else getattr(CALLS[call], self.machine)
        if architecture is None:
            architecture = sandbox.ARCHITECTURES[self.machine]
        return walk(self.program, number, *arguments, architecture=architecture)


@pytest.fixture(params=MACHINES)
def judge(request):
    return Filter(request.param)


def there(judge, names):
    return [name for name in names if getattr(CALLS[name], judge.machine) is not None]


def test_what_a_session_needs_is_allowed_whatever_its_arguments(judge):
    for name in there(judge, syscalls.NEEDED):
        assert judge(name) == judge(name, -1, -1, -1, -1, -1, -1) == ALLOW, name


def test_what_no_honest_child_calls_ends_it(judge):
    for name in there(judge, syscalls.DEADLY):
        assert judge(name) == KILL, name


def test_every_other_number_is_refused(judge):
    known = {getattr(one, judge.machine) for one in CALLS.values()}
    unknown = [number for number in range(1000) if number not in known]
    assert len(unknown) > 900
    assert {judge(number) for number in unknown} == {REFUSE}


def test_memory_is_not_made_executable(judge):
    for name in ("mmap", "mprotect"):
        for others in (0, PROT_READ, PROT_READ | PROT_WRITE, 0x01000000):
            assert judge(name, 0x7F0000000000, 4096, others) == ALLOW
            assert judge(name, 0, 4096, others | PROT_EXEC) == REFUSE


def test_of_ioctl_only_a_socket_s_waiting_is_left(judge):
    assert judge("ioctl", 0, sandbox.FIONBIO, 0x7FFF0000) == ALLOW
    for request in (0, 0x5401, 0x5412, sandbox.FIONBIO + 1, 2**32 - 1):
        assert judge("ioctl", 0, request) == REFUSE


def test_another_architecture_s_calls_end_the_child(judge):
    """Their numbers mean other calls: 45 receives on x86_64, and is brk on a i386."""
    others = [0, I386, *(sandbox.ARCHITECTURES[name] for name in MACHINES if name != judge.machine)]
    for other in others:
        assert judge("recvfrom", architecture=other) == KILL


def test_the_third_abi_of_x86_64_ends_the_child():
    judge = Filter("x86_64")
    for name in there(judge, CALLS):
        assert judge(CALLS[name].x86_64 | sandbox.X32_BIT) == KILL
    assert judge(-1) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernel_s_headers(machine):
    if not os.path.exists(HEADERS[machine]):
        pytest.skip("%s is not there" % HEADERS[machine])
    with open(HEADERS[machine]) as file:
        found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", file.read())
    numbers = {name: int(number) for name, number in found}
    for name, one in CALLS.items():
        assert getattr(one, machine) == numbers.get(name), name
    assert sandbox.SYS_SECCOMP[machine] == numbers["seccomp"]
    assert numbers.get("landlock_create_ruleset", 444) == sandbox.SYS_LANDLOCK_CREATE_RULESET
    assert numbers.get("landlock_restrict_self", 446) == sandbox.SYS_LANDLOCK_RESTRICT_SELF


def test_needed_and_deadly_have_nothing_in_common():
    assert len(CALLS) == len(syscalls.NEEDED) + len(syscalls.MEMORY) + 1 + len(syscalls.DEADLY)


def test_labels_become_distances_and_jumps_only_go_forward():
    code = [(0x15, "end", None, 7), (0x20, None, None, 0), "end", (0x06, None, None, 1)]
    assert list(struct.iter_unpack("=HBBI", sandbox.assemble(code))) == [
        (0x15, 1, 0, 7), (0x20, 0, 0, 0), (0x06, 0, 0, 1)
    ]  # fmt: skip
    with pytest.raises(struct.error):
        sandbox.assemble(["start", (0x06, None, None, 1), (0x15, "start", None, 7)])


@pytest.mark.parametrize("machine", ["ppc64le", "i686", "riscv64", "armv7l"])
def test_where_the_numbers_are_not_known_there_is_no_filter(monkeypatch, machine):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "", machine)))
    with pytest.raises(sandbox.Missing, match=machine):
        sandbox.seccomp_step()


class Kernel:
    """Answers the C calls as a kernel would that has only some of them: a call's first words → errno."""

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        def call(*arguments):
            words = [name, *(str(getattr(one, "value", None)) for one in arguments[:3])]
            for length in range(len(words), 0, -1):
                if "_".join(words[:length]) in self.answers:
                    ctypes.set_errno(self.answers["_".join(words[:length])])
                    return -1
            raise AssertionError(words)

        return call


KERNELS = {
    "of today": ({"syscall_317_1_4": errno.EFAULT}, "syscall", [317, 1, 4]),
    "3.17": ({"syscall_317_1_4": errno.EINVAL, "syscall_317_1_0": errno.EFAULT}, "syscall", [317, 1, 0]),
    "3.10": ({"syscall": errno.ENOSYS, "prctl_22_2": errno.EFAULT}, "prctl", [22, 2]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_filter_is_installed_by_what_the_kernel_has(monkeypatch, name):
    answers, call, words = KERNELS[name]
    kernel = Kernel(**answers)
    monkeypatch.setattr(sandbox, "_libc", kernel)
    step = sandbox.install_step("x86_64", sandbox.filter_program("x86_64"))
    assert [one.value for one in step.arguments[: len(words)]] == words
    assert any("byref" in repr(one) or "cparam" in repr(one) for one in step.arguments)


def test_a_kernel_without_filters_says_so(monkeypatch):
    monkeypatch.setattr(sandbox, "_libc", Kernel(syscall=errno.EINVAL, prctl=errno.EINVAL))
    with pytest.raises(sandbox.Missing, match="not in this kernel"):
        sandbox.install_step("x86_64", sandbox.filter_program("x86_64"))


def test_landlock_handles_every_right_of_its_version_and_none_that_it_does_not_know():
    """The numbers that linux/landlock.h and its documentation give."""
    assert sandbox.landlock_rights(1) == (0x1FFF, 0, 0)
    assert sandbox.landlock_rights(2) == (0x3FFF, 0, 0)
    assert sandbox.landlock_rights(3) == (0x7FFF, 0, 0)
    assert sandbox.landlock_rights(4) == (0x7FFF, 3, 0)
    assert sandbox.landlock_rights(5) == (0xFFFF, 3, 0)
    assert sandbox.landlock_rights(6) == sandbox.landlock_rights(99) == (0xFFFF, 3, 3)


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSYS, "not in this kernel"), (errno.EOPNOTSUPP, "disabled"), (errno.EPERM, "not permitted")],
)
def test_a_kernel_without_landlock_says_why(monkeypatch, number, why):
    monkeypatch.setattr(sandbox, "_libc", Kernel(syscall=number))
    with pytest.raises(sandbox.Missing, match=why):
        sandbox.landlock_ruleset()
