"""How a filter is installed on kernels of all ages, and what Landlock handles."""

from __future__ import annotations

import ctypes
import errno

import pytest

from guestmtce.server.child import sandbox

FILTER = sandbox.Filter(bytes(16), 317)


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
    monkeypatch.setattr(sandbox, "libc", kernel)
    step = sandbox.install_step(FILTER)
    assert [one.value for one in step.arguments[: len(words)]] == words
    assert any("byref" in repr(one) or "cparam" in repr(one) for one in step.arguments)


def test_a_kernel_without_filters_says_so(monkeypatch):
    monkeypatch.setattr(sandbox, "libc", Kernel(syscall=errno.EINVAL, prctl=errno.EINVAL))
    with pytest.raises(sandbox.Missing, match="not in this kernel"):
        sandbox.install_step(FILTER)


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
    monkeypatch.setattr(sandbox, "libc", Kernel(syscall=number))
    with pytest.raises(sandbox.Missing, match=why):
        sandbox.landlock_ruleset()
