"""A daemon of ours as a process, in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from children_driver import gone
from titles import has_title

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.ports import free_ports

NAMES = ["guestServer", "guestAgent"]
MODULES = {"guestServer": "guestmtce.server.master", "guestAgent": "guestmtce.agent.main"}
LOCALHOST = "127.0.0.1"


class Daemon:
    """One of ours in a folder of its own; `start` returns what its first process said and left."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.ports = dict(zip(("rx", "peer", "http", "mtc_cmd", "mtc_event", "vim"), free_ports(6)))
        self.pids = []
        (folder / "daemon.ini").write_text("")
        (folder / "qemu").mkdir()

    def path(self, ending):
        return self.folder / (self.name + ending)

    def arguments(self, folder):
        words = ["--config", "%s/daemon.ini" % folder, "--run-dir", folder, "--log-dir", folder, "--log"]
        words += ["--bind", LOCALHOST, "--rx-port", self.ports["rx"]]
        if self.name == "guestServer":
            words += ["--no-wait", "--channel-dir", "%s/qemu" % folder, "--agent-port", self.ports["peer"]]
            words += ["--controller", LOCALHOST]
        else:
            words += ["--http-port", self.ports["http"], "--server-port", self.ports["peer"]]
            words += ["--mtc-address", LOCALHOST, "--mtc-cmd-port", self.ports["mtc_cmd"]]
            words += ["--mtc-event-port", self.ports["mtc_event"]]
            words += ["--vim-url", "http://%s:%d" % (LOCALHOST, self.ports["vim"])]
        return [str(word) for word in words]

    def start(self, *more, folder=None, **options):
        words = self.arguments(str(self.folder) if folder is None else folder)
        command = [sys.executable, "-m", MODULES[self.name], *words, *more]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        if self.path(".pid").exists():
            self.pids.append(self.pid)
        return done

    @property
    def pid(self):
        return int(self.path(".pid").read_text())

    def signal(self, number):
        os.kill(self.pid, number)

    def log(self):
        return self.path(".log").read_text()

    def end(self):
        for pid in self.pids:
            if not gone(pid) and has_title(pid, self.name):
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: gone(pid), "the daemon is gone")
