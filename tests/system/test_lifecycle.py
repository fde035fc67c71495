"""The daemons' lives as whoever supervises them sees it: exit statuses, files, signals, titles."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from children_driver import gone
from daemon_process import LOCALHOST, MODULES, NAMES, Daemon
from titles import has_title

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import stretched, within
from guestmtce.lab.ports import free_ports


@pytest.fixture(params=NAMES)
def daemon(request, tmp_path):
    one = Daemon(request.param, tmp_path)
    yield one
    one.end()


@pytest.fixture
def running(daemon):
    done = daemon.start()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return daemon


def listens(kind, port):
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((LOCALHOST, port))
            return False
        except OSError:
            return True


# --- start -----------------------------------------------------------------------------------------


def test_when_the_command_returns_0_everything_is_there(running):
    assert has_title(running.pid, running.name)
    assert running.path(".info").read_text().startswith("%s up 0 s pid %d\n" % (running.name, running.pid))
    assert running.path(".info").stat().st_mtime_ns <= running.path(".pid").stat().st_mtime_ns
    assert listens(socket.SOCK_DGRAM, running.ports["rx"])
    if running.name == "guestAgent":
        socket.create_connection((LOCALHOST, running.ports["http"]), 5).close()
    process = psutil.Process(running.pid)
    assert os.getsid(running.pid) != os.getsid(0)
    assert {os.readlink("/proc/%d/fd/%d" % (running.pid, number)) for number in (0, 1, 2)} == {os.devnull}
    assert process.rlimit(psutil.RLIMIT_NOFILE)[0] == process.rlimit(psutil.RLIMIT_NOFILE)[1]
    for descendant in process.children(recursive=True):
        wait_for(lambda one=descendant: has_title(one.pid, "guestServer: spawner"), "a title of its own")


def test_a_second_start_says_so_and_is_no_failure(running):
    pid = running.pid
    done = running.start()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "%s is already running, pid %d\n" % (running.name, pid)
    assert running.pid == pid
    assert not gone(pid)


def taken(kind, port):
    one = socket.socket(socket.AF_INET, kind)
    one.bind((LOCALHOST, port))
    if kind == socket.SOCK_STREAM:
        one.listen(1)
    return one


FAILURES = {
    "a bad value": (None, ["--set", "timers.rescan=often"], ["timers.rescan", "often"]),
    "a file that is not there": (None, ["--config", "/nowhere/x.ini"], ["/nowhere/x.ini"]),
    "a log folder that is not there": (None, ["--log-dir", "/nowhere"], ["/nowhere"]),
    "the UDP port is taken": ((socket.SOCK_DGRAM, "rx"), [], ["127.0.0.1", "in use"]),
    "an address of another host": (None, ["--bind", "192.0.2.1"], ["192.0.2.1"]),
}
FAILURES_OF_AGENT = {
    "the TCP port is taken": ((socket.SOCK_STREAM, "http"), [], ["127.0.0.1"]),
    "a host without an address": (None, ["--set", "agent.hosts=a b"], ["[agent] hosts: a b"]),
    "a host with a name for an address": (None, ["--set", "agent.hosts=a b c"], ["a b c"]),
}
FAILURES_OF_SERVER = {
    "no such user": (None, ["--child-user", "no-such-user"], ["no-such-user"]),
    "a bad range of uids": (None, ["--child-uids", "9-5"], ["client.child_uids 9-5", "A <= B"]),
}


def test_a_name_to_listen_on_that_nobody_knows_yet_delays_no_start(daemon):
    start = time.monotonic()
    done = daemon.start("--bind", "no.such.host.invalid")
    assert (done.returncode, done.stderr) == (0, "")
    assert within(5, time.monotonic() - start)  # a name service that does not answer takes 10 s
    wait_for(lambda: "cannot resolve no.such.host.invalid" in daemon.log(), "a line about it", 30)


@pytest.mark.parametrize("name", [*FAILURES, *FAILURES_OF_AGENT, *FAILURES_OF_SERVER])
def test_a_failed_start_is_one_line_and_leaves_nothing_behind(name, tmp_path):
    if name in FAILURES_OF_SERVER and os.geteuid() != 0:
        pytest.skip("only root changes users")
    daemon = Daemon("guestAgent" if name in FAILURES_OF_AGENT else "guestServer", tmp_path)
    blocked, words, named = {**FAILURES, **FAILURES_OF_AGENT, **FAILURES_OF_SERVER}[name]
    blocker = taken(blocked[0], daemon.ports[blocked[1]]) if blocked else None
    done = daemon.start(*words)
    if blocker is not None:
        blocker.close()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(daemon.name + ": ")
    for word in [*named, str(daemon.ports[blocked[1]])] if blocked else named:
        assert word in done.stderr
    left = set(os.listdir(tmp_path)) - {"daemon.ini", "qemu", daemon.name + ".log", daemon.name + ".guests"}
    assert left == set()
    again = daemon.start()
    assert (again.returncode, again.stderr) == (0, "")
    daemon.end()


def test_a_bad_file_is_named_with_section_key_and_value(daemon):
    (daemon.folder / "daemon.ini").write_text("[client]\nrx_port=70000 ; too many\n")
    words = daemon.arguments(str(daemon.folder))
    at = words.index("--rx-port")
    command = [sys.executable, "-m", MODULES[daemon.name], *words[:at], *words[at + 2 :]]
    if daemon.name == "guestAgent":
        at = command.index("--server-port")
        command = command[:at] + command[at + 2 :]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    remedy = "write a whole number from 1 to 65535, or leave it out for 2411"
    assert done.stderr == "%s: %s/daemon.ini: [client] rx_port = 70000: not in 1 to 65535: %s\n" % (
        daemon.name, daemon.folder, remedy
    )  # fmt: skip


def test_after_a_kill_the_stale_file_is_taken_over_and_nobody_of_the_old_lives(running):
    old = running.pid
    family = [process.pid for process in psutil.Process(old).children(recursive=True)]
    assert len(family) == (1 if running.name == "guestServer" else 0)
    running.signal(signal.SIGKILL)
    wait_for(lambda: gone(old), "the daemon is gone")
    assert running.pid == old
    wait_for(lambda: all(gone(pid) for pid in family), "its spawner is gone")
    assert running.start().returncode == 0
    assert running.pid != old
    assert has_title(running.pid, running.name)


def test_relative_paths_mean_the_folder_it_was_started_in(daemon):
    done = daemon.start(folder=".", cwd=daemon.folder, env=with_path())
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.path(".info").exists()
    (daemon.folder / "daemon.ini").write_text("[debug]\ndebug_level=1\n")
    daemon.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in daemon.log(), "it is reloaded")
    daemon.signal(signal.SIGUSR2)
    wait_for(daemon.path(".dump").exists, "the dump")


def with_path():
    """The environment, with an absolute import path: the daemon is started in another folder."""
    import guestmtce

    folder = os.path.dirname(os.path.dirname(os.path.abspath(guestmtce.__file__)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}


def test_whoever_waited_for_the_start_may_be_killed(daemon):
    """The pipe to it is broken then; the daemon serves all the same."""
    words = [sys.executable, "-m", MODULES[daemon.name], *daemon.arguments(str(daemon.folder))]
    first = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(daemon.path(".lock").exists, "it has begun", step=0.001)
    wait_for(lambda: forked(first.pid) or daemon.path(".pid").exists(), "it forked", step=0.001)
    first.kill()
    first.communicate()
    wait_for(lambda: daemon.path(".pid").exists() and "started, pid" in daemon.log(), "it serves")
    daemon.pids.append(daemon.pid)
    daemon.signal(signal.SIGTERM)
    wait_for(lambda: gone(daemon.pids[-1]), "it is gone")


def forked(pid):
    with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
        return file.read().split()


# --- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_clean_stop_removes_the_files_and_every_process(running, number):
    pid = running.pid
    family = [process.pid for process in psutil.Process(pid).children(recursive=True)]
    running.signal(number)
    wait_for(lambda: gone(pid), "it is gone")
    assert all(gone(one) for one in family)
    left = {name for name in os.listdir(running.folder) if name.startswith(running.name)}
    assert left <= {running.name + ".log", running.name + ".guests"}
    assert not listens(socket.SOCK_DGRAM, running.ports["rx"])
    assert "Traceback" not in running.log()


def test_many_stops_are_one_stop(running):
    """The OCF agent sends INT up to three times."""
    pid = running.pid
    while not gone(pid):
        try:
            os.kill(pid, signal.SIGINT)
        except ProcessLookupError:
            break
    assert not running.path(".pid").exists()
    assert not running.path(".info").exists()


def test_a_request_that_never_ends_does_not_keep_the_agent(tmp_path):
    daemon = Daemon("guestAgent", tmp_path)
    try:
        assert daemon.start().returncode == 0
        words = b"POST /v1/instances/x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        clients = [socket.create_connection((LOCALHOST, daemon.ports["http"]), 5) for _ in range(8)]
        for client in clients:
            client.sendall(words)
        pid, began = daemon.pid, time.monotonic()
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: gone(pid), "it is gone")
        assert within(2, time.monotonic() - began)
        assert not daemon.path(".pid").exists()
        assert not daemon.path(".info").exists()
    finally:
        daemon.end()


def test_reports_are_written_when_asked_for(running):
    os.unlink(running.path(".info"))
    running.signal(signal.SIGUSR1)
    wait_for(running.path(".info").exists, "the health report")
    lines = running.path(".info").read_text().splitlines()
    assert lines[0].startswith("%s up " % running.name)
    assert len(lines) > 3
    assert any("defects 0" in line for line in lines)
    running.signal(signal.SIGUSR2)
    wait_for(running.path(".dump").exists, "the dump")
    assert len(running.path(".dump").read_text().splitlines()) >= 3
    assert not gone(running.pid)


def test_a_report_that_cannot_be_written_ends_nothing(running):
    os.unlink(running.path(".info"))
    running.path(".info").mkdir()
    (running.path(".info") / "x").write_text("")
    running.signal(signal.SIGUSR1)
    wait_for(lambda: "cannot write" in running.log(), "a line about it")
    assert not gone(running.pid)
    assert not [name for name in os.listdir(running.folder) if name.endswith(".tmp")]


def test_hup_takes_what_it_can_and_says_what_waits(running):
    ini = running.folder / "daemon.ini"
    ini.write_text("[debug]\ndebug_level=1\n[timers]\nrescan=5\naudit_period=5\n")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded; these take effect at the next start: " in running.log(), "it is reloaded")
    later = {"guestServer": "rescan", "guestAgent": "audit_period"}[running.name]
    assert "next start: %s\n" % later in running.log()
    ini.write_text("[debug]\ndebug_level=loud\n")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "left as it was: %s: [debug] debug_level = loud" % ini in running.log(), "it is refused")
    assert not gone(running.pid)


def test_hup_takes_a_changed_key_and_leaves_the_former_where_the_new_one_is_none(running):
    ini, key = running.folder / "daemon.ini", running.folder / "key"
    key.write_text("a key of 16 bytes or more")
    key.chmod(0o600)
    ini.write_text("[security]\nkey_file=%s\n" % key)
    running.signal(signal.SIGHUP)
    wait_for(lambda: running.log().count("was changed") == 1, "the key is taken")
    wait_for(lambda: running.log().count("reloaded\n") == 1, "nothing waits for a start")
    key.write_text("its content is another one")
    running.signal(signal.SIGHUP)
    wait_for(lambda: running.log().count("was changed") == 2, "its content is taken")
    key.write_text("short")
    running.signal(signal.SIGHUP)
    wait_for(lambda: "left as it was: %s: the key has 5 bytes" % key in running.log(), "it is refused")
    key.chmod(0o644)
    running.signal(signal.SIGHUP)
    wait_for(lambda: "chmod 0600 %s" % key in running.log(), "it is refused with the remedy")
    assert running.log().count("was changed") == 2
    assert "no [security] key_file any more" not in running.log()
    ini.write_text("[security]\nkey_fil=%s\n" % key)
    running.signal(signal.SIGHUP)
    wait_for(lambda: "no [security] key_file any more" in running.log(), "it is said that no key is left")


def test_hup_takes_the_level_of_the_log_back(running):
    ini = running.folder / "daemon.ini"
    for level in ("1", "0"):
        ini.write_text("[debug]\ndebug_level=%s\n" % level)
        before = running.log().count("reloaded")
        running.signal(signal.SIGHUP)
        wait_for(lambda count=before: running.log().count("reloaded") > count, "it is reloaded")
        running.signal(signal.SIGUSR1)
    assert "take effect at the next start" not in running.log()
    quiet = running.path(".log").stat().st_size
    if running.name == "guestAgent":
        with socket.create_connection((LOCALHOST, running.ports["http"]), 5) as client:
            client.sendall(b"GET /v1/hosts/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
        assert b" DEBUG " not in running.path(".log").read_bytes()[quiet:]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_nobody_s(daemon, closed):
    words = [sys.executable, "-m", MODULES[daemon.name], *daemon.arguments(str(daemon.folder))]
    done = subprocess.run(["sh", "-c", 'exec "$@" ' + closed, "sh", *words], timeout=60, check=False)
    assert done.returncode == 0
    daemon.pids.append(daemon.pid)
    with open(daemon.path(".lock")) as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_in_the_foreground_it_is_the_process_and_logs_to_stderr(daemon):
    words = [sys.executable, "-m", MODULES[daemon.name], *daemon.arguments(str(daemon.folder)), "-f"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert any("started, pid %d" % process.pid in line for line in iter(process.stderr.readline, ""))
        assert daemon.pid == process.pid
        assert has_title(process.pid, daemon.name)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in rest
        assert not daemon.path(".pid").exists()
    finally:
        process.kill()
        process.communicate()


LATER = """
import sys
import guestmtce.server.master as master
master.CONFIGURED_FLAG = master.GO_FLAG = sys.argv.pop(1)
master.PLATFORM = "/"
sys.exit(master.main())
"""


def test_a_start_that_fails_later_is_a_failure(tmp_path):
    daemon = Daemon("guestServer", tmp_path)
    blocker = taken(socket.SOCK_DGRAM, daemon.ports["rx"])
    words = [word for word in daemon.arguments(str(tmp_path)) if word != "--no-wait"]
    words += ["--foreground", "--set", "timers.flag_poll=0.01", "--set", "timeouts.start_delay=0"]
    command = [sys.executable, "-c", LATER, str(tmp_path / "ready"), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert any("started, pid" in line for line in iter(process.stderr.readline, ""))
    (tmp_path / "ready").touch()
    _, rest = process.communicate(timeout=60)
    blocker.close()
    assert process.returncode == 1
    assert "CRITICAL cannot start: " in rest


def test_a_daemon_whose_stderr_nobody_reads_ends(daemon):
    words = [
        sys.executable,
        "-m",
        MODULES[daemon.name],
        *daemon.arguments(str(daemon.folder)),
        "-f",
        "-d",
        "1",
    ]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"x" * 4096):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)
    process = subprocess.Popen(words, stderr=writer)
    try:
        wait_for(daemon.path(".pid").exists, "it serves")
        process.send_signal(signal.SIGTERM)
        assert process.wait(stretched(3)) == 0
        assert not daemon.path(".pid").exists()
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


# --- those who watch -------------------------------------------------------------------------------


def pulse(pmon, daemon, sequence):
    """Ask as pmon does; its answer."""
    words = "%s 12345678 %d" % (daemon.name, sequence)
    pmon.sendto(words.encode(), (LOCALHOST, daemon.ports["pulse"]))
    return pmon.recv(100).decode()


def test_pmon_is_answered_by_the_loop_and_not_by_one_that_stands_still(daemon):
    daemon.ports["pulse"], reply_port = free_ports(2)
    pmon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    pmon.bind((LOCALHOST, reply_port))
    pmon.settimeout(60)
    (daemon.folder / "daemon.ini").write_text(
        "[pmon]\nport=%d\nreply_port=%d\n" % (daemon.ports["pulse"], reply_port)
    )
    assert daemon.start().returncode == 0
    assert [pulse(pmon, daemon, n) for n in (0, 1)] == ["%s edcba987 %d" % (daemon.name, n) for n in (0, 1)]
    daemon.signal(signal.SIGSTOP)
    pmon.settimeout(0.2)
    with pytest.raises(socket.timeout):
        pulse(pmon, daemon, 2)
    daemon.signal(signal.SIGCONT)
    pmon.settimeout(60)
    assert pmon.recv(100).decode() == "%s edcba987 2" % daemon.name
    pmon.close()


def test_systemd_is_told_of_start_life_reload_and_end(daemon):
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = str(daemon.folder / "notify")
    systemd.bind(path)
    systemd.settimeout(60)
    words = [sys.executable, "-m", MODULES[daemon.name], *daemon.arguments(str(daemon.folder)), "-f"]
    watched = {**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "40000"}
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=watched)
    try:
        serves = {
            "guestServer": "STATUS=0 guests",
            "guestAgent": "STATUS=0 hosts, 0 instances: 0 heartbeating; VIM reachable, 0 events pending",
        }
        first = systemd.recv(1000).decode().split("\n")
        assert first == ["READY=1", "MAINPID=%d" % process.pid, serves[daemon.name]]
        assert {systemd.recv(1000) for _ in range(3)} == {b"WATCHDOG=1"}
        process.send_signal(signal.SIGHUP)
        said = (word for word in iter(lambda: systemd.recv(1000), b"") if word != b"WATCHDOG=1")
        assert next(said).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert next(said) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert b"STOPPING=1" in iter(lambda: systemd.recv(1000), b"")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        systemd.close()
