"""The whole guestAgent between a VIM, an mtcAgent and guestServers: what is told, once, and confirmed."""

import pytest
from agent_world import (
    HOST,
    INFO,
    LOSS,
    OTHER,
    RETRY,
    RUNNING,
    SECOND,
    STRANGE,
    U,
    V,
    confirmed,
    told,
    vote,
    world,
)
from serverlink_bench import NAME, OurServer

from guestmtce.agent import main, server_link
from guestmtce.peer import retransmit
from guestmtce.wire import datagram
from guestmtce.wire.datagram import Loss
from guestmtce.wire.datagram_ext import Tag

__all__ = ["world"]  # a fixture


def started(world, **settings):
    """A world with one host, whose server has said that its guest runs."""
    one = world(HOST, **settings)
    one.listed(U)
    server = OurServer(one)
    told(server, RUNNING, 1)
    one.until(lambda: confirmed(server) == [1], "the VIM has the start")
    return one, server


def test_a_disabling_that_died_with_the_agent_before_this_one_is_made_good(world, tmp_path, monkeypatch):
    """The VIM has repaired the guest, and its list says enabled again; its server knows of none of that."""
    first = world(HOST, run_dir=str(tmp_path))
    first.listed(U)
    before = OurServer(first)
    told(before, RUNNING, 1)
    first.until(lambda: confirmed(before) == [1], "the VIM has the start")
    first.client.set(U, NAME, "disabled")  # which does not arrive
    one = world(HOST, run_dir=str(tmp_path))
    server = OurServer(one)
    told(server, LOSS, 2)
    one.listed(U)
    takes_no_loss_of_before(one, server)
    assert world(HOST, run_dir=str(tmp_path)).agent._delivered_log.unheard_before == set()
    monkeypatch.setattr(server_link, "IN_FLIGHT", 0.0)
    told(server, LOSS, 3)  # the guest has hung since
    one.until(one.alarms, "it is told")


def test_a_defect_while_an_event_is_served_keeps_nothing_back_that_was_concluded_before(world, monkeypatch):
    one, server = started(world)
    note = main._note_event

    def fail(*values):
        note(*values)
        raise RuntimeError("a defect")

    monkeypatch.setattr(main, "_note_event", fail)
    told(server, LOSS, 2)
    one.until(one.alarms, "the alarm is told at once")
    assert one.loop.defects == 1


def takes_no_loss_of_before(one, server):
    """Its guest is enabled anew, and a loss of before is not told; then the server confirms."""
    one.until(lambda: any(tag.is_anew for _, _, tag in server.listen()), "it is told that it is anew")
    told(server, LOSS, 2)
    one.quiet()
    assert one.alarms() == [] and 2 not in confirmed(server)
    for _, _, tag in server.got:
        if tag.wants_ack:
            server.confirm(tag)


# --- confirmed when the VIM has it ---


def test_an_event_is_confirmed_when_the_vim_has_it_and_not_before(world):
    one, server = started(world)
    one.vim.hang = True
    for _ in range(3):
        told(server, LOSS, 2)
        one.quiet()
    assert confirmed(server) == [1] and one.alarms() == []
    one.vim.hang = False
    one.until(lambda: 2 in confirmed(server), "it is confirmed")
    assert one.alarms() == ["stop"]


def test_while_the_vim_is_away_nothing_is_confirmed_and_then_all_is_told_once(world):
    one, server = started(world)
    one.vim.stop()
    for _ in range(3):
        told(server, LOSS, 4)
        told(server, vote(), 3)
        told(server, (datagram.STOPPED, INFO._replace(heartbeating=False)), 2)
        one.quiet()
    assert confirmed(server) == [1]
    one.vim.start()
    one.until(lambda: {2, 3, 4} <= set(confirmed(server)), "all is confirmed")
    kinds = [entry["body"]["event-type"] for entry in one.vim.events()]
    assert kinds == ["service", "alarm", "action", "service"]
    for number, message in ((4, LOSS), (3, vote())):  # the confirmations were lost
        told(server, message, number)
        one.until(lambda: confirmed(server).count(number) == 2, "it is confirmed again")  # noqa: B023
    one.quiet()
    assert len(one.vim.events()) == 4


def test_an_alarm_that_the_vim_refuses_is_not_confirmed_until_it_takes_it(world):
    one, server = started(world)
    one.vim.known = []
    told(server, LOSS, 2)
    one.until(lambda: len(one.alarms()) >= 3, "it is offered again and again")
    assert confirmed(server) == [1]
    one.vim.known = None
    one.until(lambda: 2 in confirmed(server), "it is confirmed")


def test_a_failure_that_is_over_before_the_vim_is_back_is_confirmed_and_not_told(world):
    one, server = started(world)
    one.vim.stop()
    told(server, LOSS, 2)
    told(server, RUNNING, 3)
    one.until(lambda: 2 in confirmed(server), "it is confirmed")
    assert 3 not in confirmed(server)
    one.vim.start()
    one.until(lambda: 3 in confirmed(server), "the start is confirmed")
    assert one.alarms() == [] and one.agent._vim_queue.withdrawn == 1


NOBODY_WANTS_IT = {
    "disabled": lambda client: client.set(U, NAME, "disabled"),
    "deleted": lambda client: client.delete(U),
    "host disabled": lambda client: client.host("PUT", HOST.uuid, NAME, "disable"),
}


@pytest.mark.parametrize("name", NOBODY_WANTS_IT)
@pytest.mark.parametrize("before", [True, False])
def test_what_nobody_wants_to_hear_is_confirmed_and_not_told(world, name, before):
    one, server = started(world)
    one.vim.stop()
    if before:
        told(server, LOSS, 2)
    assert NOBODY_WANTS_IT[name](one.client)[0] in (200, 204)
    if not before:
        told(server, LOSS, 2)
    one.until(lambda: 2 in confirmed(server), "it is confirmed")
    one.vim.start()
    one.quiet()
    assert one.alarms() == []


# --- not understood yet ---


def test_an_event_of_an_unknown_host_is_not_confirmed_until_mtcagent_names_it(world):
    one = world()
    server = OurServer(one)
    for _ in range(3):
        told(server, LOSS, 1)
        one.quiet()
    assert confirmed(server) == [] and one.mtc.asked >= 2
    one.mtc.say(datagram.ADD_HOST, HOST)
    one.listed(U)
    told(server, LOSS, 1)
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    assert one.alarms() == ["stop"]


def test_a_host_that_is_configured_needs_no_mtcagent(world):
    one = world(hosts="%s, compute-9 %s ::1" % (" ".join(HOST), SECOND.uuid))
    one.listed(U)
    server = OurServer(one)
    told(server, LOSS, 1)
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    assert one.alarms() == ["stop"]
    assert one.agent._inventory.hosts.find_host("compute-9").ip == "::1"


def test_a_vote_of_an_instance_that_the_list_may_bring_waits_for_the_list(world):
    one = world(HOST, audit_first=RETRY, audit_period=RETRY)
    listing, one.vim.instances = one.vim.instances, {}
    server = OurServer(one)
    one.until(lambda: one.agent._inventory.hosts, "the host is known")
    told(server, vote(), 1)
    one.quiet()
    assert confirmed(server) == []
    one.vim.instances = listing
    one.listed(U)
    told(server, vote(), 1)
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    assert len(one.vim.events("action")) == 1


def test_a_loss_without_its_repair_action_is_asked_for_and_told_once(world):
    one = world(HOST)
    one.listed(U)
    server = OurServer(one)
    short = (datagram.LOSS, Loss(NAME, U))
    told(server, short, 1)
    one.until(lambda: server.numbers(datagram.QRY_INST), "it asks")
    assert confirmed(server) == [] and one.alarms() == []
    server.say(datagram.QRY_INST, INFO._replace(heartbeating=False), Tag(number=2))
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    told(server, LOSS, 1)
    one.until(lambda: confirmed(server) == [1, 1], "and again")
    assert one.alarms() == ["stop"]


# --- once ---


def test_a_crowd_on_one_host_makes_no_other_hosts_repetition_news(world, monkeypatch):
    monkeypatch.setattr(retransmit, "SEEN_MAX", 4)
    one = world(HOST, SECOND)
    one.listed(U, V)
    server, crowd = OurServer(one), OurServer(one, OTHER, SECOND.hostname, sender=78)
    told(server, vote(), 1)
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    for number in range(1, 9):
        told(crowd, vote(V, SECOND.hostname), number)
    one.until(lambda: len(set(confirmed(crowd))) == 8, "all are")
    told(server, vote(), 1)
    one.until(lambda: confirmed(server) == [1, 1], "it is confirmed again")
    one.quiet()
    assert len(one.vim.events("action", U)) == 1 and len(one.vim.events("action", V)) == 8


# --- who may say it ---


@pytest.mark.parametrize("speaks", [True, False], ids=["ours", "old"])
def test_an_event_from_an_address_that_is_not_the_hosts_is_dropped(world, speaks):
    one, server = started(world)
    stranger = OurServer(one, STRANGE)
    if speaks:
        told(stranger, LOSS, 9)
    else:
        one.say(datagram.build_event(*LOSS), by=stranger.socket)
    one.quiet()
    assert one.agent.wrong_address_events == 1 and one.alarms() == [] and confirmed(stranger) == []
    told(server, LOSS, 2)
    one.until(lambda: 2 in confirmed(server), "the host itself is heard")
    assert one.alarms() == ["stop"]


def test_a_start_is_believed_from_the_host_only(world):
    one, server = started(world)
    server.listen()
    server.got.clear()
    stranger = OurServer(one, STRANGE)
    stranger.ready()
    one.quiet()
    assert one.agent.wrong_address_events == 1 and server.numbers(datagram.MOD_INST) == []
    server.ready()
    one.until(lambda: server.numbers(datagram.MOD_INST), "the host itself is believed")


def test_with_a_key_the_address_does_not_matter_and_the_held_event_is_the_same(world, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"sixteen bytes and more\n")
    path.chmod(0o600)
    one = world(HOST, key_file=str(path))
    one.listed(U)
    server = OurServer(one, STRANGE, key=b"sixteen bytes and more")
    told(server, LOSS, 1)
    one.until(server.listen, "it is asked who it is")
    assert server.got[0][0] == datagram.QRY_INST and one.alarms() == []
    one.vim.stop()
    told(server, LOSS, 1)
    old_socket, server.socket = server.socket, one.open(OTHER)
    server.socket.setblocking(False)
    told(server, LOSS, 1)  # by another way, while the VIM does not have it
    one.quiet()
    assert confirmed(server) == [] and one.agent.wrong_address_events == 0
    server.socket.close()
    server.socket = old_socket
    one.vim.start()
    one.until(lambda: confirmed(server) == [1], "it is confirmed")
    assert one.alarms() == ["stop"]


def test_an_old_servers_loss_is_told_each_time_it_says_so(world):
    one, server = started(world)
    for count in (1, 2):
        one.say(datagram.build_event(datagram.LOSS, Loss(NAME, U)), by=server.socket)
        one.until(lambda: len(one.alarms()) == count, "it is told")  # noqa: B023
    assert confirmed(server) == [1]


def test_the_reports_tell_what_waits(world):
    one, server = started(world)
    one.vim.stop()
    told(server, LOSS, 2)
    one.until(lambda: "vim %s UNREACHABLE" % one.vim.url in one.agent.health(), "it is noticed")
    health = dict(line.split(" ", 1) for line in one.agent.health())
    assert health["events"] == "delivered 1 pending 1 withdrawn 0 given up 0 expired 0"
    assert health["commands-out"].startswith("unconfirmed ") and health["wrong-address-events"] == "0"
    assert [line.split()[0] for line in one.agent.dump()] == ["host", "instance"]


def test_a_loss_from_before_reporting_was_disabled_is_no_alarm_when_it_is_enabled_again(world, monkeypatch):
    one, server = started(world)
    one.client.set(U, NAME, "disabled")  # which does not arrive
    one.client.set(U, NAME, "enabled")
    takes_no_loss_of_before(one, server)
    told(server, LOSS, 2)  # which the confirmation has overtaken
    assert one.alarms() == [] and 2 not in confirmed(server)
    monkeypatch.setattr(server_link, "IN_FLIGHT", 0.0)
    told(server, LOSS, 2)  # it is still true
    one.until(lambda: 2 in confirmed(server), "it is confirmed")
    assert one.alarms() == ["stop"]
