"""The user's scripts: slow, hanging, failing, talkative ones, and what they are given."""

from __future__ import annotations

import errno
import io
import math
import os
import signal
import time

import psutil
import pytest
from guest_rig import rig_with_runner

from guestmtce.guest import process, runner, scripts
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.runner import DYING_MAX, KILLED_MAX, LEFT_MAX, Ended, Script
from guestmtce.guest.scripts import LOOK_PERIOD, EventScript, HealthScript
from guestmtce.lab.cluster import wait_for

STALL = 0.125  # s; a sum of it is exact


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.setenv("SECRET", "not for scripts")
    with rig_with_runner() as one:
        yield one


@pytest.fixture
def script(tmp_path):
    """Gives a function that makes a shell script of the text and returns its path."""

    def make(text, mode=0o755):
        path, new = tmp_path / "script", tmp_path / "script.new"
        new.write_text("#!/bin/sh\n" + text)
        new.chmod(mode)
        new.rename(path)  # one before it may still be in use
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
    done = []
    rig.runner.start([script("echo first; head -c 20000000 /dev/zero")], done.append)
    rig.serve(lambda: done, "the script has ended")
    assert (done[0].status, done[0].line) == (0, "first")


def test_a_script_that_closes_its_output_is_not_looked_at_for_ever(rig, script, tmp_path):
    closed = tmp_path / "closed"
    rig.runner.start([script("exec >&- 2>&-; touch %s; sleep 600" % closed)], lambda ended: None)
    reaper = psutil.Process(rig.runner._script.pid)
    rig.serve(closed.exists, "it has closed it")
    before, until = reaper.cpu_times(), time.monotonic() + 0.3
    rig.serve(lambda: time.monotonic() > until, "time goes by")
    assert sum(reaper.cpu_times()[:2]) - sum(before[:2]) < 0.1
    assert rig.runner.runs


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


def test_children_in_a_session_of_their_own_end_with_a_script_whose_time_is_up(rig, script, tmp_path):
    pids = tmp_path / "pids"
    text = "setsid sh -c 'sleep 600 & echo $$ $! >%s.new; mv %s.new %s; wait' & wait" % ((pids,) * 3)
    rig.runner.start([script(text)], lambda ended: None)
    rig.serve(pids.exists, "they run")
    rig.runner.expire()
    for pid in pids.read_text().split():
        rig.serve(lambda pid=pid: not alive(int(pid)), "it is gone")


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
    felt = health(rig, script("[ -e %s/ill ] || exit 0; echo no disk; exit 1" % tmp_path), 0.4)
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
    felt = health(rig, path, 0.3)
    rig.serve(lambda: len(rig.lines) >= 2, "it was tried again")
    assert set(felt) == {None} and path in rig.lines[0] and why in rig.lines[0]


def test_a_health_script_that_can_no_longer_be_started_has_no_say(rig, script):
    path = script("echo no disk; exit 1")
    felt = health(rig, path, 0.3)
    rig.serve(lambda: felt, "it is ill")
    os.chmod(path, 0o644)
    rig.serve(lambda: felt[-1] is None, "it is not ill any more")
    assert felt[0] == Illness("stop", "no disk")


def no_process(number):
    def fork():
        raise OSError(number, os.strerror(number))

    return fork


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_guest_that_cannot_fork_is_ill(rig, script, monkeypatch, number):
    monkeypatch.setattr(os, "fork", no_process(number))
    before = len(os.listdir("/proc/self/fd"))
    felt = health(rig, script("exit 0"), 0.05)
    rig.serve(lambda: len(felt) >= 2, "it was tried again")
    assert felt[0] == Illness("stop", "cannot start the health script: " + os.strerror(number))
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    rig.serve(lambda: felt[-1] is None, "it is well")


@pytest.mark.parametrize("made", [0, 1])
def test_a_guest_that_has_no_more_descriptors_is_ill(rig, script, monkeypatch, made):
    pipe, pipes = os.pipe, []

    def few_pipes():
        pipes.append(1)
        if len(pipes) % 2 == made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pipe()

    path = script("exit 0")
    monkeypatch.setattr(os, "pipe", (lambda: no_process(errno.EMFILE)()) if not made else few_pipes)
    before = len(os.listdir("/proc/self/fd"))
    felt = health(rig, path, 0.05)
    rig.serve(lambda: felt, "it was tried")
    assert felt[0] == Illness("stop", "cannot start the health script: Too many open files")
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_script_that_cannot_become_one_for_want_of_memory_is_an_illness(rig, script, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *_: no_process(errno.ENOMEM)())
    felt = health(rig, script("exit 0"), 5)
    rig.serve(lambda: felt, "it was tried")
    assert felt == [Illness("stop", "cannot start the health script: Cannot allocate memory")]


def test_runs_that_cannot_be_killed_do_not_pile_up(rig, script, monkeypatch):
    monkeypatch.setattr(runner, "UNKILLABLE_AFTER", 0.0)
    monkeypatch.setattr(Script, "kill", lambda self: setattr(self, "killed_at", 0.0))
    felt = health(rig, script("sleep 1.5"), 0.05)
    rig.serve(lambda: len(felt) >= 6, "it was due often")
    assert len(rig.runner._dying) == DYING_MAX
    text = "cannot start the health script: 2 runs of it cannot be killed: they wait for a disk"
    assert felt[-1] == Illness("stop", text)
    monkeypatch.undo()
    rig.serve(lambda: rig.runner._dying == [], "they are gone")


def unfinished(rig, path, interval):
    """A part that runs a script which does not end: what it felt, the part, and when it is to begin."""
    felt = []
    config = Config(health_check_script=path, health_check_interval=interval, corrective_action="stop")
    part = HealthScript(rig.runner, config, felt.append, rig.log)
    return felt, part, part.deadline


def test_a_script_is_not_too_slow_for_a_time_in_which_we_stood_still(rig, script, tmp_path):
    felt, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 10)
    for at in (0, 0.25, 25.25, 25.5):  # due at 10; 24.75 of that were not ours
        part.tick(now + at)
    assert felt == []
    for _ in range(200):
        if not felt:
            last = part.deadline
            part.tick(last)
    assert felt == [Illness("stop", "the script was killed: it did not end in time")]
    assert last == pytest.approx(now + 10 + 24.75)


def test_a_stall_that_ends_before_the_deadline_counts_no_more_than_one_across_it(rig, script, tmp_path):
    felt, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 3)
    for at in (0, 0.2, 2.8):
        part.tick(now + at)
    part.tick(now + 3.1)
    assert felt == [], "2.35 s of these 3 were not the script's"


def test_a_look_that_is_in_time_excuses_nothing(rig, script, tmp_path):
    felt, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 1)
    for at in (0, 0.3, 0.6, 0.9, 1.0):
        part.tick(now + at)
    assert felt == [Illness("stop", "the script was killed: it did not end in time")]


@pytest.mark.parametrize(
    ("late", "excused"), [(0.0, 0.0), (STALL - 2**-10, 0.0), (STALL, 0.0), (STALL + 2**-10, STALL + 2**-10)]
)
def test_a_look_that_is_later_than_a_stall_is_excused_by_all_of_that(
    rig, script, tmp_path, monkeypatch, late, excused
):
    monkeypatch.setattr(scripts, "STALL", STALL)
    _, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 16)
    began = math.ceil(now) + 1.0
    part.tick(began)
    part.tick(began + LOOK_PERIOD + late)
    assert part._due == began + 16 + excused


def test_while_no_script_runs_no_time_is_given(rig, script):
    felt, part, now = unfinished(rig, script("exit 0"), 16)
    part.tick(now)
    rig.serve(lambda: felt, "it has ended")
    part.tick(now + 15)
    part.tick(now + 16)
    assert rig.runner.runs, "it is run when it was due"


@pytest.mark.parametrize("number", [errno.ETXTBSY, errno.EINVAL, errno.ESTALE])
def test_what_nobody_has_thought_of_reboots_nobody(rig, script, monkeypatch, number):
    monkeypatch.setattr(os, "execve", lambda *_: no_process(number)())
    felt = health(rig, script("exit 0"), 5)
    rig.serve(lambda: felt, "it was tried")
    assert felt == [None] and os.strerror(number) in rig.lines[0]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_process_that_may_not_be_made_reboots_nobody(rig, script, monkeypatch, number):
    monkeypatch.setattr(os, "fork", no_process(number))
    felt = health(rig, script("exit 0"), 5)
    rig.serve(lambda: felt, "it was tried")
    assert felt == [None] and os.strerror(number) in rig.lines[0]


def test_a_process_that_is_no_script_yet_has_a_name_of_its_own(rig, monkeypatch):
    def show_name(*_):
        with open("/proc/self/comm", "rb") as file:
            os.write(1, file.read())
        os._exit(0)

    monkeypatch.setattr(os, "execve", show_name)
    assert run(rig, ["/nonexistent"]).line == "guestClient-run"


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
    EventScript(rig.runner, script(text), lambda *said: told.append(said), rig.log).ask_script(
        7, "irrevocable", "pause"
    )
    assert rig.serve(lambda: told, "the answer") == [expected]


def events(rig, path):
    told = []
    return told, EventScript(rig.runner, path, lambda *said: told.append(said), rig.log)


def test_an_event_script_that_cannot_be_started_is_an_error(rig):
    told, event = events(rig, "/nonexistent")
    event.ask_script(1, "revocable", "stop")
    rig.serve(lambda: told, "the answer")
    assert told[0][:2] == (1, "error") and "/nonexistent" in told[0][2] and "No such file" in told[0][2]


@pytest.mark.parametrize("kind", ["revocable", "irrevocable"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kill -SEGV $$", "the script was killed by signal 11"),
        ("exec /nonexistent 2>/dev/null", "the script exited 127"),
        ("echo Permission denied; exit 126", "Permission denied"),
    ],
)
def test_a_script_that_crashes_or_is_not_found_vetoes_nothing(rig, script, text, reason, kind):
    told, event = events(rig, script(text))
    event.ask_script(1, kind, "stop")
    assert rig.serve(lambda: told, "the answer") == [(1, "error", reason)]
    assert reason in rig.lines[0]


def test_no_process_for_the_event_script_is_an_error(rig, script, monkeypatch):
    monkeypatch.setattr(os, "fork", no_process(errno.EAGAIN))
    told, event = events(rig, script("exit 0"))
    event.ask_script(1, "revocable", "stop")
    assert told[0][:2] == (1, "error") and "Resource temporarily unavailable" in told[0][2]


def test_a_withdrawn_question_ends_its_script_and_no_other(rig, script):
    told, event = events(rig, script("exit 0"))
    event.ask_script(1, "revocable", "stop")
    event.withdraw_question(1, False)
    event.ask_script(2, "revocable", "stop")
    event.withdraw_question(1, False)
    assert rig.serve(lambda: told, "the answer") == [(2, "accept", "")]


def cleaning_up(script, tmp_path):
    """A script in the middle of its clean-up: it goes on when `go` is there, and says so in `done`."""
    begun, go, done = tmp_path / "begun", tmp_path / "go", tmp_path / "done"
    text = "touch %s; until [ -e %s ]; do sleep 0.02; done; echo words; touch %s" % (begun, go, done)
    return script(text), begun, go, done


@pytest.mark.parametrize("then", ["another question", "goodbye"])
def test_a_notices_script_goes_on_when_nobody_waits_for_it(rig, script, tmp_path, then):
    path, begun, go, done = cleaning_up(script, tmp_path)
    told, event = events(rig, path)
    event.ask_script(1, "irrevocable", "stop")
    rig.serve(begun.exists, "it has begun")
    event.withdraw_question(1, False)
    if then == "another question":
        event.ask_script(2, "revocable", "stop")
    rig.runner.stop()
    go.touch()
    rig.serve(done.exists, "it is done")
    assert told == []


def test_a_notices_script_that_outlives_us_is_not_killed_by_what_it_says(script, tmp_path):
    path, begun, go, done = cleaning_up(script, tmp_path)
    one = Script([path])
    wait_for(begun.exists, "it has begun")
    one.close()
    go.touch()
    wait_for(done.exists, "it is done")
    os.waitpid(one.pid, 0)


def test_a_notices_script_that_outlives_us_may_say_much(rig, script, tmp_path):
    done = tmp_path / "done"
    told, event = events(rig, script("sleep 0.3; head -c 300000 /dev/zero; touch %s" % done))
    event.ask_script(1, "irrevocable", "stop")
    event.withdraw_question(1, False)
    rig.runner.stop()
    wait_for(done.exists, "it is done")
    assert told == []


def test_many_votes_in_one_turn_are_no_sign_of_a_disk_that_stands_still(rig, script):
    told, event = events(rig, script("exit 0"))
    for number in range(1, 9):
        event.ask_script(number, "revocable", "stop")
        event.withdraw_question(number, False)
    event.ask_script(9, "revocable", "stop")
    assert rig.serve(lambda: told, "the answer") == [(9, "accept", "")]


def test_a_notices_script_whose_time_is_up_is_killed(rig, script, tmp_path):
    path, begun, go, done = cleaning_up(script, tmp_path)
    _, event = events(rig, path)
    event.ask_script(1, "irrevocable", "stop")
    rig.serve(begun.exists, "it has begun")
    event.withdraw_question(1, True)
    rig.serve(lambda: rig.runner._dying == [], "it is gone")
    go.touch()
    assert not done.exists()


def test_a_votes_script_is_killed_when_nobody_waits_for_it(rig, script, tmp_path):
    path, begun, *_ = cleaning_up(script, tmp_path)
    _, event = events(rig, path)
    event.ask_script(1, "revocable", "stop")
    rig.serve(begun.exists, "it has begun")
    event.withdraw_question(1, False)
    assert len(rig.runner._dying) == 1
    rig.serve(lambda: rig.runner._dying == [], "it is gone")


def test_only_so_many_scripts_of_notices_go_on(rig, script, tmp_path):
    path, begun, go, _ = cleaning_up(script, tmp_path)
    for number in range(LEFT_MAX + 2):
        rig.runner.start([path], lambda ended: None)
        rig.runner.leave()
        assert len(rig.runner._left) == min(number + 1, LEFT_MAX)
    go.touch()
    rig.serve(lambda: rig.runner._left == rig.runner._dying == [], "all are gone")


# --- what a script is given, and what is left of one ------------------------------------------------


def test_a_script_finds_programs_and_speaks_no_language_of_the_users(rig, script):
    ours, (reader, writer) = os.dup(0), os.pipe()
    os.dup2(reader, 0)
    try:
        words = run(rig, [script("echo $PATH $LC_ALL $(readlink /proc/self/fd/0)")]).line.split()
    finally:
        os.dup2(ours, 0)
        for end in (ours, reader, writer):
            os.close(end)
    assert words == ["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "C", "/dev/null"]


@pytest.mark.parametrize("name", ["SIGPIPE", "SIGXFSZ"])
def test_a_script_does_not_ignore_what_python_ignores(rig, script, name):
    text = "kill -%d $$; echo it was ignored" % getattr(signal, name)
    assert run(rig, [script(text)]).status == -getattr(signal, name)


def test_what_a_script_says_on_both_streams_is_one_output(rig, script):
    assert run(rig, [script("echo one >&2")]).line == run(rig, [script("echo one")]).line == "one"


@pytest.mark.parametrize(
    ("ended", "failed"),
    [
        (Ended(0, "", False), False),
        (Ended(1, "", False), False),
        (Ended(125, "", False), False),
        (Ended(126, "", False), True),
        (Ended(127, "", False), True),
        (Ended(128, "", False), False),
        (Ended(-15, "", False), True),
        (Ended(0, "", True), True),
        (Ended(0, "", False, errno.ENOENT), True),
    ],
)
def test_who_has_come_to_no_result(ended, failed):
    assert ended.failed is failed


def test_of_a_script_that_somebody_else_has_waited_for_the_report_is_there(rig, script):
    done = []
    rig.runner.start([script("exit 3")], done.append)
    os.waitid(os.P_PID, rig.runner._script.pid, os.WEXITED)
    rig.runner.reap()
    assert done[0].status == 3


def test_a_script_that_ended_gives_back_its_descriptors(rig, script):
    before = len(os.listdir("/proc/self/fd"))
    run(rig, [script("exit 0")])
    rig.runner.start([script("sleep 600")], lambda ended: None)
    rig.runner.stop()
    rig.runner.start([script("sleep 600")], lambda ended: None)
    rig.runner.leave()
    left = rig.runner._left[0]
    left.kill()
    rig.serve(lambda: not rig.runner._left, "it is gone")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("killed", "starts"), [(KILLED_MAX - 1, True), (KILLED_MAX, False)])
def test_so_many_that_were_killed_just_now_may_still_be_there(rig, script, killed, starts):
    dying = Dying(time.monotonic() + 60)  # however slow this machine is
    rig.runner._dying = [dying] * killed
    may_start(rig, script, starts)


@pytest.mark.parametrize(("seconds", "starts"), [(0.0, True), (1.5, False)])
def test_one_that_is_still_there_a_second_after_it_was_killed_waits_for_a_disk(rig, script, seconds, starts):
    rig.runner._dying = [Dying(time.monotonic() - seconds)] * DYING_MAX
    may_start(rig, script, starts)


class Dying:
    """A script that was killed and has not ended."""

    def __init__(self, killed_at):
        self.killed_at = killed_at

    def poll(self):
        return None


def may_start(rig, script, starts):
    try:
        if starts:
            rig.runner.start([script("exit 0")], lambda ended: None)
        else:
            with pytest.raises(OSError, match="cannot be killed"):
                rig.runner.start([script("exit 0")], lambda ended: None)
    finally:
        rig.runner._dying = []


def test_of_many_notices_the_oldest_ends_first(rig, script, tmp_path):
    path, *_ = cleaning_up(script, tmp_path)
    pids = []
    for _ in range(LEFT_MAX + 1):
        rig.runner.start([path], lambda ended: None)
        pids.append(rig.runner._script.pid)
        rig.runner.leave()
    assert [one.pid for one in rig.runner._left] == pids[1:]
    assert [one.pid for one in rig.runner._dying] == pids[:1]
    for one in rig.runner._left:
        one.kill()
    rig.serve(lambda: rig.runner._left == rig.runner._dying == [], "all are gone")


# --- another configuration -------------------------------------------------------------------------


def config_of(path, interval=10.0, **more):
    return Config(health_check_script=path, health_check_interval=interval, **more)


def test_another_health_script_runs_at_once_and_ends_the_run_of_the_one_before(rig, script, tmp_path):
    felt, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 10)
    part.tick(now)
    (tmp_path / "other").write_text("#!/bin/sh\necho other; exit 1\n")
    (tmp_path / "other").chmod(0o755)
    part.configure(config_of(str(tmp_path / "other")))
    assert not rig.runner.runs and part.deadline <= time.monotonic()
    part.tick(time.monotonic())
    rig.serve(lambda: felt, "it ran")
    assert felt[0].reason == "other"


def test_the_same_health_script_goes_on_and_is_not_due_sooner(rig, script, tmp_path):
    felt, part, now = unfinished(rig, cleaning_up(script, tmp_path)[0], 10)
    part.tick(now)
    part.configure(config_of(part._config.health_check_script, 5.0))
    assert rig.runner.runs and felt == []
    part.tick(now + 0.2)
    assert rig.runner.runs and felt == []


def test_a_health_script_between_two_runs_is_due_at_once_if_anything_has_changed(rig, script):
    felt, part, now = unfinished(rig, script("exit 0"), 10)
    part.tick(now)
    rig.serve(lambda: felt, "it has ended")
    part.configure(part._config)
    assert part.deadline == now + 10
    part.configure(part._config._replace(vote=99))
    assert part.deadline <= time.monotonic()


def test_without_a_health_script_any_more_the_guest_is_well_and_nothing_is_due(rig, script):
    felt, part, now = unfinished(rig, script("exit 1"), 10)
    part.tick(now)
    rig.serve(lambda: felt, "it is ill")
    part.configure(Config())
    assert felt[-1] is None and part.deadline == float("inf")


def test_the_next_question_is_put_to_another_event_script(rig, script):
    told, event = events(rig, "/nonexistent")
    event.configure(script("echo other"))
    event.ask_script(1, "revocable", "stop")
    assert rig.serve(lambda: told, "the answer") == [(1, "accept", "other")]


# --- processes -------------------------------------------------------------------------------------


def in_child(act):
    """The exit status of a process that does `act`: 0 if that is true."""
    pid = process.fork(lambda: os._exit(0 if act() else 1))
    return process.exit_status(os.waitpid(pid, 0)[1])


def test_a_process_that_did_not_become_what_it_was_to_be_says_so():
    assert process.exit_status(os.waitpid(process.fork(lambda: None), 0)[1]) == 127


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("folder", ["/proc/self/fd", "/nonexistent"])
def test_a_process_has_no_descriptors_but_those_that_it_keeps(monkeypatch, folder):
    assert process.DESCRIPTORS == "/proc/self/fd"
    monkeypatch.setattr(process, "DESCRIPTORS", folder)
    kept, other = os.pipe()

    def close_others():
        process.close_others({kept})
        return is_open(kept) and not any(map(is_open, {0, 1, 2, other} - {kept}))

    assert in_child(close_others) == 0
    for end in (kept, other):
        os.close(end)


def test_a_process_has_a_name_of_its_own():
    def rename():
        process.rename("guestClient-run")
        with open("/proc/self/comm", encoding="ascii") as file:
            return file.read() == "guestClient-run\n"

    assert in_child(rename) == 0


def test_descendants_are_children_and_theirs(rig, script):
    rig.runner.start(
        [script("(sleep 600 & sleep 600 & wait) & (sleep 600 & wait) & wait")], lambda ended: None
    )
    pid = rig.runner._script.pid
    rig.serve(lambda: len(process.descendants(pid)) == 6, "all have started")


def test_of_descendants_one_that_ends_meanwhile_hides_no_other(monkeypatch):
    tree = {1: "2 3 4", 2: "5 6", 4: "7"}  # 3, 5 and 6 have ended

    def children(path, encoding):
        pid = int(path.split("/")[2])
        if path != "/proc/%d/task/%d/children" % (pid, pid) or pid not in tree:
            raise FileNotFoundError(path)
        return io.StringIO(tree[pid])

    monkeypatch.setattr(process, "open", children, raising=False)
    assert sorted(process.descendants(1)) == [2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(process, "DESCENDANTS_MAX", 3)
    assert sorted(process.descendants(1)) == [2, 3, 4]
