"""`guestmtce bench`: its figures are there and possible, its verdict is its status, nothing is left of it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest
from places import REPOSITORY

from guestmtce.bench import bench, report
from guestmtce.lab.cluster import wait_for

GUESTS, HUNG, KILLED, CYCLES = 5, 1, 3, 4
INTERVAL_MS = 100
COMMAND = [sys.executable, "-m", "guestmtce.cli.main", "bench", "--interval-ms", str(INTERVAL_MS)]
FEW = ["--guests", str(GUESTS), "--fail", str(HUNG), "--kill", str(KILLED), "--cycles", str(CYCLES)]
COMPARE = str(REPOSITORY / "tests" / "bench" / "compare.py")


@pytest.fixture(scope="module")
def folder():
    """A folder for temporary files, with a path short enough for a socket's."""
    path = tempfile.mkdtemp(prefix="b-")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def running(arguments, folder):
    """It can be interrupted even if we cannot, as in the background of a script."""
    return subprocess.Popen(
        arguments,
        env={**os.environ, "TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def done(folder):
    """Status, standard output and folder's content of a run with every part."""
    with running([*COMMAND, *FEW, "--seconds", "1", "--json"], folder) as process:
        output, progress = process.communicate(timeout=120)
    assert process.returncode in (0, 1), progress
    return process.returncode, output, os.listdir(folder)


@pytest.fixture(scope="module")
def figures(done):
    return json.loads(done[1])


def spreads(value):
    """Every spread of times in the figures."""
    if isinstance(value, dict):
        return [value] if "p99" in value else [one for part in value.values() for one in spreads(part)]
    return []


# --- a real run ------------------------------------------------------------------------------------


def test_a_run_in_which_nothing_was_missed_succeeds_and_leaves_nothing(done, figures):
    status, output, left = done
    assert figures["troubles"] == []
    assert (status, left) == (0, [])
    assert output.count("\n") == 1


def test_the_heartbeats_are_counted(figures):
    beats = figures["heartbeats"]
    assert (beats["misses"], beats["losses"], beats["reconnects"]) == (0, 0, 0)
    assert 0 < beats["heartbeats"] <= GUESTS * (beats["seconds"] * 1000 / INTERVAL_MS + 2)
    assert all(spent > 0 for spent in beats["cpu_us_per_heartbeat"].values())


def test_every_spread_of_times_is_in_order(figures):
    found = spreads(figures)
    assert len(found) == 6
    assert all(one["p50"] <= one["p99"] <= one["max"] for one in found)


def test_the_start_is_told_in_the_order_in_which_it_happens(figures):
    start = figures["start"]
    assert start["serving_s"] > 0  # guests are served before who waits for the start hears of it
    assert 0 < start["first_challenge_all_s"] <= start["heartbeating_all_s"]


def test_the_vim_was_told_of_those_that_hung_alone(figures):
    detection = figures["detection"]
    assert (detection["hung"], detection["reported"], detection["reported_others"]) == (HUNG, HUNG, 0)


def test_the_killed_came_back_and_the_others_noticed_nothing(figures):
    reconnect = figures["reconnect"]
    assert (reconnect["killed"], reconnect["others_touched"], reconnect["alarms"]) == (KILLED, 0, 0)
    assert 0 < reconnect["challenge_ms"]["p50"] <= reconnect["heartbeat_ms"]["p50"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the daemons' memory")
def test_memory_and_holdings_are_read(figures):
    child = figures["memory"]["child_kb"]
    assert child["sampled"] == GUESTS
    assert 0 < child["uss_mean"] <= child["uss_max"] and child["uss_mean"] <= child["pss_mean"]
    assert figures["leaks"]["readings"][-1]["cycles"] == CYCLES
    assert all(one["zombies"] == 0 and one["uss_kb"] > 0 for one in figures["leaks"]["readings"])


def test_the_table_tells_every_part(figures):
    text = report.make_table(figures)
    assert "%d, every %d ms" % (GUESTS, INTERVAL_MS) in text
    assert "nothing was missed" in text
    assert "%(misses)d misses" % figures["heartbeats"] in text


def test_an_interrupted_run_leaves_nothing(folder):
    with running([*COMMAND, *FEW, "--seconds", "100"], folder) as process:
        tree = psutil.Process(process.pid)
        whole = GUESTS + len(("guests", "guestServer", "spawner", "guestAgent"))
        wait_for(lambda: len(tree.children(recursive=True)) >= whole, "the processes are there", 30)
        started = tree.children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == bench.INTERRUPTED
        assert psutil.wait_procs(started, 10)[1] == []
        assert os.listdir(folder) == []


# --- the verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("heartbeats", "misses", 1),
        ("heartbeats", "reconnects", 2),
        ("heartbeats", "losses", 1),
        ("detection", "reported", HUNG - 1),
        ("detection", "reported_others", 1),
        ("reconnect", "others_touched", 1),
        ("reconnect", "alarms", 1),
    ],
)
def test_what_was_missed_fails_the_run(figures, monkeypatch, capsys, part, name, value):
    worse = copy.deepcopy(figures)
    worse[part][name] = value
    status = run_with(worse, monkeypatch)
    text = capsys.readouterr().out
    assert (status, text.count("TROUBLE")) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("zombies", 1), ("descriptors", 10_000), ("uss_kb", 1_000_000), ("child_uss_kb", 100_000)],
)
def test_what_was_gathered_fails_the_run(figures, monkeypatch, capsys, name, value):
    if "readings" not in figures["leaks"]:
        pytest.skip("not root")
    worse = copy.deepcopy(figures)
    worse["leaks"]["readings"][-1][name] = value
    status = run_with(worse, monkeypatch)
    assert (status, capsys.readouterr().out.count("TROUBLE")) == (1, 1)


def test_without_root_memory_is_left_out_in_words(figures, monkeypatch, capsys):
    less = {**figures, "memory": {"left_out": "not root"}, "leaks": {"left_out": "not root"}}
    assert run_with(less, monkeypatch) == 0
    assert "not root" in capsys.readouterr().out


def run_with(figures, monkeypatch):
    """The exit status of a run that measured these figures."""

    class Nothing:
        def __init__(self, _plan):
            pass

        def start(self):
            pass

        stop = start

    monkeypatch.setattr(bench, "Stage", Nothing)
    monkeypatch.setattr(bench, "measure_all", lambda *_: figures)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return bench.run(bench.make_plan(GUESTS, INTERVAL_MS, 1.0), as_json=False)


# --- the plan and the figures ----------------------------------------------------------------------


@pytest.mark.parametrize("guests, kill, fail", [(5, 5, 1), (1000, 100, 100), (200, 100, 20), (0, 0, 0)])
def test_what_is_not_said_is_chosen(guests, kill, fail):
    plan = bench.make_plan(guests, 1000, 1.0)
    assert (plan.kill, plan.fail, plan.cycles) == (kill, fail, 0)


@pytest.mark.parametrize("arguments", [(-1, 1000, 1.0), (1, 0, 1.0), (1, 1000, 0.0), (10**9, 1000, 1.0)])
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError):
        bench.make_plan(*arguments)


def test_a_loss_takes_two_intervals():
    assert bench.make_plan(1, 1500, 1.0).loss == 3.0


@pytest.mark.ci
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_c_program_serves_the_same_guests(folder):
    few = ["--guests", str(GUESTS), "--interval-ms", str(INTERVAL_MS), "--seconds", "1", "--json"]
    with running([sys.executable, COMPARE, *few], folder) as process:
        output, progress = process.communicate(timeout=120)
    assert process.returncode == 0, progress
    found = json.loads(output)
    assert found["c"]["heartbeats"] > 0 and found["times_cpu_us"] > 0
    assert os.listdir(folder) == []
