"""A child's waiting: a judgement is on time, though poll(2) is late by its nature."""

from __future__ import annotations

import pytest

from guestmtce.server.child import process


@pytest.fixture
def slept(monkeypatch):
    times = []
    monkeypatch.setattr(process, "sleep", times.append)
    return times


@pytest.mark.parametrize("wait", [0.003, 0.4, 1.0, 60.0, process.POLL_MAX])
def test_for_a_judgement_it_polls_less_than_the_time_by_what_poll_is_late(slept, wait):
    polled = process._shorten_wait(wait)
    rounded = (int(polled * 1000) + 1) / 1000  # as the child gives it to poll
    assert rounded + wait * process.POLL_SLACK < wait
    assert slept == []


@pytest.mark.parametrize("wait", [0.0001, 0.001, process.POLL_LATE])
def test_the_rest_it_sleeps(slept, wait):
    assert process._shorten_wait(wait) == 0
    assert slept == [wait]


@pytest.mark.parametrize("wait", [0.0, -1.0])
def test_what_is_due_is_not_waited_for(slept, wait):
    assert process._shorten_wait(wait) == 0
    assert slept == []
