"""guestClient as a program: what it needs, its start and its end, its log, the init script."""

from __future__ import annotations

import ast
import compileall
import os
import signal
import socket
import subprocess
import sys
import time
import types

import psutil
import pytest
from guest_process import FAST, GuestProcess, host, write_script
from places import REPOSITORY
from pythons import find_python

from guestmtce.guest import log as guest_log
from guestmtce.guest.log import Log, log_to
from guestmtce.guest.log_text import printable
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import within
from guestmtce.wire import guest_channel, guest_channel_fast
from guestmtce.wire.guest_channel import ChallengeResponse, Exit, Init, InitAck

__all__ = ["host"]  # a fixture

OLD_PYTHON = find_python("3.6")
RSS_MAX = 15e6  # bytes
# All that it imports of the room that it shares with the daemons: each module costs its memory.
COMMON = ("back_off", "background", "lock_file", "log_line", "rate_limit", "throttle", "turn")
SOURCES = [
    *(REPOSITORY / "guestmtce" / "common").glob("*.py"),
    *(REPOSITORY / "guestmtce" / "guest").glob("*.py"),
    REPOSITORY / "guestmtce" / "wire" / "guest_channel.py",
    REPOSITORY / "guestmtce" / "wire" / "json_lines.py",
]


@pytest.fixture
def start(tmp_path, host):
    started = []

    def begin(**keys):
        started.append(GuestProcess(tmp_path / "guest", host.path, **keys))
        host.accept()
        return started[-1]

    yield begin
    for process in started:
        process.stop()
        assert "Traceback" not in process.log()


# --- what it needs ---------------------------------------------------------------------------------


def test_it_needs_the_standard_library_and_the_channel_only():
    """-S: no site-packages."""
    code = "import sys, guestmtce.guest.main; print(*[name for name in sys.modules if 'guestmtce' in name])"
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    words = [sys.executable, "-S", "-c", code]
    loaded = (
        subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout.decode().split()
    )
    others = {name for name in loaded if not name.startswith("guestmtce.guest")}
    common = {"guestmtce.common." + name for name in COMMON} | {"guestmtce.common"}
    wire = {"guestmtce.wire." + name for name in ("guest_channel", "json_lines")} | {"guestmtce.wire"}
    assert others == common | wire | {"guestmtce"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_it_is_written_for_python_3_6(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.module in ("__future__", "dataclasses"))


@pytest.mark.skipif(OLD_PYTHON is None, reason="no Python 3.6 in the path, of pyenv or of uv")
def test_it_runs_with_python_3_6(host):
    words = [OLD_PYTHON, "-m", "guestmtce.guest.main", "-f", "--device", host.path, "--socket", ""]
    with subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        host.accept().heartbeat()
        process.terminate()
        host.hear(Exit)
        assert process.wait(60) == 0


def test_it_is_small(start, host):
    # As installed: a module that Python has to compile first costs memory that it does not give back.
    compileall.compile_dir(str(REPOSITORY / "guestmtce"), quiet=1)
    process = start()
    host.heartbeat()
    rss = psutil.Process(process.popen.pid).memory_info().rss
    print("\nguestClient: %.1f MB RSS with Python %s" % (rss / 1e6, sys.version.split()[0]))
    assert rss < RSS_MAX


def test_what_is_installed_runs_by_itself_and_keeps_a_configuration(host, tmp_path):
    root = tmp_path / "root"
    conf = root / "etc" / "guest-client" / "heartbeat" / "guest_heartbeat.conf"
    for text in (None, "VOTE=5\n"):
        subprocess.run([str(REPOSITORY / "scripts" / "guest" / "install"), str(root)], check=True)
        assert conf.read_text() == (text or (REPOSITORY / "scripts" / "guest" / conf.name).read_text())
        conf.write_text("VOTE=5\n")
    program = str(root / "usr" / "local" / "bin" / "guestClient")
    assert subprocess.run([program, "--help"], stdout=subprocess.DEVNULL, cwd="/").returncode == 0
    words = [program, "-f", "--device", host.path, "--socket", "", "--config", str(conf)]
    with subprocess.Popen(words, cwd="/", stderr=subprocess.DEVNULL, env={}) as process:
        assert host.accept().hear(Init).vote_secs == 6
        process.terminate()


# --- its life --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_it_with_a_goodbye(start, host, number):
    process = start()
    host.heartbeat()
    process.signal(number)
    assert host.hear(Exit).log_msg == "guestClient was ended by " + number.name
    assert process.popen.wait(60) == 0
    wait_for(lambda: "ended" in process.log(), "its log's process has written it")


def test_hup_reads_the_configuration_again(start, host, tmp_path):
    process = start(HB_INTERVAL=1000)
    host.heartbeat()
    before = "configuration: HB_INTERVAL=1000 CORRECTIVE_ACTION=reboot VOTE=8"
    wait_for(lambda: before in process.log(), "it says what is in effect")
    with open(os.path.join(process.folder, "conf"), "w", encoding="utf-8") as file:
        file.write("HB_INTERVAL=2000\nCORRECTIVE_ACTION=log\n")
    process.signal(signal.SIGHUP)
    init = host.hear(Init)
    assert (init.heartbeat_interval_ms, init.corrective_action) == (2000, "log")
    after = "configuration: HB_INTERVAL=2000 CORRECTIVE_ACTION=log"
    wait_for(lambda: after in process.log(), "it says what is in effect")


def test_hup_takes_another_health_script_at_once(start, host, tmp_path):
    process = start(HEALTH_CHECK_INTERVAL=3600, HEALTH_CHECK_SCRIPT=write_script(tmp_path / "one", "exit 0"))
    host.heartbeat()
    path = write_script(tmp_path / "two", "echo no disk; exit 1")
    with open(os.path.join(process.folder, "conf"), "w", encoding="utf-8") as file:
        file.write("HEALTH_CHECK_INTERVAL=3600\nHEALTH_CHECK_SCRIPT=%s\n" % path)
    process.signal(signal.SIGHUP)
    wait_for(lambda: "the guest is ill, corrective action reboot: no disk" in process.log(), "it is ill")
    with open(os.path.join(process.folder, "conf"), "w", encoding="utf-8") as file:
        file.write("HEALTH_CHECK_INTERVAL=3600\n")
    process.signal(signal.SIGHUP)
    wait_for(lambda: "the guest is healthy" in process.log(), "it is well")


def test_usr1_logs_the_state(start, host):
    process = start(VOTE=5)
    host.heartbeat()
    process.signal(signal.SIGUSR1)
    wait_for(lambda: "state: enabled at" in process.log(), "it tells")
    wait_for(lambda: process.log().count("VOTE=5") == 2, "it tells its configuration")
    answered = "1 challenges answered, 0 messages dropped; healthy"
    wait_for(lambda: answered in process.log(), "its log's process has written it")


def test_its_local_processes_are_listed_and_forgotten(start, host):
    process = start()
    host.heartbeat()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(process.socket)
        link.sendall(b'{"type":"register","name":"db","interval_ms":60000}\n')
        assert b"registered" in link.recv(1000)
        assert ask("--members", process).stdout.splitlines()[1].split()[:5] == [
            "db", str(os.getpid()), str(os.geteuid()), "yes", "log",
        ]  # fmt: skip
        refused = ask("--forget=db", process)
        assert (refused.returncode, refused.stderr) == (2, "guestClient: it is connected\n")
    wait_for(lambda: "db: its connection ended" in ask("--members", process).stdout, "it has failed")
    assert ask("--forget=db", process).stdout.splitlines()[1:] == []
    assert ask("--forget=db", process).stderr == "guestClient: no process of this name is known\n"


def ask(word, process):
    words = [sys.executable, "-m", "guestmtce.guest.main", word, "--socket", process.socket]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_a_host_that_does_not_read_does_not_keep_it_from_ending(start, host):
    process = start()
    host.say(InitAck(host.hear(Init).invocation_id))
    host.link.settimeout(0.2)
    with pytest.raises(socket.timeout):
        while True:
            host.link.sendall(guest_channel_fast.build_challenge(1, 1) * 1000)
            wait_for(lambda: not unread(host.link), "the guest reads on", 10)
            if "does not read" in process.log():
                raise socket.timeout
    process.signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0


def unread(link):
    """Bytes that we wrote and the guest has not read."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(link, termios.TIOCOUTQ, count)
    return count[0]


def test_a_busy_health_script_delays_no_heartbeat(start, host, tmp_path):
    script = write_script(tmp_path / "health", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyy; done")
    start(HEALTH_CHECK_SCRIPT=script, HEALTH_CHECK_INTERVAL=5)
    host.heartbeat()
    delays = []
    for number in range(100):
        begun = time.monotonic()
        host.say(guest_channel.Challenge(number))
        assert host.hear(ChallengeResponse).heartbeat_response == number
        delays.append(time.monotonic() - begun)
    print("\na heartbeat beside a script that floods: %.1f ms at most" % (1000 * max(delays)))
    assert within(0.1, sorted(delays)[90])


def test_wrong_words_end_it_with_a_reason():
    for words, why in ((["--nonsense"], "nonsense"), (["--set", "x=1"], "--set x=1"), (["more"], "more")):
        command = [sys.executable, "-m", "guestmtce.guest.main", *words]
        done = subprocess.run(command, stderr=subprocess.PIPE, cwd=REPOSITORY)
        assert done.returncode == 2 and why in done.stderr.decode()
        assert b"Traceback" not in done.stderr


def test_wrong_values_are_logged_and_the_guest_is_watched_all_the_same(start, host):
    process = start(VOTE="soon", HB_INTERVAL=500)
    init = host.hear(Init)
    assert (init.vote_secs, init.heartbeat_interval_ms) == (9, 500)
    said = "line 1: VOTE=soon: a number from 1 to 2147482 expected; 8 is taken"
    wait_for(lambda: said in process.log(), "it says so")


# --- in the background, and the init script --------------------------------------------------------


@pytest.fixture
def init_script(tmp_path, host):
    """Gives a function that runs heartbeat_init with a word; its status and what it printed."""
    program = write_script(tmp_path / "guestClient", 'exec %s -m guestmtce.guest.main "$@"' % sys.executable)
    options = "--log %s --config /nonexistent --socket %s" % (tmp_path / "log", tmp_path / "run" / "socket")
    environment = {
        **os.environ, "DAEMON": program, "DEVICE": host.path, "PIDFILE": str(tmp_path / "pid"),
        "OPTIONS": options + "".join(" --set " + one for one in FAST), "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip

    def run(word, **more):
        words = [str(REPOSITORY / "scripts" / "guest" / "heartbeat_init"), word]
        done = subprocess.run(
            words, env={**environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        return done.returncode, done.stdout.decode()

    yield run
    run("stop")


def test_the_init_script(init_script, host, tmp_path):
    assert init_script("status")[0] == 3
    assert init_script("condrestart")[0] == 0
    assert init_script("start") == (0, "")
    pid = int((tmp_path / "pid").read_text())
    host.accept().heartbeat()
    assert os.getsid(pid) == pid
    status, text = init_script("status")
    assert (status, str(pid) in text) == (0, True)
    status, text = init_script("start")
    assert (status, "runs already, with pid %d" % pid in text) == (0, True)
    assert init_script("stop")[0] == 0
    assert host.hear(Exit)
    assert not (tmp_path / "pid").exists()
    assert "started, pid %d" % pid in (tmp_path / "log").read_text()


def test_the_init_script_starts_over_a_stale_pid_file_and_tells_a_dead_one(init_script, host, tmp_path):
    (tmp_path / "pid").write_text("999999999")
    assert init_script("status")[0] == 1
    assert init_script("start")[0] == 0
    host.accept().heartbeat()
    assert init_script("restart")[0] == 0
    host.hear(Exit)
    host.accept().heartbeat()


def test_the_init_script_finds_a_client_whose_pid_file_was_cleaned_away(init_script, host, tmp_path):
    assert init_script("start")[0] == 0
    pid = int((tmp_path / "pid").read_text())
    host.accept().heartbeat()
    (tmp_path / "pid").unlink()
    assert init_script("status") == (0, "guestClient runs, pid %d\n" % pid)
    assert init_script("start") == (0, "guestClient: it runs already, with pid %d\n" % pid)
    assert init_script("stop")[0] == 0
    assert host.hear(Exit)
    assert init_script("status")[0] == 3


def test_a_service_goes_on_without_a_pid_file(init_script, host, tmp_path):
    pid_file = str(tmp_path / "nonexistent" / "pid")
    assert init_script("start", PIDFILE=pid_file)[0] == 0
    host.accept().heartbeat()
    said = (tmp_path / "log").read_text()
    assert pid_file + ": No such file or directory: there is no pid file" in said
    assert init_script("stop", PIDFILE=pid_file)[0] == 0
    assert host.hear(Exit)


def test_the_init_script_without_program_port_or_word(init_script):
    assert init_script("start", DAEMON="/nonexistent")[0] == 5
    assert init_script("start", DEVICE="/nonexistent")[0] == 0
    assert init_script("status")[0] == 3
    assert init_script("nonsense")[0] == 2


# --- the log ---------------------------------------------------------------------------------------


def test_a_line_of_the_log_cannot_be_forged():
    lines = []
    Log(lines.append, 10)("a\nforged \x1b[0m line é \udcff" + "x" * 1000)
    assert lines[0].startswith(r"a\nforged \x1b[0m line \xe9 \udcff" + "xx") and len(lines[0]) < 450
    assert printable("short") == "short"


def test_of_lines_about_one_thing_one_a_period_is_logged(monkeypatch):
    lines, now = [], [5000.0]
    monkeypatch.setattr(guest_log, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    log = Log(lines.append, 1000)
    for _ in range(3):
        log("again", "port")
        log("other")
    assert lines == ["again", "other", "other", "other"]
    now[0] += 1000
    log("again", "port")
    assert lines[-1] == "again (and 2 more like it)"


def test_a_log_that_nobody_reads_costs_lines_and_no_time():
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    log = log_to(writer, 0)
    for _ in range(2000):
        log("x" * 200)
    os.close(reader)
    log("nobody is there")
    os.close(writer)
