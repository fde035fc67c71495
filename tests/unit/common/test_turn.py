"""A turn reads what can be read before it judges who is late."""

import os
import selectors
import time

import pytest

from guestmtce.common import NEVER, turn


class Waits:
    """A selector that notes how long it was to wait."""

    def __init__(self):
        self.waits = []

    def select(self, timeout):
        self.waits.append(timeout)
        return ["asked %d times" % len(self.waits)]


def test_it_waits_for_the_deadline_and_no_longer_than_the_system_can():
    selector = Waits()
    for seconds in (-5.0, 10.0, 1e9, NEVER):
        turn.wait_until(selector, time.monotonic() + seconds)
    past, soon, far, never = selector.waits
    assert past <= 0.0 and (far, never) == (turn.WAIT_MAX, None)
    assert 0.0 < soon <= 10.0


def test_before_a_deadline_is_judged_the_selector_is_asked_again():
    selector = Waits()
    now, ready = turn.begin_turn(selector, time.monotonic() - 1.0, [])
    assert (selector.waits, ready) == ([0], ["asked 1 times"])
    assert abs(time.monotonic() - now) < 60


def test_a_turn_without_a_deadline_keeps_what_the_wait_gave():
    selector = Waits()
    assert turn.begin_turn(selector, NEVER, ["word"])[1] == ["word"]
    assert selector.waits == []


@pytest.mark.parametrize("deadline", [0.0, NEVER])
def test_what_can_be_read_ends_the_wait(deadline):
    reader, writer = os.pipe()
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        os.write(writer, b"word")
        ready = turn.wait_until(selector, deadline)
        assert [key.fd for key, _ in turn.begin_turn(selector, deadline, ready)[1]] == [reader]
    os.close(reader)
    os.close(writer)
