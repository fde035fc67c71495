"""What one guestAgent was telling the VIM, and the next one must not tell it again: the mark of an event."""

import pytest
from agent_world import HOST, LOSS, RUNNING, U, World, confirmed
from agentlink_driver import SERVER, Bench, Process, loss, running
from serverlink_bench import OurServer

from guestmtce.agent import vim_listener
from guestmtce.peer import retransmit
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Tag

SOMEWHERE = 1234  # a VIM that is not this one

# --- guestServer shows it to the next agent ---


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 0.02)
    made = Bench()
    yield made
    made.close()


def mark(agent, tell, vim, sender=SERVER):
    tag = datagram_ext.mark_tag(Tag(sender=sender, number=tell.sequence), vim)
    return agent.tag_and_seal(datagram_ext.build_mark(datagram.AGENT_SIGNATURE), tag)


def shown(bench, tell):
    """The mark with which the event comes next."""
    count = len(bench.first.heard)

    def repeated():
        return [frame for frame in bench.first.frames()[count:] if frame.cmd == tell.cmd]

    return datagram_ext.read_tag(bench.until(repeated)[-1]).vim


def test_a_marked_event_shows_its_mark_until_it_is_taken_off(bench):
    agent = Process(5)
    bench.send(agent.query())
    for tell in (running(), loss()):
        bench.report(tell)
    assert shown(bench, loss()) == 0
    bench.send(mark(agent, loss(), SOMEWHERE))
    other = Process(6)
    bench.send(other.query())  # the other controller takes over
    assert (shown(bench, loss()), shown(bench, running())) == (SOMEWHERE, 0)
    bench.send(mark(other, loss(), 0))
    assert shown(bench, loss()) == 0
    assert (bench.told, bench.link.refused) == ([], 0)


def test_a_mark_of_something_else_marks_nothing(bench):
    agent = Process(5)
    bench.send(agent.query())
    bench.report(loss())
    bench.send(mark(agent, loss(), SOMEWHERE, sender=SERVER + 1), mark(agent, running(), SOMEWHERE))
    assert shown(bench, loss()) == 0
    assert (bench.told, bench.link.waiting, bench.link.refused) == ([], 1, 0)


def test_a_mark_without_our_extension_is_refused(bench):
    bench.send(datagram_ext.build_mark(datagram.AGENT_SIGNATURE))
    assert bench.link.refused == 1


# --- guestAgent marks, and heeds ---


@pytest.fixture
def world():
    worlds = []

    def make(takes_marks=True):
        worlds.append(World([HOST]))
        one = worlds[-1]
        one.listed(U)
        server = OurServer(one)
        tell(server, RUNNING, 1, takes_marks=takes_marks)
        one.until(lambda: confirmed(server) == [1], "the VIM has the start")
        return one, server

    yield make
    for one in worlds:
        one.close()


def tell(server, message, number, vim=0, takes_marks=True):
    flags = datagram_ext.WANTS_ACK | (datagram_ext.TAKES_MARKS if takes_marks else 0)
    return server.say(*message, Tag(flags, number=number, vim=vim))


def marks(server):
    """The number of the event and the VIM of every mark that came."""
    tags = [tag for cmd, _, tag in server.listen() if cmd == datagram_ext.MARK]
    assert {tag.acked_sender for tag in tags} <= {server.speaker.sender}
    return [(tag.number, tag.vim) for tag in tags]


def test_an_alarm_under_way_is_marked_and_again_when_the_mark_was_lost(world):
    one, server = world()
    one.vim.hang = True
    tell(server, LOSS, 2)
    here = vim_listener.identify_listener(one.vim.url)
    one.until(lambda: marks(server) == [(2, here)], "it is marked")
    tell(server, LOSS, 2)
    one.until(lambda: marks(server) == [(2, here)] * 2, "and again")
    tell(server, LOSS, 2, vim=here)
    one.vim.die()
    one.until(lambda: marks(server)[2:] == [(2, 0)], "the VIM died with it")
    one.vim.hang = False
    one.vim.start()
    one.until(lambda: confirmed(server)[-1:] == [2], "it is told")
    assert len(one.alarms()) == 1


def test_who_takes_no_marks_gets_none(world):
    one, server = world(takes_marks=False)
    one.vim.hang = True
    tell(server, LOSS, 2, takes_marks=False)
    one.until(lambda: one.agent._vim_queue._pace.alarms_out, "it is under way")
    tell(server, LOSS, 2, takes_marks=False)
    one.quiet()
    assert marks(server) == []


@pytest.mark.parametrize("same", [True, False])
def test_an_event_that_another_agent_was_telling_this_vim_is_asked_about(world, same):
    one, server = world()
    here = vim_listener.identify_listener(one.vim.url)
    tell(server, LOSS, 2, vim=here if same else SOMEWHERE)
    one.until(lambda: 2 in confirmed(server), "it is confirmed")
    assert len(one.alarms()) == (0 if same else 1)
    asked = [entry for entry in one.vim.record if entry["path"].endswith("instances/" + U)]
    assert [entry["method"] for entry in asked if entry["body"].get("event-type") != "service"] == (
        ["GET"] if same else ["PATCH"]
    )
