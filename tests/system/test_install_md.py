"""docs/install.md: its commands are commands, and what they name is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from places import REPOSITORY

ROOT = str(REPOSITORY)
SCRIPTS = os.path.join(ROOT, "scripts")
# Programs of others that the page calls.
FOREIGN = {
    "apt", "dnf", "python3", "rm", "systemctl", "ln", "sed", "curl", "usermod", "journalctl", "ausearch",
    "mkdir", "cp",
}  # fmt: skip
# What stands in a block and is no command: lines of files, and what an editor is given.
NO_COMMANDS = ("(umask", ":programname", "[Service]", "ExecStart=", "export ")


def _sections():
    with open(os.path.join(ROOT, "docs", "install.md"), encoding="utf-8") as file:
        text = file.read()
    return dict(re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", text))


def _blocks():
    """(section, the block's lines) of every indented block."""
    for section, text in _sections().items():
        for block in re.findall(r"(?m)(?:^ {4}.*\n)+", text):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()  # a command may go on over lines
            yield section, [line.strip() for line in lines]


BLOCKS = list(_blocks())


def test_the_three_paths_name_sections_that_there_are():
    with open(os.path.join(ROOT, "docs", "install.md"), encoding="utf-8") as file:
        table = file.read().split("| you have | you read |")[1].split("\n\n")[0]
    named = re.findall(r"\*([^*]+)\*", table)
    assert len(named) >= 5 and set(named) <= set(_sections())


@pytest.mark.parametrize(
    "section, lines", BLOCKS, ids=["%d-%s" % (n, one[0]) for n, one in enumerate(BLOCKS)]
)
def test_a_block_is_a_script_of_programs_that_there_are(section, lines):
    text = "\n".join(lines)
    if not text.startswith((":programname", "(umask")):
        subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    for line in lines:
        if not line.startswith(NO_COMMANDS):
            program = shlex.split(line, comments=True)[0]
            if "scripts/" in program:
                assert os.access(os.path.join(ROOT, program), os.X_OK), line
            else:
                assert os.path.basename(program) in FOREIGN | {
                    "pip",
                    "guestServer",
                    "guestAgent",
                    "guestmtce",
                }, line


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder with what host/install puts in place."""
    root = tmp_path_factory.mktemp("root")
    for part in ("shared", "server", "agent"):
        environment = {**os.environ, "PYTHON": sys.executable}
        command = [os.path.join(SCRIPTS, "host", "install"), part, str(root)]
        subprocess.run(command, env=environment, check=True, timeout=60)
    return str(root)


def test_what_the_table_says_is_there_is_there(installed):
    rows = re.findall(r"(?m)^\| (`/.*?) \|", _sections()["Where things are"])
    assert len(rows) >= 8
    for row in rows:
        paths = [path for path in re.findall("`([^`]+)`", row) if path not in ("/etc/subuid",)]
        for path in paths:
            beside = os.path.join(os.path.dirname(paths[0]), path)
            path = path if path.startswith("/") else beside
            if "*" in path or path.startswith(("/usr/share/doc", "/lib/systemd/system-generators")):
                continue  # tests/packages sees to these
            assert os.path.exists(installed + path), path


def test_the_uninstallation_takes_away_what_the_installation_put():
    text = _sections()["Without packages"]
    put = re.findall(r"(?m)^ {4}scripts/host/install (\w+) ''$", text)
    taken = re.findall(r"(?m)^ {4}scripts/host/install --uninstall (\w+) ''$", text)
    assert set(put) == set(taken) == {"functions", "server"}


@pytest.mark.ci
def test_the_path_to_try_it_is_the_demo_which_works():
    # scripts/demo itself would make this checkout's .venv anew.
    assert [lines for section, lines in BLOCKS if section == "Try it"] == [["./scripts/demo"]]
    assert "`guestmtce demo` does the same" in _sections()["Try it"]
    command = [sys.executable, "-m", "guestmtce.cli.main", "demo"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stdout.decode()
