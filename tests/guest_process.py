"""A real guestClient as a process, with a configuration and scripts in a folder of its own."""

from __future__ import annotations

import os

from guestmtce.lab.cluster import Process

FAST = [
    "init_period=0.2", "patience=0.5", "return_patience=0.2", "action_repeat=0.5", "answer_margin=0.5",
    "interval_floor_ms=1", "reopen_first=0.01", "reopen_max=0.05", "probe_first=0.01", "probe_max=0.05",
    "health_floor=0.01", "log_period=0",
]  # fmt: skip


class GuestProcess(Process):
    """guestClient in the foreground; `folder` holds its configuration, its scripts and its log."""

    def __init__(self, folder, device, settings=FAST, **keys):
        self.folder = str(folder)
        os.makedirs(self.folder, exist_ok=True)
        self.socket = os.path.join(self.folder, "run", "processes.sock")
        conf = os.path.join(self.folder, "conf")
        with open(conf, "w", encoding="utf-8") as file:
            file.writelines("%s=%s\n" % (key, value) for key, value in keys.items())
        words = ["-m", "guestmtce.guest.main", "--foreground", "--device", str(device), "--config", conf]
        words += ["--socket", self.socket]
        words += [word for setting in settings for word in ("--set", setting)]
        super().__init__(words, os.path.join(self.folder, "guestClient.log"))


def write_script(path, text):
    """Make a shell script at `path`; it is there whole or not at all. Returns the path."""
    new = str(path) + ".new"
    with open(new, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n" + text)
    os.chmod(new, 0o755)
    os.rename(new, path)
    return str(path)
