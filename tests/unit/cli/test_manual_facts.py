"""A manual page names every signal that its program serves and every exit status that it returns."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys

import pytest
from places import REPOSITORY

from guestmtce.cli import manual
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.ports import free_ports

ROOT = str(REPOSITORY)
OF_CHILDREN = {signal.SIGCHLD}  # nobody's business but the program's
WRONG_COMMAND_LINE = 2  # argparse's own
# Where each program decides how it ends.
ENDS = {
    "guestServer": ["daemon/lifecycle", "daemon/config", "daemon/daemonise", "server/master"],
    "guestAgent": ["daemon/lifecycle", "daemon/config", "daemon/daemonise", "agent/main"],
    "guestClient": ["guest/main", "guest/background", "guest/ask"],
    "guestmtce": [
        "cli/main",
        "cli/bench",
        "cli/demo",
        "cli/files",
        "cli/lab",
        "cli/product_files",
        "bench/bench",
        "lab/demo",
        "lab/crowd",
        "lab/vim",
        "lab/mtc_agent",
    ],
}


def documented_signals(name):
    return {signal.Signals["SIG" + word] for one in manual.PAGES[name].signals for word in one.split(", ")}


def command_of(name, folder):
    ports = [str(port) for port in free_ports(4)]
    if name == "guestClient":
        words = ["guestmtce.guest.main", "--foreground", "--device", folder + "/port"]
        return [*words, "--socket", "", "--config", os.devnull]
    words = ["--foreground", "--run-dir", folder, "--log-dir", folder, "--bind", "127.0.0.1"]
    words += ["--config", os.devnull, "--rx-port", ports[0]]
    if name == "guestServer":
        more = ["--channel-dir", folder, "--no-wait", "--controller", "127.0.0.1"]
        return ["guestmtce.server.master", *words, *more]
    words += ["--http-port", ports[1], "--mtc-cmd-port", ports[2], "--mtc-event-port", ports[3]]
    return ["guestmtce.agent.main", *words, "--mtc-address", "127.0.0.1"]


def caught(pid):
    """The signals that a process has handlers for."""
    with open("/proc/%d/status" % pid, encoding="ascii") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


@pytest.mark.parametrize("name", ["guestServer", "guestAgent", "guestClient"])
def test_every_signal_that_a_daemon_serves_is_in_its_page_and_no_other(name, tmp_path):
    command = [sys.executable, "-m", *command_of(name, str(tmp_path))]
    with open(tmp_path / "log", "wb") as log:
        daemon = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        wait_for(lambda: "started, pid" in (tmp_path / "log").read_text(), "it has started")
        assert caught(daemon.pid) - OF_CHILDREN == documented_signals(name)
    finally:
        daemon.terminate()
        assert daemon.wait(10) == 0


def statuses_in(module):
    """The exit statuses that a module names: what its `main` and `run` return, and what is given to exit."""
    with open("%s/guestmtce/%s.py" % (ROOT, module), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants.update(
                {target.id: node.value.value for target in node.targets if hasattr(target, "id")}
            )
    ends = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if function.name in ("main", "run", "live", "_start", "_tell_check"):
            ends += [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if getattr(call.func, "attr", "") in ("exit", "_exit"):
            ends += call.args[:1]
    for end in list(ends):
        if isinstance(end, ast.IfExp):
            ends += [end.body, end.orelse]
    named = {constants[end.id] for end in ends if isinstance(end, ast.Name) and end.id in constants}
    return named | {end.value for end in ends if isinstance(end, ast.Constant) and type(end.value) is int}


@pytest.mark.parametrize("name", ENDS)
def test_every_exit_status_is_in_the_page_and_no_other(name):
    found = set().union(*(statuses_in(module) for module in ENDS[name]))
    found |= {0, 1}  # `int(bool(…))` among them
    assert found | {WRONG_COMMAND_LINE} == {int(status) for status in manual.PAGES[name].statuses}


def test_the_exit_statuses_of_a_checked_configuration_are_told():
    for name in ("guestServer", "guestAgent"):
        statuses = manual.PAGES[name].statuses
        assert "--check-config" in statuses["0"] and "--check-config" in statuses["1"]
