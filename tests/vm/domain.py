"""A real libvirtd, and a domain with the heartbeat channel as a user of the product writes it.

The libvirtd is the test's own: in its mount namespace its folders lie in the test's folder, so it meets no
other libvirtd and leaves nothing behind, and yet the paths are those of every host. It has processes of its
own, too: all of them end with the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import initramfs
import psutil
from guest import Guest
from machine import CONSOLE, MEMORY, TRANSLATED

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.process import LabProcess

START_WAIT = 20.0  # s
CHANNELS = "/var/lib/libvirt/qemu"
# Where libvirtd keeps its things → the folder in ours. Short: the channels' paths are limited to 107 bytes.
FOLDERS = {
    "/etc/libvirt": "etc", "/var/lib/libvirt": "lib", "/run/libvirt": "run",
    "/var/log/libvirt": "log", "/var/cache/libvirt": "cache",
}  # fmt: skip
# What a host without systemd cannot do is left out.
QEMU_CONF = """security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
LIBVIRTD_CONF = """auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
CHANNEL = """<channel type='unix'>
      <source mode='bind' path='{path}'/>
      <target type='virtio' name='{name}'/>
    </channel>"""
DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{console}</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>{translated}</tb-cache></tcg></features>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='file'><source path='{console_file}'/></serial>
    {heartbeat}
    {control}
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Libvirt:
    """A libvirtd with its folders below `folder`; `channels` is where its domains' sockets are."""

    def __init__(self, folder: str) -> None:
        self.channels = os.path.join(folder, "lib", "qemu")
        self._folder = folder
        self._pid_file = os.path.join(folder, "run", "libvirtd.pid")
        for name in (*FOLDERS.values(), "lib/qemu"):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        for name, text in (("qemu.conf", QEMU_CONF), ("libvirtd.conf", LIBVIRTD_CONF)):
            with open(os.path.join(folder, "etc", name), "w", encoding="utf-8") as file:
                file.write(text)

    def start(self) -> None:
        """Start it; returns when it answers."""
        words = [
            "mkdir -p {0} && mount --bind {1}/{2} {0}".format(a, self._folder, b) for a, b in FOLDERS.items()
        ]
        words.append("while :; do libvirtd --pid-file %s || :; done" % self._pid_file)
        arguments = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            "\n".join(words),
        ]
        self.process = LabProcess(arguments, os.path.join(self._folder, "libvirtd.log"), "unshare")
        wait_for(self._answers, "libvirtd answers", START_WAIT, 0.05)

    def restart(self) -> None:
        """kill -9 libvirtd alone, and wait until the next one answers."""
        for process in psutil.Process(self.process.popen.pid).children(recursive=True):
            if process.name() == "libvirtd":
                process.kill()
                process.wait()
        wait_for(self._answers, "libvirtd answers again", START_WAIT, 0.05)

    def _answers(self) -> bool:
        assert self.process.is_alive(), self.process.log()
        return self.run("version").returncode == 0

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """A command that may fail."""
        uri = "qemu:///system?socket=%s/run/libvirt-sock" % self._folder
        return subprocess.run(
            ["virsh", "-q", "-c", uri, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def virsh(self, *words: str) -> str:
        """A command that must succeed: what it prints."""
        result = self.run(*words)
        output = result.stdout.decode(errors="replace").strip()
        assert result.returncode == 0, "virsh %s: %s" % (" ".join(words), output)
        return output

    def stop(self) -> None:
        """End it and its domains."""
        self.process.stop()


class Domain(Guest):
    """One instance, as libvirt knows it."""

    def __init__(self, libvirt: Libvirt, uuid: str, folder: str, archive: str) -> None:
        own = os.path.join(folder, "own")
        os.mkdir(own)
        os.chmod(own, 0o777)  # QEMU is an unprivileged user
        super().__init__(os.path.join(own, "domain"))
        self.name = "instance-00000001"
        self._virsh = libvirt.virsh
        self._run = libvirt.run
        channels = [
            CHANNEL.format(name=name, path=path)
            for name, path in (
                ("cgcs.heartbeat", "%s/cgcs.heartbeat.%s.sock" % (CHANNELS, uuid)),
                ("control", self.path("control")),
            )
        ]
        text = DOMAIN.format(
            name=self.name, uuid=uuid, memory=MEMORY, translated=TRANSLATED,
            kernel=shutil.copy(initramfs.KERNEL, own), initramfs=archive,
            console=CONSOLE, console_file=self.path("console"),
            heartbeat=channels[0], control=channels[1],
        )  # fmt: skip
        with open(self.path("xml"), "w", encoding="utf-8") as file:
            file.write(text)
        libvirt.virsh("define", self.path("xml"))

    def start(self) -> None:
        """Power on, or go on from what was saved."""
        self.started = time.monotonic()
        self._virsh("start", self.name)
        self.open_shell()

    def destroy(self) -> None:
        """Power off at once."""
        self.close_shell()
        self._virsh("destroy", self.name)

    def save(self) -> None:
        """Put its memory into a file and end its QEMU; `start` goes on from there."""
        self.close_shell()
        self._virsh("managedsave", self.name)

    def reset(self) -> None:
        """As the button does."""
        self.started = time.monotonic()
        self._virsh("reset", self.name)

    def reboot(self) -> None:
        """The guest reboots by itself, as at the end of a shutdown -r."""
        self.started = time.monotonic()
        self.order("reboot -f")

    def suspend(self) -> None:
        """Its processors stand still."""
        self._virsh("suspend", self.name)

    def resume(self) -> None:
        """They go on."""
        self._virsh("resume", self.name)

    def stop(self) -> None:
        """Power off, whatever state it is in."""
        self.close_shell()
        self._run("destroy", self.name)
