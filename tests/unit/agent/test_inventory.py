"""The inventory: facts in, effects out.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events
docs/protocol/3-vim-http.md#where-instances-are
"""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory_facts import (
    ADD,
    DEL,
    HOSTS,
    MOD,
    NEWEST,
    NOW,
    A,
    B,
    U,
    V,
    answer_list,
    answer_state,
    asks,
    drain_effects,
    enabled,
    info,
    inventory,
    kinds,
    loss,
    named,
    of,
    origin,
    send,
)
from tiers import examples

from guestmtce.agent.effects import (
    AskMtc,
    DropHost,
    ForgetVimEvents,
    ReportAlarm,
    ReportService,
    Send,
    Withdraw,
)
from guestmtce.agent.inventory import Inventory
from guestmtce.wire import datagram, guest_channel, vim_http
from guestmtce.wire.datagram import Ask, DeleteInstance, Query, SetHost, SetInstance
from guestmtce.wire.vim_http import Failure, Listed

# --- the VIM's commands ---


def test_create_adds_once_with_reporting_disabled_and_repeats_change_nothing():
    made = inventory()
    made.create_instance(named())
    assert drain_effects(made) == [send(A, ADD, SetInstance(U, False))]
    made.create_instance(named())
    assert drain_effects(made) == []
    made.set_instance(named(), True, NOW)
    made.create_instance(named())
    assert drain_effects(made) == [send(A, MOD, SetInstance(U, True))]
    assert made.instances[U].reporting


@pytest.mark.parametrize("reporting", [True, False])
def test_set_adds_the_unknown_and_modifies_the_known(reporting):
    made = inventory()
    reply = made.set_instance(named(), reporting, NOW)
    assert reply == vim_http.services_reply(U, A.hostname, reporting, False, 0)
    # An agent before this one may have disabled it, which the server may have missed.
    assert drain_effects(made) == [send(A, ADD, SetInstance(U, reporting))._replace(anew=reporting)]
    assert made.set_instance(named(), reporting, NOW) == reply == made.query_instance(U)
    assert drain_effects(made) == [send(A, MOD, SetInstance(U, reporting))]


@pytest.mark.parametrize("reporting", [True, False])
@pytest.mark.parametrize("by_set", [True, False])
def test_a_move_tells_both_hosts_and_keeps_reporting(reporting, by_set):
    made = inventory(A, B)
    made.set_instance(named(A), reporting, NOW)
    made.events.note_state(info(A))
    drain_effects(made)
    if by_set:
        assert made.set_instance(named(B), reporting, NOW)["hostname"] == B.hostname
    else:
        made.create_instance(named(B))
    effects = drain_effects(made)
    expected = [send(A, DEL, DeleteInstance(U)), send(B, ADD, SetInstance(U, reporting))]
    assert of(Send, effects) == expected and ForgetVimEvents(U) in effects
    assert made.query_instance(U) == vim_http.services_reply(U, B.hostname, reporting, False, 0)
    made.events.note_loss(loss(A))
    assert drain_effects(made) == [send(A, DEL, DeleteInstance(U))]
    made.events.note_state(info(B))
    assert of(ReportService, drain_effects(made))[0].body["hostname"] == B.hostname


def test_a_set_that_moves_takes_the_new_reporting():
    made = enabled()
    made.set_instance(named(B), False, NOW)
    assert drain_effects(made)[-1] == send(B, ADD, SetInstance(U, False))


COMMANDS = {
    "create": (lambda made: made.create_instance(named()), 400, True),
    "set": (lambda made: made.set_instance(named(), True, NOW), 404, True),
    "host": (lambda made: made.find_host(A.uuid), 404, True),
    "host reporting": (lambda made: made.set_host_reporting(A.uuid, False), 404, True),
    "query": (lambda made: made.query_instance(U), 404, False),
    "delete": (lambda made: made.delete_instance(U), 404, False),
    "vote": (lambda made: made.ask_guest(named(), guest_channel.VOTE, "stop", NOW), 404, False),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_about_the_unknown_fail_and_ask_for_hosts(name):
    act, status, asks = COMMANDS[name]
    made = Inventory()
    with pytest.raises(Failure) as caught:
        act(made)
    assert (caught.value.status, caught.value.reason) == (status, vim_http.NOT_FOUND)
    assert drain_effects(made) == ([AskMtc()] if asks else [])
    assert not made.hosts and made.instances == {}


def test_delete_tells_the_server_and_drops_the_news():
    made = enabled()
    made.delete_instance(U)
    assert drain_effects(made) == [send(A, DEL, DeleteInstance(U)), ForgetVimEvents(U)]
    assert made.instances == {}


SECONDS = {"stop": 11, "reboot": 11, "suspend": 12, "pause": 12, "resize_begin": 12}
SECONDS.update(dict.fromkeys(["live_migrate_begin", "cold_migrate_begin"], 12))
SECONDS.update(dict.fromkeys(["unpause", "resume", "resize_end", "live_migrate_end", "cold_migrate_end"], 13))


@pytest.mark.parametrize("event", guest_channel.EVENT_TYPES)
def test_votes_and_notices_answer_the_guests_timeout_of_their_class(event):
    made = enabled()
    for kind, cmd, secs in (
        (guest_channel.VOTE, datagram.VOTE_INST, 14),
        (guest_channel.NOTICE, datagram.NOTIFY_INST, SECONDS[event]),
    ):
        assert made.ask_guest(named(), kind, event, NOW) == vim_http.action_reply(U, A.hostname, event, secs)
        assert drain_effects(made) == [send(A, cmd, Ask(U, kind, event), secs)]
        made.events.note_state(info(heartbeating=False))
        drain_effects(made)
        assert made.ask_guest(named(), kind, event, NOW)["timeout"] == "0"
        assert drain_effects(made) == []
        made.events.note_state(info())
        drain_effects(made)


# --- host reporting ---


def test_host_reporting_is_the_vims_else_what_its_instances_suggest():
    made = inventory()
    host = made.find_host(A.uuid)
    assert host.reporting is None and not host.enabled
    made.set_instance(named(), False, NOW)
    assert not host.enabled
    made.set_instance(named(), True, NOW)
    assert host.reporting is None and host.enabled
    drain_effects(made)
    answer_state(made, A.hostname, None)
    assert host.reporting is None and drain_effects(made) == []
    answer_state(made, A.hostname, False)
    assert not host.enabled
    assert drain_effects(made)[0] == send(A, datagram.MOD_HOST, SetHost(A.uuid, False))
    made.set_host_reporting(A.uuid, True)
    drain_effects(made)
    answer_state(made, A.hostname, False)  # an answer that was late: the command is newer
    assert host.enabled and drain_effects(made) == []
    answer_state(made, "nobody", True)
    assert drain_effects(made) == []


@pytest.mark.parametrize("host", [None, True, False])
@pytest.mark.parametrize("reporting", [True, False])
def test_failures_are_told_only_while_host_and_instance_report(host, reporting):
    made = inventory()
    made.set_instance(named(), reporting, NOW)
    answer_state(made, A.hostname, host)
    made.events.note_state(info(reporting=reporting))
    drain_effects(made)
    made.events.note_loss(loss())
    told = [ReportAlarm(U, "failed", vim_http.alarm_event(U, A.hostname, "failed", "reboot"))]
    assert drain_effects(made) == (told if reporting and host is not False else [])
    made.events.note_illness(info(reporting=reporting, action="stop"))
    told = [ReportAlarm(U, "unhealthy", vim_http.alarm_event(U, A.hostname, "unhealthy", "stop"))]
    assert drain_effects(made) == (told if reporting and host is not False else [])
    assert made.instances[U].repair_action == "reboot"


def test_disabling_withdraws_what_was_not_told():
    made = enabled()
    made.set_instance(named(), False, NOW)
    assert [effect.unwanted for effect in of(Withdraw, drain_effects(made))] == [True]
    made.set_instance(named(), False, NOW)
    assert Withdraw not in kinds(drain_effects(made))
    made.set_host_reporting(A.uuid, False)
    assert [(effect.uuid, effect.unwanted) for effect in of(Withdraw, drain_effects(made))] == [(U, True)]


# --- mtcAgent ---


def test_a_new_host_is_asked_about_and_queried_a_known_one_updated():
    made = Inventory()
    made.note_host(A)
    asked = [asks(A, False), asks(A, True)]
    assert drain_effects(made) == [*asked, send(A, datagram.QRY_INST, Query())]
    made.note_host(A)
    assert drain_effects(made) == [asks(A, False)]
    made.set_instance(named(), True, NOW)
    drain_effects(made)
    moved = A._replace(ip="10.0.0.9")
    made.note_host(moved)
    expected = [send(moved, MOD, SetInstance(U, True)), send(moved, datagram.QRY_INST, Query())]
    assert drain_effects(made) == [DropHost(A.ip), *expected, asks(A, False)]
    made.note_host(A._replace(uuid=B.uuid))
    assert made.find_host(B.uuid).name == A.hostname
    with pytest.raises(Failure):
        made.find_host(A.uuid)


def test_what_was_said_to_an_address_is_repeated_as_long_as_a_host_has_it():
    made = inventory(A, B)
    made.note_host(A._replace(ip=B.ip))
    assert of(DropHost, drain_effects(made)) == [DropHost(A.ip)]
    made.note_host(B._replace(ip=A.ip))  # they change places: what A was told just now still holds
    assert of(DropHost, drain_effects(made)) == []


def test_a_deleted_host_leaves_what_another_was_told_at_its_address():
    made = inventory(A, B)
    made.note_host(A._replace(ip=B.ip))  # the machine of B has got another name
    drain_effects(made)
    made.delete_host(B)
    assert of(DropHost, drain_effects(made)) == []
    made.delete_host(A)
    assert of(DropHost, drain_effects(made)) == [DropHost(B.ip)]


def test_a_deleted_host_takes_its_instances_along():
    made = enabled()
    made.create_instance(named(B, V))
    drain_effects(made)
    made.delete_host(A._replace(ip=""))
    assert drain_effects(made) == [send(A, DEL, DeleteInstance(U)), ForgetVimEvents(U), DropHost(A.ip)]
    assert [host.name for host in made.hosts] == [B.hostname] and list(made.instances) == [V]
    made.delete_host(A)
    assert drain_effects(made) == []


# --- the audit ---


def test_the_audit_asks_until_it_knows_and_repeats_what_no_answer_shows():
    made = inventory(listed=False)
    questions = [asks(A, False), asks(A, True)]
    query = send(A, datagram.QRY_INST, Query())
    made.run_audit()
    assert drain_effects(made) == [*questions, query]
    answer_list(made, A.hostname, [])
    made.run_audit()
    assert drain_effects(made) == [questions[0], query]
    for reporting in (True, False):
        made.set_host_reporting(A.uuid, reporting)
        drain_effects(made)
        made.run_audit()
        assert drain_effects(made) == [send(A, datagram.MOD_HOST, SetHost(A.uuid, reporting)), query]


def test_a_host_with_instances_that_does_not_answer_is_a_miss():
    made = enabled()
    for _ in range(3):
        made.run_audit()
    assert [made.hosts.find_host(name).query_misses for name in (A.hostname, B.hostname)] == [2, 0]
    made.events.note_state(info())  # an event is no answer
    made.run_audit()
    assert made.hosts.find_host(A.hostname).query_misses == 3
    made.events.note_answer(info())
    made.run_audit()
    assert made.hosts.find_host(A.hostname).query_misses == 3


def test_a_server_that_does_not_speak_of_an_instance_is_told_of_it_again():
    made = enabled()
    made.create_instance(named(uuid=V))
    drain_effects(made)
    query = send(A, datagram.QRY_INST, Query())
    for _ in range(2):  # one lost answer is no reason
        made.run_audit()
        assert of(Send, drain_effects(made))[0] == query
        made.events.note_answer(info())
    made.run_audit()
    assert of(Send, drain_effects(made))[:-1] == [send(A, ADD, SetInstance(V, False)), query]
    made.run_audit()
    assert of(Send, drain_effects(made))[:-1] == [send(A, ADD, SetInstance(V, False)), query]
    made.run_audit()  # now it has been silent about both
    adds = [send(A, ADD, SetInstance(U, True)), send(A, ADD, SetInstance(V, False))]
    assert of(Send, drain_effects(made))[:-1] == [*adds, query]


# --- whatever happens ---

UUIDS = (U, V)
ONE_HOST = st.sampled_from([A, B])
ONE_UUID = st.sampled_from(UUIDS)
INFO = st.builds(info, ONE_HOST, ONE_UUID, st.booleans(), st.booleans())
ORIGIN = st.one_of(st.none(), st.builds(origin, st.integers(1, 9)))
NAME = st.sampled_from([*HOSTS, ""])
SERIAL = st.one_of(st.integers(1, 40), st.just(NEWEST))
CLOCK = st.sampled_from([NOW, NOW + 1, NOW + 10])  # s, monotonic
STEP = st.one_of(
    st.tuples(st.just("note_host"), ONE_HOST),
    st.tuples(st.just("delete_host"), ONE_HOST),
    st.tuples(st.just("create_instance"), st.builds(named, ONE_HOST, ONE_UUID)),
    st.tuples(st.just("set_instance"), st.builds(named, ONE_HOST, ONE_UUID), st.booleans(), CLOCK),
    st.tuples(st.just("delete_instance"), ONE_UUID),
    st.tuples(st.sampled_from(["note_state", "note_answer"]), INFO, ORIGIN),
    st.tuples(st.just("note_illness"), st.builds(info, ONE_HOST, ONE_UUID), ORIGIN),
    st.tuples(st.just("note_loss"), st.one_of(INFO, st.builds(loss, ONE_HOST, ONE_UUID)), ORIGIN),
    st.tuples(st.just("note_host_state"), st.sampled_from(list(HOSTS)), st.booleans(), SERIAL),
    st.tuples(st.just("note_list"), st.sampled_from(list(HOSTS)),
              st.lists(st.builds(Listed, ONE_UUID, NAME, st.booleans()), max_size=2), SERIAL, CLOCK),
    st.tuples(st.just("run_audit")),
)  # fmt: skip


@settings(deadline=None, max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=25))
def test_the_servers_and_the_vim_are_always_told_where_an_instance_is(steps):
    made = Inventory()
    believed = set()  # (ip, uuid): which server was told to know, or said that it knows, which instance
    for name, *values in itertools.chain(steps, [("run_audit",)]):
        owner = made.events if hasattr(made.events, name) else made
        if owner is made.events:
            believed.add((HOSTS[values[0].hostname].ip, values[0].uuid))
        try:
            getattr(owner, name)(*values)
        except Failure:
            pass
        for effect in drain_effects(made):
            if isinstance(effect, ReportAlarm):
                one = made.instances[effect.uuid]
                assert one.reporting and one.host.reporting is not False
            if isinstance(effect, Send) and effect.cmd == DEL:
                believed.discard((effect.ip, effect.command.uuid))
            elif isinstance(effect, Send) and effect.cmd in (ADD, MOD):
                believed.add((effect.ip, effect.command.uuid))
                assert effect.command.reporting == made.instances[effect.command.uuid].reporting
        for uuid, one in made.instances.items():
            assert one.uuid == uuid and one.host.instances[uuid] is one and one.host in list(made.hosts)
            assert (one.host.ip, uuid) in believed
        assert sum(len(host.instances) for host in made.hosts) == len(made.instances)
        for host in made.hosts:  # nothing stays adopted for ever
            assert host.list_wanted or not any(one.adopted for one in host.instances.values())
