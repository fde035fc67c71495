"""What every program says of itself, and what --check-config says of a configuration."""

from __future__ import annotations

import os
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
def test_a_misspelt_key_is_named_with_what_may_be_meant(name, tmp_path):
    (tmp_path / "ini").write_text("[pmn]\nport = 1\n[debug]\ndebug_levle = 1\nflush = 1\n[agent]\nx = y\n")
    said = run(name, "--check-config", "--config", str(tmp_path / "ini")).stdout
    head = "%s: note: %s: " % (name, tmp_path / "ini")
    assert head + "not used: pmn.port, debug.debug_levle, debug.flush, agent.x\n" in said
    assert head + "pmn.port is no setting: write [pmon] port if that is meant\n" in said
    assert head + "debug.debug_levle is no setting: write [debug] debug_level if that is meant\n" in said
    assert said.count("if that is meant") == 2


def faults_of(name, tmp_path, text, *words):
    """What --check-config calls a fault in an ini file, without the program's and the file's name."""
    ini = tmp_path / "ini"
    ini.write_text(text)
    done = run(name, "--check-config", "--config", str(ini), *words)
    faults = [line for line in done.stdout.splitlines() if ": fault: " in line]
    assert done.returncode == bool(faults), done.stdout + done.stderr
    last = "%d faults: it would not start" % len(faults) if faults else "it would start"
    assert done.stdout.endswith("%s: %s\n" % (name, last))
    return [line.replace("%s: fault: " % name, "").replace("%s: " % ini, "") for line in faults]


@pytest.mark.parametrize("name", DAEMONS)
def test_every_fault_is_named_with_file_key_value_and_remedy(name, tmp_path):
    text = "[debug]\ndebug_level = much\n[pmon]\nport = 70000\n[timers]\nresolve_first = 0\n"
    assert faults_of(name, tmp_path, text, "--set", "timers.resolve_period=x") == [
        "[debug] debug_level = much: no number: write a whole number from 0 to 255, or leave it out for 0",
        "[pmon] port = 70000: not in 0 to 65535: write a whole number from 0 to 65535, or leave it out for 0",
        "[timers] resolve_first = 0: not in 0.001 to 86400.0: write a number from 0.001 to 86400.0,"
        " or leave it out for 1.0",
        "--set timers.resolve_period = x: no number: write a number from 0.001 to 86400.0,"
        " or leave it out for 30.0",
    ]


@pytest.mark.parametrize("name", DAEMONS)
def test_the_keys_are_looked_at(name, tmp_path):
    key, none = tmp_path / "key", tmp_path / "none"
    key.write_text("0123456789abcdef")
    key.chmod(0o644)
    text = "[security]\nkey_file = %s\nold_key_file = %s\n" % (key, none)
    first, second = faults_of(name, tmp_path, text)
    assert (
        first.startswith("[security] key_file = %s: %s has mode 0644" % (key, key)) and "chmod 0600" in first
    )
    assert second.startswith("[security] old_key_file = %s: No such file or directory: make it" % none)
    (fault,) = faults_of(name, tmp_path, "[security]\nold_key_file = %s\n" % none)[1:]
    assert fault.endswith("there is no key_file, so nothing would be sealed: name one")
    key.chmod(0o600)
    assert faults_of(name, tmp_path, "[security]\nkey_file = %s\n" % key) == []


# What stands in guestServer's ini → what is said of it.
SERVER_FAULTS = {
    "child_uids = many": "[client] child_uids = many: two uids A-B expected, 1 <= A <= B <= 4294967294",
    "child_uids = 0-3": "[client] child_uids = 0-3: two uids A-B expected, 1 <= A <= B <= 4294967294",
    "child_uids = 65000-65600": "65000-65600: nobody has uid 65534: name uids that nobody has",
}


@pytest.mark.parametrize("line", SERVER_FAULTS)
def test_the_values_of_guest_server_are_looked_at(tmp_path, line):
    (fault,) = faults_of("guestServer", tmp_path, "[client]\n%s\n" % line)
    assert SERVER_FAULTS[line] in fault


@pytest.mark.skipif(os.geteuid() != 0, reason="children change their user only as root's")
def test_the_user_of_the_children_is_looked_at(tmp_path):
    (fault,) = faults_of("guestServer", tmp_path, "", "--child-user", "nobody-there")
    assert fault == "--child-user = nobody-there: there is no such user: make it, or name another"


def test_a_folder_of_sockets_that_is_not_there_is_a_note(tmp_path):
    done = run("guestServer", "--check-config", "--config", "/dev/null", "--channel-dir", "/none")
    assert done.returncode == 0
    assert "guestServer: note: --channel-dir = /none: there is no such folder" in done.stdout


# What stands in guestAgent's ini, or on its command line → what is said of it.
AGENT_FAULTS = {
    ("hosts = compute-0",): "[agent] hosts = compute-0: compute-0: NAME UUID ADDRESS expected",
    ("", "--vim-url", "vim:30002"): "--vim-url = vim:30002: write http://HOST:PORT",
    ("", "--vim-url", "https://vim:1"): "--vim-url = https://vim:1: write http://HOST:PORT",
    ("", "--vim-url", "http://vim:x"): "--vim-url = http://vim:x: write http://HOST:PORT",
}


@pytest.mark.parametrize("words", AGENT_FAULTS)
def test_the_values_of_guest_agent_are_looked_at(tmp_path, words):
    (fault,) = faults_of("guestAgent", tmp_path, "[agent]\n%s\n" % words[0], *words[1:])
    assert fault.startswith(AGENT_FAULTS[words])


def test_a_user_of_the_vim_whom_nobody_knows_is_a_note(tmp_path):
    (tmp_path / "ini").write_text("[agent]\nvim_users = root, nobody-there, 5\n")
    done = run("guestAgent", "--check-config", "--config", str(tmp_path / "ini"))
    assert done.returncode == 0
    said = "[agent] vim_users = root, nobody-there, 5: there is no user nobody-there: it may not command"
    assert said in done.stdout


@pytest.mark.parametrize("name", DAEMONS)
def test_a_file_that_is_not_there_is_a_fault(name):
    done = run(name, "--check-config", "--config", "/nonexistent")
    assert done.returncode == 1 and "/nonexistent: there is no such file" in done.stdout + done.stderr
