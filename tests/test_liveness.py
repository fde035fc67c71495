"""Children that live but are stuck: real processes, with rounds of tens of ms."""

import os
import signal
import subprocess
import sys
import time

import pytest

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.server import liveness
from guestmtce.server.liveness import Liveness, count_sleeps

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
        self.liveness = Liveness(self.loop, self.pids, lambda _: PATIENCE, self.stuck)
        self.liveness.start()

    def pids(self):
        return {name: one.pid for name, one in self.processes.items() if name not in self.gone}

    def stuck(self, name):
        self.gone.append(name)

    def run(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.loop.at(min(until, time.monotonic() + ROUND), lambda: None)
            self.loop.run_once()

    def close(self):
        self.loop.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(liveness, "ROUND", ROUND)
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


def test_who_sleeps_now_and_then_is_left_alone_and_who_spins_or_stands_still_is_stuck(bench):
    one = bench(beats=BEATS, spins=SPINS, stopped=BEATS)
    one.run(ODD)
    assert one.gone == ["spins"]
    one.processes["stopped"].send_signal(signal.SIGSTOP)
    one.run(ODD)
    assert one.gone == ["spins", "stopped"] and one.liveness.stuck == 2


def test_time_in_which_we_stood_still_does_not_count(bench, monkeypatch):
    monkeypatch.setattr(liveness, "LATE", PATIENCE / 4)
    one = bench(stopped=BEATS)
    one.processes["stopped"].send_signal(signal.SIGSTOP)
    for _ in range(4):
        one.run(PATIENCE / 2)
        time.sleep(PATIENCE)
    assert one.gone == []
    one.run(ODD)
    assert one.gone == ["stopped"]


def test_one_that_has_ended_is_nobodys_trouble(bench):
    one = bench(ended=BEATS, beats=BEATS)
    one.processes["ended"].kill()
    one.processes["ended"].wait()
    one.run(ODD)
    assert one.gone == [] and one.loop.defects == 0


def test_nobody_is_there():
    assert count_sleeps(2**22 + 1) is None
    assert count_sleeps(os.getpid()) > 0
