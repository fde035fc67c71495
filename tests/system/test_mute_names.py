"""A name service that does not answer holds up no start, no handler, no loop and no end of a real daemon."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time

import pytest
from places import SUPPORT

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import within
from guestmtce.lab.ports import free_ports
from guestmtce.wire import datagram

LOCAL = "127.0.0.1"
MUTE = str(SUPPORT / "mute_names.py")
PROMPT = 2.0  # s; the name service takes 60 s
MODULES = {"guestServer": "guestmtce.server.master", "guestAgent": "guestmtce.agent.main"}


class Daemon:
    """In the foreground, with a controller that is known by name only."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.rx, self.peer, self.http, self.command, self.event = free_ports(5)
        (folder / "channels").mkdir()
        (folder / "daemon.ini").write_text(
            "[agent]\nhosts=host-1 u 127.0.0.1\n" if name == "guestAgent" else ""
        )
        words = ["--foreground", "--config", folder / "daemon.ini", "--run-dir", folder, "--log-dir", folder]
        words += ["--rx-port", self.rx]
        if name == "guestServer":
            words += ["--no-wait", "--channel-dir", folder / "channels", "--agent-port", self.peer]
        else:
            words += ["--http-port", self.http, "--server-port", self.peer, "--mtc-cmd-port", self.command]
            words += ["--mtc-event-port", self.event, "--vim-url", "http://127.0.0.1:9"]
        command = [sys.executable, MUTE, MODULES[name], *map(str, words)]
        with open(folder / "log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def log(self):
        return (self.folder / "log").read_text()

    def received(self):
        """How many datagrams it has served, as its health report says."""
        report = self.folder / (self.name + ".info")
        before = report.stat().st_mtime_ns
        self.process.send_signal(10)  # USR1
        wait_for(lambda: report.stat().st_mtime_ns != before, "the report", PROMPT)
        words = report.read_text().split()
        return sum(int(words[at + 1]) for at, word in enumerate(words) if word == "received")


@pytest.fixture(params=MODULES)
def daemon(request, tmp_path):
    one = Daemon(request.param, tmp_path)
    yield one
    one.process.kill()
    one.process.wait()


def test_nothing_waits_for_a_name_service_that_does_not_answer(daemon):
    wait_for(lambda: "started, pid" in daemon.log(), "it serves", 3 * PROMPT)
    wait_for(lambda: "a look-up of controller hangs" in daemon.log(), "the name is looked up", PROMPT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        command = datagram.build_command(datagram.QRY_INST, LOCAL, datagram.Query())
        for port in (daemon.rx, daemon.command):
            for _ in range(20):
                stranger.sendto(command, (LOCAL, port))
    expected = 20 if daemon.name == "guestServer" else 40
    wait_for(lambda: daemon.received() == expected, "strangers are served", PROMPT, step=0.05)
    if daemon.name == "guestAgent":
        client = http.client.HTTPConnection(LOCAL, daemon.http, timeout=PROMPT)
        client.request("GET", "/v1/hosts/u")
        assert client.getresponse().status == 200
        client.close()
    start = time.monotonic()
    daemon.process.terminate()
    assert daemon.process.wait(60) == 0
    assert within(PROMPT, time.monotonic() - start)
    assert daemon.log().count("hangs") == 1  # of the others the same thread will ask
    assert "Traceback" not in daemon.log()
