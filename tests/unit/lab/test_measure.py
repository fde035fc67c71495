"""Quantiles, memory and processor time, as measurements take them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from guestmtce.lab import measure

SPIN = 0.05  # s of processor time, longer than a kernel counts a running task behind


def test_quantiles_are_values_that_came():
    spread = measure.spread_ms([number / 1000 for number in range(1, 101)])
    assert spread == pytest.approx({"p50": 50.0, "p99": 99.0, "max": 100.0}, abs=0.011)
    assert measure.spread_ms([0.25]) == {"p50": 250.0, "p99": 250.0, "max": 250.0}
    assert measure.spread_ms([]) == {"p50": None, "p99": None, "max": None}


def test_a_histogram_survives_json():
    histogram = measure.Histogram()
    for value in (-0.001, 0.002, 0.002):
        histogram.add(value)
    steps = json.loads(json.dumps(histogram.steps))
    assert measure.Histogram.of(steps, histogram.largest).spread_ms() == histogram.spread_ms()


def test_memory_is_read_in_kb_and_what_has_ended_is_left_out():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        memory = measure.read_memory(process.pid)
        assert 0 < memory.uss <= memory.pss <= memory.rss < 100_000
        assert len(measure.read_memories([process.pid])) == 1
        process.communicate(b"\n")
    assert measure.read_memories([process.pid]) == [] and measure.read_cpu_times([process.pid]) == {}


def test_processor_time_is_that_of_the_process():
    before, used = measure.read_cpu_times([os.getpid()]), time.process_time()
    while time.process_time() - used < SPIN:
        pass
    spent = measure.spent_ns(before, measure.read_cpu_times([os.getpid()]))
    assert SPIN / 2 < spent / 1e9 < 20 * SPIN
