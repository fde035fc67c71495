"""A daemon of the checkout under the scripts that start, stop and watch an installed one; without root."""

from __future__ import annotations

import os
import subprocess
import sys

from tree import REPOSITORY

from guestmtce.lab.ports import free_ports

SCRIPTS = os.path.join(REPOSITORY, "scripts", "host")
USAGE, NOT_INSTALLED, NOT_RUNNING = 2, 5, 7
DEAD_WITH_PID, STOPPED = 1, 3
# The ini files of version 1.0.0.
SHIPPED_BEFORE = os.path.join(REPOSITORY, "tests", "packages", "shipped-1.0.0")


def read_text(path):
    """A file's text."""
    with open(path, encoding="utf-8") as file:
        return file.read()


class Daemon:
    """A daemon on loopback with folders of its own, as the scripts find one."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.program = os.path.join(folder, name)
        self.module = {"guestServer": "server.master", "guestAgent": "agent.main"}[name]

        with open(self.program, "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\nexec "%s" -m guestmtce.%s "$@"\n' % (sys.executable, self.module))
        os.chmod(self.program, 0o755)
        ports = free_ports(4)
        options = ["--run-dir", folder, "--log-dir", folder, "--log", "--bind", "127.0.0.1"]
        options += ["--rx-port", str(ports[0])]
        if name == "guestServer":
            options += ["--channel-dir", folder, "--no-wait", "--controller", "127.0.0.1"]
        else:
            options += ["--http-port", str(ports[1]), "--mtc-cmd-port", str(ports[2])]
            options += ["--mtc-event-port", str(ports[3]), "--mtc-address", "127.0.0.1"]
        self.environment = {
            **os.environ,
            "SYSTEMCTL_SKIP_REDIRECT": "1",
            "FUNCTIONS": os.path.join(SCRIPTS, "daemon-functions"),
            "RUN_DIR": folder,
            "DAEMON": self.program,
            "OPTIONS": " ".join(options),
            "OCF_RESKEY_run_dir": folder,
            "OCF_RESKEY_binary": self.program,
            "OCF_RESKEY_options": " ".join(options),
            "PYTHONPATH": REPOSITORY,
        }

    def leave_titles(self):
        """As with the wheel of setproctitle that has no compiled code."""
        with open(os.path.join(self.folder, "setproctitle.py"), "w", encoding="utf-8") as file:
            file.write("def setproctitle(title):\n    pass\n\n\ndef getproctitle():\n    return None\n")
        self.environment["PYTHONPATH"] = self.folder + os.pathsep + self.environment["PYTHONPATH"]

    def be_called_by_its_path(self):
        """As the programs that are installed: Python runs the file itself."""
        with open(self.program, "w", encoding="utf-8") as file:
            file.write("#!%s\nimport sys\nfrom guestmtce.%s import main\nsys.exit(main())\n"
                       % (sys.executable, self.module))  # fmt: skip

    def init(self, word):
        """The init script's exit status."""
        return self._call(self.name, word)

    def ocf(self, word):
        """The resource agent's exit status."""
        return self._call("guestAgent.ocf", word)

    def complaints(self, word):
        """What the init script says on standard error."""
        return self._run(self.name, word, stderr=subprocess.PIPE).stderr.decode()

    def _call(self, script, word):
        return self._run(script, word).returncode

    def _run(self, script, word, **more):
        path = os.path.join(SCRIPTS, script)
        return subprocess.run(["/bin/sh", path, word], env=self.environment, timeout=60, **more)

    @property
    def pid_file(self):
        return os.path.join(self.folder, self.name + ".pid")

    @property
    def pid(self):
        return int(open(self.pid_file, encoding="ascii").read())

    def log(self):
        return open(os.path.join(self.folder, self.name + ".log"), encoding="utf-8").read()
