"""Children that live but are stuck: real processes, with rounds of tens of ms."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiers import PACE

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.server.supervise import stuck_children
from guestmtce.server.supervise.stuck_children import StuckChildren, count_sleeps

ROUND = 0.02
PATIENCE = 0.3
BEATS = "import time\nwhile True: time.sleep(0.02)"
SPINS = "while True: pass"
ODD = PATIENCE * 4


class Bench:
    def __init__(self, **lives):
        self.loop = Loop()
        self.processes = {
            name: subprocess.Popen([sys.executable, "-c", life]) for name, life in lives.items()
        }
        self.gone = []
        self.spinning = {}
        self.liveness = StuckChildren(self.loop, self.pids, lambda _: PATIENCE, self.stuck, self.spins)
        self.liveness.start_rounds()

    def pids(self):
        return {name: one.pid for name, one in self.processes.items() if name not in self.gone}

    def stuck(self, name):
        self.gone.append(name)

    def spins(self, name, why):
        self.gone.append(name)
        self.spinning[name] = why

    def run(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.loop.at(min(until, time.monotonic() + ROUND), lambda: None)
            self.loop.run_once()

    def await_gone(self, *names, seconds=5.0):
        """These are found, in this order, and nobody else."""
        wait_for(lambda: self.run(ROUND) or len(self.gone) >= len(names), "they are found", seconds, step=0)
        assert self.gone == list(names)

    def close(self):
        self.loop.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(stuck_children, "ROUND", ROUND)
    made = []

    def make(**lives):
        made.append(Bench(**lives))
        one = made[-1]
        wait_for(lambda: all((count_sleeps(pid) or 0) > 3 for n, pid in one.pids().items() if n != "spins"),
                 "they live")  # fmt: skip
        return one

    yield make
    for one in made:
        one.close()


def test_who_sleeps_now_and_then_is_not_looked_at_alone_and_who_spins_or_stands_still_is_stuck(bench):
    one = bench(beats=BEATS, spins=SPINS, stopped=BEATS)
    one.run(ODD)
    one.await_gone("spins")
    one.processes["stopped"].send_signal(signal.SIGSTOP)
    one.await_gone("spins", "stopped")
    assert one.liveness.stuck == 2


def test_time_in_which_we_stood_still_does_not_count(bench, monkeypatch):
    monkeypatch.setattr(stuck_children, "LATE", PATIENCE / 4)
    one = bench(stopped=BEATS)
    one.processes["stopped"].send_signal(signal.SIGSTOP)
    for _ in range(4):
        one.run(PATIENCE / 2)
        time.sleep(PATIENCE)
    assert one.gone == []
    one.await_gone("stopped")


def test_one_that_has_ended_is_nobodys_trouble(bench):
    one = bench(ended=BEATS, beats=BEATS)
    one.processes["ended"].kill()
    one.processes["ended"].wait()
    one.run(ODD)
    assert one.gone == [] and one.loop.defects == 0


NAPS = """
import time
while True:
    until = time.process_time() + %g
    while time.process_time() < until: pass
    time.sleep(%g)
"""


@pytest.mark.skipif(PACE > 1, reason="on a busy machine it gets no more than its share")
def test_one_that_spins_in_short_naps_is_found_and_a_busy_one_is_not(bench, monkeypatch):
    """3 ms at work and 0.1 asleep, or a tenth of the time at work, as under a flood."""
    monkeypatch.setattr(stuck_children, "CPU_DEBT_MAX", 0.2)
    one = bench(naps=NAPS % (0.003, 0.0001), busy=NAPS % (0.002, 0.018), beats=BEATS)
    one.await_gone("naps", seconds=15.0)
    assert one.liveness.stuck == 0
    assert one.spinning["naps"].endswith("s of a processor beyond its share")


def test_a_debt_is_paid_back_by_using_less(monkeypatch):
    """A burst is nobody's end, and one too much now and then is."""
    used, spun = [0.0], []
    monkeypatch.setattr(stuck_children, "read_processor_use", lambda _: (used[0], next(sleeps)))
    monkeypatch.setattr(stuck_children, "count_sleeps", lambda _: next(sleeps))
    sleeps = iter(range(10**6))
    watch = StuckChildren(Loop(), dict, lambda _: 60.0, spun.append, lambda uuid, why: spun.append(why))
    for second in range(0, 3600, 5):
        used[0] += 5.0 if second % 30 == 0 else 0.5  # 8 s of 30, in bursts
        watch._look("guest", 1, float(second))
    assert spun == []
    for second in range(3600, 3700, 5):
        used[0] += 5 * 0.45
        watch._look("guest", 1, float(second))
    assert spun[:1] == ["10 s of a processor beyond its share"]


def test_a_kernel_that_does_not_count_processor_time_finds_nobody(bench, monkeypatch):
    monkeypatch.setattr(stuck_children, "CPU_DEBT_MAX", 0.01)
    monkeypatch.setattr(stuck_children, "NANOSECONDS", float("inf"))
    one = bench(naps=NAPS % (0.003, 0.0001))
    one.run(PATIENCE)
    assert one.gone == []


def test_nobody_is_there():
    assert stuck_children.read_processor_use(2**22 + 1) == (0.0, 0)
    used, runs = stuck_children.read_processor_use(os.getpid())
    assert 0 < used < 3600 and runs > 0
    assert count_sleeps(2**22 + 1) is None
    assert count_sleeps(os.getpid()) > 0


LOOKS = {  # used, s; runs; sleeps (None: not to be looked at) → whether it has slept
    "it ran a little": ((1.001, 12, None), True),
    "it has not run": ((1.0, 10, None), False),
    "it ran much and slept": ((1.2, 12, 8), True),
    "it ran much and did not sleep": ((1.2, 12, 7), False),
    "nobody counts, and it slept": ((0.0, 0, 8), True),
    "nobody counts, and it did not sleep": ((0.0, 0, 7), False),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_sleeps_are_looked_at_only_where_they_decide(monkeypatch, name):
    (used, runs, sleeps), slept = LOOKS[name]
    stuck = []
    counted = bool(runs)
    watch = StuckChildren(Loop(), dict, lambda _: 4.0, stuck.append, lambda *_: None)
    monkeypatch.setattr(stuck_children, "count_sleeps", lambda _: 7)
    monkeypatch.setattr(stuck_children, "read_processor_use", lambda _: (1.0, 10) if counted else (0.0, 0))
    watch._look("guest", 1, 100.0)
    looks = []
    monkeypatch.setattr(stuck_children, "count_sleeps", lambda _: looks.append(1) or sleeps)
    monkeypatch.setattr(stuck_children, "read_processor_use", lambda _: (used, runs))
    watch._look("guest", 1, 105.0)
    assert (stuck == []) is slept and bool(looks) is (sleeps is not None)
