"""A master of guestServer in this process, and one guest."""

from __future__ import annotations

import dataclasses
import os

import psutil

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.ports import free_ports
from guestmtce.lab.process import GuestsProcess
from guestmtce.server.master import Master
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram

ONE = uuid_of(1)
LOCALHOST = "127.0.0.1"


class Bench:
    """A master, its loop, one guest that answers all; `told` is what guestAgent would hear."""

    def __init__(self, folder, **values):
        ports = free_ports(2)
        self.folder = folder
        self.told = []
        for name in ("run", "qemu"):
            (folder / name).mkdir()
        settings = ServerSettings(
            run_dir=str(folder / "run"),
            channel_dir=str(folder / "qemu"),
            bind=LOCALHOST,
            controller=LOCALHOST,
            rx_port=ports[0],
            agent_port=ports[1],
            no_wait=True,
            pulse_period_ms=100,
            alive_mark=0.1,
            question_grace=0.05,
        )
        self.loop = Loop()
        self.settings = dataclasses.replace(settings, **values)
        self.master = Master(self.loop, self.settings)
        self.guests = None

    def start_guest(self):
        """It heartbeats, and its failures are to be reported."""
        options = ["--interval-ms", "100", "--secs", "1"]
        self.guests = GuestsProcess(self.settings.channel_dir, 1, 1, options, str(self.folder / "guests.log"))
        self.turn(lambda: ONE in self.master._guests.guests, "its socket is found")
        self.master._handle_command(datagram.SetInstance(ONE, True))
        self.turn(lambda: self.master._guests.guests[ONE].liveness.running, "it heartbeats")

    def turn(self, condition, what, seconds=10.0):
        """Run the loop until `condition()`."""

        def once():
            self.loop.after(0.005, lambda: None)
            self.loop.run_once()
            return condition()

        return wait_for(once, what, seconds, step=0)

    def files(self):
        return set(os.listdir(self.folder / "run/guestServer.guests"))

    def close(self):
        self.master.close()
        self.loop.close()
        if self.guests is not None:
            self.guests.stop()
        assert psutil.Process().children() == []
