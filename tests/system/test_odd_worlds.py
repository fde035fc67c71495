"""The daemons in worlds that are not as they should be: each works, or is refused in one line, once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from children_driver import gone
from daemon_process import MODULES, NAMES, Daemon

from guestmtce.lab.cluster import wait_for

pytestmark = pytest.mark.ci  # whole daemons, and many of them

ROOT = os.geteuid() == 0
KEPT_WITHIN = 10.0  # s


@pytest.fixture(params=NAMES)
def daemon(request, tmp_path):
    one = Daemon(request.param, tmp_path)
    yield one
    one.end()


def start(daemon, *before, **environment):
    """Start it with these words before its own."""
    words = [*before, sys.executable, "-m", MODULES[daemon.name], *daemon.arguments(str(daemon.folder))]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    if done.returncode == 0:
        daemon.pids.append(daemon.pid)
    return done


def refusal(daemon, *before):
    done = start(daemon, *before)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(daemon.name + ": ")
    assert not daemon.path(".pid").exists()
    return line


def end(daemon):
    daemon.signal(signal.SIGTERM)
    wait_for(lambda: gone(daemon.pids[-1]), "it ended")


def test_too_few_open_files_are_refused(daemon):
    line = refusal(daemon, "sh", "-c", 'ulimit -n 16; exec "$@"', "sh")
    assert "16 files may be open at once, and 128 are needed: raise `ulimit -Hn`" in line


def test_the_fewest_open_files_do(daemon):
    assert start(daemon, "sh", "-c", 'ulimit -n 128; exec "$@"', "sh").returncode == 0
    time.sleep(1)  # in which a spawner that lacks some would die
    assert "Traceback" not in daemon.log() and "spawner ended" not in daemon.log()
    end(daemon)


def test_warnings_that_are_errors_stop_nobody(daemon):
    assert start(daemon, PYTHONWARNINGS="error").returncode == 0
    end(daemon)
    assert "defect" not in daemon.log()


def test_a_log_that_is_a_pipe_is_refused(daemon):
    os.mkfifo(daemon.path(".log"))
    assert "the log must be a plain file or a device: '%s'" % daemon.path(".log") in refusal(daemon)


def test_a_run_folder_that_cannot_be_written_to_is_refused(daemon):
    if ROOT:
        mount = 'mount -t tmpfs -o ro x "%s"; exec "$@"' % (daemon.folder / "run")
        before = ["unshare", "-m", "sh", "-c", mount, "sh"]
    else:
        before = []
    (daemon.folder / "run").mkdir(0o555)
    words = daemon.arguments(str(daemon.folder))
    words[words.index("--run-dir") + 1] = str(daemon.folder / "run")
    done = subprocess.run(
        [*before, sys.executable, "-m", MODULES[daemon.name], *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "run/%s.lock'" % daemon.name in line and "--run-dir names another folder" in line


@pytest.mark.skipif(not ROOT, reason="only root can hide /proc/sys")
def test_without_proc_sys_it_works_and_says_how_a_boot_is_told(daemon):
    hide = 'mount -t tmpfs x /proc/sys; exec "$@"'
    assert start(daemon, "unshare", "-m", "sh", "-c", hide, "sh").returncode == 0
    if daemon.name == "guestServer":
        assert daemon.log().count("boot_id: No such file or directory: told by /proc/stat") == 1
    end(daemon)


def test_what_a_parent_left_of_signals_is_undone(daemon):
    """Signals that are blocked, and those that a shell's background job or nohup ignores."""
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD}
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        assert start(daemon).returncode == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    daemon.path(".info").unlink()
    daemon.signal(signal.SIGUSR1)
    wait_for(daemon.path(".info").exists, "the report")
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in daemon.log(), "it reloads")
    daemon.signal(signal.SIGINT)
    wait_for(lambda: gone(daemon.pids[-1]), "it ended")


def test_files_that_are_cleaned_away_are_back(daemon):
    words = daemon.arguments(str(daemon.folder))
    run = daemon.folder / "run"
    words[words.index("--run-dir") + 1] = str(run)
    command = [sys.executable, "-m", MODULES[daemon.name], *words]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    pid = int((run / (daemon.name + ".pid")).read_text())
    try:
        kept = set(os.listdir(run))
        assert {daemon.name + ending for ending in (".pid", ".lock", ".info")} <= kept
        shutil.rmtree(run)
        wait_for(lambda: run.exists() and kept <= set(os.listdir(run)), "the files are back", KEPT_WITHIN + 5)
        assert int((run / (daemon.name + ".pid")).read_text()) == pid
        again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (again.returncode, again.stdout) == (0, "%s is already running, pid %d\n" % (daemon.name, pid))
        assert "%s.pid was cleaned away: it is there again" % (run / daemon.name) in daemon.log()
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: gone(pid), "it ended")
    assert {name for name in os.listdir(run) if name.startswith(daemon.name)} <= {daemon.name + ".guests"}


def test_a_signal_is_not_lost_among_thousands(daemon):
    assert start(daemon).returncode == 0
    pid = daemon.pid
    for _ in range(3000):
        os.kill(pid, signal.SIGUSR1)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: gone(pid), "it ended")


def test_the_health_report_counts_lost_lines(daemon):
    assert start(daemon).returncode == 0
    assert "log lost 0" in daemon.path(".info").read_text().splitlines()
    end(daemon)
