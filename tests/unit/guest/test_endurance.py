"""guestClient as the last to starve: its unit, its memory, its scripts, and its place on hosts of guests."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from guest_process import GuestProcess, Host, write_script
from places import REPOSITORY

from guestmtce.guest import endurance, host, main, options
from guestmtce.lab.cluster import wait_for

GUEST = REPOSITORY / "scripts" / "guest"


def is_allowed(line):
    """Whether a shell can do it here."""
    return subprocess.call(["sh", "-c", line], stderr=subprocess.DEVNULL) == 0


# Containers have a root that may not do these; tests/vm has one that may.
MAY_HASTEN = is_allowed("test $(nice -n -10 nice) = -10")
MAY_PROTECT = is_allowed("echo -900 >/proc/self/oom_score_adj")
MAY_LOCK = is_allowed("ulimit -l unlimited")


def python(code, **keys):
    """What a Python process of its own prints."""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=60, **keys)
    return done.stdout.decode().strip()


# --- the unit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section, line",
    [
        ("Unit", "StartLimitIntervalSec=0"), ("Service", "Restart=always"), ("Service", "RestartSec=100ms"),
        ("Service", "Nice=-10"), ("Service", "OOMScoreAdjust=-900"), ("Service", "LimitMEMLOCK=infinity"),
        ("Service", "KillMode=process"), ("Service", "RestartPreventExitStatus=%d" % main.ON_HOST),
        ("Service", "SuccessExitStatus=%d" % main.ON_HOST),
        ("Service", "ExecStart=/usr/local/bin/guestClient --foreground --service"),
    ],
)  # fmt: skip
def test_the_unit_says(section, line):
    text = (GUEST / "guestClient.service").read_text()
    part = text.split("[%s]\n" % section)[1].split("\n[")[0]
    assert line in part.split("\n")


def test_the_init_script_knows_the_status_of_a_host():
    assert re.search(r"^ON_HOST=(\d+)", (GUEST / "heartbeat_init").read_text(), re.M).group(1) == str(
        main.ON_HOST
    )


# --- memory ----------------------------------------------------------------------------------------

LOCK = "from guestmtce.guest import endurance; print(endurance.lock_memory()); %s"
LOCKED = LOCK % "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmLck')])"


@pytest.mark.skipif(not MAY_LOCK, reason="memory may not be locked without limit here")
def test_memory_is_locked_where_that_is_unlimited():
    def unlimited():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    said, locked = python(LOCKED, preexec_fn=unlimited).split("\n")
    assert (said, int(locked) > 1000) == ("memory is locked", True)


def test_memory_is_not_locked_below_a_limit():
    def limited():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    assert python(LOCKED, preexec_fn=limited) == "0"


def test_without_ctypes_memory_stays_unlocked_and_the_log_says_so(monkeypatch):
    monkeypatch.setattr(endurance, "may_lock_memory", lambda: True)
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert endurance.lock_memory().startswith("memory is not locked")


class Libc:
    """The C library, of which one function is called; it gives `status`."""

    def __init__(self, status):
        self.status, self.flags = status, []

    def CDLL(self, name, use_errno=False):
        self.opened = (name, use_errno)
        return self

    def mlockall(self, flags):
        self.flags.append(flags)
        return self.status

    def get_errno(self):
        return errno.EPERM


WHY_NOT = "memory is not locked, and may be slow to reach when little is free: mlockall: "


@pytest.mark.parametrize(
    "status, said", [(0, "memory is locked"), (-1, WHY_NOT + "Operation not permitted"), (1, WHY_NOT)]
)
def test_what_there_is_and_what_will_be_is_locked(monkeypatch, status, said):
    libc = Libc(status)
    monkeypatch.setattr(endurance, "may_lock_memory", lambda: True)
    monkeypatch.setitem(sys.modules, "ctypes", libc)
    assert endurance.lock_memory().startswith(said)
    assert (libc.flags, libc.opened) == ([1 | 2], (None, True))  # MCL_CURRENT, MCL_FUTURE


LIMIT = 65536


@pytest.mark.parametrize(
    "limits, locks",
    [
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), True),
        ((LIMIT, resource.RLIM_INFINITY), False),
        ((LIMIT, LIMIT), False),
    ],
)
def test_memory_is_locked_only_where_the_limit_in_effect_is_none(monkeypatch, limits, locks):
    libc = Libc(0)
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_MEMLOCK: limits}.get)
    monkeypatch.setitem(sys.modules, "ctypes", libc)
    assert endurance.lock_memory() == ("memory is locked" if locks else "")


@pytest.fixture
def privileges(monkeypatch, tmp_path):
    """This process's niceness and score as a dictionary, whatever it may really do."""
    now, score = {}, tmp_path / "score"
    monkeypatch.setattr(os, "getpriority", lambda which, who: {(os.PRIO_PROCESS, 0): now["nice"]}[which, who])
    monkeypatch.setattr(os, "setpriority", lambda which, who, nice: now.update(nice=nice, who=(which, who)))
    assert endurance.OOM_SCORE_FILE == "/proc/self/oom_score_adj"  # proc(5)
    monkeypatch.setattr(endurance, "OOM_SCORE_FILE", str(score))

    def change(act, before):
        now["nice"], now["who"] = before[0], (os.PRIO_PROCESS, 0)
        score.write_text("%d\n" % before[1])
        act()
        assert now["who"] == (os.PRIO_PROCESS, 0)
        return now["nice"], int(score.read_text().split("\n")[1] or before[1])

    return change


@pytest.mark.parametrize(
    "before, after",
    [((0, 0), (-10, -900)), ((1, 0), (1, -900)), ((-1, 1), (-1, 1)), ((0, -1), (-10, -1)), ((5, 5), (5, 5))],
)
def test_the_client_takes_precedence_unless_somebody_has_set_it(privileges, before, after):
    assert privileges(endurance.take_precedence, before) == after


@pytest.mark.parametrize(
    "before, after",
    [((-10, -900), (0, 0)), ((-1, -1), (0, 0)), ((0, 0), (0, 0)), ((1, 1), (1, 1)), ((-1, 1), (0, 1))],
)
def test_a_script_is_a_process_like_any_other(privileges, before, after):
    assert privileges(endurance.become_ordinary, before) == after


def test_what_is_right_already_is_not_set(monkeypatch):
    for nice, act in ((0, endurance.become_ordinary), (1, endurance.take_precedence)):
        monkeypatch.setattr(os, "getpriority", lambda which, who, nice=nice: nice)
        monkeypatch.setattr(os, "setpriority", lambda *_: pytest.fail("it was set"))
        monkeypatch.setattr(endurance, "OOM_SCORE_FILE", "/dev/null")
        act()


# --- its scripts -----------------------------------------------------------------------------------


@pytest.mark.skipif(not MAY_HASTEN, reason="no process may have a high priority here")
@pytest.mark.parametrize(
    "niceness, score, expected", [(-10, -900 if MAY_PROTECT else 0, "0 0"), (5, 300, "5 300")]
)
def test_a_script_gets_none_of_the_clients_privileges(tmp_path, niceness, score, expected):
    """What makes it weaker than others it keeps."""
    found = tmp_path / "found"
    lines = "set -- $(cat /proc/$$/stat)\necho ${19} $(cat /proc/self/oom_score_adj) >%s.new" % found
    script = write_script(tmp_path / "script", lines + "\nmv %s.new %s" % (found, found))
    port = Host(tmp_path / "host")
    process = GuestProcess(
        tmp_path / "guest", port.path, HEALTH_CHECK_SCRIPT=script, HEALTH_CHECK_INTERVAL=0.2
    )
    try:
        psutil.Process(process.popen.pid).nice(niceness)
        Path("/proc/%d/oom_score_adj" % process.popen.pid).write_text(str(score))
        wait_for(lambda: found.exists() and found.read_text().strip() == expected, expected, 10)
    finally:
        process.stop()
        port.close()


# --- faults of the configuration -------------------------------------------------------------------

SERVICE = ["--foreground", "--service"]


@pytest.mark.parametrize(
    "words, waits",
    [(SERVICE, True), (["-f", "--service"], True), (["--foreground"], False), (["--service"], False)],
)
@pytest.mark.parametrize("fault", [["--no-such-option"], ["--set", "goodbye=x"], ["elsewhere"]])
def test_a_fault_is_waited_out_where_a_supervisor_would_start_it_again(
    monkeypatch, capsys, words, waits, fault
):
    waited = []
    monkeypatch.setattr(host, "host_evidence", lambda: None)
    monkeypatch.setattr(time, "sleep", waited.append)
    assert main.main([*words, *fault]) == main.UNUSABLE
    assert waited == ([options.FAULT_WAIT] if waits else [])
    assert fault[-1].split("=")[0].lstrip("-") in capsys.readouterr().err


def test_a_service_whose_log_cannot_be_opened_heartbeats(tmp_path):
    """As on a disk that has become read-only."""
    port = Host(tmp_path / "host")
    words = [sys.executable, "-m", "guestmtce.guest.main", "--config", "/nonexistent", "--socket", ""]
    words += ["--device", port.path, "--log", "/nonexistent/log", "--foreground"]
    with subprocess.Popen([*words, "--service"], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        try:
            port.accept().heartbeat()
        finally:
            process.kill()
    port.close()


# --- hosts of guests -------------------------------------------------------------------------------


def machine(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


SERVER = {host.SERVER: ""}
PLATFORM = host.PLATFORM_FILE


@pytest.mark.parametrize(
    "files, evidence",
    [
        ({}, None),
        (SERVER, None),  # pip has brought it
        ({host.SERVICES[0]: ""}, None),  # what a removed package leaves behind
        *[
            ({**SERVER, service: ""}, "guestServer is installed here (/%s)" % service)
            for service in host.SERVICES
        ],
        ({PLATFORM: "a=b\nnodetype=worker\n"}, "/%s says nodetype=worker" % PLATFORM),
        ({PLATFORM: "nodetype=controller\n"}, "/%s says nodetype=controller" % PLATFORM),
        ({PLATFORM: "nodetype=compute"}, "/%s says nodetype=compute" % PLATFORM),
        (
            {PLATFORM: "nodetype = storage\nsubfunction=storage, worker"},
            "/%s says subfunction=storage, worker" % PLATFORM,
        ),
        ({PLATFORM: "nodetype=storage\nsw_version=worker\n#nodetype=worker\n\udcff"}, None),
        ({PLATFORM: "nodetype=workers\n"}, None),
    ],
)
def test_what_shows_a_host_of_guests(tmp_path, files, evidence):
    clean = {path: text.replace("\udcff", "") for path, text in files.items()}
    assert host.host_evidence(machine(tmp_path, clean)) == evidence


@pytest.mark.parametrize(
    "service",
    [
        "etc/init.d/guestServer",
        "etc/systemd/system/guestServer.service",
        "lib/systemd/system/guestServer.service",
        "usr/lib/systemd/system/guestServer.service",
    ],
)
def test_the_places_of_a_service_are_known(tmp_path, service):
    """Of a package of either kind, of host/install, of the original (docs/protocol/4-host.md#packages)."""
    files = {"usr/local/bin/guestServer": "", service: ""}
    assert host.host_evidence(machine(tmp_path, files)) == "guestServer is installed here (/%s)" % service


def test_it_is_this_machine_that_is_looked_at(monkeypatch):
    looked = []
    monkeypatch.setattr(os.path, "exists", lambda path: looked.append(path) or True)
    assert host.host_evidence() == "guestServer is installed here (/etc/init.d/guestServer)"
    assert looked == ["/usr/local/bin/guestServer", "/etc/init.d/guestServer"]


def test_bytes_that_are_no_text_keep_no_guest_from_starting(tmp_path):
    (tmp_path / "etc" / "platform").mkdir(parents=True)
    (tmp_path / PLATFORM).write_bytes(b"\xff\xfe\n\0\nnodetype=\xff\n")
    assert host.host_evidence(str(tmp_path)) is None


@pytest.mark.parametrize("word", ["--service", "--may-start"])
@pytest.mark.parametrize("text, status", [("", 6), ("RUN_ON_HOST=no\n", 6), ("RUN_ON_HOST=perhaps\n", 6)])
def test_the_service_does_not_start_on_a_host_and_says_why(monkeypatch, capsys, tmp_path, word, text, status):
    conf = tmp_path / "conf"
    conf.write_text(text)
    monkeypatch.setattr(host, "host_evidence", lambda: "/etc/platform/platform.conf says nodetype=worker")
    assert main.main(["--foreground", word, "--config", str(conf)]) == status
    said = capsys.readouterr().err
    assert "nodetype=worker" in said and "RUN_ON_HOST=yes into %s" % conf in said


def test_a_host_that_is_itself_a_guest_asks_for_it(monkeypatch, tmp_path):
    conf = tmp_path / "conf"
    conf.write_text("RUN_ON_HOST=yes\n")
    monkeypatch.setattr(host, "host_evidence", lambda: "something")
    assert main.main(["--may-start", "--config", str(conf)]) == 0


def test_the_init_script_starts_nothing_on_a_host_and_says_so(tmp_path):
    text = "import sys; from guestmtce.guest import host, main; "
    text += "host.host_evidence = lambda: 'it hosts'; sys.exit(main.main())"
    program = write_script(tmp_path / "guestClient", 'exec %s -c "%s" "$@"' % (sys.executable, text))
    pid_file = tmp_path / "pid"
    environment = {
        **os.environ, "DAEMON": program, "DEVICE": str(tmp_path), "PIDFILE": str(pid_file),
        "OPTIONS": "--config /nonexistent", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    words = [str(GUEST / "heartbeat_init"), "start"]
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    assert (done.returncode, b"not started, it hosts" in done.stdout) == (0, True)
    assert not pid_file.exists()


@pytest.mark.skipif(not MAY_HASTEN, reason="no process may have a high priority here")
@pytest.mark.parametrize("before, after", [(0, "-10"), (3, "3"), (-5, "-5")])
def test_the_service_makes_itself_the_last_to_starve(tmp_path, before, after):
    """What whoever starts it has set stays."""
    code = "import os, sys; from guestmtce.guest import endurance; "
    code += "endurance.take_precedence(); os.system(sys.argv[1])"
    report = "echo $(nice) $(cat /proc/self/oom_score_adj) $(ulimit -l) >%s" % (tmp_path / "found")
    (tmp_path / "code").write_text(code)
    program = write_script(tmp_path / "guestClient", "exec %s code '%s'" % (sys.executable, report))
    environment = {**os.environ, "DAEMON": program, "DEVICE": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    words = ["nice", "-n", str(before), str(GUEST / "heartbeat_init"), "start"]
    assert subprocess.call(words, env=environment, cwd=tmp_path) == 0
    niceness, score, limit = (tmp_path / "found").read_text().split()
    assert niceness == after
    assert score == "-900" or not MAY_PROTECT
    assert limit == "unlimited" or not MAY_LOCK
