"""A virtual machine of the tests: QEMU without KVM, with the heartbeat port and a shell for the test."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from typing import Any, Dict, List

from guestmtce.lab.cluster import Process, wait_for

QEMU = "qemu-system-x86_64"
MEMORY = 128  # MB
TRANSLATED = 32  # MB of translated code that QEMU keeps
BOOT_WAIT = 60.0  # s
SOCKET_WAIT = 10.0  # s


class Vm:
    """One instance. `start` after `kill` is the new QEMU that the cloud makes on the same uuid."""

    def __init__(self, uuid: str, channels: str, folder: str, kernel: str, initramfs: str) -> None:
        self.uuid = uuid
        self.channel = os.path.join(channels, "cgcs.heartbeat.%s.sock" % uuid)
        self.boot_seconds = 0.0  # from QEMU's start to the client's
        self.process: Process
        self._base = os.path.join(folder, uuid)
        self._boot = ["-kernel", kernel, "-initrd", initramfs]
        self._shell: socket.socket
        self._heard = b""
        self._token = 0

    # --- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on; `await_boot` waits for the guest."""
        for name in ("qmp", "control"):
            if os.path.exists(self._path(name)):
                os.unlink(self._path(name))
        self.started = time.monotonic()
        self.process = Process(self._arguments(), self._base + ".qemu.log", QEMU)
        self._shell, self._heard = self._connected("control"), b""

    def _arguments(self) -> List[str]:
        machine = ["-M", "q35", "-accel", "tcg,tb-size=%d" % TRANSLATED, "-m", str(MEMORY)]
        machine += ["-nodefaults", "-display", "none", "-uuid", self.uuid]
        machine += ["-serial", "file:%s.console" % self._base, *self._boot]
        machine += ["-append", "console=ttyS0 quiet"]
        machine += ["-qmp", "unix:%s,server=on,wait=off" % self._path("qmp"), "-device", "virtio-serial-pci"]
        return (
            machine
            + self._port("cgcs.heartbeat", self.channel)
            + self._port("control", self._path("control"))
        )

    @staticmethod
    def _port(name: str, path: str) -> List[str]:
        ident = name.replace(".", "-")
        chardev = "socket,id=%s,path=%s,server=on,wait=off" % (ident, path)
        return ["-chardev", chardev, "-device", "virtserialport,chardev=%s,name=%s" % (ident, name)]

    def _path(self, name: str) -> str:
        return "%s.%s" % (self._base, name)

    def _connected(self, name: str) -> socket.socket:
        """A connection to a socket of QEMU's; it is there soon after the start, not at once."""

        def attempt() -> Any:
            assert self.process.alive(), self.process.log()
            port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                port.connect(self._path(name))
            except OSError:
                port.close()
                return None
            return port

        return wait_for(attempt, "QEMU's socket " + name, SOCKET_WAIT)

    def await_boot(self) -> float:
        """Until the guest's client was started, after `start` or `reset`; the seconds that it took."""
        self._await_answer("ready", BOOT_WAIT)
        self.boot_seconds = time.monotonic() - self.started
        return self.boot_seconds

    def kill(self) -> None:
        """kill -9; the stale socket stays."""
        self._shell.close()
        self.process.kill()

    def stop(self) -> None:
        """Power off, whatever state it is in."""
        if self.process.alive():
            self.kill()

    # --- QEMU's monitor ------------------------------------------------------------------------------

    def qmp(self, command: str) -> Dict[str, Any]:
        """One command of QMP: stop, cont, system_reset, query-status …"""
        with self._connected("qmp") as port, port.makefile("rwb") as lines:
            json.loads(lines.readline())  # the greeting
            for word in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": word}).encode() + b"\n")
                lines.flush()
                reply = json.loads(lines.readline())
                while "event" in reply:
                    reply = json.loads(lines.readline())
                assert "return" in reply, reply
            return reply

    def pause(self) -> None:
        """Its processors stand still."""
        self.qmp("stop")

    def resume(self) -> None:
        """They go on."""
        self.qmp("cont")

    def reset(self) -> None:
        """As the button does: it boots again, and QEMU lives on."""
        self.started = time.monotonic()
        self.qmp("system_reset")

    # --- the shell in the guest ----------------------------------------------------------------------

    def do(self, line: str, seconds: float = 20.0) -> str:
        """What a shell command in the guest prints; it must succeed."""
        self._token += 1
        self._shell.sendall(b"%d %s\n" % (self._token, line.encode()))
        output, status = self._await_answer(str(self._token), seconds)
        assert status == "0", "%s: %s" % (line, output)
        return output

    def script(self, path: str, *lines: str) -> None:
        """Replace a script of the guest's, in one step."""
        text = base64.b64encode("\n".join(["#!/bin/sh", *lines, ""]).encode()).decode()
        self.do("echo %s | base64 -d >/tmp/script; chmod +x /tmp/script; mv /tmp/script %s" % (text, path))

    def _await_answer(self, token: str, seconds: float) -> Any:
        """What came before the line `= TOKEN STATUS`, and the status."""
        until = time.monotonic() + seconds
        while True:
            lines = self._heard.decode(errors="replace").split("\n")
            for at, line in enumerate(lines[:-1]):
                if line.startswith("= %s " % token):
                    self._heard = "\n".join(lines[at + 1 :]).encode()
                    return "\n".join(lines[:at]), line.split()[2]
            self._shell.settimeout(max(0.01, until - time.monotonic()))
            try:
                data = self._shell.recv(65536)
            except socket.timeout:
                raise AssertionError(
                    "no answer in %g s; the console: %s" % (seconds, self.console()[-2000:])
                ) from None
            assert data, "QEMU has closed the shell's port: " + self.process.log()
            self._heard += data

    def console(self) -> str:
        """What the guest printed."""
        with open(self._base + ".console", encoding="utf-8", errors="replace") as file:
            return file.read()
