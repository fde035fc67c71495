"""A real guestClient as a process, with its configuration in a folder of its own, and a host to talk to."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from guestmtce.lab.process import LabProcess
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ChallengeResponse, Init, InitAck

FAST = [
    "init_period=0.2", "patience=0.5", "return_patience=0.2", "action_repeat=0.5", "answer_margin=1",
    "interval_floor_ms=1", "reopen_first=0.01", "reopen_max=0.05", "probe_first=0.01", "probe_max=0.05",
    "health_floor=0.01", "log_period=0",
]  # fmt: skip


INTERVAL = 0.4  # s, the shortest that a guest may have

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root freezes file systems and delays opens")


class GuestProcess(LabProcess):
    """guestClient in the foreground; `folder` holds its configuration, its scripts and its log."""

    def __init__(self, folder, device, settings=FAST, more=(), python=sys.executable, **keys):
        self.folder = str(folder)
        os.makedirs(self.folder, exist_ok=True)
        self.socket = os.path.join(self.folder, "run", "processes.sock")
        conf = os.path.join(self.folder, "conf")
        with open(conf, "w", encoding="utf-8") as file:
            file.writelines("%s=%s\n" % (key, value) for key, value in keys.items())
        words = ["-m", "guestmtce.guest.main", "--foreground", "--device", str(device), "--config", conf]
        words += ["--socket", self.socket, *more]
        words += [word for setting in settings for word in ("--set", setting)]
        super().__init__(words, os.path.join(self.folder, "guestClient.log"), python)


class Host:
    """guestServer's place, at a socket."""

    def __init__(self, path):
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)
        self.listener.settimeout(60)
        self.lines = json_lines.LineBuffer()
        self.heard = []

    def accept(self):
        self.link, _ = self.listener.accept()
        self.link.settimeout(60)
        return self

    def say(self, message):
        self.link.sendall(guest_channel.build(message, 1))

    def hear(self, kind):
        """The next message, which is of that kind."""
        while not self.heard:
            data = self.link.recv(65536)
            assert data, "the guest hung up"
            self.heard = [guest_channel.parse(line) for line in self.lines.feed(data)]
        message = self.heard.pop(0)
        assert isinstance(message, kind), message
        return message

    def heartbeat(self):
        self.say(InitAck(self.hear(Init).invocation_id))
        self.say(guest_channel.Challenge(42))
        assert self.hear(ChallengeResponse).heartbeat_response == 42

    def close(self):
        self.listener.close()


@pytest.fixture
def host(tmp_path):
    """guestServer's place, for a test."""
    one = Host(tmp_path / "host")
    yield one
    one.close()


def write_script(path, text):
    """Make a shell script at `path`; it is there whole or not at all. Returns the path."""
    new = str(path) + ".new"
    with open(new, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n" + text)
    os.chmod(new, 0o755)
    os.rename(new, path)
    return str(path)


def heartbeats(host, seconds):
    """Challenge every interval for so long: how late the latest answer was, in s."""
    latest, until = 0.0, time.monotonic() + seconds
    number = 100
    while time.monotonic() < until:
        began, number = time.monotonic(), number + 1
        host.say(guest_channel.Challenge(number))
        assert host.hear(ChallengeResponse).heartbeat_response == number
        latest = max(latest, time.monotonic() - began)
        time.sleep(max(0.0, began + INTERVAL - time.monotonic()))
    return latest
