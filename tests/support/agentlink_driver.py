"""An AgentLink on loopback between agents that the test plays, old ones and ours."""

from __future__ import annotations

import itertools
import socket
import time

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.peer.authentication import Speaker
from guestmtce.server.agent_link import AgentLink, Handlers
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state.effects import ReportEvent
from guestmtce.server.state.guest import LOSS, STATE, PendingKey
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Seal, Tag

UUID = "11111111-2222-3333-4444-555555555555"
HOST = "host-0"
INFO = datagram.InstanceInfo(HOST, UUID, True, True, "log", 1, 2, 3, 4, 5)
SET = datagram.SetInstance(UUID, True)
SERVER = 77  # the sender that the link is told to be
KEY = b"a key of 16 bytes or more"


def running(number=1, **changes):
    return ReportEvent(datagram.RUNNING, INFO._replace(**changes), number, PendingKey(UUID, STATE))


def stopped(number=2):
    return running(number, heartbeating=False)._replace(cmd=datagram.STOPPED)


def loss(number=3):
    return ReportEvent(datagram.LOSS, INFO._replace(heartbeating=False), number, PendingKey(UUID, LOSS))


def old_command(wanted=SET, cmd=datagram.MOD_INST):
    """A command as an old agent sends it."""
    return datagram.build_command(cmd, "192.0.2.1", wanted)


class Agent:
    """A guestAgent on an address of its own; all of them share the agent's port."""

    def __init__(self, address, port=0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]
        self.heard = []

    def hear(self):
        """All datagrams until now."""
        try:
            while True:
                self.heard.append(self.socket.recv(4096))
        except BlockingIOError:
            return self.heard

    def frames(self):
        return [datagram.unpack(data) for data in self.hear()]

    def events(self):
        return [datagram.parse_event(frame) for frame in self.frames() if frame.cmd != datagram_ext.ACK]

    def count(self, tell):
        """How often this was told."""
        return sum(frame.cmd == tell.cmd and frame.num == tell.sequence for frame in self.frames())

    def acks(self):
        """The numbers that the server confirmed, of our guestAgent's."""
        tags = [datagram_ext.read_tag(frame) for frame in self.frames() if frame.cmd == datagram_ext.ACK]
        assert all((tag.flags, tag.sender) == (datagram_ext.IS_ACK, SERVER) for tag in tags)
        return [(tag.acked_sender, tag.number) for tag in tags]


class Process:
    """A process of our guestAgent: makes datagrams as it sends them."""

    def __init__(self, sender, nonce=0, key=b"", host=HOST):
        self.speaker = Speaker(Seal(key), sender, nonce)
        self.host = host.encode()
        self.numbers = itertools.count(1)

    def tag_and_seal(self, data, tag):
        return self.speaker.tag_and_seal(data, tag, b"agent>" + self.host)

    def command(self, wanted=SET, cmd=datagram.MOD_INST, number=None):
        number = next(self.numbers) if number is None else number
        return self.tag_and_seal(old_command(wanted, cmd), Tag(datagram_ext.WANTS_ACK, number=number))

    def query(self):
        return self.tag_and_seal(old_command(datagram.Query(), datagram.QRY_INST), Tag())

    def ack(self, *tells, sender=SERVER):
        ack = datagram_ext.build_ack(datagram.AGENT_SIGNATURE)
        tags = [datagram_ext.ack_tag(Tag(sender=sender, number=tell.sequence)) for tell in tells]
        return [self.tag_and_seal(ack, tag) for tag in tags]

    def meet(self, data):
        """Take note of whom the server's datagram shows. Raises SealRefused for a wrong seal."""
        frame = datagram.unpack(data)
        tag = datagram_ext.read_tag(frame)
        self.speaker.check(data, frame, b"server>" + self.host)
        if self.speaker.knows_this_process(tag):
            self.speaker.note_peer(tag)


class Bench:
    """An AgentLink; two agents at 127.0.0.1, the controller, and 127.0.0.2, which may command too."""

    def __init__(self, controller="127.0.0.1", agents="127.0.0.2", names=None, **changes):
        self.first = Agent("127.0.0.1")
        self.second = Agent("127.0.0.2", self.first.port)
        self.third = Agent("127.0.0.3", self.first.port)
        probe = Agent("127.0.0.1")
        probe.socket.close()
        values = {"ready_repeat": 0.02, "answer_pace": 0.001, "old_agent_grace": 0.1, **changes}
        self.settings = ServerSettings(
            bind="127.0.0.1", rx_port=probe.port, agent_port=self.first.port, hostname=HOST,
            controller=controller, agents=agents, **values,
        )  # fmt: skip
        self.loop = Loop()
        self.commands, self.told, self.infos = [], [], {}
        self.reports = {}  # what the table has, by key
        self.numbers = itertools.count(1000)
        self.serve = self.commands.append
        handlers = Handlers(
            lambda command: self.serve(command), self.told.append, self.infos.get, self.reports.get
        )
        self.names, self.asked = dict(names or {}), []  # of the name service: name → addresses
        self.link = AgentLink(
            self.loop, self.settings, SERVER, self.numbers.__next__, handlers, self.look_up
        )  # fmt: skip

    def report(self, report):
        """The table wants this told."""
        self.reports[report.key] = report
        self.link.report_event(report)

    def withdraw(self, key):
        """It is over."""
        self.reports.pop(key, None)
        self.link.withdraw_event(key)

    def look_up(self, name):
        """The name service, in the resolver's thread."""
        self.asked.append(name)
        if name not in self.names:
            raise OSError("Name or service not known")
        return self.names[name]

    def turn(self):
        """Run the loop for at most 5 ms."""
        self.loop.after(0.005, lambda: None)
        self.loop.run_once()

    def until(self, condition):
        """Run the loop until it is so."""

        def check():
            self.turn()
            return condition()

        return wait_for(check, "in the loop", step=0.0)

    def quiet(self, seconds):
        """Run the loop while nothing is to happen; what does not happen has no end to wait for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def send(self, *data, agent=None):
        """Let an agent, the first by default, send these, and the link serve them."""
        received = self.link.port.received
        for one in data:
            (agent or self.first).socket.sendto(one, ("127.0.0.1", self.settings.rx_port))
        self.until(lambda: self.link.port.received == received + len(data))

    def close(self):
        self.link.close()
        self.loop.close()
        for agent in (self.first, self.second, self.third):
            agent.socket.close()
