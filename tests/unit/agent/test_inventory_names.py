"""Host names are compared as names, uuids without case.

docs/protocol/2-datagrams.md#addresses-and-names
"""

import pytest
from inventory_facts import (
    ADD,
    DEL,
    MOD,
    NOW,
    A,
    B,
    U,
    answer_list,
    asks,
    drain_effects,
    drain_lines,
    enabled,
    info,
    inventory,
    named,
    of,
    send,
)

from guestmtce.agent.effects import AskMtc, ReportService, Send
from guestmtce.agent.hosts import Hosts
from guestmtce.agent.model import Host
from guestmtce.common.log_line import LogLine
from guestmtce.wire import datagram, guest_channel, vim_http
from guestmtce.wire.datagram import DeleteInstance, HostRecord, Query, SetInstance
from guestmtce.wire.vim_http import Failure, Listed, Named

SPELLINGS = ["compute-0", "Compute-0", "COMPUTE-0.", "compute-0.example.com", "Compute-0.Example.COM."]


def table(*names):
    hosts = Hosts()
    for number, name in enumerate(names):
        hosts.add(Host(name, "uuid-%d" % number, "10.0.0.%d" % number))
    return hosts


FOUND = [
    # known                                        asked for             found
    (["compute-0"],                                "Compute-0",          "compute-0"),
    (["Compute-0"],                                "compute-0",          "Compute-0"),
    (["compute-0"],                                "compute-0.a",        "compute-0"),
    (["compute-0.a"],                              "compute-0",          "compute-0.a"),
    (["compute-0.a"],                              "COMPUTE-0.A",        "compute-0.a"),
    (["compute-0.a"],                              "compute-0.a.",       "compute-0.a"),
    (["compute-0.a"],                              "compute-0.b",        None),
    (["compute-0.a"],                              "compute-0.a.b",      None),
    (["compute-0.a", "compute-0.b"],               "compute-0.b",        "compute-0.b"),
    (["compute-0.a", "compute-0.b"],               "compute-0",          None),
    (["compute-0", "compute-0.b"],                 "compute-0",          "compute-0"),
    (["compute-0", "compute-0.b"],                 "compute-0.b",        "compute-0.b"),
    (["compute-0", "compute-0.b"],                 "compute-0.a",        None),
    (["compute-1", "compute-10"],                  "compute-1.a",        "compute-1"),
    (["compute-1"],                                "compute-10",         None),
    (["compute-0"],                                "compute",            None),
    (["compute-0"],                                "",                   None),
    (["compute-0"],                                ".",                  None),
    (["compute-0"],                                ".compute-0",         None),
    ([],                                           "compute-0",          None),
]  # fmt: skip


@pytest.mark.parametrize("known, name, found", FOUND)
def test_a_name_finds_the_one_host_that_it_can_mean(known, name, found):
    host = table(*known).find_host(name)
    assert (host and host.name) == found


def test_a_removed_host_is_found_no_more_and_its_namesake_is_unambiguous_again():
    hosts = table("compute-0.a", "compute-0.b")
    first = hosts.find_host("compute-0.a")
    hosts.remove(first)
    assert hosts.find_host("compute-0.a") is None and hosts.find_host("compute-0").name == "compute-0.b"
    assert hosts.find_by_uuid(first.uuid) is None and hosts.find_by_uuid("UUID-1").name == "compute-0.b"
    hosts.remove(hosts.find_host("compute-0"))
    assert len(hosts) == 0 == len(hosts._by_label) == len(hosts._by_uuid)


# --- what guestServers and the VIM say ---

EVENTS = {
    "answer": lambda made, host: made.events.note_answer(info(host)),
    "loss": lambda made, host: made.events.note_loss(info(host)),
    "ready": lambda made, host: made.events.note_ready(datagram.Ready(host.hostname)),
    "vote": lambda made, host: made.events.note_outcome(
        datagram.VoteResult(host.hostname, U, guest_channel.VOTE, "stop", "accept", ""), NOW
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", EVENTS)
def test_a_guestserver_is_known_however_it_spells_its_host(name, spelling):
    made = enabled()
    assert EVENTS[name](made, A._replace(hostname=spelling))
    effects = drain_effects(made)
    assert effects and AskMtc() not in effects
    assert [one for one in of(Send, effects) if one.cmd == DEL] == []
    assert {one.hostname for one in of(Send, effects)} <= {spelling}  # the spelling that its seals cover
    assert {one.body["hostname"] for one in of(ReportService, effects)} <= {A.hostname}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_vim_is_answered_and_told_in_its_own_spelling(spelling):
    made = inventory(A, B)
    mine = A._replace(hostname=spelling)
    made.create_instance(named(mine))
    assert drain_effects(made) == [send(A, ADD, SetInstance(U, False))]
    assert made.set_instance(named(mine), True, NOW)["hostname"] == spelling
    assert made.query_instance(U)["hostname"] == spelling
    assert drain_effects(made) == [send(A, MOD, SetInstance(U, True))]
    made.events.note_state(info(A))
    assert of(ReportService, drain_effects(made))[0].body["hostname"] == spelling
    assert made.ask_guest(named(mine), guest_channel.VOTE, "stop", NOW)["hostname"] == spelling
    assert made.set_instance(named(B), True, NOW)["hostname"] == B.hostname
    assert made.set_instance(named(mine), True, NOW)["hostname"] == spelling  # moved back


def test_the_vims_newest_spelling_is_taken_in_place():
    made = enabled()
    other = A._replace(hostname="Compute-0")
    made.set_instance(named(other), True, NOW)
    assert drain_effects(made) == [send(A, MOD, SetInstance(U, True))]
    assert made.query_instance(U)["hostname"] == "Compute-0"
    made.create_instance(named())
    assert drain_effects(made) == [] and made.query_instance(U)["hostname"] == A.hostname


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_mtcagents_record_in_another_spelling_is_the_same_host(spelling):
    made = enabled()
    made.note_host(A._replace(hostname=spelling, uuid=A.uuid.upper()))
    assert len(made.hosts) == 2 and U in made.instances
    made.delete_host(A._replace(hostname=spelling, ip=""))
    assert [host.name for host in made.hosts] == [B.hostname] and not made.instances


def test_mtcagents_record_of_another_host_with_a_domain_touches_no_namesake():
    made = enabled()
    other = HostRecord("compute-0.b", "bbbbbbbb-0000-4000-8000-000000000000", "10.0.9.9")
    made.delete_host(other)
    made.note_host(other)
    assert len(made.hosts) == 3 and made.find_host(A.uuid).ip == A.ip
    made.delete_host(other)
    assert len(made.hosts) == 2 and U in made.instances


def test_an_unknown_host_is_named_with_the_remedy():
    made = inventory(A._replace(hostname="compute-0.a"), B._replace(hostname="compute-0.b"))
    assert not made.events.note_ready(datagram.Ready("compute-0"))
    effects = made.take_effects()
    assert AskMtc() in effects and len(effects) == 2
    (line,) = [effect.text % effect.values for effect in of(LogLine, effects)]
    for words in ("compute-0", "compute-0.a, compute-0.b", "mtcAgent", "[agent] hosts"):
        assert words in line
    with pytest.raises(Failure):
        made.create_instance(Named(U, "nowhere", {}))
    assert "nowhere, which is unknown: asking" in drain_lines(made)[0]


def test_of_many_namesakes_four_are_named():
    made = inventory(*(A._replace(hostname="compute-0." + domain, uuid=domain) for domain in "abcde"))
    assert not made.events.note_ready(datagram.Ready("compute-0"))
    (line,) = drain_lines(made)
    assert "compute-0.d:" in line and "compute-0.e" not in line


# --- uuids ---

UPPER = U.upper()


def test_one_uuid_in_both_cases_is_one_instance_and_a_reply_is_spelled_as_its_command():
    made = inventory()
    made.create_instance(named(uuid=UPPER))
    assert drain_effects(made) == [send(A, ADD, SetInstance(U, False))]
    assert made.set_instance(named(uuid=UPPER), True, NOW)["uuid"] == UPPER
    assert made.set_instance(named(), True, NOW)["uuid"] == U
    made.events.note_state(info())
    assert of(ReportService, drain_effects(made))[0].uuid == U
    answer_list(made, A.hostname, [Listed(U, A.hostname, False)])
    assert list(made.instances) == [U] and made.query_instance(UPPER)["uuid"] == UPPER
    assert made.ask_guest(named(uuid=UPPER), guest_channel.VOTE, "stop", NOW)["uuid"] == UPPER
    assert of(Send, drain_effects(made))[0].command.uuid == U
    made.delete_instance(UPPER)
    assert send(A, DEL, DeleteInstance(U)) in drain_effects(made) and not made.instances


def test_a_hosts_uuid_is_found_in_either_case():
    made = inventory()
    assert made.find_host(A.uuid.upper()) is made.find_host(A.uuid)
    made.note_host(A._replace(uuid=A.uuid.upper()))
    assert made.find_host(A.uuid).name == A.hostname


NAMED = b'{"uuid":"%s","hostname":"h","action":"stop"}' % UPPER.encode()
PARSED = {
    "body": lambda uuid: vim_http.parse_action(uuid, NAMED)[0].uuid,
    "list": lambda uuid: vim_http.parse_instances(
        {"instances": [{"uuid": uuid, "hostname": "h", "services": [{"service": "heartbeat"}]}]})[0].uuid,
    "command": lambda uuid: datagram.parse_command(datagram.unpack(
        datagram.build_command(DEL, "10.0.0.1", DeleteInstance(uuid)))).uuid,
    "event": lambda uuid: datagram.parse_event(datagram.unpack(
        datagram.build_event(datagram.RUNNING, info(uuid=uuid)))).uuid,
}  # fmt: skip


@pytest.mark.parametrize("name", PARSED)
def test_parsed_uuids_are_in_lower_case_but_for_what_is_answered(name):
    for uuid in (U, UPPER):
        assert PARSED[name](uuid) == (uuid if name == "body" else U)


def test_a_body_with_another_uuid_than_the_path_is_still_refused():
    with pytest.raises(Failure):
        vim_http.parse_named(U.replace("3", "4"), NAMED)


def test_the_query_of_a_new_host_is_sent_under_the_name_that_mtcagent_gave():
    made = inventory(A, listed=False)
    made.note_host(B)
    assert drain_effects(made) == [asks(B, False), asks(B, True), send(B, datagram.QRY_INST, Query())]
