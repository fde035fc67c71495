"""What every program says of itself, and what --check-config says of a configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest

from guestmtce import __version__

PROGRAMS = {
    "guestServer": ["guestmtce.server.master"],
    "guestAgent": ["guestmtce.agent.main"],
    "guestClient": ["guestmtce.guest.main"],
    "guestmtce": ["guestmtce"],
}
DAEMONS = ["guestServer", "guestAgent"]


def run(name, *words):
    command = [sys.executable, "-m", *PROGRAMS[name], *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_tells_its_version_and_its_options(name):
    done = run(name, "--version")
    assert (done.returncode, done.stdout) == (0, "%s %s\n" % (name, __version__))
    done = run(name, "--help")
    assert done.returncode == 0 and "--version" in done.stdout


@pytest.mark.parametrize("name", DAEMONS)
def test_a_right_configuration_is_said_to_be_right_and_nothing_is_started(name, tmp_path):
    (tmp_path / "ini").write_text("[debug]\ndebug_level = 1\n[new]\nkey = 1\n")
    words = ["--check-config", "--config", str(tmp_path / "ini"), "--run-dir", str(tmp_path)]
    done = run(name, *words)
    assert done.returncode == 0 and done.stdout.endswith("%s: it would start\n" % name)
    assert "note: %s: not used: new.key" % (tmp_path / "ini") in done.stdout
    assert [one.name for one in tmp_path.iterdir()] == ["ini"]


@pytest.mark.parametrize("name", DAEMONS)
def test_every_fault_is_named_with_file_key_and_value(name, tmp_path):
    ini = tmp_path / "ini"
    ini.write_text("[debug]\ndebug_level = much\n[pmon]\nport = 70000\n")
    done = run(name, "--check-config", "--config", str(ini))
    assert done.returncode == 1
    faults = [line for line in done.stdout.splitlines() if ": fault: " in line]
    assert faults == [
        "%s: fault: %s: [debug] debug_level = much: no number" % (name, ini),
        "%s: fault: %s: [pmon] port = 70000: not in 0 to 65535" % (name, ini),
    ]
    assert done.stdout.endswith("%s: 2 faults: it would not start\n" % name)


@pytest.mark.parametrize("name", DAEMONS)
def test_what_a_value_names_is_looked_at(name, tmp_path):
    ini = tmp_path / "ini"
    ini.write_text("[security]\nkey_file = %s/none\n" % tmp_path)
    done = run(name, "--check-config", "--config", str(ini))
    assert done.returncode == 1 and "%s/none" % tmp_path in done.stdout


def test_the_hosts_of_the_agent_are_looked_at(tmp_path):
    ini = tmp_path / "ini"
    ini.write_text("[agent]\nhosts = compute-0\n")
    done = run("guestAgent", "--check-config", "--config", str(ini))
    assert done.returncode == 1 and "NAME UUID ADDRESS expected" in done.stdout


@pytest.mark.parametrize("name", DAEMONS)
def test_a_file_that_is_not_there_is_a_fault(name):
    done = run(name, "--check-config", "--config", "/nonexistent")
    assert done.returncode == 1 and "/nonexistent: there is no such file" in done.stdout + done.stderr
