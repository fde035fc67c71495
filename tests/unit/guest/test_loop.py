"""The guest client's loop: what can be read comes before deadlines; signals are served in the loop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from guestmtce.common import NEVER
from guestmtce.guest.loop import Loop


class Part:
    def __init__(self, deadline, seen):
        self.deadline = deadline
        self._seen = seen

    def tick(self, now):
        self._seen.append("tick")
        self.now = now
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


def test_a_signal_is_not_lost_when_the_pipe_that_wakes_is_full(loop, capfd):
    seen = []
    loop.on_signal(signal.SIGCHLD, lambda: seen.append("child"))
    loop.on_signal(signal.SIGTERM, lambda: (seen.append("end"), setattr(loop, "running", False)))
    for _ in range(100_000):  # of which the pipe holds 65,536
        signal.raise_signal(signal.SIGCHLD)
    signal.raise_signal(signal.SIGTERM)
    loop.run()
    assert sorted(seen) == ["child", "end"]
    assert capfd.readouterr().err == ""


def test_what_arrived_while_a_callback_stood_still_is_read_before_a_deadline_is_judged(loop, pipe):
    seen = []
    loop.parts = [Part(time.monotonic() + 0.01, seen)]
    other = os.pipe()

    def stand_still():
        os.read(other[0], 10)
        os.write(pipe[1], b"word")
        time.sleep(0.05)

    loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 10)))
    loop.watch(other[0], stand_still)
    os.write(other[1], b"x")
    while len(seen) < 2:
        loop.run_once()
    assert seen == [b"word", "tick"]
    for end in other:
        os.close(end)


def test_a_turn_has_one_moment(loop, pipe):
    moments = []
    part = Part(0.0, [])
    loop.parts = [part]

    def read():
        os.read(pipe[0], 10)
        moments.append(loop.now)
        time.sleep(0.002)

    loop.watch(pipe[0], read)
    os.write(pipe[1], b"word")
    loop.run_once()
    assert moments == [part.now]
    assert loop.now >= part.now + 0.002


def test_what_arrives_between_the_wait_and_the_turns_moment_is_read_before_a_deadline_is_judged(
    loop, pipe, monkeypatch
):
    seen, select = [], loop._selector.select

    def select_and_then_it_arrives(timeout):
        ready = select(timeout)
        if timeout > 0:
            os.write(pipe[1], b"word")
        return ready

    monkeypatch.setattr(loop._selector, "select", select_and_then_it_arrives)
    loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 10)))
    loop.parts = [Part(time.monotonic() + 0.05, seen)]
    while "tick" not in seen:
        loop.run_once()
    assert seen == [b"word", "tick"]


def test_a_signal_wakes_the_loop_once(loop):
    loop.on_signal(signal.SIGUSR1, lambda: None)
    signal.raise_signal(signal.SIGUSR1)
    loop.run_once()
    assert loop._selector.select(0) == []


# --- its end ---------------------------------------------------------------------------------------


def test_a_loop_that_is_closed_leaves_no_descriptor():
    before = sorted(os.listdir("/proc/self/fd"))
    one = Loop()
    one.on_signal(signal.SIGUSR1, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 3  # what it waits by, and a pipe
    one.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_loop_that_is_closed_leaves_no_handler_and_is_woken_by_no_signal():
    one = Loop()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        one.on_signal(number, lambda: None)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    one.close()
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)] == [signal.SIG_DFL] * 2
    assert signal.set_wakeup_fd(-1) == -1


def test_a_loop_without_signals_takes_nothing_from_another_when_it_is_closed(loop):
    seen = []
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("signal"))
    Loop().close()
    signal.raise_signal(signal.SIGUSR1)
    woken = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    assert woken != -1
    loop.run_once()
    assert seen == ["signal"]


def test_a_loop_that_is_closed_waits_for_nothing(pipe):
    one = Loop()
    one.watch(pipe[0], lambda: None)
    one.close()
    with pytest.raises((OSError, ValueError, RuntimeError, TypeError)):
        one.run_once()


def test_what_a_parent_left_of_signals_is_undone(tmp_path):
    """A TERM that was blocked, and children that were ignored."""
    settings = ["--device", str(tmp_path / "none"), "--config", str(tmp_path / "none"), "--socket", ""]
    words = [sys.executable, "-m", "guestmtce.guest.main", "--foreground", *settings]
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        client = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    try:
        assert client.stderr is not None
        while "started" not in client.stderr.readline():
            assert client.poll() is None
        client.terminate()
        assert client.wait(60) == 0
    finally:
        client.kill()
        client.communicate()


def test_signals_that_a_parent_ignores_or_python_serves_are_the_systems_own_again():
    code = "import signal; from guestmtce.common.background import reset_signals; reset_signals()\n"
    code += "print([signal.getsignal(one) == signal.SIG_DFL for one in (signal.SIGCHLD, signal.SIGINT)])\n"
    code += "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"

    def leave_them_so():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})

    words = [sys.executable, "-c", code]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, preexec_fn=leave_them_so)
    assert done.stdout.decode().split("\n")[:2] == ["[True, True]", "set()"]


def test_outside_of_a_turn_now_is_the_clocks(loop):
    before = time.monotonic()
    assert before <= loop.now <= time.monotonic()


def test_what_is_to_be_read_is_not_served_while_it_can_only_be_written(loop):
    ours, theirs = socket.socketpair()
    seen = []
    loop.watch(ours.fileno(), lambda: seen.append(1))
    loop.parts = [Part(0.0, [])]
    loop.run_once()
    assert seen == []
    loop.watch(ours.fileno(), lambda: seen.append(2), writing=True)
    loop.run_once()
    assert seen == [2]
    loop.unwatch(ours.fileno())
    ours.close(), theirs.close()


def test_a_part_is_served_at_its_deadline(loop, monkeypatch):
    seen = []
    loop.parts = [Part(5.0, seen)]
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    loop.run_once()
    assert seen == ["tick"]
