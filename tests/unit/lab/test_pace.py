"""How busy the machine is: bounds of time stretch with it, and only then."""

import contextlib
import os
import subprocess
import sys

import pytest

from guestmtce.lab import pace


@contextlib.contextmanager
def one_processor_shared_with(count):
    """This process and `count` others that always want to run."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, ours)


def test_work_on_a_shared_processor_takes_longer_and_bounds_stretch_with_it():
    with one_processor_shared_with(4):
        assert pace.slowness() > 2
        assert pace.within(1.0, 1.9)
        assert "this machine is busy" in pace.remark()


@pytest.mark.parametrize(
    "factor, took, holds", [(1.0, 0.9, True), (1.0, 1.1, False), (3.0, 2.9, True), (3.0, 3.1, False)]
)
def test_a_bound_stretches_by_what_the_machine_is_slower(monkeypatch, factor, took, holds):
    monkeypatch.setattr(pace, "slowness", lambda: factor)
    assert pace.within(1.0, took) is holds


def test_a_machine_without_that_file_is_judged_measure_lost_time(monkeypatch):
    monkeypatch.setattr(pace, "_measure_lost_time", lambda: 1.0)
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError))
    assert pace.slowness() == 1.0 and pace.remark() == ""
