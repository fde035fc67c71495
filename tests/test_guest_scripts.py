"""The user's scripts: slow, hanging, failing, talkative ones, and what they are given."""

from __future__ import annotations

import os
import signal

import pytest
from guest_rig import Rig

from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.scripts import EventScript, HealthScript, Runner
from guestmtce.lab.cluster import wait_for


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.setenv("SECRET", "not for scripts")
    one = Rig()
    one.runner = Runner(one.loop)
    one.loop.on_signal(signal.SIGCHLD, one.runner.reap)
    yield one
    one.runner.stop()
    one.close()


@pytest.fixture
def script(tmp_path):
    """Gives a function that makes a shell script of the text and returns its path."""

    def make(text, mode=0o755):
        path = tmp_path / "script"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(mode)
        return str(path)

    return make


def run(rig, arguments):
    done = []
    rig.runner.start(arguments, done.append)
    return rig.serve(lambda: done, "the script has ended")[0]


@pytest.mark.parametrize(
    ("text", "status", "line", "reason"),
    [
        ("exit 0", 0, "", "the script exited 0"),
        ("exit 3", 3, "", "the script exited 3"),
        ("kill -9 $$", -9, "", "the script was killed by signal 9"),
        ('echo "  first  "; echo second', 0, "first", "first"),
        ("echo to stderr >&2; exit 1", 1, "to stderr", "to stderr"),
        ("printf 'a \"quoted\"\\t\\\\ line'; exit 1", 1, 'a "quoted"\t\\ line', 'a "quoted"\t\\ line'),
        ("printf '\\377\\n'", 0, "�", "�"),
    ],
)
def test_how_a_script_ends(rig, script, text, status, line, reason):
    ended = run(rig, [script(text)])
    assert (ended.status, ended.line, ended.killed, ended.reason) == (status, line, False, reason)


def test_a_script_gets_its_words_a_clean_environment_and_nothing_else(rig, script):
    keep = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(keep, True)
    try:
        text = "echo $* $(pwd) $(ls /proc/self/fd) $(env)"
        words = run(rig, [script(text), "revocable", "stop"]).line.split()
    finally:
        os.close(keep)
    # `ls` itself has the folder that it lists as descriptor 3.
    assert words[:7] == ["revocable", "stop", "/", "0", "1", "2", "3"]
    variables = {word.partition("=")[0] for word in words[7:]}
    assert variables <= {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"} and "PATH" in variables


def test_huge_output_is_read_and_thrown_away(rig, script):
    ended = run(rig, [script("echo first; head -c 20000000 /dev/zero")])
    assert (ended.status, ended.line) == (0, "first")


def test_a_line_without_end_is_cut(rig, script):
    ended = run(rig, [script("head -c 5000 /dev/zero | tr '\\0' x")])
    assert ended.line == "x" * 223


def test_what_a_script_left_in_the_background_is_neither_waited_for_nor_killed(rig, script, tmp_path):
    go, gone = tmp_path / "go", tmp_path / "gone"
    run(rig, [script("(until [ -e %s ]; do sleep 0.02; done; touch %s) &" % (go, gone))])
    assert not gone.exists()
    go.touch()
    wait_for(gone.exists, "what runs in the background goes on")


def test_a_script_whose_time_is_up_is_killed_with_its_children(rig, script, tmp_path):
    pids = tmp_path / "pids"
    done = []
    rig.runner.start(
        [script("sleep 600 & echo $$ $! >%s.new; mv %s.new %s; wait" % ((pids,) * 3))], done.append
    )
    rig.serve(pids.exists, "it runs")
    rig.runner.expire()
    assert done[0].killed and "did not end in time" in done[0].reason
    for pid in pids.read_text().split():
        rig.serve(lambda pid=pid: not alive(int(pid)), "it is gone")
    assert len(done) == 1


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stopped_script_tells_nobody(rig, script):
    done = []
    rig.runner.start([script("sleep 600")], done.append)
    rig.runner.stop()
    assert run(rig, [script("exit 4")]).status == 4
    assert done == []


# --- the health script -----------------------------------------------------------------------------


def health(rig, path, interval):
    felt = []
    config = Config(health_check_script=path, health_check_interval=interval, corrective_action="stop")
    part = HealthScript(rig.runner, config, felt.append, rig.log)
    rig.loop.parts.append(part)
    return felt


def test_the_health_script_runs_at_once_and_every_interval(rig, script, tmp_path):
    felt = health(rig, script("[ -e %s/ill ] || exit 0; echo no disk; exit 1" % tmp_path), 0.05)
    rig.serve(lambda: len(felt) >= 2, "two runs")
    assert set(felt) == {None}
    (tmp_path / "ill").touch()
    rig.serve(lambda: Illness("stop", "no disk") in felt, "it is ill")
    (tmp_path / "ill").unlink()
    rig.serve(lambda: felt[-1] is None, "it is well")


def test_a_health_script_that_hangs_is_an_illness(rig, script):
    felt = health(rig, script("sleep 600"), 0.1)
    rig.serve(lambda: felt, "it was killed")
    assert felt[0] == Illness("stop", "the script was killed: it did not end in time")


@pytest.mark.parametrize(("mode", "why"), [(0o755, "No such file"), (0o644, "Permission denied")])
def test_a_health_script_that_cannot_be_started_is_no_illness(rig, script, mode, why):
    path = script("exit 1", mode) if mode == 0o644 else "/nonexistent/script"
    felt = health(rig, path, 0.02)
    rig.serve(lambda: len(rig.lines) >= 2, "it was tried again")
    assert set(felt) == {None} and path in rig.lines[0] and why in rig.lines[0]


def test_a_health_script_that_can_no_longer_be_started_has_no_say(rig, script):
    path = script("echo no disk; exit 1")
    felt = health(rig, path, 0.05)
    rig.serve(lambda: felt, "it is ill")
    os.chmod(path, 0o644)
    rig.serve(lambda: felt[-1] is None, "it is not ill any more")
    assert felt[0] == Illness("stop", "no disk")


def test_without_a_health_script_nothing_runs(rig):
    assert health(rig, "", 0.01) == []
    assert rig.loop.parts[-1].deadline == float("inf")


# --- the event script ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('echo "$1 $2"', (7, "accept", "irrevocable pause")),
        ("echo busy; exit 1", (7, "reject", "busy")),
        ("exit 9", (7, "reject", "the script exited 9")),
    ],
)
def test_what_the_event_script_says(rig, script, text, expected):
    told = []
    EventScript(rig.runner, script(text), lambda *said: told.append(said), rig.log).put(
        7, "irrevocable", "pause"
    )
    assert rig.serve(lambda: told, "the answer") == [expected]


def test_an_event_script_that_cannot_be_started_is_an_error():
    rig, told = Rig(), []
    event = EventScript(Runner(rig.loop), "/nonexistent", lambda *said: told.append(said), rig.log)
    event.put(1, "revocable", "stop")
    assert told[0][:2] == (1, "error") and "/nonexistent" in told[0][2] and "No such file" in told[0][2]
    rig.close()


def test_a_withdrawn_question_ends_its_script_and_no_other(rig, script):
    told = []
    event = EventScript(rig.runner, script("exit 0"), lambda *said: told.append(said), rig.log)
    event.put(1, "revocable", "stop")
    event.withdraw(1)
    event.put(2, "revocable", "stop")
    event.withdraw(1)
    assert rig.serve(lambda: told, "the answer") == [(2, "accept", "")]
