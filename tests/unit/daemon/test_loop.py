"""The event loop: descriptors, timers, signals, calls from threads, and defects that it survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from guestmtce.daemon import loop as loop_module
from guestmtce.daemon.loop import Loop


@pytest.fixture
def loop():
    one = Loop()
    yield one
    one.close()


def turn(loop, done, seconds=5.0):
    """Run the loop until `done()`."""
    ended = loop.after(seconds, lambda: None)
    while not done():
        assert time.monotonic() < ended.when, "not within %g s" % seconds
        loop.run_once()


def pair(request):
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        request.addfinalizer(end.close)
    return ends


# --- timers ----------------------------------------------------------------------------------------


def test_timers_fire_in_order_once_and_never_early(loop):
    fired = []
    began = time.monotonic()
    for delay in (0.03, 0.01, 0.02, 0.0):
        loop.after(delay, lambda delay=delay: fired.append((delay, time.monotonic() - began)))
    turn(loop, lambda: len(fired) == 4)
    assert [delay for delay, _ in fired] == [0.0, 0.01, 0.02, 0.03]
    assert all(delay <= at for delay, at in fired)
    loop.after(0.01, lambda: fired.append("end"))
    turn(loop, lambda: "end" in fired)
    assert len(fired) == 5


def test_timers_of_one_moment_fire_in_the_order_they_were_set(loop):
    fired = []
    when = time.monotonic()
    for number in range(50):
        loop.at(when, lambda number=number: fired.append(number))
    loop.run_once()
    assert fired == list(range(50))


def test_a_cancelled_timer_does_not_fire_not_even_when_another_cancels_it_in_the_same_round(loop):
    fired = []
    now = time.monotonic()
    loop.at(now, lambda: second.cancel())
    second = loop.at(now, lambda: fired.append("second"))
    loop.at(now, lambda: fired.append("third"))
    loop.run_once()
    assert fired == ["third"]
    second.cancel()  # late is harmless


def test_a_timer_that_sets_itself_again_does_not_starve_descriptors(loop, request):
    near, far = pair(request)
    read = []

    def again():
        loop.after(0, again)

    again()
    loop.watch(near, lambda: read.append(near.recv(10)))
    far.send(b"x")
    turn(loop, lambda: read)
    assert read == [b"x"]


# --- descriptors -----------------------------------------------------------------------------------


def test_a_watched_descriptor_is_served_until_it_is_unwatched(loop, request):
    near, far = pair(request)
    read = []
    loop.watch(near, lambda: read.append(near.recv(1)))
    far.send(b"ab")
    turn(loop, lambda: len(read) == 2)
    loop.unwatch(near)
    far.send(b"c")
    done = []
    loop.after(0.02, lambda: done.append(True))
    turn(loop, lambda: done)
    assert read == [b"a", b"b"]


def test_unwatching_what_is_not_watched_is_fine_open_or_closed(loop, request):
    near, _ = pair(request)
    loop.unwatch(near)
    loop.watch(near, lambda: None)
    loop.unwatch(near)
    loop.unwatch(near)
    near.close()
    loop.unwatch(near)


def test_what_one_callback_closes_another_of_the_round_is_not_called_for(loop, request):
    pairs = [pair(request) for _ in range(2)]
    served = []

    def serve(number):
        served.append(number)
        other = pairs[1 - number][0]
        loop.unwatch(other)
        other.close()

    for number, (near, far) in enumerate(pairs):
        loop.watch(near, lambda number=number: serve(number))
        far.send(b"x")
    loop.run_once()
    assert len(served) == 1


def test_a_descriptor_number_that_is_used_again_in_the_round_is_not_confused(loop, request):
    pairs = [pair(request) for _ in range(2)]
    fresh, served = [], []

    def serve(number):
        served.append(number)
        other = pairs[1 - number][0]
        old = other.fileno()
        loop.unwatch(other)
        other.close()
        reused = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        request.addfinalizer(reused.close)
        assert reused.fileno() == old
        loop.watch(reused, lambda: fresh.append(True))

    for number, (near, far) in enumerate(pairs):
        loop.watch(near, lambda number=number: serve(number))
        far.send(b"x")
    loop.run_once()
    assert (len(served), fresh) == (1, [])


# --- threads ---------------------------------------------------------------------------------------


def test_calls_from_threads_are_made_in_the_loop_s_thread_in_order(loop):
    made = []

    def ask():
        for number in range(2000):  # far more than the wake-up socket holds
            loop.call_from_thread(lambda number=number: made.append((number, threading.get_ident())))

    thread = threading.Thread(target=ask)
    thread.start()
    turn(loop, lambda: len(made) == 2000)
    thread.join()
    assert made == [(number, threading.get_ident()) for number in range(2000)]


def test_a_call_wakes_a_loop_that_has_nothing_to_do(loop):
    thread = threading.Timer(0.02, lambda: loop.call_from_thread(loop.stop))
    thread.start()
    loop.run()
    thread.join()
    assert loop.wake_ups == 1


def test_calls_are_not_lost_when_nobody_could_be_woken(loop):
    loop._signal_out.close()
    called = []
    loop._signal_in, loop._signal_out, old = *socket.socketpair(), loop._signal_in
    loop.unwatch(old)
    old.close()
    for end in (loop._signal_in, loop._signal_out):
        end.setblocking(False)
    loop.watch(loop._signal_in, loop._drain)
    with pytest.raises(BlockingIOError):
        while True:
            loop._signal_out.send(b"\0" * 65536)
    loop.call_from_thread(lambda: called.append(True))
    turn(loop, lambda: called)


# --- signals ---------------------------------------------------------------------------------------


def test_signals_are_served_in_the_loop_not_in_the_handler(loop):
    served = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.on_signal(number, lambda number=number: served.append(number))
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert served == []
    turn(loop, lambda: signal.SIGUSR2 in served)
    assert served.count(signal.SIGUSR2) == 1
    assert 1 <= served.count(signal.SIGUSR1) <= 3


def test_a_flood_of_signals_neither_blocks_nor_ends_us(loop):
    served = []
    loop.on_signal(signal.SIGUSR1, lambda: served.append(True))
    for _ in range(5000):
        signal.raise_signal(signal.SIGUSR1)
    turn(loop, lambda: served)


def test_a_signal_is_not_lost_when_the_pipe_that_wakes_is_full(loop):
    served = []
    loop.on_signal(signal.SIGUSR1, lambda: None)
    loop.on_signal(signal.SIGTERM, lambda: served.append("TERM"))
    for _ in range(5000):  # of which the pipe holds 280
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    turn(loop, lambda: served)


def test_what_a_parent_left_of_signals_is_undone():
    code = (
        "import signal\n"
        "from guestmtce.common.background import reset_signals\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTERM, signal.SIGCHLD}\n"
        "reset_signals()\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()\n"
        "for number in (signal.SIGCHLD, signal.SIGINT):\n"
        "    assert signal.getsignal(number) == signal.SIG_DFL\n"
    )
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert (done.returncode, done.stderr) == (0, b"")


def test_close_gives_signals_and_descriptors_back():
    before = os.listdir("/proc/self/fd")
    loop = Loop()
    loop.on_signal(signal.SIGUSR1, lambda: None)
    loop.close()
    assert os.listdir("/proc/self/fd") == before
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_blocking_call_in_the_loop_is_not_interrupted_by_a_signal():
    code = (
        "import os, signal, socket, threading\n"
        "from guestmtce.daemon.loop import Loop\n"
        "loop = Loop()\n"
        "loop.on_signal(signal.SIGUSR1, loop.stop)\n"
        "near, far = socket.socketpair()\n"
        "threading.Timer(0.05, lambda: (os.kill(os.getpid(), signal.SIGUSR1), far.send(b'x'))).start()\n"
        "assert near.recv(1) == b'x'\n"
        "loop.run()\n"
        "print('ended')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"ended\n", b"")


# --- defects ---------------------------------------------------------------------------------------


def test_a_callback_that_raises_is_counted_logged_and_costs_nobody_else_anything(loop, request, caplog):
    near, far = pair(request)
    served = []

    def broken():
        raise ZeroDivisionError("the cause")

    def broken_reader():
        near.recv(10)
        broken()

    loop.after(0, broken)
    loop.after(0.01, lambda: served.append("timer"))
    loop.watch(near, broken_reader)
    far.send(b"x")
    loop.on_signal(signal.SIGUSR1, broken)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_from_thread(broken)
    loop.call_from_thread(lambda: served.append("call"))
    turn(loop, lambda: len(served) == 2 and loop.defects == 4)
    assert sorted(served) == ["call", "timer"]
    assert caplog.text.count("ZeroDivisionError: the cause") == 4


def test_stop_ends_run_after_the_round(loop):
    served = []
    now = time.monotonic()
    loop.at(now, loop.stop)
    loop.at(now, lambda: served.append("the same round"))
    loop.after(60, lambda: served.append("later"))
    loop.run()
    assert served == ["the same round"]


# --- the moment of a turn --------------------------------------------------------------------------


def test_a_turn_has_one_moment_and_outside_of_turns_it_is_the_clock_s(loop, request):
    near, far = pair(request)
    moments = []

    def note():
        moments.append((loop.now, time.monotonic()))
        time.sleep(0.002)

    loop.watch(near, lambda: (near.recv(10), note()))
    loop.call_from_thread(note)
    loop.at(time.monotonic(), note)
    far.send(b"x")
    loop.run_once()
    assert len(moments) == 3
    assert len({now for now, _ in moments}) == 1
    assert moments[-1][0] + 0.004 <= moments[-1][1]
    before = time.monotonic()
    assert before <= loop.now <= time.monotonic()


def test_what_arrived_while_a_callback_stood_still_is_read_before_a_timer_judges(loop, request):
    near, far = pair(request)
    seen = []
    loop.watch(near, lambda: seen.append(near.recv(10)))

    def stand_still():
        far.send(b"answer")
        time.sleep(0.05)

    loop.call_from_thread(stand_still)
    loop.after(0.01, lambda: seen.append("deadline"))
    turn(loop, lambda: len(seen) == 2)
    assert seen == [b"answer", "deadline"]


def test_what_arrived_before_the_moment_was_read_is_read_before_a_timer_judges(loop, request, monkeypatch):
    """As of a process that is stopped between its wait and its look at the clock."""
    near, far = pair(request)
    seen = []
    loop.watch(near, lambda: seen.append(near.recv(10)))
    loop.after(0.01, lambda: seen.append("deadline"))
    wait = loop._selector.select

    def stopped(timeout):
        ready = wait(0)
        if not seen and timeout:
            far.send(b"answer")
            time.sleep(0.02)
        return ready

    monkeypatch.setattr(loop._selector, "select", stopped)
    turn(loop, lambda: len(seen) == 2)
    assert seen == [b"answer", "deadline"]


def test_a_timer_set_for_now_by_a_timer_waits_for_the_next_turn(loop):
    fired = []

    def again():
        fired.append(loop.now)
        loop.at(loop.now, again)

    loop.at(time.monotonic(), again)
    loop.run_once()
    assert len(fired) == 1


def test_cancelled_timers_do_not_pile_up(loop):
    kept = [loop.after(3600, lambda: None) for _ in range(100)]
    for _ in range(10_000):
        loop.after(60, lambda: None).cancel()
    assert len(loop._timers) < 600
    assert {id(timer) for timer in kept} <= {id(timer) for _, _, timer in loop._timers}


def test_a_callback_that_stood_still_is_told_of_though_no_timer_was_due(loop, request, caplog, monkeypatch):
    monkeypatch.setattr(loop_module, "STALL", 0.02)
    near, far = pair(request)
    stalled = []

    def read():
        near.recv(1)
        stalled.append(loop.stood_still)
        time.sleep(0.05)

    loop.watch(near, read)
    far.send(b"ab")
    turn(loop, lambda: len(stalled) == 2)
    assert (stalled[0], loop.stalls) == (0, 1)
    assert stalled[1] >= 0.05
    assert "stood still" in caplog.text


def test_standing_still_is_told_with_its_length(loop, caplog):
    called = []
    loop.after(0, lambda: called.append("in time"))
    turn(loop, lambda: called)
    assert loop.stalls == 0
    loop.at(time.monotonic() - 2.5, lambda: called.append("late"))
    turn(loop, lambda: len(called) == 2)
    assert loop.stalls == 1
    assert "stood still for 2.5 s" in caplog.text


def test_a_loop_is_idle_when_what_could_be_read_has_been_read():
    loop, seen = Loop(), []
    ours, theirs = socket.socketpair()

    def read():
        seen.append(("read", loop.idle))
        ours.recv(1)

    loop.watch(ours, read)
    loop.on_idle = lambda: seen.append(("idle", loop.idle))
    theirs.send(b"ab")
    loop.run_once()
    loop.run_once()
    assert seen == [("read", False), ("read", False)]
    loop.after(0, lambda: seen.append(("timer", loop.idle)))
    loop.run_once()
    assert seen[2:] == [("idle", True), ("timer", False)]
    loop.close()
    ours.close()
    theirs.close()
