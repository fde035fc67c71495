"""UDP between guestAgent and guestServers of ours, over real sockets.

docs/protocol/2-datagrams.md#confirmed-and-repeated
"""

import threading
import time

import pytest
from serverlink_bench import NAME, SERVER, TICK, Bench, OurServer

from guestmtce.agent import command_rules, server_link
from guestmtce.agent.server_link import Endpoint, ServerLink
from guestmtce.daemon.loop import Loop
from guestmtce.lab.pace import within
from guestmtce.peer.authentication import Keys
from guestmtce.peer.retransmit import REPEAT_FIRST
from guestmtce.wire import datagram, datagram_ext, guest_channel
from guestmtce.wire.datagram import Ask, DeleteInstance, InstanceInfo, Query, SetHost, SetInstance
from guestmtce.wire.datagram_ext import Tag

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
V = "11111111-2222-3333-4444-555555555555"
OTHER = "127.0.0.4"
KEY = b"sixteen bytes and more"
QUERY = (datagram.QRY_INST, Query())
ON, OFF = (datagram.MOD_INST, SetInstance(U, True)), (datagram.MOD_INST, SetInstance(U, False))
FORGET = (datagram.DEL_INST, DeleteInstance(U))
VOTE = (datagram.VOTE_INST, Ask(U, guest_channel.VOTE, "stop"))
HOST = (datagram.MOD_HOST, SetHost("host-uuid", True))
INFO = InstanceInfo(NAME, U, True, True, "reboot", 601, 11, 12, 13, 14)
LOSS = (datagram.LOSS, INFO._replace(heartbeating=False))
QUIET = 3 * REPEAT_FIRST  # s; what is repeated at all is repeated by then


@pytest.fixture
def bench():
    benches = []

    def make(key=b""):
        benches.append(Bench(key=key))
        return benches[-1]

    yield make
    for one in benches:
        one.close()


def pair(bench, key=b"", met=True):
    """The link, and a guestServer of ours."""
    one = bench(key)
    server = OurServer(one, key=key, taken=one.server)
    if met:
        server.meet()
        server.listen()
        server.got.clear()
        server.raw.clear()
        one.heard.clear()
    return one, server


def quiet(one, server):
    """For some time nothing comes."""
    server.listen()
    count = len(server.raw)
    until = time.monotonic() + QUIET
    one.until(lambda: server.listen() and len(server.raw) > count or time.monotonic() > until, "time goes by")
    return len(server.raw) == count


KEYS = pytest.mark.parametrize("key", [b"", KEY], ids=["open", "sealed"])

# --- commands, until they are confirmed ---


@KEYS
@pytest.mark.parametrize(
    "command", [ON, FORGET, HOST, (*VOTE, 60.0), QUERY], ids=["mod", "del", "host", "vote", "query"]
)
def test_a_command_is_repeated_until_it_is_confirmed(bench, key, command):
    one, server = pair(bench, key)
    one.send(command)
    one.until(lambda: len(server.listen()) >= 3, "two repetitions")
    assert {(cmd, what, tag.number) for cmd, what, tag in server.got} == {
        (*command[:2], server.got[0][2].number)
    }
    assert all(tag.wants_ack for _, _, tag in server.got) and one.link.unconfirmed == (command != QUERY)
    server.confirm(server.got[0][2])
    assert one.link.unconfirmed == 0 and quiet(one, server)


def test_a_query_is_repeated_to_who_has_not_spoken_and_given_up_for_the_next_audit(bench, monkeypatch):
    one, server = pair(bench, met=False)
    one.send(QUERY)
    one.until(lambda: len(server.listen()) >= 3, "two repetitions")
    server.confirm(server.got[0][2])
    assert quiet(one, server)
    monkeypatch.setattr(command_rules, "QUERY_FOR", REPEAT_FIRST)
    one.send(QUERY)
    one.until(lambda: not one.link._queries, "it is given up")
    assert quiet(one, server) and one.link.unconfirmed == 0


def test_a_query_is_confirmed_by_no_event_and_by_no_other_host(bench):
    one, server = pair(bench)
    other = OurServer(one, OTHER, "compute-1", sender=78)
    other.meet()
    one.send(QUERY)
    one.until(server.listen, "the query")
    server.say(*LOSS)
    other.confirm(server.got[0][2])
    one.until(lambda: len(server.numbers(datagram.QRY_INST)) >= 3, "two repetitions")


def test_an_old_server_is_asked_once_per_audit(bench):
    one, server = pair(bench, met=False)
    one.send(QUERY)
    one.say(datagram.build_event(*LOSS))
    server.listen()
    assert quiet(one, server)
    count = len(server.raw)
    one.send(QUERY)
    one.until(lambda: server.listen() and len(server.raw) > count, "the query")
    assert not server.got[-1][2].wants_ack and quiet(one, server)


def test_numbers_wrap(bench):
    """At 1,000 hosts an agent has used all after half a year."""
    one, server = pair(bench)
    for _ in range(2):
        one.link._sequences._next, one.link._sequences._left = 2**32 - 1, 2
        one.send(ON, OFF)
        one.until(lambda: len(server.numbers(datagram.MOD_INST)) >= 2, "both")
        assert server.numbers(datagram.MOD_INST)[:2] == [2**32 - 1, one.link._sequences._next - 1]
        server.confirm(server.got[-1][2])
        assert one.link.unconfirmed == 0 and quiet(one, server)
        server.got.clear()


WRONG = {
    "another number": lambda tag: datagram_ext.ack_tag(tag)._replace(number=tag.number + 1),
    "of another agent": lambda tag: datagram_ext.ack_tag(tag)._replace(acked_sender=tag.sender + 1),
    "of nobody": lambda tag: Tag(datagram_ext.IS_ACK),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_confirmation_of_something_else_confirms_nothing(bench, name):
    one, server = pair(bench)
    one.send(ON)
    one.until(server.listen, "the command")
    server.say(datagram_ext.ACK, None, WRONG[name](server.got[0][2]))
    assert one.link.unconfirmed == 1
    one.until(lambda: len(server.listen()) >= 2, "a repetition")


def test_one_host_cannot_confirm_for_another(bench):
    one, server = pair(bench)
    other = OurServer(one, OTHER, "compute-1", sender=78)
    other.meet()
    one.send(ON)
    one.until(server.listen, "the command")
    other.confirm(server.got[0][2])
    assert one.link.unconfirmed == 1


REPLACED = [(ON, OFF), (ON, FORGET), (FORGET, (datagram.ADD_INST, SetInstance(U, True))), (HOST, (
    datagram.MOD_HOST, SetHost("host-uuid", False)))]  # fmt: skip


@pytest.mark.parametrize("old, new", REPLACED)
def test_a_newer_command_about_the_same_takes_the_place_of_the_older(bench, old, new):
    one, server = pair(bench)
    one.send(old, (datagram.MOD_INST, SetInstance(V, True)), new)
    one.until(lambda: len(server.listen()) >= 7, "two rounds of repetitions")
    assert [what for _, what, _ in server.got].count(old[1]) == 1
    assert one.link.unconfirmed == 2
    enables, enabled = (getattr(what[1], "reporting", False) for what in (new, old))
    assert {tag.is_anew for _, what, tag in server.got if what == new[1]} == {enables and not enabled}
    first, last = server.got[0][2].number, server.numbers(new[0])[-1]
    assert datagram_ext.is_newer(last, first)
    server.confirm(server.got[0][2])  # of the one that was replaced
    assert one.link.unconfirmed == 2
    for _, _, tag in server.got[1:3]:
        server.confirm(tag)
    assert one.link.unconfirmed == 0


def test_what_hides_a_disabling_goes_on_hiding_it_until_it_is_confirmed(bench):
    one, server = pair(bench)
    one.send(OFF, ON, ON)
    one.until(lambda: len(server.listen()) >= 4, "a round of repetitions")
    assert [tag.is_anew for _, _, tag in server.got[:4]] == [False, True, True, True]
    server.confirm(server.got[-1][2])
    one.send(ON)
    one.until(lambda: len(server.listen()) >= 5, "the next")
    assert not server.got[-1][2].is_anew


@pytest.mark.parametrize("end", ["confirmed", "deleted", "the host is gone", "an old server"])
def test_a_disabling_is_unheard_until_it_is_confirmed_or_does_not_matter_any_more(bench, end):
    one, server = pair(bench)
    one.send(ON)
    one.until(server.listen, "the command")
    assert one.unheard == set()
    one.send(OFF)
    one.until(lambda: len(server.listen()) >= 2, "the command")
    server.confirm(server.got[0][2])
    one.send(ON)  # it hides the disabling
    one.until(lambda: len(server.listen()) >= 3, "the command")
    assert one.unheard == {U}
    if end == "confirmed":
        server.confirm(server.got[-1][2])
    elif end == "deleted":
        one.send(FORGET)
    elif end == "an old server":
        one.say(datagram.build_event(*LOSS))
    else:
        with one.lock:
            one.link.drop_server(SERVER)
    assert one.unheard == set()


def test_questions_are_not_replaced_and_expire(bench):
    one, server = pair(bench)
    one.send((*VOTE, 4 * REPEAT_FIRST), (*VOTE, 60.0))
    one.until(lambda: len(set(server.numbers(datagram.VOTE_INST))) == 2, "both")
    short, long = server.numbers(datagram.VOTE_INST)[:2]
    began = time.monotonic()
    one.until(lambda: one.link.unconfirmed == 1, "one has expired")
    assert within(20 * REPEAT_FIRST, time.monotonic() - began)
    count = server.numbers(datagram.VOTE_INST).count(short)
    before = server.numbers(datagram.VOTE_INST).count(long)
    one.until(lambda: server.numbers(datagram.VOTE_INST).count(long) > before, "the other is repeated")
    assert server.numbers(datagram.VOTE_INST).count(short) == count >= 2


def test_a_question_to_which_the_guest_has_no_time_to_answer_is_asked_once(bench):
    one, server = pair(bench)
    one.send(VOTE)
    one.until(lambda: server.listen() and one.link.unconfirmed == 0, "it is asked, and over")
    assert len(server.got) == 1 and quiet(one, server)


def test_to_a_deleted_host_nothing_is_repeated(bench):
    one, server = pair(bench)
    one.send(ON, HOST)
    with one.lock:
        one.link.drop_server(SERVER)
        one.link.drop_server("10.1.2.3")
    assert one.link.unconfirmed == 0
    one.until(lambda: len(server.listen()) == 2, "both were said once")
    assert quiet(one, server)


# --- who listens ---


def test_an_old_server_gets_each_command_once(bench):
    one = bench()
    one.say(datagram.build_event(datagram.MONITOR_READY, datagram.Ready(NAME)))
    one.send(ON, (*VOTE, 60.0), HOST)
    server = OurServer(one, taken=one.server)
    one.until(lambda: len(server.listen()) == 3, "they come")
    assert not any(tag.wants_ack or tag.number for _, _, tag in server.got)
    assert one.link.unconfirmed == 0 and quiet(one, server)


def test_who_has_not_spoken_gets_it_once_and_again_when_he_speaks(bench):
    one, server = pair(bench, met=False)
    one.send(ON)
    one.until(server.listen, "it is said")
    assert quiet(one, server) and one.link.unconfirmed == 1
    server.ready()
    one.until(lambda: len(server.listen()) >= 3, "it is repeated")
    assert one.link.unconfirmed == 1


def test_who_has_not_spoken_and_proves_to_be_old_is_waited_for_no_more(bench):
    one, server = pair(bench, met=False)
    one.send(ON)
    one.say(datagram.build_event(*LOSS))
    assert one.link.unconfirmed == 0 and len(server.listen()) == 1 and quiet(one, server)


def test_a_server_is_upgraded_and_downgraded_while_commands_are_under_way(bench):
    one, server = pair(bench)
    one.send(ON)
    one.until(lambda: len(server.listen()) >= 2, "it is repeated")
    one.say(datagram.build_event(datagram.MONITOR_READY, datagram.Ready(NAME)))  # an old one now
    assert one.link.unconfirmed == 0 and quiet(one, server)
    one.send(OFF)
    server.ready()  # one of ours again
    one.send(HOST)
    one.until(lambda: len(server.numbers(datagram.MOD_HOST)) >= 2, "it is repeated")
    assert one.link.unconfirmed == 1
    server.confirm([tag for cmd, _, tag in server.got if cmd == datagram.MOD_HOST][0])
    assert one.link.unconfirmed == 0


def test_a_server_that_starts_anew_hears_at_once_what_waits(bench):
    one, server = pair(bench)
    one.send(ON)
    one.until(lambda: len(server.listen()) >= 4, "the next repetition is more than a second away")
    restarted = OurServer(one, taken=server.socket, sender=77)
    began = time.monotonic()
    restarted.ready()
    one.until(restarted.listen, "it is repeated")
    assert within(REPEAT_FIRST + 20 * TICK, time.monotonic() - began)


# --- events ---


@KEYS
def test_an_event_comes_with_its_origin_and_is_confirmed_to_its_sender(bench, key):
    one, server = pair(bench, key)
    server.say(*LOSS, Tag(datagram_ext.WANTS_ACK, number=41))
    (heard,) = one.heard
    assert (heard.cmd, heard.event, heard.address) == (*LOSS, SERVER)
    assert heard.wants_ack and heard.sealed == bool(key)
    assert heard.origin == (SERVER, server.speaker.sender, 41)
    assert server.listen() == []  # not before somebody says so
    with one.lock:
        one.link.confirm_event(heard.origin)
    one.until(server.listen, "the confirmation")
    ((cmd, _, tag),) = server.got
    assert cmd == datagram_ext.ACK
    assert (tag.flags, tag.number, tag.acked_sender) == (datagram_ext.IS_ACK, 41, server.speaker.sender)
    assert server.raw[-1][:17] == datagram.AGENT_SIGNATURE


@KEYS
def test_an_answer_has_an_origin_and_wants_no_confirmation(bench, key):
    one, server = pair(bench, key)
    server.say(datagram.QRY_INST, INFO, Tag(number=7))
    assert (one.heard[0].origin.sequence, one.heard[0].wants_ack) == (7, False)


# --- the key ---


def test_the_agent_starts_first_and_the_server_learns_of_it(bench):
    one, server = pair(bench, KEY, met=False)
    one.send(ON)
    one.until(lambda: server.listen() or server.raw, "it comes")
    assert server.got == []  # the server does not believe it yet, and says so:
    server.ready()
    assert [heard.cmd for heard in one.heard] == [datagram.MONITOR_READY]
    one.until(lambda: server.numbers(datagram.MOD_INST), "it is repeated, with an echo")
    server.say(*LOSS)
    assert one.heard[-1].cmd == datagram.LOSS
    assert one.link.refused == server.refused == 0


def test_the_server_starts_first_and_the_agent_learns_of_it(bench):
    one, server = pair(bench, KEY, met=False)
    server.ready()
    one.send(ON)  # the agent answers with what it knows
    one.until(server.listen, "it echoes the server")
    server.say(*LOSS)
    assert [heard.cmd for heard in one.heard] == [datagram.MONITOR_READY, datagram.LOSS]
    assert one.link.refused == server.refused == 0


def test_who_does_not_know_this_agent_is_told_of_it(bench):
    one, server = pair(bench, KEY, met=False)
    server.say(*LOSS, Tag(datagram_ext.WANTS_ACK, number=1))
    assert one.heard == []
    one.until(server.listen, "it is told")
    assert server.got[0][:2] == QUERY and one.link.refused == 0
    server.say(*LOSS, Tag(datagram_ext.WANTS_ACK, number=1))
    assert [heard.event for heard in one.heard] == [LOSS[1]]


def altered(data, at, what):
    return data[:at] + what + data[at + len(what):]  # fmt: skip


FORGED = {
    "unsealed, old": lambda server, data: datagram.build_event(*LOSS),
    "unsealed": lambda server, data: altered(data, 32, bytes(32)),
    "another key": lambda server, data: OurServer(
        server._bench, taken=server.socket, key=b"another long enough key"
    ).dressed(*LOSS),
    "altered body": lambda server, data: data.replace(b"reboot", b"migrat"),
    "altered command": lambda server, data: altered(data, 72, b"\xad\xfe\x10\x01"),
    "altered number": lambda server, data: altered(data, 76, b"\x09"),
    "altered counter": lambda server, data: altered(data, 32, b"\xff"),
    "cut": lambda server, data: data[:-1] + b"\0",
    "of another host": lambda server, data: data.replace(b"compute-0", b"compute-1"),
    "to a server": lambda server, data: server.speaker.tag_and_seal(
        datagram.build_event(*LOSS), Tag(number=3), b"agent>compute-0"
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_is_not_sealed_for_us_is_dropped_and_counted(bench, name):
    one, server = pair(bench, KEY)
    data = FORGED[name](server, server.dressed(*LOSS, Tag(datagram_ext.WANTS_ACK, number=1)))
    one.say(data)
    assert one.link.refused == 1 and one.heard == []
    server.say(*LOSS)
    assert len(one.heard) == 1 and one.loop.defects == 0


def test_a_recording_is_taken_once_from_whatever_address(bench):
    one, server = pair(bench, KEY)
    thief = one.open(OTHER)
    data = server.say(*LOSS, Tag(datagram_ext.WANTS_ACK, number=1))
    assert len(one.heard) == 1
    one.say(data)
    one.say(data, by=thief)
    assert len(one.heard) == 1 and one.link.refused == 2


def test_a_recorded_confirmation_confirms_nothing(bench):
    one, server = pair(bench, KEY)
    one.send(ON)
    one.until(server.listen, "the command")
    thief = one.open(OTHER)
    ack = server.dressed(datagram_ext.ACK, None, datagram_ext.ack_tag(server.got[0][2]))
    one.say(ack, by=thief)  # it does not come from where the command went
    assert one.link.unconfirmed == 1
    one.say(ack)
    assert one.link.unconfirmed == 0


def test_a_recording_of_another_conversation_is_not_believed(bench):
    """The agent has started anew since; the echo in what was recorded is not its own."""
    one, server = pair(bench, KEY)
    recorded = server.dressed(*LOSS, Tag(datagram_ext.WANTS_ACK, number=1))
    later = bench(KEY)
    later.say(recorded)
    assert later.heard == []
    server.say(*LOSS)
    assert len(one.heard) == 1


def test_a_host_whose_address_changes_goes_on(bench):
    """The same server behind another address: what we seal for it must not look like a replay."""
    one, server = pair(bench, KEY)
    one.send(*[QUERY] * 5)
    one.until(lambda: len(server.listen()) >= 5, "they come")
    server.socket = one.open(OTHER)
    server.socket.setblocking(False)
    server.got.clear()
    server.say(*LOSS)
    one.send(ON, ip=OTHER)
    one.until(server.listen, "the command")
    server.confirm(server.got[0][2])
    assert one.link.unconfirmed == 0 and server.refused == 0


def test_a_key_must_be_long_enough():
    loop = Loop()
    with pytest.raises(ValueError, match="key"):
        ServerLink(loop, Endpoint("", 0, 0), threading.Lock(), None, Keys(b"short"))
    loop.close()


def test_a_crowd_of_strangers_pushes_out_no_host_to_which_we_speak(bench, monkeypatch):
    monkeypatch.setattr(server_link, "STRANGERS_MAX", 3)
    one, server = pair(bench)
    one.send(ON)
    for last in range(10, 16):
        one.say(datagram.build_event(*LOSS), by=one.open("127.0.0.%d" % last))
    assert one.link.unconfirmed == 1 and len(one.link._strangers) == 3 and list(one.link._peers) == [SERVER]
    one.until(lambda: len(server.listen()) >= 2, "the command is repeated")
    server.confirm(server.got[0][2])
    assert one.link.unconfirmed == 0


def test_more_hosts_than_there_is_room_for_push_out_none_for_which_commands_wait(bench, monkeypatch):
    monkeypatch.setattr(server_link, "PEERS_MAX", 3)
    one, server = pair(bench)
    one.send(ON)
    for last in range(10, 16):
        one.send(QUERY, ip="127.0.0.%d" % last)
    assert one.link.unconfirmed == 1 and len(one.link._peers) == 3


def test_who_has_no_key_is_not_even_remembered(bench):
    one, server = pair(bench, KEY)
    one.say(datagram.build_event(*LOSS), server.dressed(datagram_ext.ACK), by=one.open(OTHER))
    assert one.link.refused == 2 and OTHER not in {**one.link._peers, **one.link._strangers}


def test_a_deleted_host_leaves_nothing_behind(bench):
    one, server = pair(bench)
    one.send(ON)
    one.link.drop_server(SERVER)
    assert one.link._peers == {} and one.link._strangers == {}


@KEYS
def test_a_clean_stop_says_goodbye_to_every_server(bench, key):
    one, server = pair(bench, key)
    one.send(QUERY)
    one.until(server.listen, "the query")
    one.link.close()
    one.until(lambda: len(server.listen()) >= 2, "goodbye")
    cmd, command, tag = server.got[-1]
    assert (cmd, command, tag.flags) == (datagram.LOOPBACK, datagram.Loopback(), datagram_ext.GOODBYE)
    assert server.refused == 0


@pytest.mark.parametrize("key", [Keys(), Keys(KEY)])
def test_ten_thousand_strangers_are_one_line_in_the_log(bench, key, caplog):
    one = bench(key.key)
    for number in range(300):
        address = "127.1.%d.%d" % divmod(number, 250)
        one.link._serve_datagram(b"junk", address)
        one.link._serve_datagram(datagram.build_event(*LOSS), address)
    assert len([record for record in caplog.records if "dropped" in record.getMessage()]) == 1
