"""What the inventory does about the guestServers' events, and before the VIM's list.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events
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
    V,
    answer_list,
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

from guestmtce.agent.effects import (
    AskMtc,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Send,
    Withdraw,
)
from guestmtce.wire import datagram, guest_channel, vim_http
from guestmtce.wire.datagram import DeleteInstance, Query, SetHost, SetInstance
from guestmtce.wire.vim_http import Failure, Listed, Named

# --- the guestServers' events ---


@pytest.mark.parametrize("heartbeating", [True, False])
def test_running_and_stopped_are_stored_and_told(heartbeating):
    made = inventory()
    made.set_instance(named(), True, NOW)
    drain_effects(made)
    made.events.note_state(info(heartbeating=heartbeating))
    effects = drain_effects(made)
    body = vim_http.service_event(U, A.hostname, True, heartbeating, 601)
    assert of(ReportService, effects) == [ReportService(U, body)]
    service = body["event-data"]["services"][0]
    assert service["restart-timeout"] == ("601" if heartbeating else "0")
    assert made.query_instance(U)["services"] == [service]
    assert made.instances[U].repair_action == "reboot"


def test_a_restart_withdraws_every_failure_an_answer_only_the_loss():
    made = enabled()
    made.events.note_state(info())
    (withdraw,) = of(Withdraw, drain_effects(made))
    assert (withdraw.states, withdraw.unwanted) == (("failed", "unhealthy"), False)
    # An ill guest heartbeats: the next audit must not take its alarm back.
    made.events.note_answer(info())
    assert of(Withdraw, drain_effects(made))[0].states == ("failed",)
    for tell in (made.events.note_answer, made.events.note_state):
        tell(info(heartbeating=False))
        assert of(Withdraw, drain_effects(made)) == []


@pytest.mark.parametrize("reporting", [True, False])
@pytest.mark.parametrize("heartbeating", [True, False])
def test_an_answer_that_differs_is_repaired_both_ways(reporting, heartbeating):
    made = enabled()
    made.events.note_answer(info(reporting=reporting, heartbeating=heartbeating))
    effects = drain_effects(made)
    assert of(Send, effects) == ([] if reporting else [send(A, MOD, SetInstance(U, True))])
    assert len(of(ReportService, effects)) == (not heartbeating)
    assert made.instances[U].reporting and made.instances[U].heartbeating == heartbeating


def test_an_ill_guest_whose_start_was_not_heard_is_told_as_started():
    made = enabled(heartbeating=False)
    made.events.note_illness(info())
    assert kinds(drain_effects(made)) == [ReportAlarm, ReportService]
    made.events.note_illness(info())
    assert kinds(drain_effects(made)) == [ReportAlarm]


@pytest.mark.parametrize("word", ["accept", "complete", "reject", "timeout", "error", "unknown"])
@pytest.mark.parametrize("kind", guest_channel.NOTIFICATION_TYPES)
def test_outcomes_are_told(word, kind):
    made = enabled()
    made.events.note_outcome(datagram.VoteResult(A.hostname, U, kind, "stop", word, "why"), NOW)
    told = drain_effects(made)
    body = vim_http.action_event(U, kind, "stop", word, "why")
    assert [(effect.uuid, effect.body) for effect in told] == [(U, body)]
    consent = "allow" if kind == guest_channel.VOTE else "proceed"
    response = told[0].body["event-data"]["guest-response"]
    assert response == ("reject" if word == "reject" else consent)


EVENTS = {
    "running": lambda made, host, uuid: made.events.note_state(info(host, uuid)),
    "answer": lambda made, host, uuid: made.events.note_answer(info(host, uuid)),
    "ill": lambda made, host, uuid: made.events.note_illness(info(host, uuid)),
    "loss": lambda made, host, uuid: made.events.note_loss(loss(host, uuid)),
    "vote": lambda made, host, uuid: made.events.note_outcome(
        datagram.VoteResult(host.hostname, uuid, guest_channel.VOTE, "stop", "accept", ""), NOW
    ),
    "ready": lambda made, host, uuid: made.events.note_ready(datagram.Ready(host.hostname)),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_of_an_unknown_host_are_dropped_and_ask_for_hosts(name):
    made = inventory(A)
    assert not EVENTS[name](made, B, U)  # the server is to say it again
    assert drain_effects(made) == [AskMtc()]
    assert made.instances == {}


@pytest.mark.parametrize("name", [name for name in EVENTS if name != "ready"])
def test_events_of_the_wrong_host_are_dropped_and_the_server_told(name):
    made = enabled()
    before = made.query_instance(U)
    assert EVENTS[name](made, B, U)
    assert drain_effects(made) == ([] if name == "vote" else [send(B, DEL, DeleteInstance(U))])
    with pytest.raises(Failure):
        made.delete_instance(V)
    assert EVENTS[name](made, A, V)  # the VIM does not want it
    assert drain_effects(made) == ([] if name == "vote" else [send(A, DEL, DeleteInstance(V))])
    assert made.query_instance(U) == before and list(made.instances) == [U]


def test_a_server_that_started_learns_all_that_we_know():
    made = enabled()
    made.create_instance(named(uuid=V))
    made.create_instance(Named("99999999-2222-3333-4444-555555555555", B.hostname, {}))
    drain_effects(made)
    ready, query = datagram.Ready(A.hostname), send(A, datagram.QRY_INST, Query())
    mods = [send(A, MOD, SetInstance(U, True)), send(A, MOD, SetInstance(V, False))]
    made.events.note_ready(ready)
    assert drain_effects(made) == [*mods, query]
    made.set_host_reporting(A.uuid, False)
    drain_effects(made)
    made.events.note_ready(ready)
    assert drain_effects(made) == [send(A, datagram.MOD_HOST, SetHost(A.uuid, False)), *mods, query]


# --- a loss of which not all is known ---


def unheard():
    """The instance is known from the VIM alone."""
    made = inventory()
    made.set_instance(named(), True, NOW)
    drain_effects(made)
    return made


def alarms(made):
    return [(one.body["event-data"]["services"][0]["repair-action"], one.origin)
            for one in of(ReportAlarm, drain_effects(made))]  # fmt: skip


TELLS_MORE = {
    "answer": lambda made: made.events.note_answer(info(heartbeating=False, action="migrate"), origin(6)),
    "stopped": lambda made: made.events.note_state(info(heartbeating=False, action="migrate"), origin(4)),
    "old stopped": lambda made: made.events.note_state(info(heartbeating=False, action="migrate")),
    "old answer": lambda made: made.events.note_answer(info(heartbeating=False, action="migrate")),
}


@pytest.mark.parametrize(
    ("name", "number"), [*((name, 5) for name in TELLS_MORE), ("old answer", None), ("old stopped", None)]
)
def test_a_loss_waits_until_the_repair_action_is_known_and_is_told_once(name, number):
    made, of_loss = unheard(), number and origin(number)
    for _ in range(2):
        assert made.events.note_loss(loss(), of_loss) is (number is None)
        assert drain_effects(made) == [send(A, datagram.QRY_INST, Query())]
    TELLS_MORE[name](made)
    assert alarms(made) == [("migrate", of_loss)]
    TELLS_MORE[name](made)
    if number:
        assert made.events.note_loss(loss(), of_loss)  # it said it again before it heard us
    assert alarms(made) == []


def test_a_loss_after_an_illness_of_a_known_guest_is_told_at_once():
    made = enabled()
    made.events.note_illness(info(action="stop"), origin(4))
    drain_effects(made)
    assert made.events.note_loss(loss(), origin(5))
    assert alarms(made) == [("reboot", origin(5))]


@pytest.mark.parametrize("tell", ["note_state", "note_answer"])
@pytest.mark.parametrize("adopted", [True, False])
def test_a_guest_that_is_first_heard_of_as_stopped_is_not_lost(tell, adopted):
    """As after a restart of this agent."""
    made = inventory(listed=False) if adopted else unheard()
    getattr(made.events, tell)(info(heartbeating=False), origin(5))
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)])
    assert made.instances[U].reporting and alarms(made) == []


def test_a_loss_that_tells_all_is_told_at_once():
    made = unheard()
    assert not made.events.note_loss(loss(), origin(5))
    assert made.events.note_loss(info(action="migrate"), origin(5))
    assert alarms(made) == [("migrate", origin(5))]
    made.events.note_answer(info(heartbeating=False), origin(6))
    assert alarms(made) == []


OVER = {
    "running": lambda made: made.events.note_state(info(), origin(6)),
    "answer": lambda made: made.events.note_answer(info(), origin(6)),
    "disabled": lambda made: made.set_instance(named(), False, NOW),
    "host disabled": lambda made: made.set_host_reporting(A.uuid, False),
}


@pytest.mark.parametrize("name", OVER)
def test_a_loss_that_is_over_while_it_waits_is_not_told(name):
    made = unheard()
    made.events.note_loss(loss(), origin(5))
    OVER[name](made)
    made.set_instance(named(), True, NOW)
    made.set_host_reporting(A.uuid, True)
    made.events.note_answer(info(heartbeating=False), origin(7))
    assert alarms(made) == []


def test_a_start_before_the_loss_does_not_end_its_wait():
    made = unheard()
    made.events.note_loss(loss(), origin(5))
    made.events.note_state(info(action="migrate"), origin(4))
    made.events.note_answer(info(heartbeating=False, action="migrate"), origin(6))
    assert alarms(made) == [("migrate", origin(5))]


def test_the_action_of_an_illness_is_not_the_one_of_a_loss():
    made = unheard()
    made.events.note_illness(info(action="stop"))
    assert alarms(made) == [("stop", None)]
    made.events.note_loss(loss())
    assert alarms(made) == []
    made.events.note_answer(info(heartbeating=False, action="migrate"))
    assert alarms(made) == [("migrate", None)]


def test_a_vote_of_the_unknown_is_understood_when_the_list_has_come():
    made = inventory(listed=False)
    for listed, understood, told in ((None, False, 0), ([Listed(U, A.hostname, True)], True, 1)):
        answer_list(made, A.hostname, listed)
        drain_effects(made)
        assert EVENTS["vote"](made, A, U) is understood
        assert EVENTS["vote"](made, A, V) is understood
        assert len(of(ReportAction, drain_effects(made))) == told


# --- before the VIM's list ---


@pytest.mark.parametrize("host, uuid, confirmed", [(A, U, True), (A, V, False), (B, U, True)])
def test_before_the_list_only_a_vote_of_a_known_instance_is_confirmed(host, uuid, confirmed):
    made = inventory(A, B, listed=False)
    made.events.note_answer(info())
    drain_effects(made)
    assert EVENTS["vote"](made, host, uuid) is confirmed
    assert len(of(ReportAction, drain_effects(made))) == ((host, uuid) == (A, U))


@pytest.mark.parametrize("reporting", [True, False])
def test_before_the_list_an_unknown_instance_is_adopted_with_the_servers_reporting(reporting):
    made = inventory(listed=False)
    made.events.note_answer(info(reporting=reporting))
    effects = drain_effects(made)
    assert of(Send, effects) == []
    assert made.query_instance(U) == vim_http.services_reply(U, A.hostname, reporting, True, 601)
    answer_list(made, A.hostname, None)  # the VIM is down
    assert drain_effects(made) == [] and U in made.instances


@pytest.mark.parametrize("number", [None, 5])
@pytest.mark.parametrize("listed", [True, False])
def test_a_loss_of_an_adopted_instance_waits_for_the_list(number, listed):
    """It may live elsewhere by now."""
    made, of_loss = inventory(listed=False), number and origin(number)
    assert made.events.note_loss(info(), of_loss) is (number is None)
    made.events.note_state(info(heartbeating=False), number and origin(4))
    assert alarms(made) == []
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)] if listed else [])
    assert alarms(made) == ([("reboot", of_loss)] if listed else [])
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)] if listed else [])
    assert (U in made.instances) is listed and alarms(made) == []
    if number and listed:  # it is repeated until it is confirmed
        assert made.events.note_loss(info(), of_loss)
        assert alarms(made) == []


def test_a_vim_without_a_list_is_told_of_a_loss_all_the_same():
    made = inventory(listed=False)
    assert not made.events.note_loss(info(), origin(5))
    assert not made.events.note_illness(info(action="stop"), origin(6))
    made.run_audit()
    answer_list(made, A.hostname, None)
    assert alarms(made) == []
    made.run_audit()
    assert alarms(made) == [("reboot", origin(5))]
    assert made.events.note_illness(info(action="stop"), origin(6))
    assert alarms(made) == [("stop", origin(6))]


LISTS = {
    "enabled": ([Listed(U, A.hostname, True)], [send(A, ADD, SetInstance(U, True))], True),
    "disabled": (
        [Listed(U, A.hostname, False)],
        [Withdraw(U, "reporting was disabled", unwanted=True), send(A, ADD, SetInstance(U, False))],
        False,
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_list_decides_about_the_adopted(name):
    listed, effects, reporting = LISTS[name]
    made = inventory(listed=False)
    made.events.note_answer(info())
    drain_effects(made)
    answer_list(made, A.hostname, listed)
    assert drain_effects(made) == effects
    assert {one.uuid: one.reporting for one in made.instances.values()} == {U: reporting}


def test_what_the_vim_commanded_is_newer_than_its_list():
    made = inventory(listed=False)
    made.set_instance(named(), True, NOW)
    made.events.note_answer(info(uuid=V))
    made.create_instance(named(uuid=V))
    drain_effects(made)
    answer_list(made, A.hostname, [Listed(U, A.hostname, False)])
    assert drain_effects(made) == []
    assert {one.uuid: one.reporting for one in made.instances.values()} == {U: True, V: True}


def test_the_list_alone_adds_and_never_takes_an_instance_from_a_host():
    made = inventory(A, B, listed=False)
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)])
    assert drain_effects(made) == [send(A, ADD, SetInstance(U, True))]
    answer_list(made, B.hostname, [Listed(U, B.hostname, True)])
    assert drain_effects(made) == [] and made.instances[U].hostname == A.hostname
    answer_list(made, "nobody", [])
    assert drain_effects(made) == []


@pytest.mark.parametrize("name", ["running", "answer", "loss", "ill"])
def test_before_the_list_no_server_is_told_to_forget_what_another_has_too(name):
    """While it migrates both ends have its channel; the one that answers first may be the wrong one."""
    made = inventory(A, B, listed=False)
    made.events.note_answer(info(A, heartbeating=False))
    drain_effects(made)
    made.events.note_answer(info(B, heartbeating=False))
    assert drain_effects(made) == [] and made.instances[U].hostname == A.hostname
    EVENTS[name](made, B, U)
    effects = drain_effects(made)
    assert of(Send, effects) == [] and made.instances[U].hostname == B.hostname
    told = {"running": ReportService, "answer": ReportService, "loss": ReportAlarm, "ill": ReportAlarm}[name]
    heard = [effect.body["hostname"] for effect in of(told, effects)]
    assert heard == ([] if name == "loss" else [B.hostname])
    made.instances[U].heartbeating = True
    EVENTS[name](made, A, U)
    assert drain_effects(made) == [] and made.instances[U].hostname == B.hostname
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)])
    assert drain_effects(made) == [
        send(B, DEL, DeleteInstance(U)), ForgetVimEvents(U), send(A, ADD, SetInstance(U, True)),
    ]  # fmt: skip
