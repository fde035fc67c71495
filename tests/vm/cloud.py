"""The lab's cluster with virtual machines for guests, at life speed, and what the VIM hears of them."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Tuple

import initramfs
from guest import Guest
from machine import Vm

from guestmtce.lab.cluster import Cluster, LabHost, TimedOut, wait_for
from guestmtce.wire import guest_channel

AGENT = ["timers.audit_first=0.2", "timers.mtc_ask_period=0.3"]
BOOT_WAIT = 90.0  # s, for several at once on a small machine
BACK_WAIT = 30.0  # s
POLL = 0.05  # s
SHORTEST_BEAT = len(
    guest_channel.build(guest_channel.ChallengeResponse(0, guest_channel.HEALTHY, "log", ""), 0)
)  # bytes


class Channels:
    """The folder that libvirt would keep; the cluster wants to know nothing else of its guests."""

    def __init__(self, folder: str) -> None:
        self.folder = folder


class VmCluster(Cluster):
    """`vms` holds the machines, in the order of `uuids`; at the start all are on the first host."""

    def __init__(self, guests: int, hosts: int = 1) -> None:
        super().__init__(guests, hosts, agent_settings=AGENT)
        self.uuids = self.uuids[:guests]
        self.vms: List[Vm] = []

    def start_guests(self, host: LabHost) -> None:
        """Power all machines on, on the first host; `await_boot` waits for them."""
        host.guests = Channels(os.path.join(self.folder, "qemu-%d" % host.number))
        os.mkdir(host.guests.folder)
        if host is not self.hosts[0]:
            return
        self.archive = os.path.join(self.folder, "initramfs")
        initramfs.build(self.archive)
        self.vms = [self.machine(uuid, host, self.folder) for uuid in self.uuids]
        for vm in self.vms:
            vm.start()

    def machine(self, uuid: str, host: LabHost, folder: str) -> Vm:
        """An instance on a host, with its files in `folder`."""
        return Vm(uuid, host.guests.folder, folder, initramfs.KERNEL, self.archive)

    def stop(self) -> None:
        """Stop everything."""
        for vm in self.vms:
            vm.stop()
        super().stop()

    def ready(self) -> Cluster:
        """Until all have booted and heartbeat and the VIM has heard so; the VIM knows what it ought to."""
        host = self.hosts[0]
        self.vim.hosts = {one.uuid: True for one in self.hosts}
        self.vim.instances = {host.uuid: [(uuid, host.name, True) for uuid in self.uuids]}
        self.provision()
        for vm in self.vms:
            vm.await_boot()
        self.await_heartbeats(BOOT_WAIT)
        wait_for(lambda: {self.status(uuid) for uuid in self.uuids} == {"enabled"}, "the VIM knows", 10)
        assert self.alarms() == []
        return self

    # --- what the VIM hears --------------------------------------------------------------------------

    def alarms(self, uuid: str = "") -> List[Tuple[str, str]]:
        """The state and the repair action of every alarm, of one or all."""
        services = [e["body"]["event-data"]["services"][0] for e in self.vim.events("alarm", uuid)]
        return [(service["state"], service["repair-action"]) for service in services]

    def status(self, uuid: str) -> str:
        """Whether the instance heartbeats, as the VIM was last told."""
        events = self.vim.events("service", uuid)
        return events[-1]["body"]["event-data"]["services"][0]["status"] if events else "unknown"

    def told_since(self, began: float, kind: str, uuid: str) -> float:
        """Seconds from `began` to the latest event of this kind."""
        return self.vim.events(kind, uuid)[-1]["at"] - began

    def await_status(self, uuid: str, status: str, seconds: float = BACK_WAIT) -> float:
        """Until the VIM was told this status; the seconds that it took from now."""
        began = time.monotonic()
        wait_for(lambda: self.status(uuid) == status, "the VIM hears that it is " + status, seconds, POLL)
        return self.told_since(began, "service", uuid)

    def ask(self, word: str, uuid: str, event: str, host: int = 0) -> Dict[str, Any]:
        """A vote or a notice: what the VIM is told of it, and `seconds`."""
        began, before = time.monotonic(), len(self.vim.events("action", uuid))
        status, reply = self.client.ask(word, uuid, self.hosts[host].name, event)
        assert (status, int(reply["timeout"]) > 0) == (200, True), reply
        wait_for(
            lambda: len(self.vim.events("action", uuid)) > before,
            "the outcome",
            int(reply["timeout"]) + 2,
            POLL,
        )
        data = dict(self.vim.events("action", uuid)[-1]["body"]["event-data"])
        data["seconds"] = self.told_since(began, "action", uuid)
        return data

    def beats(self, guest: Guest, count: int = 2, seconds: float = 10.0) -> float:
        """Until the guest has sent as much as so many answers are; the seconds that it took.

        It is asked itself: what guestServer says of it may be what guestServer remembers.
        """
        began, before = time.monotonic(), guest.sent()
        wait_for(lambda: guest.sent() >= before + count * SHORTEST_BEAT, "it heartbeats", seconds, POLL)
        return time.monotonic() - began


def undisturbed(seconds: float, trouble: Callable[[], Any]) -> None:
    """Let time pass, but fail as soon as there is trouble."""
    try:
        found = wait_for(trouble, "trouble", seconds, POLL)
    except TimedOut:
        return
    raise AssertionError("trouble: %r" % (found,))
