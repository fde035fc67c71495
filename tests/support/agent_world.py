"""A whole guestAgent, turned by hand, and all that it speaks to."""

from __future__ import annotations

import socket
import tempfile
import time

import pytest
from serverlink_bench import LOCAL, NAME, SERVER, TICK

from guestmtce.agent.main import Agent
from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.mtc_agent import MtcAgent
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import CommandClient, Vim
from guestmtce.wire import datagram, datagram_ext, guest_channel
from guestmtce.wire.datagram import HostRecord, InstanceInfo, VoteResult
from guestmtce.wire.datagram_ext import Tag

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
V = "11111111-2222-3333-4444-555555555555"
OTHER, STRANGE = "127.0.0.4", "127.0.0.5"
HOST = HostRecord(NAME, "aaaaaaaa-0000-4000-8000-000000000000", SERVER)
SECOND = HostRecord("compute-1", "aaaaaaaa-0000-4000-8000-000000000001", OTHER)
INFO = InstanceInfo(NAME, U, True, True, "stop", 601, 11, 12, 13, 14)
LOSS = (datagram.LOSS, INFO._replace(heartbeating=False))
RUNNING = (datagram.RUNNING, INFO)
QUIET = 0.2  # s; long for a VIM that is asked again every RETRY
RETRY = 0.02  # s


def vote(uuid=U, hostname=NAME):
    result = VoteResult(hostname, uuid, guest_channel.VOTE, "stop", "reject", "busy")
    return datagram.VOTE_NOTIFY, result


class World:
    """The agent, turned by hand, and all that it speaks to."""

    def __init__(self, named, **settings):
        ports = free_ports(5, "0.0.0.0")
        self.agent_port, self.server_port, http_port, command_port, event_port = ports
        self.vim = Vim()
        self.vim.start()
        self.vim.hosts = {HOST.uuid: True, SECOND.uuid: True}
        self.vim.instances = {HOST.uuid: [(U, NAME, True)], SECOND.uuid: [(V, SECOND.hostname, True)]}
        self.mtc = MtcAgent(named, LOCAL, event_port, command_port)
        self.mtc.start()
        self.loop = Loop()
        self.run_dir = tempfile.TemporaryDirectory()
        values = {
            "run_dir": self.run_dir.name,
            "audit_first": 60.0,
            "audit_period": 60.0,
            "mtc_ask_period": RETRY,
            **settings,
        }
        self.agent = Agent(self.loop, AgentSettings(
            bind=LOCAL, rx_port=self.agent_port, server_port=self.server_port, http_port=http_port,
            vim_url=self.vim.url, mtc_address=LOCAL, mtc_cmd_port=command_port, mtc_event_port=event_port,
            vim_retry_first=RETRY, vim_retry_max=RETRY, **values,
        ))  # fmt: skip
        self.agent.open()
        self.client = CommandClient(LOCAL, http_port)
        self._sockets = []

    # What an OurServer needs of its bench.

    def open(self, address):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((address, self.server_port))
        self._sockets.append(one)
        return one

    def say(self, data, by):
        until = self.agent._servers.port.received + 1
        by.sendto(data, (LOCAL, self.agent_port))
        self.until(lambda: self.agent._servers.port.received >= until, "it is served")

    # Looking.

    def turn(self):
        self.loop.after(TICK, lambda: None)
        self.loop.run_once()

    def until(self, condition, what):
        wait_for(lambda: self.turn() or condition(), what, step=0)

    def quiet(self):
        """Some time goes by."""
        until = time.monotonic() + QUIET
        self.until(lambda: time.monotonic() > until, "time goes by")

    def listed(self, *uuids):
        """The VIM's lists have come."""
        self.until(lambda: set(uuids) <= set(self.agent._inventory.instances), "the instances are known")

    def alarms(self):
        return [entry["body"]["event-data"]["services"][0]["repair-action"]
                for entry in self.vim.events("alarm")]  # fmt: skip

    def close(self):
        self.vim.hang = False
        self.agent.close()
        self.loop.close()
        self.vim.stop()
        self.mtc.stop()
        for one in self._sockets:
            one.close()
        self.run_dir.cleanup()


@pytest.fixture
def world():
    worlds = []

    def make(*hosts, **settings):
        worlds.append(World(list(hosts), **settings))
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


def told(server, message, number):
    """Tell it, as a message that wants to be confirmed."""
    return server.say(*message, Tag(datagram_ext.WANTS_ACK, number=number))


def confirmed(server):
    return server.numbers(datagram_ext.ACK)
