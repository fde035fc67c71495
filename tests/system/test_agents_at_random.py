"""Random lives of a guest between agents of old and of ours, which end at any moment and follow one another.

The table and the link are real; the agents are played as docs/protocol/2-datagrams.md has them. Whatever
comes: an agent that lives tells the VIM of a loss that is true, once, with the guest's own repair action;
of one that is over it tells nothing.
"""

from __future__ import annotations

import random
import time

import pytest
from agentlink_driver import UUID, Bench, Process, old_command
from guests_driver import INIT, PATH

from guestmtce.peer import retransmit
from guestmtce.server import agent_link
from guestmtce.server.child import session_types
from guestmtce.server.state import guest_table
from guestmtce.server.state.effects import PutCommand, ReportEvent, WithdrawEvent
from guestmtce.wire import datagram, datagram_ext

STEPS = 40
QUICK = [118, 172, 210, 214, 101, 102]
MOMENT = 0.03  # s; longer than two datagrams take to be served, on a loaded machine too
QUERY = old_command(datagram.Query(), datagram.QRY_INST)
SET = datagram.SetInstance(UUID, True)


class OldAgent:
    """Knows nothing before the VIM's list has come, and drops what is said of it; confirms nothing."""

    def __init__(self, life):
        self.life, self.action, self.listed = life, None, False
        life.bench.send(QUERY)

    def list(self):
        """The VIM's list comes: the instance is known, and named to its server, with those beside it.

        Its server cannot know whether what is on its way to it then is heard or dropped: no life here has
        such a moment.
        """
        self.life.turn()
        grace = self.life.bench.link._grace
        if grace is not None and grace.when - time.monotonic() < MOMENT:
            self.life.turn(2 * MOMENT)
        if not self.listed:
            self.listed, self.action = True, "log"
            other = SET._replace(uuid="99999999" + UUID[8:])
            commands = [old_command(one, datagram.ADD_INST) for one in (other, SET)]
            self.life.bench.send(*random.Random(self.life.seed).sample(commands, 2))

    def hear(self, frame):
        if frame.cmd == datagram_ext.ACK:
            return  # for the agent before it
        event = datagram.parse_event(frame)
        if self.listed and getattr(event, "uuid", "") == UUID:
            if frame.cmd in (datagram.RUNNING, datagram.STOPPED):
                self.action = event.repair_action
            elif frame.cmd == datagram.LOSS:
                self.life.alarm(self, self.action)


class OurAgent:
    """Knows the instance from its datagrams, tells a number once, and confirms it, if it lives so long."""

    def __init__(self, life):
        self.life, self.told = life, set()
        self.process = Process(life.chance.randrange(1, 2**32))
        life.bench.send(self.process.query())

    def list(self):
        self.life.bench.send(self.process.command(SET, datagram.ADD_INST))

    def hear(self, frame):
        tag = datagram_ext.read_tag(frame)
        if frame.cmd == datagram_ext.ACK or not tag.wants_ack:
            return
        event = datagram.parse_event(frame)
        if frame.cmd == datagram.LOSS and tag.number not in self.told:
            self.told.add(tag.number)
            self.life.alarm(self, event.repair_action)
        if self.life.chance.random() < self.life.confirms:
            if frame.cmd == datagram.LOSS:
                self.life.confirmed.add(self.life.lost)
            ack = datagram_ext.build_ack(datagram.AGENT_SIGNATURE)
            self.life.bench.send(self.process.tag_and_seal(ack, datagram_ext.ack_tag(tag)))


class Life:
    """`wrong` has what should not have happened."""

    def __init__(self, seed):
        self.seed, self.chance = seed, random.Random(seed)
        self.confirms = 1.0
        self.bench = Bench(agents="", old_agent_grace=2 * MOMENT, ready_repeat=60)
        self.table = guest_table.GuestTable(self.bench.settings, self.bench.numbers.__next__)
        self.bench.link._handlers = agent_link.Handlers(
            self.command, self.told, self.table.instance_info, self.table.find_report
        )
        self.bench.link._old_agent._info = self.table.instance_info
        self.bench.link._old_agent._report = self.table.find_report
        self.agent, self.lost, self.alarmed, self.wrong = None, 0, [], []
        self.confirmed = set()  # losses
        self.table.socket_found(UUID, PATH, 1, False, time.monotonic())
        self.table.child_started(UUID, time.monotonic())
        self.command(SET)
        self.report(session_types.Acknowledged(INIT), session_types.Running())

    def command(self, command):
        if not isinstance(command, datagram.Query):
            self.table.handle_command(command, time.monotonic())
        self.carry_out()

    def told(self, key):
        self.table.confirm_event(key)
        self.bench.loop.after(0, self.carry_out)

    def report(self, *findings):
        for finding in findings:
            self.table.handle_report(UUID, finding, time.monotonic())
        self.carry_out()

    def carry_out(self):
        for effect in self.table.drain_effects():
            if isinstance(effect, ReportEvent):
                self.bench.link.report_event(effect)
            elif isinstance(effect, WithdrawEvent):
                self.bench.link.withdraw_event(effect.key)
            elif isinstance(effect, PutCommand):  # the child takes note
                self.table.handle_report(UUID, session_types.ReportingEnabled(), time.monotonic())

    def alarm(self, agent, action):
        """The VIM hears of a loss."""
        if not self.is_lost:
            self.wrong.append("FALSE: the guest heartbeats")
        if action != INIT.corrective_action:
            self.wrong.append("ACTION: %s" % action)
        if (agent, self.lost) in self.alarmed:
            self.wrong.append("TWICE: loss %d" % self.lost)
        self.alarmed.append((agent, self.lost))

    @property
    def is_lost(self):
        return not self.table.guests[UUID].liveness.running

    def turn(self, seconds=0.0):
        """Let the agent hear what there is."""
        until = time.monotonic() + seconds
        while True:
            self.bench.turn()
            frames = self.bench.first.frames()
            self.bench.first.heard.clear()
            for frame in frames:
                if self.agent is not None and frame.cmd != datagram.MONITOR_READY:
                    self.agent.hear(frame)
            if not frames and time.monotonic() >= until:
                return

    def step(self):
        what = self.chance.choice(["flip", "flip", "exchange", "list", "list", "wait"])
        if what == "flip":
            self.turn()  # what is on its way was true when it was said
            self.lost += not self.is_lost
            self.report(session_types.Running() if self.is_lost else session_types.Lost(2))
        elif what == "exchange":
            self.bench.first.hear()
            self.bench.first.heard.clear()  # it heard no more of it
            self.confirms = self.chance.choice([0.0, 0.5, 1.0])
            self.agent = None
            self.agent = self.chance.choice([OldAgent, OurAgent])(self)
        elif what == "list" and self.agent is not None:
            self.agent.list()
        elif what == "wait":
            self.turn(3 * MOMENT)
        if self.chance.random() < 0.7:
            self.turn()

    def end(self, last):
        """A last agent comes, lives, and learns of the instance."""
        self.confirms = 1.0
        self.agent = None
        self.agent = last(self)
        self.turn()
        self.agent.list()
        self.turn(5 * MOMENT)
        if self.is_lost and (self.agent, self.lost) not in self.alarmed and self.lost not in self.confirmed:
            self.wrong.append("LOST: loss %d was not told to the last one" % self.lost)


@pytest.mark.parametrize("last", [OldAgent, OurAgent])
@pytest.mark.parametrize(
    "seed", [*QUICK, *(pytest.param(seed, marks=pytest.mark.ci) for seed in range(100, 120))]
)
def test_a_loss_is_told_once_to_each_agent_that_lives_with_its_action(seed, last, monkeypatch):
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 0.02)
    life = Life(seed)
    try:
        life.bench.link.start()
        for _ in range(STEPS):
            life.step()
        life.end(last)
        assert life.wrong == [] and life.bench.loop.defects == 0
    finally:
        life.bench.close()
