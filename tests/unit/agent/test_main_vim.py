"""A whole guestAgent and a VIM that stands still, is down, or hears of an alarm while the agent is killed."""

import contextlib
import os
import time

import pytest
from agent_world import HOST, INFO, LOSS, U, World, confirmed, told, vote
from serverlink_bench import NAME, OurServer

from guestmtce.lab.cluster import Cluster, wait_for
from guestmtce.lab.pace import within
from guestmtce.wire import datagram

FAST = ["client.hbs_pulse_period=50", "timers.guest_patience=0.5", "timers.stopped_grace=0.4"]
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]
VIM = ["timers.vim_timeout=0.5", "timers.vim_retry_first=0.05", "timers.vim_retry_max=0.5"]


@contextlib.contextmanager
def cloud(*settings):
    with Cluster(2, 1, 100, FAST, [*AGENT, *VIM, *settings], ["--scale", "0.1", "--secs", "1"]) as cluster:
        cluster.provision()
        cluster.await_heartbeats(30)
        host = cluster.hosts[0]
        cluster.vim.hosts = {host.uuid: True}
        cluster.vim.instances = {host.uuid: [(uuid, host.name, True) for uuid in cluster.uuids]}
        wait_for(lambda: "pending 0" in cluster.agent.health()["events"], "the VIM has heard all", 30)
        cluster.vim.record.clear()
        yield cluster


def note(cluster):
    """What the agent has written for the next one."""
    path = os.path.join(cluster.agent.folder, "guestAgent.told")
    with open(path, encoding="ascii") as file:
        return file.read()


def pending(cluster):
    return {row["pending"] for row in cluster.hosts[0].server.dump("guest").values()}


def _alarm_arrived(cluster):
    return [entry for entry in cluster.vim.arrived if entry["body"].get("event-type") == "alarm"]


def forget(cluster):
    """As on another controller."""
    os.unlink(os.path.join(cluster.agent.folder, "guestAgent.told"))


@pytest.mark.parametrize("where", ["the same controller", "the other controller"])
@pytest.mark.parametrize(
    "alarm_timeout",
    [pytest.param(100, id="under way"), pytest.param(0.3, id="given up", marks=pytest.mark.ci)],
)
def test_an_alarm_under_way_when_the_agent_is_killed_reaches_the_vim_once(alarm_timeout, where):
    with cloud("timers.vim_alarm_timeout=%g" % alarm_timeout) as cluster:
        cluster.vim.hang_at = "alarm"
        cluster.hosts[0].guests.say(1, "hang")
        wait_for(lambda: _alarm_arrived(cluster), "the alarm is under way")
        assert "sending" in note(cluster)
        cluster.agent.kill()
        if where == "the other controller":
            forget(cluster)
        cluster.start_agent()
        wait_for(lambda: int(_waiting(cluster)) > 0, "the next agent has it, too")
        cluster.vim.hang = False
        wait_for(lambda: pending(cluster) == {"nothing"}, "it is confirmed", 20)
        assert len(cluster.vim.events("alarm")) == 1


def _waiting(cluster):
    words = cluster.agent.health()["events"].split()
    return words[words.index("pending") + 1]


@pytest.mark.ci
@pytest.mark.parametrize("where", ["the same controller", "the other controller"])
def test_an_alarm_under_way_when_the_agent_and_the_vim_are_killed_is_told(where):
    with cloud() as cluster:
        cluster.vim.hang_at = "alarm"
        cluster.hosts[0].guests.say(1, "hang")
        wait_for(lambda: _alarm_arrived(cluster), "the alarm is under way")
        assert "sending" in note(cluster)
        cluster.agent.kill()
        if where == "the other controller":
            forget(cluster)
        cluster.vim.die()
        assert cluster.vim.events("alarm") == []
        cluster.vim.hang = False
        cluster.vim.start()
        cluster.start_agent()
        wait_for(lambda: pending(cluster) == {"nothing"}, "it is confirmed", 20)
        assert len(cluster.vim.events("alarm")) == 1


@pytest.fixture
def world():
    worlds = []

    def make(timeout=1, **settings):
        """`timeout`: s, of a vote."""
        worlds.append(World([HOST], **settings))
        one = worlds[-1]
        one.listed(U)
        server = OurServer(one)
        told(server, (datagram.RUNNING, INFO._replace(vote_to=timeout, shutdown_to=1)), 1)
        one.until(lambda: confirmed(server) == [1], "the VIM has the start")
        return one, server

    yield make
    for one in worlds:
        one.close()


@pytest.mark.parametrize("word", ["vote", "notify"])
def test_a_stale_outcome_is_confirmed_and_not_told(world, word):
    """The VIM is down for longer than it waits: it asked, and went on without the answer."""
    one, server = world()
    asked = time.monotonic()
    status, reply = one.client.ask(word, U, NAME, "stop")
    assert (status, reply["timeout"]) == (200, "1")
    one.vim.stop()
    told(server, vote(), 2)
    one.until(lambda: 2 in confirmed(server), "nobody wants it any more")
    took = time.monotonic() - asked
    assert took > 1.9 and within(10, took)
    one.vim.start()
    told(server, LOSS, 3)
    one.until(lambda: 3 in confirmed(server), "the VIM hears again")
    assert one.vim.events("action") == [] and len(one.alarms()) == 1
    health = dict(line.split(" ", 1) for line in one.agent.health())
    assert health["events"].endswith(" expired 1")


def test_an_outcome_in_time_is_told_though_the_vim_was_away(world):
    one, server = world(timeout=30)
    one.client.ask("vote", U, NAME, "stop")
    one.vim.stop()
    told(server, vote(), 2)
    one.quiet()
    assert 2 not in confirmed(server)
    one.vim.start()
    one.until(lambda: 2 in confirmed(server), "it is told")
    assert len(one.vim.events("action")) == 1


def test_an_outcome_of_a_question_of_another_agent_ends_with_its_timeout(world):
    """Nobody here knows when the VIM asked: it was before the outcome came."""
    one, server = world()
    one.vim.stop()
    began = time.monotonic()
    told(server, vote(), 2)
    one.until(lambda: 2 in confirmed(server), "nobody wants it any more")
    took = time.monotonic() - began
    assert took > 1.9 and within(10, took)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 302])
def test_a_status_that_says_not_now_is_no_delivery(world, status):
    one, server = world()
    one.client.ask("vote", U, NAME, "stop")
    one.vim.status = status
    told(server, vote(), 2)
    told(server, (datagram.STOPPED, INFO._replace(heartbeating=False)), 3)
    told(server, LOSS, 4)
    one.until(lambda: len(one.vim.turned_down) > 5, "they are offered again")
    assert confirmed(server) == [1]
    one.vim.status = 0
    one.until(lambda: {2, 3, 4} <= set(confirmed(server)), "all are told")
    kinds = sorted(event["body"]["event-type"] for event in one.vim.events())
    assert kinds == ["action", "alarm", "service", "service"]
