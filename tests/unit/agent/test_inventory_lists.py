"""The VIM's lists and host states are pictures of a moment (docs/protocol/3-vim-http.md#hosts)."""

import pytest
from inventory_facts import (
    ADD,
    DEL,
    NOW,
    A,
    B,
    U,
    V,
    answer_list,
    asks,
    drain_effects,
    drain_lines,
    enabled,
    info,
    inventory,
    loss,
    named,
    of,
    origin,
    send,
)

from guestmtce.agent import ledger
from guestmtce.agent.effects import AskVim, ForgetVimEvents, ReportAlarm, ReportService, Send
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.wire.datagram import DeleteInstance, SetInstance
from guestmtce.wire.vim_http import Failure, Listed

ON_A, ON_B = Listed(U, A.hostname, True), Listed(U, B.hostname, True)


def question(made):
    """The serial of the list that was asked for, or None."""
    serials = [one.serial for one in of(AskVim, drain_effects(made)) if one.instances]
    assert len(serials) <= 1
    return serials[0] if serials else None


def settled(*hosts):
    """Hosts whose list came so long ago that another one may be asked for at once."""
    made = inventory(*hosts)
    for _ in range(2):
        made.run_audit()
    drain_effects(made)
    return made


# --- no DEL_INST on the word of an old list ---

NAMED_BY = {
    "running": lambda made: made.events.note_state(info()),
    "stopped": lambda made: made.events.note_state(info(heartbeating=False)),
    "answer": lambda made: made.events.note_answer(info()),
    "ill": lambda made: made.events.note_illness(info()),
    "loss": lambda made: made.events.note_loss(loss()),
}


@pytest.mark.parametrize("name", NAMED_BY)
@pytest.mark.parametrize("provisioned", [True, False])
def test_what_the_last_list_lacks_is_asked_for_again_before_its_server_forgets_it(name, provisioned):
    made = settled()
    NAMED_BY[name](made)
    effects = drain_effects(made)
    assert of(ReportService, effects) == []
    assert [one for one in of(Send, effects) if one.cmd == DEL] == []
    assert [one for one in of(AskVim, effects) if one.instances] == [asks(A, True)]
    answer_list(made, A.hostname, [ON_A] if provisioned else [])
    effects = drain_effects(made)
    if provisioned:
        assert send(A, ADD, SetInstance(U, True)) in effects and not made.instances[U].adopted
        assert len(of(ReportService, effects)) == (name in ("running", "stopped", "answer"))
    else:
        assert effects == [send(A, DEL, DeleteInstance(U)), ForgetVimEvents(U)] and not made.instances


def test_a_list_that_was_asked_for_before_a_server_named_the_instance_is_no_word_about_it():
    made = Inventory()
    made.note_host(A)
    first = question(made)
    made.events.note_answer(info())
    answer_list(made, A.hostname, [], first)
    assert question(made) is None and U in made.instances  # it was asked just now
    made.run_audit()
    drain_effects(made)
    made.run_audit()
    second = question(made)
    assert second > first
    answer_list(made, A.hostname, [], first)  # the old one once more
    assert of(Send, drain_effects(made)) == [] and U in made.instances
    answer_list(made, A.hostname, [], second)
    assert drain_effects(made) == [send(A, DEL, DeleteInstance(U)), ForgetVimEvents(U)]


@pytest.mark.parametrize("adopted", [True, False])
def test_what_a_server_may_not_know_to_have_been_disabled_is_enabled_anew(adopted):
    made = Inventory([U])
    made.note_host(A)
    if adopted:
        made.events.note_loss(info(heartbeating=False), origin(1))
    answer_list(made, A.hostname, [ON_A])
    effects = drain_effects(made)
    (added,) = [one for one in of(Send, effects) if one.cmd == ADD]
    assert added.command == SetInstance(U, True) and added.anew
    assert of(ReportAlarm, effects) == []


def test_a_list_is_asked_for_at_most_once_per_audit_period_and_until_it_comes():
    made, asked = settled(), []
    for step in range(40):
        made.events.note_answer(info(uuid="%08x%s" % (step, U[8:])))
        asked.append(question(made) is not None)
        if step % 4 == 3:
            made.run_audit()
            asked[-1] = question(made) is not None
    times = [step for step, yes in enumerate(asked) if yes]
    assert times == [0, 7, 11, 15, 19, 23, 27, 31, 35, 39]  # at once, then four steps apart or more
    answer_list(made, A.hostname, [])
    for _ in range(3):
        made.run_audit()
    assert question(made) is None and not made.instances


def test_a_silent_vim_makes_no_server_forget_anything():
    made = settled()
    made.events.note_answer(info())
    for _ in range(20):
        made.run_audit()
        answer_list(made, A.hostname, None)
        assert [one for one in of(Send, drain_effects(made)) if one.cmd == DEL] == []
    assert made.query_instance(U)["services"][0]["status"] == "enabled"


COMMANDS = {
    "create": lambda made: made.create_instance(named()),
    "set": lambda made: made.set_instance(named(), True, NOW),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_vim_provisions_meanwhile_is_kept_whatever_an_older_list_says(name):
    made = settled()
    made.events.note_state(info())
    asked = question(made)
    COMMANDS[name](made)
    assert len(of(ReportService, drain_effects(made))) == 1  # the VIM could not be told before
    answer_list(made, A.hostname, [], asked)
    assert drain_effects(made) == []
    assert made.query_instance(U)["services"][0]["status"] == "enabled"  # it heartbeats at once


def test_a_loss_waits_for_the_list_that_says_whose_the_instance_is():
    for listed, told in (([ON_A], 1), ([], 0)):
        made = settled()
        assert not made.events.note_loss(info(heartbeating=False), origin(5))
        assert of(ReportAlarm, drain_effects(made)) == []
        answer_list(made, A.hostname, listed)
        assert len(of(ReportAlarm, drain_effects(made))) == told


def test_nobody_names_more_than_a_host_has(monkeypatch):
    monkeypatch.setattr(ledger, "ADOPTED_MAX", 3)
    made = settled()
    for step in range(5):
        assert made.events.note_state(info(uuid="%08x%s" % (step, U[8:])))
    assert len(made.instances) == 3 and any("compute-0 names more than" in line for line in drain_lines(made))
    made.create_instance(named())  # the VIM may
    assert len(made.instances) == 4


def test_two_servers_that_name_one_unlisted_instance_both_keep_it_until_the_vim_has_said():
    made = settled(A, B)
    made.events.note_answer(info(A, heartbeating=False))
    made.events.note_answer(info(B, heartbeating=False))
    assert [one for one in of(Send, drain_effects(made)) if one.cmd == DEL] == []
    made.events.note_state(info(B))
    effects = drain_effects(made)
    assert asks(B, True) in effects and [one for one in of(Send, effects) if one.cmd == DEL] == []
    answer_list(made, A.hostname, [])
    assert drain_effects(made) == []  # it is not A's to forget any more
    answer_list(made, B.hostname, [ON_B])
    assert of(Send, drain_effects(made)) == [send(B, ADD, SetInstance(U, True))]


# --- no instance brought back by a list older than its DELETE ---


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("asked_before", [True, False])
def test_only_a_list_that_was_asked_for_after_a_delete_brings_an_instance_back(known, asked_before):
    made = Inventory()
    made.note_host(A)
    asked = question(made)
    if known:
        made.set_instance(named(), True, NOW)
        made.delete_instance(U)
    else:
        with pytest.raises(Failure):
            made.delete_instance(U)
    if not asked_before:
        made.run_audit()
        asked = question(made)
    answer_list(made, A.hostname, [ON_A, Listed(V, A.hostname, True)], asked)
    assert set(made.instances) == ({V} if asked_before else {U, V})
    drain_effects(made)
    made.run_audit()
    drain_effects(made)
    made.run_audit()
    assert (question(made) is not None) is asked_before  # another one is asked for


def test_a_server_that_names_a_deleted_instance_is_told_at_once():
    made = enabled()
    made.delete_instance(U)
    drain_effects(made)
    made.events.note_answer(info())  # it was under way
    assert drain_effects(made) == [send(A, DEL, DeleteInstance(U))] and not made.instances
    made.create_instance(named())
    drain_effects(made)
    made.events.note_answer(info(reporting=False))
    assert of(Send, drain_effects(made)) == [] and U in made.instances


@pytest.mark.parametrize("by", COMMANDS)
def test_a_list_from_before_a_move_moves_nothing_back(by):
    made = Inventory()
    for host in (A, B):
        made.note_host(host)
    asked = of(AskVim, drain_effects(made))[1].serial
    made.events.note_state(info(A))
    if by == "set":
        made.set_instance(named(B), True, NOW)
    else:
        made.create_instance(named(B))
    drain_effects(made)
    answer_list(made, A.hostname, [ON_A], asked)
    assert drain_effects(made) == [] and made.instances[U].host.name == B.hostname


def test_of_very_many_deleted_instances_none_is_brought_back(monkeypatch):
    monkeypatch.setattr(ledger, "DELETED_MAX", 2)
    made = Inventory()
    made.note_host(A)
    asked = question(made)
    uuids = ["%08x%s" % (step, U[8:]) for step in range(5)]
    for uuid in [*uuids, "no uuid", "x" * 9999]:
        with pytest.raises(Failure):
            made.delete_instance(uuid)
    assert len(made._ledger._deleted) == 2
    entries = [Listed(uuid, A.hostname, True) for uuid in uuids]
    answer_list(made, A.hostname, entries, asked)
    assert not made.instances
    answer_list(made, A.hostname, entries)
    assert set(made.instances) == set(uuids)


# --- host names in a list ---

PLACES = {
    "its name": (A.hostname, A, A.hostname),
    "null": ("", A, A.hostname),
    "another spelling": ("Compute-0.example.com", A, "Compute-0.example.com"),
    "an unknown name": ("nowhere", A, A.hostname),
    "another host": (B.hostname, B, B.hostname),  # a VIM that lists more than was asked for
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("adopted", [True, False])
def test_an_entry_is_of_the_host_that_it_names_else_of_the_one_that_was_asked_for(name, adopted):
    hostname, host, spelled = PLACES[name]
    made = inventory(A, B, listed=False)
    if adopted:
        made.events.note_answer(info(A))
    answer_list(made, A.hostname, [Listed(U, hostname, True)])
    assert made.instances[U].host.name == host.hostname and not made.instances[U].adopted
    assert made.query_instance(U)["hostname"] == spelled


# --- the questions on their way ---


def test_a_newer_question_takes_the_place_of_one_that_waits_but_not_of_one_that_is_under_way():
    outbox = VimQueue(0.5, 10.0)
    for serial, instances in ((1, False), (2, True)):
        outbox.accept_effect(AskVim(A.uuid, A.hostname, instances, serial))
    under_way = outbox.next_request(0.0)
    for serial, instances in ((3, False), (4, True), (5, True)):
        outbox.accept_effect(AskVim(A.uuid, A.hostname, instances, serial))
    outbox.note_delivered(under_way)
    waited = outbox.next_request(0.0)
    outbox.note_delivered(waited)
    assert [(item.topic, item.serial) for item in (under_way, waited)] == [("state", 1), ("instances", 5)]
    assert outbox.next_request(0.0) is None


def test_what_the_vim_enables_and_only_a_server_has_named_is_enabled_anew():
    made = settled()
    made.events.note_state(info())
    drain_effects(made)
    made.set_instance(named(), True, NOW)
    made.set_instance(named(), True, NOW)
    sent = [one for one in of(Send, drain_effects(made)) if isinstance(one.command, SetInstance)]
    assert [one.anew for one in sent] == [True, False]


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("later, anew", [(0.0, True), (1.9, True), (2.0, False), (2.1, False)])
def test_what_the_vim_enables_just_after_its_list_said_so_is_enabled_anew(later, anew, adopted):
    """An agent before this one was told that it is disabled, and killed: the server may not have heard."""
    made = inventory(A, listed=False)
    if adopted:
        made.events.note_answer(info())
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)], now=NOW)
    drain_effects(made)
    for _ in range(2):
        made.set_instance(named(), True, NOW + later)
    assert [one.anew for one in of(Send, drain_effects(made))] == [anew, False]


def test_a_loss_of_an_instance_that_the_last_list_lacks_waits_for_two_lists_that_do_not_come():
    made = settled()
    assert not made.events.note_loss(info(heartbeating=False), origin(5))
    drain_effects(made)
    unanswered = 0
    while unanswered < 2:
        made.run_audit()
        effects = drain_effects(made)
        unanswered += asks(A, True) in effects
        assert len(of(ReportAlarm, effects)) == (unanswered == 2)


def test_only_the_first_list_of_a_host_is_logged():
    made = Inventory()
    made.note_host(A)
    for _ in range(3):
        answer_list(made, A.hostname, [])
    assert sum("the VIM lists 0 instances" in line for line in drain_lines(made)) == 1
