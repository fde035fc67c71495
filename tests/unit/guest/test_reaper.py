"""What a script has started ends with a script that is killed, wherever it went; real processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from guest_process import FAST, GuestProcess, host, write_script
from guest_rig import rig_with_runner
from places import REPOSITORY
from pythons import find_python

from guestmtce.guest import process, reaper
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.reaper import Report, unpack
from guestmtce.guest.scripts import EventScript, HealthScript
from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import ActionNotify

__all__ = ["host"]  # a fixture


# A process in a session of its own whose parent has ended, as a daemon is. It writes its pid to a file.
DAEMON = """(setsid sh -c 'trap "" TERM HUP INT; echo $$ >%(file)s.new; mv %(file)s.new %(file)s; %(then)s' &)
until [ -e %(file)s ]; do sleep 0.02; done
"""
STAY = "while :; do sleep 600; done"
# A process that is never there for long: it starts its like in another session, and ends.
COMET = 'echo $$ >>%(folder)s/comets; [ -e %(folder)s/end ] || setsid "$0" & exit 0'
# Every process starts two of its like, each in another session, up to a depth.
STORM = """[ $1 = 0 ] || { setsid "$0" $(($1 - 1)) & setsid "$0" $(($1 - 1)) & }
echo >>%(folder)s/storm
sleep 600
"""
DEPTH = 6


@pytest.fixture
def rig():
    with rig_with_runner() as one:
        yield one


@pytest.fixture
def folder(tmp_path):
    """A folder whose name is a mark of the processes that work in it: all that are left are killed."""
    yield tmp_path
    (tmp_path / "end").touch()
    for pid in marked(tmp_path):
        os.kill(pid, signal.SIGKILL)


def marked(folder):
    """The processes that have the folder's name in their command line."""
    found = []
    for one in psutil.process_iter(["pid", "cmdline"]):
        if str(folder) in " ".join(one.info["cmdline"] or []) and one.info["pid"] != os.getpid():
            found.append(one.info["pid"])
    return found


def daemon(folder, then=STAY):
    return DAEMON % {"file": folder / "pid", "then": then}


def pid_in(folder):
    return int((folder / "pid").read_text())


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def begin(rig, folder, text):
    """Start a script that does not end, and wait until its daemon runs."""
    done = []
    rig.runner.start([write_script(folder / "script", text)], done.append)
    return done


@pytest.mark.parametrize("stopped", [False, True])
def test_a_daemon_of_a_script_that_is_killed_ends_with_it(rig, folder, stopped):
    done = begin(rig, folder, daemon(folder) + "sleep 600")
    rig.serve((folder / "pid").exists, "the daemon runs")
    pid = pid_in(folder)
    wait_for(lambda: psutil.Process(pid).parent().name() == reaper.NAME, "its parent has ended")
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    rig.runner.expire()
    rig.serve(lambda: not lives(pid) and rig.runner._dying == [], "all are gone")
    assert [ended.killed for ended in done] == [True]


@pytest.mark.parametrize("status", [0, 1])
def test_what_a_script_that_ends_by_itself_leaves_behind_goes_on(rig, folder, status):
    done = begin(rig, folder, daemon(folder) + "exit %d" % status)
    assert rig.serve(lambda: done, "it has ended")[0].status == status
    rig.runner.stop()
    assert lives(pid_in(folder))
    wait_for(lambda: psutil.Process(pid_in(folder)).parent().name() != reaper.NAME, "it is nobody's")


def test_processes_that_never_stay_end_too(rig, folder):
    comet = write_script(folder / "comet", COMET % {"folder": folder})
    begin(rig, folder, "%s; sleep 600" % comet)
    comets = folder / "comets"
    rig.serve(lambda: comets.exists() and len(comets.read_text().split()) > 10, "they are many")
    began = time.monotonic()
    rig.runner.expire()
    rig.serve(lambda: rig.runner._dying == [], "all are gone", 20)
    print("\nall comets are gone after %.3f s" % (time.monotonic() - began))
    assert marked(folder) == []


def test_a_storm_of_processes_in_sessions_of_their_own_ends(rig, folder):
    storm = write_script(folder / "storm.sh", STORM % {"folder": folder})
    begin(rig, folder, "%s %d" % (storm, DEPTH))
    seen = folder / "storm"
    rig.serve(lambda: seen.exists() and len(seen.read_text()) >= 2**DEPTH, "they are many", 20)
    count, began = len(marked(folder)), time.monotonic()
    rig.runner.expire()
    rig.serve(lambda: rig.runner._dying == [], "all are gone", 20)
    print("\n%d processes are gone after %.3f s" % (count, time.monotonic() - began))
    assert count >= 2**DEPTH and marked(folder) == []


def test_more_processes_than_are_looked_for_at_once_end(rig, folder, monkeypatch):
    monkeypatch.setattr(process, "DESCENDANTS_MAX", 4)
    test_a_storm_of_processes_in_sessions_of_their_own_ends(rig, folder)


def test_a_notices_script_that_goes_on_keeps_its_processes(rig, folder):
    told = []
    path = write_script(
        folder / "script", daemon(folder) + "until [ -e %s/go ]; do sleep 0.02; done" % folder
    )
    event = EventScript(rig.runner, path, lambda *said: told.append(said), rig.log)
    event.ask_script(1, guest_channel.NOTICE, "stop")
    rig.serve((folder / "pid").exists, "the daemon runs")
    event.withdraw_question(1, False)
    rig.runner.stop()
    rig.rest(0.3)
    assert lives(pid_in(folder)) and len(rig.runner._left) == 1
    (folder / "go").touch()
    rig.serve(lambda: rig.runner._left == [], "it has ended")
    assert lives(pid_in(folder)) and told == []


def test_a_notices_script_whose_time_is_up_takes_its_daemon_along(rig, folder):
    path = write_script(folder / "script", daemon(folder) + "sleep 600")
    event = EventScript(rig.runner, path, lambda *said: None, rig.log)
    event.ask_script(1, guest_channel.NOTICE, "stop")
    rig.serve((folder / "pid").exists, "the daemon runs")
    event.withdraw_question(1, True)
    rig.serve(lambda: not lives(pid_in(folder)), "it is gone")


# --- the client dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "3.6"])
def test_a_health_script_ends_with_a_client_that_is_killed(host, folder, monkeypatch, version):
    python = find_python(version) if version else sys.executable
    if python is None:
        pytest.skip("no Python %s in the path, of pyenv or of uv" % version)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    path = write_script(folder / "script", daemon(folder) + "sleep 600")
    guest = GuestProcess(
        folder / "guest",
        host.path,
        [*FAST, "health_floor=1"],
        python=python,
        HEALTH_CHECK_SCRIPT=path,
        HEALTH_CHECK_INTERVAL=60,
    )
    host.accept().heartbeat()
    wait_for((folder / "pid").exists, "the daemon runs")
    guest.popen.kill()
    guest.popen.wait(5)
    wait_for(lambda: not lives(pid_in(folder)), "it is gone")
    wait_for(lambda: not marked(path), "the script is gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_notices_script_outlives_the_client(host, folder, number):
    path = write_script(
        folder / "script",
        "until [ -e {0}/go ]; do sleep 0.02; done; echo words; touch {0}/done".format(folder),
    )
    guest = GuestProcess(folder / "guest", host.path, FAST, EVENT_NOTIFICATION_SCRIPT=path)
    host.accept().heartbeat()
    host.say(ActionNotify(1, "stop", guest_channel.NOTICE, 60000))
    wait_for(lambda: marked(path), "the script runs")
    guest.signal(number)
    guest.popen.wait(5)
    (folder / "go").touch()
    wait_for((folder / "done").exists, "it is done")


def test_a_votes_script_ends_with_the_client(host, folder):
    path = write_script(folder / "script", daemon(folder) + "sleep 600")
    guest = GuestProcess(folder / "guest", host.path, FAST, EVENT_NOTIFICATION_SCRIPT=path)
    host.accept().heartbeat()
    host.say(ActionNotify(1, "stop", guest_channel.VOTE, 60000))
    wait_for((folder / "pid").exists, "the daemon runs")
    guest.stop()
    wait_for(lambda: not lives(pid_in(folder)) and not marked(path), "all are gone")


# --- where there is less ---------------------------------------------------------------------------


def test_without_a_subreaper_it_is_said_once_and_what_is_known_is_killed(rig, folder, monkeypatch):
    monkeypatch.setattr(reaper, "_control_process", lambda *_: False)
    said = []
    rig.runner._note_no_subreaper = lambda: said.append(True)
    for _ in range(2):
        done = begin(rig, folder, "exit 0")
        rig.serve(lambda done=done: done, "it has ended")
    assert said == [True]
    text = "setsid sh -c 'echo $$ >%s/pid; sleep 600' & sleep 600 & wait" % folder
    begin(rig, folder, text)
    rig.serve(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "they run")
    rig.runner.expire()
    rig.serve(lambda: not lives(pid_in(folder)) and rig.runner._dying == [], "all are gone")


def test_where_the_kernel_lists_no_children_every_process_is_asked_for_its_parent(rig, folder, monkeypatch):
    monkeypatch.setattr(process, "_children", process._children_by_parent)
    monkeypatch.setattr(process, "_has_children_file", lambda: False)
    test_a_daemon_of_a_script_that_is_killed_ends_with_it(rig, folder, False)


def test_without_proc_the_script_and_its_group_are_killed_and_nothing_is_waited_for_for_ever(
    rig, folder, monkeypatch
):
    monkeypatch.setattr(process, "descendants", lambda pid: [])
    begin(rig, folder, daemon(folder) + "sleep 600 & echo $! $$ >%s/known; wait" % folder)
    rig.serve(lambda: (folder / "known").exists() and (folder / "known").read_text(), "they run")
    rig.runner.expire()
    rig.serve(lambda: rig.runner._dying == [], "nobody waits")
    for pid in (folder / "known").read_text().split():
        assert not lives(int(pid))
    assert lives(pid_in(folder))


def test_a_process_without_ctypes_has_no_subreaper():
    code = "import sys; sys.modules['ctypes'] = None\nfrom guestmtce.guest import reaper\n"
    code += "print(reaper._control_process(36, 1))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"False\n"


def health(rig, path):
    felt = []
    config = Config(health_check_script=path, health_check_interval=60, corrective_action="stop")
    rig.loop.parts.append(HealthScript(rig.runner, config, felt.append, rig.log))
    return felt


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_guest_in_which_the_reaper_can_make_no_process_is_ill(rig, folder, monkeypatch, number):
    fork, own = os.fork, os.getpid()

    def fork_here_only():
        if os.getpid() != own:
            raise OSError(number, os.strerror(number))
        return fork()

    monkeypatch.setattr(os, "fork", fork_here_only)
    felt = health(rig, write_script(folder / "script", "exit 0"))
    rig.serve(lambda: felt, "it was tried")
    assert felt == [Illness("stop", "cannot start the health script: " + os.strerror(number))]


def test_a_reaper_without_memory_is_ill_health_and_one_with_a_defect_is_not(rig, folder, monkeypatch):
    path = write_script(folder / "script", "exit 0")
    for fault, expected in (
        (MemoryError, "cannot start the health script: Cannot allocate memory"),
        (KeyError, ""),
    ):

        def fail(_descriptor, fault=fault):
            raise fault

        monkeypatch.setattr(reaper, "_leave_descriptors", fail)
        felt = health(rig, path)
        rig.serve(lambda felt=felt: felt, "it was tried")
        rig.loop.parts.pop()
        assert felt == [Illness("stop", expected) if expected else None]


def test_a_reaper_that_was_killed_has_no_good_news(rig, folder):
    felt = health(rig, write_script(folder / "script", "sleep 600"))
    rig.serve(lambda: marked(folder), "it runs")
    os.kill(rig.runner._script.pid, signal.SIGKILL)
    rig.serve(lambda: felt, "it is heard of")
    assert felt == [Illness("stop", "the script was killed by signal 9")]


# --- what it is like -------------------------------------------------------------------------------


def test_what_ends_the_client_does_not_end_a_reaper_and_its_script_is_like_any_other(rig, folder):
    begin(rig, folder, "exec sleep 600")
    wait_for(lambda: [one for one in psutil.Process().children(True) if one.name() == "sleep"], "it runs")
    pid = rig.runner._script.pid
    assert psutil.Process(pid).name() == reaper.NAME
    ignored = {
        word: int(status(psutil.Process(pid).children()[0].pid, word), 16) for word in ("SigIgn", "SigBlk")
    }
    assert ignored == {"SigIgn": 0, "SigBlk": 0}
    for number in process.UNWANTED:
        os.kill(pid, number)
    assert os.getsid(pid) == pid
    rig.rest(0.1)
    assert lives(pid)
    own = {os.readlink("/proc/%d/fd/%s" % (pid, one)) for one in os.listdir("/proc/%d/fd" % pid)}
    assert {one.partition(":")[0] for one in own} == {"/dev/null", "pipe", "anon_inode"}


def test_a_client_without_standard_descriptors_runs_scripts(host, folder):
    path = write_script(folder / "script", "echo ill; exit 1")
    words = '%s -m guestmtce.guest.main -f --device %s --config %s --socket "" --log %s <&- >&- 2>&-'
    (folder / "conf").write_text("HEALTH_CHECK_SCRIPT=%s\nHEALTH_CHECK_INTERVAL=60\n" % path)
    shell = words % (sys.executable, host.path, folder / "conf", folder / "log")
    client = subprocess.Popen(["sh", "-c", "exec " + shell], cwd=REPOSITORY)
    try:
        host.accept()
        said = "the guest is ill, corrective action reboot: ill"
        wait_for(lambda: (folder / "log").exists() and said in (folder / "log").read_text(), "it is heard")
    finally:
        client.terminate()
        client.wait(10)


def status(pid, word):
    with open("/proc/%d/status" % pid, encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith(word + ":"))


@pytest.mark.parametrize(
    "one", [Report(0, 0, True, b"a\nb\n"), Report(-9, 2, False), Report(255, 0, True, b"")]
)
def test_a_report_is_read_as_it_was_written(one):
    assert unpack(one.pack()) == one
    assert len(one._replace(output=b"x" * reaper.KEPT).pack()) < 4096


def test_no_report_is_none():
    assert unpack(b"") is None
