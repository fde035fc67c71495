"""The scripts that the packages bring, from the checkout and without root."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from scripted import (
    DEAD_WITH_PID,
    NOT_INSTALLED,
    NOT_RUNNING,
    SCRIPTS,
    SHIPPED_BEFORE,
    STOPPED,
    USAGE,
    read_text,
)


@pytest.mark.parametrize("name", ["guestServer", "guestAgent"])
def test_an_init_script_has_the_words_and_exit_codes_of_the_lsb(make, name):
    daemon = make(name)
    assert [daemon.init(word) for word in ("status", "stop", "condrestart", "reload", "nonsense")] == [
        STOPPED, 0, 0, NOT_RUNNING, USAGE,
    ]  # fmt: skip
    assert not os.path.exists(daemon.pid_file)
    assert daemon.init("start") == 0
    pid = daemon.pid
    assert [daemon.init(word) for word in ("start", "status", "reload")] == [0, 0, 0]
    assert daemon.pid == pid
    assert daemon.init("restart") == 0
    assert daemon.pid != pid
    assert "reloaded" in daemon.log()
    pid = daemon.pid
    assert daemon.init("condrestart") == 0
    assert daemon.pid != pid
    os.kill(daemon.pid, 9)
    while os.path.exists("/proc/%d/cmdline" % daemon.pid) and _title(daemon.pid):
        pass
    assert daemon.init("status") == DEAD_WITH_PID
    assert daemon.init("stop") == 0
    assert daemon.init("status") == STOPPED


def _title(pid):
    try:
        return open("/proc/%d/cmdline" % pid, encoding="utf-8").read()
    except OSError:
        return ""


@pytest.mark.parametrize("name", ["guestServer", "guestAgent"])
def test_an_init_script_finds_a_daemon_whose_title_is_that_of_python(make, name):
    daemon = make(name)
    daemon.leave_titles()
    daemon.be_called_by_its_path()
    assert daemon.init("start") == 0
    pid = daemon.pid
    assert "python" in _title(pid)
    assert [daemon.init(word) for word in ("start", "status", "reload")] == [0, 0, 0]
    os.remove(daemon.pid_file)  # until the daemon makes it again it is known by its lock alone
    assert daemon.init("status") == 0
    with open(daemon.pid_file, "w", encoding="ascii") as file:
        file.write("%d\n" % pid)
    for word in ("restart", "condrestart"):
        pid = daemon.pid
        assert daemon.init(word) == 0
        assert daemon.pid != pid
        assert not _title(pid)
    pid = daemon.pid
    assert daemon.init("stop") == 0
    assert not _title(pid)
    assert daemon.init("status") == STOPPED


def test_the_resource_agent_finds_a_daemon_whose_title_is_that_of_python(make):
    daemon = make("guestAgent")
    daemon.leave_titles()
    assert [daemon.ocf(word) for word in ("start", "monitor", "status", "start")] == [0] * 4
    pid = daemon.pid
    assert [daemon.ocf(word) for word in ("stop", "monitor")] == [0, NOT_RUNNING]
    assert not _title(pid)


def test_an_init_script_does_not_touch_a_stranger_that_has_the_pid(make):
    daemon = make("guestServer")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        with open(daemon.pid_file, "w", encoding="ascii") as file:
            file.write("%d\n" % stranger.pid)
        assert [daemon.init(word) for word in ("status", "reload", "stop")] == [DEAD_WITH_PID, NOT_RUNNING, 0]
        assert stranger.poll() is None
        stranger.kill()


def test_an_init_script_is_silent_about_a_pid_that_nobody_has(make):
    daemon = make("guestServer")
    with subprocess.Popen(["true"]) as gone:
        pass
    with open(daemon.pid_file, "w", encoding="ascii") as file:
        file.write("%d\n" % gone.pid)
    assert daemon.complaints("status") == ""


def test_an_init_script_ends_a_daemon_that_listens_to_nothing(make):
    daemon = make("guestServer")
    assert daemon.init("start") == 0
    os.kill(daemon.pid, 19)
    assert daemon.init("stop") == 0
    assert not os.path.exists(daemon.pid_file)


def test_an_init_script_without_its_package_stops_and_does_not_start(make):
    daemon = make("guestAgent")
    daemon.environment["FUNCTIONS"] = "/none"
    assert [daemon.init("stop"), daemon.init("start")] == [0, NOT_INSTALLED]
    daemon.environment.update(FUNCTIONS=os.path.join(SCRIPTS, "daemon-functions"), DAEMON="/none")
    assert daemon.init("start") == NOT_INSTALLED


def _host_install(part, root):
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([os.path.join(SCRIPTS, "install"), part, root], env=environment, check=True)


def test_beside_modules_of_pip_host_install_puts_all_that_a_daemon_needs(tmp_path):
    root = str(tmp_path)
    for part in ("functions", "server", "agent"):
        _host_install(part, root)
    functions = root + "/usr/share/guestmtce/daemon-functions"
    for name in ("guestServer", "guestAgent"):
        program = "%s/usr/local/bin/%s" % (root, name)
        said = subprocess.run([program, "--help"], stdout=subprocess.PIPE, check=True).stdout.decode()
        assert "usage: " + name in said
        environment = {**os.environ, "FUNCTIONS": functions, "RUN_DIR": root, "DAEMON": program}
        assert subprocess.run([root + "/etc/init.d/" + name, "status"], env=environment).returncode == STOPPED
        assert os.path.exists("%s/lib/systemd/system/%s.service" % (root, name))


def test_host_install_leaves_what_is_configured(tmp_path):
    ini = tmp_path / "etc/mtc/guestServer.ini"
    ini.parent.mkdir(parents=True)
    ini.write_text("[client]\nrx_port = 1\n")
    _host_install("server", str(tmp_path))
    assert ini.read_text() == "[client]\nrx_port = 1\n"


@pytest.mark.parametrize("part, name", [("server", "guestServer"), ("agent", "guestAgent")])
@pytest.mark.parametrize("change", ["", "\n"])
def test_host_install_replaces_an_ini_file_of_before_that_nobody_has_changed(tmp_path, part, name, change):
    ini = tmp_path / "etc/mtc" / (name + ".ini")
    ini.parent.mkdir(parents=True)
    before = read_text(os.path.join(SHIPPED_BEFORE, name + ".ini")) + change
    ini.write_text(before)
    _host_install(part, str(tmp_path))
    assert ini.read_text() == (before if change else read_text(os.path.join(SCRIPTS, name + ".ini")))


def test_the_resource_agent_starts_asks_for_health_and_stops(make):
    daemon = make("guestAgent")
    assert [daemon.ocf(word) for word in ("meta-data", "validate-all", "monitor")] == [0, 0, NOT_RUNNING]
    assert [daemon.ocf(word) for word in ("start", "monitor", "status", "start")] == [0] * 4
    assert [daemon.ocf(word) for word in ("stop", "monitor", "stop")] == [0, NOT_RUNNING, 0]


def _said_by_host_install(*words):
    command = [os.path.join(SCRIPTS, "install"), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)


def test_host_install_says_what_it_does():
    done = _said_by_host_install()
    assert done.returncode == 2
    for word in ("server", "agent", "functions", "shared", "ROOT", "--uninstall", "docs/install.md"):
        assert word in done.stdout.decode()
    assert _said_by_host_install("--help").returncode == 0
    for words in (["server"], ["nothing", "/nowhere"], ["--uninstall", "server"], ["server", "a", "b"]):
        done = _said_by_host_install(*words)
        assert (done.returncode, "usage: host/install" in done.stdout.decode()) == (USAGE, True), words


def test_host_install_names_every_variable_that_it_obeys_with_its_default():
    source = read_text(os.path.join(SCRIPTS, "install"))
    obeyed = set(re.findall(r"\$\{([A-Z_]+):?-([^}]+)\}", source))
    assert len(obeyed) == 5
    said = _said_by_host_install("--help").stdout.decode()
    assert set(re.findall(r"^  ([A-Z_]+) .* (/\S+)$", said, re.M)) == obeyed


def _files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_host_install_takes_away_what_it_has_put_and_no_more(tmp_path):
    kept = tmp_path / "etc/mtc/others.ini"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    parts = ("shared", "functions", "server", "agent")
    for part in parts:
        _host_install(part, str(tmp_path))
    assert len(_files_in(tmp_path)) > 50
    changed = tmp_path / "etc/mtc/guestAgent.ini"
    changed.write_text("[agent]\nhosts =\n")
    said = [_said_by_host_install("--uninstall", part, str(tmp_path)) for part in parts]
    assert [done.returncode for done in said] == [0] * len(parts)
    assert _files_in(tmp_path) == ["etc/mtc/guestAgent.ini", "etc/mtc/others.ini"]
    assert "%s was changed, and stays" % changed in said[-1].stdout.decode()
    assert not (tmp_path / "usr/share/guestmtce").exists() and (tmp_path / "usr/local/bin").is_dir()


def test_whoever_is_not_root_may_ask_the_programs_for_their_options(tmp_path):
    _host_install("server", str(tmp_path))
    assert (tmp_path / "usr/local/bin/guestServer").stat().st_mode & 0o777 == 0o755
