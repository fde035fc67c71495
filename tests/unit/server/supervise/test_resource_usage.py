"""What the children cost, as the health report tells it: of real processes."""

import os
import subprocess
import sys

import pytest

from guestmtce.server.supervise import resource_usage


@pytest.fixture
def pids():
    processes = [
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        for _ in range(5)
    ]
    yield [process.pid for process in processes]
    for process in processes:
        process.communicate()


def figures(line):
    """`name mean max` of each."""
    words = line.split()
    return {
        words[i - 1]: (float(words[i + 1]), float(words[i + 3]))
        for i in range(len(words))
        if words[i] == "mean"
    }


def test_nobody_costs_nothing():
    assert resource_usage.format_usage([]) == "children 0"


def test_the_figures_are_those_of_the_processes(pids):
    line = resource_usage.format_usage([*pids, os.getpid()])
    assert line.startswith("children 6 cpu mean ") and line.endswith(" kB")
    shown = figures(line)
    times = os.times()
    assert abs(shown["cpu"][1] - times.user - times.system) < 0.5
    assert 0 <= shown["age"][0] <= shown["age"][1]
    assert 1000 < shown["uss"][0] < shown["uss"][1] < 1_000_000


def test_of_many_a_few_are_looked_at(pids, monkeypatch):
    monkeypatch.setattr(resource_usage, "SAMPLE", 2)
    assert resource_usage.format_usage(pids).endswith("(of 2)")


def test_one_that_has_ended_is_left_out(pids):
    assert resource_usage.format_usage([2**22 + 1]) == "children 1"
    assert resource_usage.format_usage([*pids, 2**22 + 1]).endswith("(of 5)")


def test_memory_that_we_may_not_see_is_unknown(pids, monkeypatch):
    monkeypatch.setattr(resource_usage, "_read_uss", lambda _: -1)
    assert resource_usage.format_usage(pids).endswith("uss unknown (needs root)")
