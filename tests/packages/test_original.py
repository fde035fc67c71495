"""The scripts beside a running original: it is seen, stopped and replaced, and no stranger is."""

from __future__ import annotations

import os
import signal
import subprocess

import original
import psutil
import pytest
from scripted import DEAD_WITH_PID, NOT_RUNNING, SCRIPTS, STOPPED
from titles import has_title

from guestmtce.lab.cluster import wait_for

NAMES = ["guestServer", "guestAgent"]


@pytest.fixture
def replaced(make):
    """Gives a function that makes a daemon whose original runs; the daemon, and the original's pid."""
    pids = []

    def of(name, *options, **more):
        daemon = make(name)
        ours = daemon.program + ".ours"
        os.rename(daemon.program, ours)
        original.put_program(daemon.program)
        pids.append(original.start(daemon.program, daemon.folder, *options, **more))
        os.rename(ours, daemon.program)  # as a package does, under the process that runs
        return daemon, pids[-1]

    yield of
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, 9)


def lives(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("name", NAMES)
def test_an_init_script_sees_and_stops_the_original(replaced, name):
    daemon, pid = replaced(name)
    assert os.readlink("/proc/%d/exe" % pid).endswith(" (deleted)")
    assert [daemon.init("status"), daemon.init("reload")] == [0, 0]
    wait_for(lambda: os.path.exists(os.path.join(daemon.folder, name + ".hup")), "it is told to reload")
    assert daemon.init("stop") == 0
    assert not lives(pid)
    assert not os.path.exists(daemon.pid_file)
    assert daemon.init("status") == STOPPED


@pytest.mark.parametrize("argv0", ["guestServer", "./guestServer", "gs"])
def test_an_original_is_known_however_it_was_called(replaced, argv0):
    daemon, pid = replaced("guestServer", argv0=argv0)
    assert daemon.init("status") == 0
    assert daemon.init("stop") == 0
    assert not lives(pid)


@pytest.mark.parametrize("word", ["restart", "condrestart", "upgraded", "replaced"])
def test_an_init_script_starts_ours_in_place_of_the_original(replaced, word):
    daemon, pid = replaced("guestServer")
    assert daemon.init(word) == 0
    assert not lives(pid)
    assert has_title(daemon.pid, "guestServer")


def test_what_replaces_the_original_leaves_ours_alone(make):
    daemon = make("guestServer")
    assert daemon.init("start") == 0
    pid = daemon.pid
    assert daemon.init("replaced") == 0
    assert daemon.pid == pid


def test_the_resource_agent_sees_and_stops_the_original(replaced):
    daemon, pid = replaced("guestAgent")
    assert [daemon.ocf("monitor"), daemon.ocf("monitor"), daemon.ocf("start")] == [0, 0, 0]
    assert daemon.pid == pid
    assert daemon.ocf("stop") == 0
    assert not lives(pid)
    assert not os.path.exists(daemon.pid_file)
    assert [daemon.ocf("monitor"), daemon.ocf("start"), daemon.ocf("monitor")] == [NOT_RUNNING, 0, 0]
    assert has_title(daemon.pid, "guestAgent")


def test_the_pid_file_of_one_that_was_started_meanwhile_stays(replaced):
    daemon, pid = replaced("guestServer", "--again")
    assert daemon.init("stop") == 0
    assert not lives(pid)
    assert lives(daemon.pid)
    os.kill(daemon.pid, 9)


@pytest.mark.parametrize("stop", ["init", "ocf"])
def test_a_daemon_whose_files_were_cleaned_away_is_seen_and_stopped(make, stop):
    daemon, other = make("guestAgent"), make("guestAgent")
    daemon.be_called_by_its_path()
    assert [daemon.init("start"), other.init("start")] == [0, 0]
    pid = daemon.pid
    for name in os.listdir(daemon.folder):
        if name.startswith("guestAgent."):
            os.remove(os.path.join(daemon.folder, name))
    assert daemon.init("status") == 0
    assert getattr(daemon, stop)("stop") == 0
    assert not lives(pid)
    assert lives(other.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_daemon_of_a_container_is_not_taken_for_this_hosts(make):
    daemon, inside = make("guestAgent"), make("guestAgent")
    script = "mount -t tmpfs none %s && exec /bin/sh %s/guestAgent start" % (daemon.folder, SCRIPTS)
    environment = {**inside.environment, "RUN_DIR": daemon.folder}
    environment["OPTIONS"] = inside.environment["OPTIONS"].replace(inside.folder, daemon.folder)
    subprocess.run(["unshare", "-m", "sh", "-c", script], env=environment, check=True)
    lock = daemon.folder + "/guestAgent.lock"
    # The process between the one that was started and the daemon holds it, too, until it has ended.
    wait_for(lambda: len(holders(lock)) == 1, "one process has the lock")
    (container,) = holders(lock)
    try:
        assert [daemon.init("status"), daemon.init("stop")] == [STOPPED, 0]
        assert lives(container)
    finally:
        os.kill(container, signal.SIGKILL)


def holders(path):
    return [pid for pid in psutil.pids() if holds(pid, path)]


def holds(pid, path):
    try:
        return path in [os.readlink(one.path) for one in os.scandir("/proc/%d/fd" % pid)]
    except OSError:
        return False


@pytest.mark.parametrize("stop", ["init", "ocf"])
def test_a_stranger_that_has_the_pid_lives_and_is_taken_over_from(make, stop):
    daemon = make("guestAgent")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        with open(daemon.pid_file, "w", encoding="ascii") as file:
            file.write("%d" % stranger.pid)
        assert getattr(daemon, stop)("stop") == 0
        assert stranger.poll() is None
        assert daemon.init("status") == DEAD_WITH_PID
        assert daemon.init("start") == 0
        assert daemon.pid != stranger.pid
        stranger.kill()


def test_host_install_replaces_a_program_that_runs(tmp_path):
    program = tmp_path / "usr/local/bin/guestServer"
    program.parent.mkdir(parents=True)
    original.put_program(str(program))
    pid = original.start(str(program), str(tmp_path))
    try:
        subprocess.run([os.path.join(SCRIPTS, "install"), "server", str(tmp_path)], check=True)
        assert "guestmtce.server.master" in program.read_text()
        assert program.stat().st_mode & 0o777 == 0o755
        assert not os.path.exists(str(program) + ".new")
    finally:
        os.kill(pid, 9)


def test_a_guests_init_script_does_not_touch_a_stranger_that_has_the_pid(tmp_path):
    script, pid_file = os.path.join(SCRIPTS, "../guest/heartbeat_init"), tmp_path / "guestClient.pid"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        pid_file.write_text("%d\n" % stranger.pid)
        environment = {**os.environ, "PIDFILE": str(pid_file)}
        statuses = [subprocess.run([script, word], env=environment).returncode for word in ("status", "stop")]
        assert (statuses, stranger.poll()) == ([DEAD_WITH_PID, 0], None)
        stranger.kill()


@pytest.mark.parametrize("name, ended_by", [("sleep", None), ("rsyslogd", -signal.SIGHUP)])
def test_log_rotation_tells_the_syslog_daemon_and_no_stranger(tmp_path, name, ended_by):
    with open(os.path.join(SCRIPTS, "guestServer.logrotate"), encoding="utf-8") as file:
        script = file.read().split("postrotate\n")[1].split("endscript")[0]
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        (tmp_path / "syslogd.pid").write_text("%d\n" % process.pid)
        script = "systemctl() { return 1; }\n" + script.replace("/var/run", str(tmp_path))
        subprocess.run(["sh", "-e", "-c", script], check=True)
        if ended_by is None:
            assert process.poll() is None
            process.kill()
        else:
            assert process.wait(10) == ended_by
