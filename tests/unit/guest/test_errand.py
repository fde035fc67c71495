"""A task done by a process of its own: its result is all of it, or none."""

from __future__ import annotations

import os
import signal

import pytest

from guestmtce.guest import errand
from guestmtce.guest.errand import Errand

SECONDS = 60.0
MORE_THAN_A_PIPE_HOLDS = b"x" * 2**18


def fail():
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("result", [b"", b".", b"=", b"CORRECTIVE_ACTION=log\n", MORE_THAN_A_PIPE_HOLDS])
def test_the_result_is_what_the_work_gave(result):
    one = Errand(lambda: result)
    assert one.wait(SECONDS) and one.result() == result
    one.close()
    errand.reap()


def test_what_it_raised_is_said():
    one = Errand(fail)
    assert one.wait(SECONDS)
    with pytest.raises(OSError, match="Input/output error"):
        one.result()
    one.close()
    errand.reap()


@pytest.mark.parametrize("received", [False, True])
def test_one_that_was_killed_in_the_middle_gives_nothing(received):
    """Half a configuration would be taken for a whole one whose other lines are the defaults."""
    one = Errand(lambda: MORE_THAN_A_PIPE_HOLDS)
    while received and not one._data:
        one.receive()
    os.kill(errand._running[-1], signal.SIGKILL)
    assert one.wait(SECONDS)
    with pytest.raises(OSError, match="was killed"):
        one.result()
    one.close()
    errand.reap()
