"""A real guestServer and its guests, between guestAgents of old and of ours that the test plays."""

from __future__ import annotations

import contextlib

import pytest
from agentlink_driver import Agent, Process, old_command

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, TimedOut, wait_for
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram import SetInstance

GRACE = 0.3  # s; 1 s in life
SERVER = ["client.hbs_pulse_period=50", "timers.guest_patience=0.5", "timers.stopped_grace=0.3",
          "timers.old_agent_grace=%g" % GRACE]  # fmt: skip


class Stage:
    """One guest, its guestServer, and an address for agents."""

    def __init__(self):
        self.cluster = Cluster(1, 1, 100, SERVER, [], ["--scale", "0.1", "--action", "reboot"])
        self.host = self.cluster.hosts[0]
        self.uuid = self.cluster.uuids[0]
        self.frames = []
        self.agent = Agent(AGENT_ADDRESS, self.cluster.agent_port)
        self.cluster.start_guests(self.host)
        self.cluster.start_server(self.host)

    def command(self, cmd, reporting=True):
        self.say(old_command(SetInstance(self.uuid, reporting), cmd))

    def say(self, data):
        self.agent.socket.sendto(data, (self.host.address, self.cluster.server_port))

    def heard(self):
        """The names of what was heard since the last time; `frames` has all of it."""
        silent = (datagram_ext.ACK, datagram.MONITOR_READY)
        frames = [frame for frame in self.agent.frames() if frame.cmd not in silent]
        self.agent.heard.clear()
        self.frames += frames
        return [datagram.NAMES[frame.cmd] for frame in frames]

    def hears(self, *names):
        """These are heard next, and no other."""
        heard = []
        wait_for(lambda: heard.extend(self.heard()) or len(heard) >= len(names), " ".join(names))
        with contextlib.suppress(TimedOut):  # nothing more comes
            wait_for(lambda: heard.extend(self.heard()) or len(heard) > len(names), "more", 2 * GRACE)
        assert heard == list(names)

    def guest(self, word):
        self.host.guests.say("all", word)

    def close(self):
        self.agent.socket.close()
        self.cluster.stop()


@pytest.fixture
def stage():
    one = Stage()
    yield one
    assert "Traceback" not in one.host.server.log()
    one.close()


def lost_to_ours(stage):
    """The guest hangs; one of ours was told, did not confirm, and is gone."""
    ours = Process(5, host=stage.host.name)
    stage.say(ours.command(SetInstance(stage.uuid, True), datagram.ADD_INST))
    wait_for(lambda: "RUNNING" in stage.heard(), "it runs")
    wait_for(
        lambda: stage.host.server.dump("guest")[stage.uuid]["owes_answer"] == "yes", "it would be missed"
    )
    stage.guest("hang")
    wait_for(lambda: "LOSS" in stage.heard(), "ours is told")


def test_a_loss_is_told_to_each_agent_that_does_not_know_of_it(stage):
    lost_to_ours(stage)
    stage.say(old_command(datagram.Query(), datagram.QRY_INST))  # an old one has started
    wait_for(lambda: "QRY_INST" in stage.heard(), "it is answered")
    stage.command(datagram.ADD_INST)
    stage.hears("STOPPED", "LOSS")
    assert datagram.parse_event(stage.frames[-2]).repair_action == "reboot"
    stage.command(datagram.ADD_INST)  # it starts anew
    stage.hears("STOPPED", "LOSS")
    stage.command(datagram.MOD_INST)  # it runs
    stage.hears()
    ours = Process(6, host=stage.host.name)
    stage.say(ours.query())
    wait_for(lambda: "LOSS" in stage.heard(), "ours is told")


@pytest.mark.parametrize("over", ["it runs again", "reporting was disabled"])
def test_a_loss_that_is_over_is_told_to_nobody_any_more(stage, over):
    lost_to_ours(stage)
    stage.command(datagram.MOD_INST)
    wait_for(lambda: "LOSS" in stage.heard(), "an old one is told")
    if over == "it runs again":
        stage.guest("healthy")
        wait_for(lambda: "RUNNING" in stage.heard(), over)
    else:  # as the VIM does when it acts
        stage.command(datagram.MOD_INST, False)
    stage.command(datagram.ADD_INST, over == "it runs again")
    stage.hears("RUNNING" if over == "it runs again" else "STOPPED")
    stage.say(Process(6, host=stage.host.name).query())
    heard = []
    wait_for(lambda: heard.extend(stage.heard()) or "QRY_INST" in heard, "ours is answered")
    assert "LOSS" not in heard
