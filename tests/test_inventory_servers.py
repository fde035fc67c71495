"""What the inventory does about the guestServers' events, and before the VIM's list (spec 2)."""

import pytest
from inventory_facts import (
    ADD,
    DEL,
    MOD,
    A,
    B,
    U,
    V,
    enabled,
    info,
    inventory,
    kinds,
    loss,
    named,
    of,
    send,
)

from guestmtce.agent.inventory import AskMtc, Drop, Send, TellAction, TellAlarm, TellService, Withdraw
from guestmtce.wire import channel, datagram, vim
from guestmtce.wire.datagram import DeleteInstance, Query, SetHost, SetInstance
from guestmtce.wire.vim import Listed, Named

# --- the guestServers' events ---


@pytest.mark.parametrize("heartbeating", [True, False])
def test_running_and_stopped_are_stored_and_told(heartbeating):
    made = inventory()
    made.set(named(), True)
    made.take_effects()
    made.server_state(info(heartbeating=heartbeating), asked=False)
    effects = made.take_effects()
    body = vim.service_event(U, A.hostname, True, heartbeating, 601)
    assert of(TellService, effects) == [TellService(U, body)]
    service = body["event-data"]["services"][0]
    assert service["restart-timeout"] == ("601" if heartbeating else "0")
    assert made.reply(U)["services"] == [service]
    assert made.instances[U].repair_action == "reboot"


def test_a_restart_withdraws_every_failure_an_answer_only_the_loss():
    made = enabled()
    made.server_state(info(), asked=False)
    assert of(Withdraw, made.take_effects())[0].states == ("failed", "unhealthy")
    # An ill guest heartbeats: the next audit must not take its alarm back.
    made.server_state(info(), asked=True)
    assert of(Withdraw, made.take_effects())[0].states == ("failed",)
    for asked in (True, False):
        made.server_state(info(heartbeating=False), asked=asked)
        assert of(Withdraw, made.take_effects()) == []


@pytest.mark.parametrize("reporting", [True, False])
@pytest.mark.parametrize("heartbeating", [True, False])
def test_an_answer_that_differs_is_repaired_both_ways(reporting, heartbeating):
    made = enabled()
    made.server_state(info(reporting=reporting, heartbeating=heartbeating), asked=True)
    effects = made.take_effects()
    assert of(Send, effects) == ([] if reporting else [send(A, MOD, SetInstance(U, True))])
    assert len(of(TellService, effects)) == (not heartbeating)
    assert made.instances[U].reporting and made.instances[U].heartbeating == heartbeating


def test_an_ill_guest_whose_start_was_not_heard_is_told_as_started():
    made = enabled(heartbeating=False)
    made.server_ill(info())
    assert kinds(made.take_effects()) == [TellService, TellAlarm]
    made.server_ill(info())
    assert kinds(made.take_effects()) == [TellAlarm]


@pytest.mark.parametrize("word", ["accept", "complete", "reject", "timeout", "error", "unknown"])
@pytest.mark.parametrize("kind", channel.NOTIFICATION_TYPES)
def test_outcomes_are_told(word, kind):
    made = enabled()
    made.server_vote(datagram.VoteResult(A.hostname, U, kind, "stop", word, "why"))
    told = made.take_effects()
    assert told == [TellAction(U, vim.action_event(U, kind, "stop", word, "why"))]
    consent = "allow" if kind == channel.VOTE else "proceed"
    response = told[0].body["event-data"]["guest-response"]
    assert response == ("reject" if word == "reject" else consent)


EVENTS = {
    "running": lambda made, host, uuid: made.server_state(info(host, uuid), asked=False),
    "answer": lambda made, host, uuid: made.server_state(info(host, uuid), asked=True),
    "ill": lambda made, host, uuid: made.server_ill(info(host, uuid)),
    "loss": lambda made, host, uuid: made.server_loss(loss(host, uuid)),
    "vote": lambda made, host, uuid: made.server_vote(
        datagram.VoteResult(host.hostname, uuid, channel.VOTE, "stop", "accept", "")
    ),
    "ready": lambda made, host, uuid: made.server_ready(datagram.Ready(host.hostname)),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_of_an_unknown_host_are_dropped_and_ask_for_hosts(name):
    made = inventory(A)
    EVENTS[name](made, B, U)
    assert made.take_effects() == [AskMtc()]
    assert made.instances == {}


@pytest.mark.parametrize("name", [name for name in EVENTS if name != "ready"])
def test_events_of_the_wrong_host_are_dropped_and_the_server_told(name):
    made = enabled()
    before = made.reply(U)
    EVENTS[name](made, B, U)
    assert made.take_effects() == ([] if name == "vote" else [send(B, DEL, DeleteInstance(U))])
    EVENTS[name](made, A, V)  # unknown although the VIM's list has arrived
    assert made.take_effects() == ([] if name == "vote" else [send(A, DEL, DeleteInstance(V))])
    assert made.reply(U) == before and list(made.instances) == [U]


def test_a_server_that_started_learns_all_that_we_know():
    made = enabled()
    made.create(named(uuid=V))
    made.create(Named("99999999-2222-3333-4444-555555555555", B.hostname, {}))
    made.take_effects()
    ready, query = datagram.Ready(A.hostname), send(A, datagram.QRY_INST, Query())
    mods = [send(A, MOD, SetInstance(U, True)), send(A, MOD, SetInstance(V, False))]
    made.server_ready(ready)
    assert made.take_effects() == [*mods, query]
    made.host_reporting(A.uuid, False)
    made.take_effects()
    made.server_ready(ready)
    assert made.take_effects() == [send(A, datagram.MOD_HOST, SetHost(A.uuid, False)), *mods, query]


# --- before the VIM's list ---


@pytest.mark.parametrize("reporting", [True, False])
def test_before_the_list_an_unknown_instance_is_adopted_with_the_servers_reporting(reporting):
    made = inventory(listed=False)
    made.server_state(info(reporting=reporting), asked=True)
    effects = made.take_effects()
    assert of(Send, effects) == []
    assert made.reply(U) == vim.services_reply(U, A.hostname, reporting, True, 601)
    made.server_loss(loss())
    assert kinds(made.take_effects()) == ([TellAlarm] if reporting else [])
    made.vim_instances(A.hostname, None)  # the VIM is down
    assert made.take_effects() == [] and U in made.instances


LISTS = {
    "not in it": ([], [send(A, DEL, DeleteInstance(U)), Drop(U)], None),
    "enabled": ([Listed(U, A.hostname, True)], [send(A, ADD, SetInstance(U, True))], True),
    "disabled": ([Listed(U, A.hostname, False)], [send(A, ADD, SetInstance(U, False))], False),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_list_decides_about_the_adopted(name):
    listed, effects, reporting = LISTS[name]
    made = inventory(listed=False)
    made.server_state(info(), asked=True)
    made.take_effects()
    made.vim_instances(A.hostname, listed)
    assert made.take_effects() == effects
    assert {one.uuid: one.reporting for one in made.instances.values()} == (
        {} if reporting is None else {U: reporting}
    )


def test_what_the_vim_commanded_is_newer_than_its_list():
    made = inventory(listed=False)
    made.set(named(), True)
    made.server_state(info(uuid=V), asked=True)
    made.create(named(uuid=V))
    made.take_effects()
    made.vim_instances(A.hostname, [Listed(U, A.hostname, False)])
    assert made.take_effects() == []
    assert {one.uuid: one.reporting for one in made.instances.values()} == {U: True, V: True}


def test_the_list_alone_adds_and_never_takes_an_instance_from_a_host():
    made = inventory(A, B, listed=False)
    made.vim_instances(A.hostname, [Listed(U, A.hostname, True)])
    assert made.take_effects() == [send(A, ADD, SetInstance(U, True))]
    made.vim_instances(B.hostname, [Listed(U, B.hostname, True)])
    assert made.take_effects() == [] and made.instances[U].hostname == A.hostname
    made.vim_instances("nobody", [])
    assert made.take_effects() == []


@pytest.mark.parametrize("name", ["running", "answer", "loss", "ill"])
def test_before_the_list_no_server_is_told_to_forget_what_another_has_too(name):
    """While it migrates both ends have its channel; the one that answers first may be the wrong one."""
    made = inventory(A, B, listed=False)
    made.server_state(info(A, heartbeating=False), asked=True)
    made.take_effects()
    made.server_state(info(B, heartbeating=False), asked=True)
    assert made.take_effects() == [] and made.instances[U].hostname == A.hostname
    EVENTS[name](made, B, U)
    effects = made.take_effects()
    assert of(Send, effects) == [] and made.instances[U].hostname == B.hostname
    told = {"running": TellService, "answer": TellService, "loss": TellAlarm, "ill": TellAlarm}[name]
    assert [effect.body["hostname"] for effect in of(told, effects)] == [B.hostname]
    made.instances[U].heartbeating = True
    EVENTS[name](made, A, U)
    assert made.take_effects() == [] and made.instances[U].hostname == B.hostname
    made.vim_instances(A.hostname, [Listed(U, A.hostname, True)])
    assert made.take_effects() == [
        send(B, DEL, DeleteInstance(U)), Drop(U), send(A, ADD, SetInstance(U, True)),
    ]  # fmt: skip
