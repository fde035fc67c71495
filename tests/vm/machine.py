"""A virtual machine of the tests: QEMU without KVM, with the heartbeat port and a shell for the test."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List, Sequence

from guest import Guest, connected

from guestmtce.lab.process import LabProcess

QEMU = "qemu-system-x86_64"
MEMORY = 128  # MB
TRANSLATED = 32  # MB of translated code that QEMU keeps
CONSOLE = "console=ttyS0 quiet"


class Vm(Guest):
    """One instance. `start` after `kill` is the new QEMU that the cloud makes on the same uuid."""

    def __init__(self, uuid: str, channels: str, folder: str, kernel: str, initramfs: str) -> None:
        super().__init__(os.path.join(folder, uuid))
        self.uuid = uuid
        self.memory = MEMORY
        self.process: LabProcess
        self._channel = os.path.join(channels, "cgcs.heartbeat.%s.sock" % uuid)
        self._boot = ["-kernel", kernel, "-initrd", initramfs, "-append", CONSOLE]

    # --- life --------------------------------------------------------------------------------------

    def start(self, *more: str) -> None:
        """Power on, with `more` on QEMU's command line; `await_boot` waits for the guest."""
        for name in ("qmp", "control"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        self.started = time.monotonic()
        self.process = LabProcess([*self._arguments(), *more], self.path("log"), QEMU)
        self.open_shell()

    def _arguments(self) -> Sequence[str]:
        machine = ["-M", "q35", "-accel", "tcg,tb-size=%d" % TRANSLATED, "-m", str(self.memory)]
        machine += ["-nodefaults", "-display", "none", "-uuid", self.uuid]
        machine += ["-serial", "file:" + self.path("console"), *self._boot]
        machine += ["-qmp", "unix:%s,server=on,wait=off" % self.path("qmp"), "-device", "virtio-serial-pci"]
        return machine + _port("cgcs.heartbeat", self._channel) + _port("control", self.path("control"))

    def is_alive(self) -> bool:
        """Whether QEMU runs."""
        return self.process.is_alive()

    def kill(self) -> None:
        """kill -9; the stale socket stays."""
        self.close_shell()
        self.process.kill()

    def stop(self) -> None:
        """Power off, whatever state it is in."""
        if self.is_alive():
            self.kill()

    # --- QEMU's monitor ----------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command of QMP: what it returns."""
        with connected(self.path("qmp"), self.is_alive) as port, port.makefile("rwb") as lines:
            json.loads(lines.readline())  # the greeting
            _execute(lines, "qmp_capabilities", {})
            return _execute(lines, command, arguments)

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


def _port(name: str, path: str) -> List[str]:
    ident = name.replace(".", "-")
    chardev = "socket,id=%s,path=%s,server=on,wait=off" % (ident, path)
    return ["-chardev", chardev, "-device", "virtserialport,chardev=%s,name=%s" % (ident, name)]


def _execute(lines: Any, command: str, arguments: Dict[str, Any]) -> Any:
    lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    lines.flush()
    reply = json.loads(lines.readline())
    while "event" in reply:
        reply = json.loads(lines.readline())
    assert "return" in reply, reply
    return reply["return"]
