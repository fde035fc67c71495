"""The guest client's loop: what can be read comes before deadlines; signals are served in the loop."""

from __future__ import annotations

import os
import signal

import pytest

from guestmtce.guest.loop import NEVER, Loop


class Part:
    def __init__(self, deadline, seen):
        self.deadline = deadline
        self._seen = seen

    def tick(self, now):
        self._seen.append("tick")
        self.deadline = NEVER


@pytest.fixture
def loop():
    one = Loop()
    yield one
    one.close()


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_what_can_be_read_is_read_before_a_deadline_is_judged(loop, pipe):
    seen = []
    loop.parts = [Part(0.0, seen)]
    loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 10)))
    os.write(pipe[1], b"word")
    loop.run_once()
    assert seen == [b"word", "tick"]


def test_who_is_unwatched_by_another_of_the_same_round_is_not_called(loop, pipe):
    seen = []
    other = os.dup(pipe[0])
    for mine, theirs in ((pipe[0], other), (other, pipe[0])):
        loop.watch(mine, lambda mine=mine, theirs=theirs: (seen.append(mine), loop.unwatch(theirs)))
    os.write(pipe[1], b"word")
    loop.run_once()
    os.close(other)
    assert len(seen) == 1


def test_a_signal_is_served_in_the_loop_and_wakes_it(loop):
    seen = []
    loop.on_signal(signal.SIGUSR1, lambda: (seen.append("signal"), setattr(loop, "running", False)))
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.run()
    assert seen == ["signal"]
