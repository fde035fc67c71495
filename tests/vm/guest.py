"""What a test does inside a guest: a shell at the guest's port `control` (see initramfs.INIT)."""

from __future__ import annotations

import base64
import os
import socket
import time
from typing import Callable, Tuple

from guestmtce.lab.cluster import wait_for

BOOT_WAIT = 60.0  # s
SOCKET_WAIT = 10.0  # s
ANSWER_WAIT = 20.0  # s
CONSOLE_SHOWN = 2000  # characters


def connected(path: str, alive: Callable[[], bool]) -> socket.socket:
    """A connection to one of QEMU's sockets; it is there soon after the start, not at once."""

    def attempt() -> object:
        assert alive(), "QEMU has ended"
        port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            port.connect(path)
        except OSError:
            port.close()
            return None
        return port

    return wait_for(attempt, "QEMU's socket " + path, SOCKET_WAIT)


class Guest:
    """`base` is what the paths of its files begin with; `started` is when it was last powered on or reset."""

    def __init__(self, base: str) -> None:
        self.started = 0.0
        self.boot_seconds = 0.0  # from the start to the client's
        self._base = base
        self._token = 0

    def path(self, name: str) -> str:
        """Where its file or socket of this name is."""
        return "%s.%s" % (self._base, name)

    def is_alive(self) -> bool:
        """Whether its QEMU runs."""
        return True

    def open_shell(self) -> None:
        """The machine was powered on."""
        self._shell = connected(self.path("control"), self.is_alive)
        self._heard = b""

    def close_shell(self) -> None:
        """The machine is off."""
        self._shell.close()

    def await_boot(self) -> float:
        """Until the guest's client was started; the seconds since power on or reset."""
        self._await_answer("ready", BOOT_WAIT)
        self.boot_seconds = time.monotonic() - self.started
        return self.boot_seconds

    def do(self, line: str) -> str:
        """What a shell command in the guest prints; it must succeed."""
        self.order(line)
        output, status = self._await_answer(str(self._token), ANSWER_WAIT)
        assert status == "0", "%s: %s" % (line, output)
        return output

    def order(self, line: str) -> None:
        """Have a shell command run in the guest, whatever comes of it."""
        self._token += 1
        self._shell.sendall(b"%d %s\n" % (self._token, line.encode()))

    def script(self, path: str, *lines: str) -> None:
        """Replace a script of the guest's, in one step."""
        text = base64.b64encode("\n".join(["#!/bin/sh", *lines, ""]).encode()).decode()
        self.do("echo %s | base64 -d >/tmp/script; chmod +x /tmp/script; mv /tmp/script %s" % (text, path))

    def sent(self) -> int:
        """The bytes that it has written into its heartbeat port, as its kernel counts them."""
        return int(self.do("grep bytes_sent /sys/kernel/debug/virtio-ports/vport0p1").split()[1])

    def console(self) -> str:
        """What it printed."""
        if not os.path.exists(self.path("console")):
            return ""
        with open(self.path("console"), encoding="utf-8", errors="replace") as file:
            return file.read()

    def _await_answer(self, token: str, seconds: float) -> Tuple[str, str]:
        """What came before the line `= TOKEN STATUS`, and the status."""
        until = time.monotonic() + seconds
        while True:
            lines = self._heard.decode(errors="replace").split("\n")
            for at, line in enumerate(lines[:-1]):
                if line.startswith("= %s " % token):
                    self._heard = "\n".join(lines[at + 1 :]).encode()
                    return "\n".join(lines[:at]), line.split()[2]
            self._hear(until, seconds)

    def _hear(self, until: float, seconds: float) -> None:
        self._shell.settimeout(max(0.01, until - time.monotonic()))
        try:
            data = self._shell.recv(65536)
        except socket.timeout:
            shown = self.console()[-CONSOLE_SHOWN:]
            raise AssertionError("no answer in %g s; the console: %s" % (seconds, shown)) from None
        assert data, "QEMU has closed the shell's port"
        self._heard += data
