"""docs/operate.md: its commands are commands, and the lines, files and counters that it names exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys

import pytest
from places import REPOSITORY

from guestmtce.lab.cluster import Cluster

PAGE = REPOSITORY / "docs" / "operate.md"
LOGGING_ROOMS = ("common", "daemon", "peer", "server", "agent")  # whose lines the page explains
# Programs of others that the page calls.
FOREIGN = {"systemctl", "journalctl", "cat", "kill", "sleep", "grep"}
DAEMONS = {"guestServer": "guestmtce.server.master", "guestAgent": "guestmtce.agent.main"}


def _text():
    return PAGE.read_text(encoding="utf-8")


def _section(title):
    return _text().split("\n## %s\n" % title)[1].split("\n## ")[0]


def _commands():
    """Every line of the page's indented blocks."""
    return [line.strip() for line in re.findall(r"(?m)^ {4}(\S.*)$", _text())]


def _first_cells(text):
    """The first cell of each row of the tables in it, without the heads."""
    rows = re.findall(r"(?m)^\| (.*?) \|", text)
    return [cell for cell in rows if "`" in cell]


def _code(text):
    return re.findall("`([^`\n]+)`", text)


# --- log lines -----------------------------------------------------------------------------------------


def _texts_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [re.sub(r"%[-0-9.]*[a-z]", "…", value) for value in values if isinstance(value, str)]


@pytest.fixture(scope="module")
def logged():
    """All texts in the sources of the daemons; … for what is filled in."""
    folders = [REPOSITORY / "guestmtce" / room for room in LOGGING_ROOMS]
    return "\n".join(text for folder in folders for path in folder.rglob("*.py") for text in _texts_of(path))


LINES = [line for cell in _first_cells(_section("Log lines")) for line in _code(cell)]


def test_the_page_explains_many_lines():
    assert len(LINES) > 50


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_explained_is_one_that_is_logged(line, logged):
    # "…: " in front is the guest, host or request that the line is about, which some code adds by itself.
    assert line.removeprefix("…: ").removesuffix("…").strip(": ") in logged, "change the page with the line"


def test_words_for_a_guest_are_those_of_its_line(logged):
    words = {word for cell in _first_cells(_section("One guest")) for word in _code(cell)}
    assert len(words) >= 5
    assert [word for word in words if word not in logged.splitlines()] == []


# --- commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", _commands())
def test_a_command_is_one_of_programs_that_there_are(line):
    subprocess.run(["sh", "-n"], input=line.encode(), check=True)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|()")
    lexer.whitespace_split = True
    words = [";", *lexer]
    called = {word for before, word in zip(words, words[1:]) if before in (";", "|", "(")}
    assert called <= FOREIGN | set(DAEMONS)


@pytest.fixture(scope="module")
def cluster():
    """Two daemons that serve a guest."""
    with Cluster(1) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        yield cluster


def _here(line, cluster):
    """The command for the daemons of this cluster and a guest of it."""
    for name, daemon in (("guestServer", cluster.hosts[0].server), ("guestAgent", cluster.agent)):
        line = re.sub(r"/var/(run|log)/(?=%s\b)" % name, daemon.folder + "/", line)
    return line.replace("UUID", cluster.uuids[0])


# What asks systemd is not tried here. Reports are asked for before they are read.
TRIED = [line for line in _commands() if "/var/" in line]


def test_commands_that_need_no_systemd_work_on_real_daemons(cluster):
    assert len(TRIED) >= 6
    for line in TRIED:
        done = subprocess.run(["sh", "-c", _here(line, cluster)], stdout=subprocess.PIPE, timeout=60)
        assert done.returncode == 0, line
        assert done.stdout or "HUP" in line, line
    assert cluster.hosts[0].server.is_alive() and cluster.agent.is_alive()


@pytest.mark.parametrize("name", DAEMONS)
def test_the_configuration_is_checked_as_the_page_says(name):
    assert name + " --check-config" in _commands()
    command = [sys.executable, "-m", DAEMONS[name], "--check-config"]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0 and b"it would start" in done.stdout


# --- what is named -------------------------------------------------------------------------------------


def test_lines_of_the_health_reports_that_name_a_fault_are_in_them(cluster):
    reported = {**cluster.hosts[0].server.health(), **cluster.agent.health()}
    named = {name for cell in _first_cells(_section("First look")) for name in _code(cell)}
    assert named and named <= set(reported)


def test_files_that_are_named_are_there(cluster):
    cluster.hosts[0].server.dump("guest")
    cluster.agent.dump("host")
    for daemon in (cluster.hosts[0].server, cluster.agent):
        named = re.findall(r"`/var/(?:run|log)/(%s\.\w+)`" % daemon.name, _section("Files"))
        assert len(named) >= 5
        assert set(named) - set(os.listdir(daemon.folder)) <= {"guestAgent.told"}  # nothing was told twice


def test_a_paragraph_that_a_table_points_to_is_there():
    titles = re.findall(r"(?m)^\*\*(.+?)\.\*\*", _text())
    tables = "\n".join(line for line in _text().splitlines() if line.startswith("|"))
    pointed = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", tables)) - {"Users and uids", "Operate"}
    assert pointed and pointed <= set(titles)


def test_sections_of_other_pages_that_are_named_are_there():
    for page, section in re.findall(r"\[([\w-]+\.md)\]\([\w-]+\.md\), \*([^*]+)\*", _text()):
        headings = re.findall("(?m)^#+ (.*)$", (PAGE.parent / page).read_text(encoding="utf-8"))
        assert section in headings, page
