"""A process monitor as far as a daemon sees one: passive by pid file and signal 0, active by pulses."""

from __future__ import annotations

import configparser
import socket
import time
from typing import Any, Dict, List

from tree import POLL, Tree

from guestmtce.lab.cluster import wait_for

PORT = 2200
QUESTION, ANSWER = 0x12345678, 0xEDCBA987
LOOPBACK = "127.0.0.1"


class Monitor:
    """Reads its conf file from the tree. `restarts` counts what it did; `answers` are of active mode."""

    def __init__(self, tree: Tree, conf: str) -> None:
        parser = configparser.ConfigParser(inline_comment_prefixes=(";",), comment_prefixes=(";",))
        parser.read_string(tree.read(conf))
        self.conf: Dict[str, str] = dict(parser["process"])
        self.restarts = 0
        self.answers: List[bytes] = []
        self._tree = tree
        self._sequence = 0

    def pid(self) -> int:
        """What the pid file says, 0 without one."""
        path = self.conf["pidfile"]
        return int(self._tree.read(path)) if self._tree.exists(path) else 0

    def lives(self) -> bool:
        """kill(pid, 0), nothing more."""
        pid = self.pid()
        return pid > 0 and self._tree.status("kill -0 %d" % pid) == 0

    def step(self) -> None:
        """What it does when it finds a process dead: kill what may be left, restart, wait so many seconds."""
        if self.lives():
            return
        if self.pid():
            self._tree.run("kill -9 %d" % self.pid(), status=None)
        self._tree.run("systemctl restart " + self.conf["service"])
        self.restarts += 1
        wait_for(self.lives, "it lives again", int(self.conf["startuptime"]), POLL)

    def pulse(self, port: int, timeout: float) -> bool:
        """One pulse of active mode: whether it was answered in time."""
        self._sequence += 1
        question = "%s %8x %d" % (self.conf["process"], QUESTION, self._sequence)
        with self._tree.network():
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listener.bind((LOOPBACK, PORT))
        with listener:
            listener.settimeout(timeout)
            listener.sendto(question.encode(), (LOOPBACK, port))
            try:
                self.answers.append(listener.recv(256).rstrip(b"\0"))
            except socket.timeout:
                return False
        wanted = "%s %8x %d" % (self.conf["process"], ANSWER, self._sequence)
        return self.answers[-1] == wanted.encode()


def elapsed(action: Any) -> float:
    """The seconds that `action` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
