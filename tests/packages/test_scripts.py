"""The scripts that the packages bring, from the checkout and without root."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from tree import REPOSITORY

from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon import config
from guestmtce.lab.cluster import free_ports
from guestmtce.server.settings import ServerSettings

SCRIPTS = os.path.join(REPOSITORY, "scripts")
USAGE, NOT_INSTALLED, NOT_RUNNING = 2, 5, 7
DEAD_WITH_PID, STOPPED = 1, 3


@pytest.mark.parametrize("name, kind", [("guestServer", ServerSettings), ("guestAgent", AgentSettings)])
def test_the_ini_file_has_every_key_with_its_default(name, kind):
    path = os.path.join(SCRIPTS, name + ".ini")
    settings, notes = config.load(kind, name, {config.MAIN: path, "mtc": "/none", "vim": "/none"}, [])
    assert settings == kind()
    assert [note for note in notes if "default taken" in note] == []
    keys = {f.metadata["place"].key for f in dataclasses.fields(kind) if _own(f)}
    text = open(path, encoding="utf-8").read().splitlines()
    lines = [line for line in text if "=" in line]
    assert {line.split("=")[0].strip() for line in lines} == keys
    assert [line for line in lines if " ; " not in line] == []


def _own(field):
    place = field.metadata["place"]
    return place and place.file == config.MAIN


class Daemon:
    """A daemon on loopback with folders of its own, as the scripts find one."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        module = {"guestServer": "server.master", "guestAgent": "agent.main"}[name]
        program = os.path.join(folder, name)
        with open(program, "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\nexec "%s" -m guestmtce.%s "$@"\n' % (sys.executable, module))
        os.chmod(program, 0o755)
        ports = free_ports(4)
        options = ["--run-dir", folder, "--log-dir", folder, "--log", "--bind", "127.0.0.1"]
        options += ["--rx-port", str(ports[0])]
        if name == "guestServer":
            options += ["--channel-dir", folder, "--no-wait", "--controller", "127.0.0.1"]
        else:
            options += ["--http-port", str(ports[1]), "--mtc-cmd-port", str(ports[2])]
            options += ["--mtc-event-port", str(ports[3]), "--mtc-address", "127.0.0.1"]
        self.environment = {
            **os.environ,
            "SYSTEMCTL_SKIP_REDIRECT": "1",
            "FUNCTIONS": os.path.join(SCRIPTS, "daemon-functions"),
            "RUN_DIR": folder,
            "DAEMON": program,
            "OPTIONS": " ".join(options),
            "OCF_RESKEY_run_dir": folder,
            "OCF_RESKEY_binary": program,
            "OCF_RESKEY_options": " ".join(options),
            "PYTHONPATH": REPOSITORY,
        }

    def init(self, word):
        """The init script's exit status."""
        return self._call(self.name, word)

    def ocf(self, word):
        """The resource agent's exit status."""
        return self._call("guestAgent.ocf", word)

    def complaints(self, word):
        """What the init script says on standard error."""
        return self._run(self.name, word, stderr=subprocess.PIPE).stderr.decode()

    def _call(self, script, word):
        return self._run(script, word).returncode

    def _run(self, script, word, **more):
        path = os.path.join(SCRIPTS, script)
        return subprocess.run(["/bin/sh", path, word], env=self.environment, timeout=60, **more)

    @property
    def pid_file(self):
        return os.path.join(self.folder, self.name + ".pid")

    @property
    def pid(self):
        return int(open(self.pid_file, encoding="ascii").read())

    def log(self):
        return open(os.path.join(self.folder, self.name + ".log"), encoding="utf-8").read()


@pytest.fixture
def make(request):
    made = []

    def of(name):
        made.append(Daemon(name, tempfile.mkdtemp(prefix="guestmtce-scripts-")))
        return made[-1]

    yield of
    for daemon in made:
        daemon.init("stop")
        shutil.rmtree(daemon.folder)


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
    subprocess.run([os.path.join(SCRIPTS, "host-install"), part, root], env=environment, check=True)


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


def test_the_resource_agent_starts_asks_for_health_and_stops(make):
    daemon = make("guestAgent")
    assert [daemon.ocf(word) for word in ("meta-data", "validate-all", "monitor")] == [0, 0, NOT_RUNNING]
    assert [daemon.ocf(word) for word in ("start", "monitor", "status", "start")] == [0] * 4
    assert [daemon.ocf(word) for word in ("stop", "monitor", "stop")] == [0, NOT_RUNNING, 0]
