#!/usr/bin/env python3
"""guestServer's children beside the least that a process per guest can cost: a C program of the same task.

Both serve the same lab guests, one after the other, for the same time: processor time per heartbeat (µs)
and memory of a child (USS, kB; root is needed to see guestServer's), and the ratios. See pingpong.c for what
the C program leaves out.

usage: tests/bench/compare.py [--guests N] [--interval-ms M] [--seconds S] [--json]     needs gcc
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional

import psutil

from guestmtce.bench import parts
from guestmtce.bench.bench import make_plan, round_figures
from guestmtce.bench.parts import Figures, Plan, Stage
from guestmtce.lab import measure
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.process import GuestsProcess

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pingpong.c")
COMPILE = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra"]
MISSED = b"missed"


def build(folder: str) -> str:
    """Compile the C program; returns its path."""
    program = os.path.join(folder, "pingpong")
    subprocess.run([*COMPILE, SOURCE, "-o", program], check=True)
    return program


def c_program(plan: Plan) -> Figures:
    """The C program's figures."""
    folder = tempfile.mkdtemp(prefix="guestmtce-c-")
    crowd: Optional[GuestsProcess] = None
    try:
        program = build(folder)
        options = ["--interval-ms", str(plan.interval_ms)]
        sockets = os.path.join(folder, "qemu")
        crowd = GuestsProcess(sockets, plan.guests, 1, options, os.path.join(folder, "guests.log"))
        return serve(plan, crowd, [program, sockets, str(plan.interval_ms)])
    finally:
        if crowd is not None:
            crowd.stop()
        shutil.rmtree(folder, ignore_errors=True)


def serve(plan: Plan, crowd: GuestsProcess, command: List[str]) -> Figures:
    """Run the C program for its guests and measure it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            wait_for(lambda: crowd.say("stats")["beating"] == plan.guests, "all heartbeat", 60)
            time.sleep(parts.SETTLE + plan.interval)
            figures = measured(plan, crowd, [one.pid for one in psutil.Process(running.pid).children()])
        finally:
            running.send_signal(signal.SIGTERM)
        return {"misses": running.stdout.read().count(MISSED), **figures}


def measured(plan: Plan, crowd: GuestsProcess, children: List[int]) -> Figures:
    """Processor time and memory of the children over the measured time."""
    crowd.say("stats", "reset")
    before = measure.read_cpu_times(children)
    time.sleep(plan.seconds)
    beats = crowd.say("stats")
    spent = measure.spent_ns(before, measure.read_cpu_times(children))
    late = measure.Histogram.of(beats["late"], beats["max"])
    return {
        "heartbeats": beats["answers"],
        "lateness_ms": late.spread_ms(),
        "cpu_us": parts.divide_by_heartbeats(beats["answers"], child=spent)["child"],
        "uss_kb": mean_uss(children),
    }


def mean_uss(children: List[int]) -> Optional[float]:
    """The mean USS of those that can be read."""
    found = measure.read_memories(children[: parts.MEMORY_SAMPLE])
    return sum(one.uss for one in found) / len(found) if found else None


def guest_server(plan: Plan) -> Figures:
    """guestServer's figures."""
    stage = Stage(plan)
    try:
        stage.start()
        parts.measure_start_up(stage)
        beats, memory = parts.measure_heartbeats(stage), parts.measure_memory(stage)
    finally:
        stage.stop()
    return {
        "misses": beats["misses"],
        "heartbeats": beats["heartbeats"],
        "lateness_ms": beats["lateness_ms"],
        "cpu_us": beats["cpu_us_per_heartbeat"]["children"],
        "uss_kb": memory["child_kb"]["uss_mean"] if "child_kb" in memory else None,
    }


def compare(plan: Plan) -> Figures:
    """Both, and how many times as much guestServer needs."""
    figures: Dict[str, Any] = {"c": c_program(plan), "guestServer": guest_server(plan)}
    for name in ("cpu_us", "uss_kb"):
        ours, least = figures["guestServer"][name], figures["c"][name]
        figures["times_" + name] = ours / least if ours and least else None
    return dict(round_figures(figures))


def table(figures: Figures) -> str:
    """For a reader."""
    lines = ["%-16s%14s%14s%14s" % ("", "C", "guestServer", "times")]
    for name, label in (("cpu_us", "µs a heartbeat"), ("uss_kb", "USS, kB")):
        values = [figures["c"][name], figures["guestServer"][name], figures["times_" + name]]
        lines.append("%-16s" % label + "".join("%14s" % ("-" if v is None else "%.1f" % v) for v in values))
    for name in ("p50", "p99"):
        late = [figures[one]["lateness_ms"][name] for one in ("c", "guestServer")]
        lines.append("%-16s%14.2f%14.2f" % ("late, ms, " + name, *late))
    misses = [figures[one]["misses"] for one in ("c", "guestServer")]
    lines.append("%-16s%14d%14d" % ("misses", *misses))
    return "\n".join(lines)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="guestServer beside a C program that forks per guest")
    parser.add_argument("--guests", type=int, default=200)
    parser.add_argument("--interval-ms", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    plan = make_plan(given.guests, given.interval_ms, given.seconds, kill=0, fail=0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    figures = compare(plan)
    print(json.dumps(figures) if given.json else table(figures))
    return 1 if figures["guestServer"]["misses"] or figures["c"]["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
