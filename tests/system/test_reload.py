"""HUP: the service gets the fresh settings, and the log says which of them wait for the next start."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from guest_process import as_root
from slow_open import FAN_OPEN_PERM, SlowOpen

from guestmtce.lab.cluster import wait_for

SERVICE = """
import dataclasses, sys
from guestmtce.daemon import lifecycle
from guestmtce.daemon.config import MAIN, setting
from guestmtce.daemon.settings import DaemonSettings

@dataclasses.dataclass(frozen=True)
class Settings(DaemonSettings):
    key_file: str = setting("", "security.key_file")
    port: int = setting(1, "agent.port", 1, 9)

class Service(lifecycle.Service):
    reloadable = frozenset({"key_file"})
    def __init__(self, loop, settings): pass
    def open(self): pass
    def close(self): pass
    def health(self): return []
    def dump(self): return []
    def status(self): return "serving"
    def read_files(self, settings):
        if settings.key_file.startswith("/"):
            with open(settings.key_file) as file:
                return file.read()
    def reload(self, settings, files):
        if settings.key_file == "bad":
            raise OSError("bad: it holds no key")
        with open(sys.argv[1] + "/reloads", "a") as file:
            file.write("%s %d\\\\n" % (files or settings.key_file, settings.port))

sys.exit(lifecycle.run("daemon", Settings, {MAIN: sys.argv[1] + "/ini"}, Service,
                     ["-f", "--run-dir", sys.argv[1], "--log-dir", sys.argv[1]]))
""".replace("\\\\n", "\\n")


class Running:
    def __init__(self, folder):
        self._folder = folder
        self.configure("")
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", SERVICE, str(folder)], stderr=log)
        wait_for(lambda: "started" in self.log(), "it started")

    def configure(self, text):
        (self._folder / "ini").write_text(text)

    def log(self):
        return (self._folder / "log").read_text()

    def reload(self, said):
        """HUP; waits for a line that says so."""
        before = self.log().count(said)
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.log().count(said) > before, said)

    def reloads(self):
        return (self._folder / "reloads").read_text().splitlines()


@pytest.fixture
def running(tmp_path):
    one = Running(tmp_path)
    yield one
    one.process.terminate()
    assert one.process.wait(60) == 0


def test_what_the_service_takes_does_not_wait_for_the_next_start(running):
    running.configure("[security]\nkey_file = a\n[agent]\nport = 2\n")
    running.reload("reloaded; these take effect at the next start: port\n")
    running.reload("reloaded; these take effect at the next start: port\n")
    running.configure("[security]\nkey_file = b\n")
    running.reload("reloaded\n")
    assert running.reloads() == ["a 2", "a 2", "b 1"]


def test_what_the_service_refuses_leaves_all_as_it_was(running):
    running.configure("[security]\nkey_file = bad\n[debug]\ndebug_level = 1\n")
    running.reload("the configuration is left as it was: bad: it holds no key\n")
    running.configure("")
    running.reload("reloaded\n")
    assert "DEBUG" not in running.log()


@as_root
@pytest.mark.parametrize("slow", ["ini", "key"])
def test_a_configuration_that_stands_still_holds_up_nothing_else(running, tmp_path, slow):
    (tmp_path / "key").write_text("k")
    running.configure("[security]\nkey_file = %s\n" % (tmp_path / "key"))
    with SlowOpen(tmp_path / slow, FAN_OPEN_PERM) as opening:
        running.process.send_signal(signal.SIGHUP)
        assert opening.waiting.wait(60)
        for _ in range(3):
            running.process.send_signal(signal.SIGHUP)
            (tmp_path / "daemon.info").unlink()
            running.process.send_signal(signal.SIGUSR1)
            wait_for((tmp_path / "daemon.info").exists, "the loop goes on")
        wait_for(lambda: "until then it stays as it was" in running.log(), "it says so", 30)
        assert not (tmp_path / "reloads").exists()
        opening.allow()
        # Who asked while it was read is given one more reading, of all that has changed since.
        wait_for(lambda: running.log().count("reloaded\n") == 2, "it is read twice")
    assert running.reloads() == ["k 1", "k 1"]


@as_root
def test_a_daemon_ends_in_time_while_its_configuration_stands_still(running, tmp_path):
    with SlowOpen(tmp_path / "ini", FAN_OPEN_PERM) as opening:
        running.process.send_signal(signal.SIGHUP)
        assert opening.waiting.wait(60)
        running.process.terminate()
        assert running.process.wait(60) == 0
        assert not (tmp_path / "daemon.pid").exists()


def test_a_key_that_is_unknown_or_misspelt_is_named_as_at_the_start(running):
    path = running._folder / "ini"
    running.configure("[agent]\nprot = 2\ncolour = red\n")
    running.reload("%s: not used: agent.prot, agent.colour\n" % path)
    hint = "%s: agent.prot is no setting: write [agent] port if that is meant\n" % path
    wait_for(lambda: hint in running.log(), "the hint")
    running.configure("")
    running.reload("not configured, default taken: ")
