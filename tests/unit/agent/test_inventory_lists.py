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
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.model import AskVim, Drop, Send, TellAlarm, TellService
from guestmtce.agent.vim_queue import Outbox
from guestmtce.wire.datagram import DeleteInstance, SetInstance
from guestmtce.wire.vim_http import Failure, Listed

ON_A, ON_B = Listed(U, A.hostname, True), Listed(U, B.hostname, True)


def question(made):
    """The serial of the list that was asked for, or None."""
    serials = [one.serial for one in of(AskVim, made.take_effects()) if one.instances]
    assert len(serials) <= 1
    return serials[0] if serials else None


def settled(*hosts):
    """Hosts whose list came so long ago that another one may be asked for at once."""
    made = inventory(*hosts)
    for _ in range(2):
        made.audit()
    made.take_effects()
    return made


# --- no DEL_INST on the word of an old list ---

NAMED_BY = {
    "running": lambda made: made.server_state(info()),
    "stopped": lambda made: made.server_state(info(heartbeating=False)),
    "answer": lambda made: made.server_answer(info()),
    "ill": lambda made: made.server_ill(info()),
    "loss": lambda made: made.server_loss(loss()),
}


@pytest.mark.parametrize("name", NAMED_BY)
@pytest.mark.parametrize("provisioned", [True, False])
def test_what_the_last_list_lacks_is_asked_for_again_before_its_server_forgets_it(name, provisioned):
    made = settled()
    NAMED_BY[name](made)
    effects = made.take_effects()
    assert of(TellService, effects) == []
    assert [one for one in of(Send, effects) if one.cmd == DEL] == []
    assert [one for one in of(AskVim, effects) if one.instances] == [asks(A, True)]
    answer_list(made, A.hostname, [ON_A] if provisioned else [])
    effects = made.take_effects()
    if provisioned:
        assert send(A, ADD, SetInstance(U, True)) in effects and not made.instances[U].adopted
        assert len(of(TellService, effects)) == (name in ("running", "stopped", "answer"))
    else:
        assert effects == [send(A, DEL, DeleteInstance(U)), Drop(U)] and not made.instances


def test_a_list_that_was_asked_for_before_a_server_named_the_instance_is_no_word_about_it():
    made = Inventory()
    made.host_set(A)
    first = question(made)
    made.server_answer(info())
    answer_list(made, A.hostname, [], first)
    assert question(made) is None and U in made.instances  # it was asked just now
    made.audit()
    made.take_effects()
    made.audit()
    second = question(made)
    assert second > first
    answer_list(made, A.hostname, [], first)  # the old one once more
    assert of(Send, made.take_effects()) == [] and U in made.instances
    answer_list(made, A.hostname, [], second)
    assert made.take_effects() == [send(A, DEL, DeleteInstance(U)), Drop(U)]


def test_a_list_is_asked_for_at_most_once_per_audit_period_and_until_it_comes():
    made, asked = settled(), []
    for step in range(40):
        made.server_answer(info(uuid="%08x%s" % (step, U[8:])))
        asked.append(question(made) is not None)
        if step % 4 == 3:
            made.audit()
            asked[-1] = question(made) is not None
    times = [step for step, yes in enumerate(asked) if yes]
    assert times == [0, 7, 11, 15, 19, 23, 27, 31, 35, 39]  # at once, then four steps apart or more
    answer_list(made, A.hostname, [])
    for _ in range(3):
        made.audit()
    assert question(made) is None and not made.instances


def test_a_silent_vim_makes_no_server_forget_anything():
    made = settled()
    made.server_answer(info())
    for _ in range(20):
        made.audit()
        answer_list(made, A.hostname, None)
        assert [one for one in of(Send, made.take_effects()) if one.cmd == DEL] == []
    assert made.reply(U)["services"][0]["status"] == "enabled"


COMMANDS = {
    "create": lambda made: made.create(named()),
    "set": lambda made: made.set(named(), True, NOW),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_vim_provisions_meanwhile_is_kept_whatever_an_older_list_says(name):
    made = settled()
    made.server_state(info())
    asked = question(made)
    COMMANDS[name](made)
    assert len(of(TellService, made.take_effects())) == 1  # the VIM could not be told before
    answer_list(made, A.hostname, [], asked)
    assert made.take_effects() == []
    assert made.reply(U)["services"][0]["status"] == "enabled"  # it heartbeats at once


def test_a_loss_waits_for_the_list_that_says_whose_the_instance_is():
    for listed, told in (([ON_A], 1), ([], 0)):
        made = settled()
        assert not made.server_loss(info(heartbeating=False), origin(5))
        assert of(TellAlarm, made.take_effects()) == []
        answer_list(made, A.hostname, listed)
        assert len(of(TellAlarm, made.take_effects())) == told


def test_nobody_names_more_than_a_host_has(monkeypatch, caplog):
    monkeypatch.setattr(ledger, "ADOPTED_MAX", 3)
    made = settled()
    for step in range(5):
        assert made.server_state(info(uuid="%08x%s" % (step, U[8:])))
    assert len(made.instances) == 3 and "compute-0 names more than" in caplog.text
    made.create(named())  # the VIM may
    assert len(made.instances) == 4


def test_two_servers_that_name_one_unlisted_instance_both_keep_it_until_the_vim_has_said():
    made = settled(A, B)
    made.server_answer(info(A, heartbeating=False))
    made.server_answer(info(B, heartbeating=False))
    assert [one for one in of(Send, made.take_effects()) if one.cmd == DEL] == []
    made.server_state(info(B))
    effects = made.take_effects()
    assert asks(B, True) in effects and [one for one in of(Send, effects) if one.cmd == DEL] == []
    answer_list(made, A.hostname, [])
    assert made.take_effects() == []  # it is not A's to forget any more
    answer_list(made, B.hostname, [ON_B])
    assert of(Send, made.take_effects()) == [send(B, ADD, SetInstance(U, True))]


# --- no instance brought back by a list older than its DELETE ---


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("asked_before", [True, False])
def test_only_a_list_that_was_asked_for_after_a_delete_brings_an_instance_back(known, asked_before):
    made = Inventory()
    made.host_set(A)
    asked = question(made)
    if known:
        made.set(named(), True, NOW)
        made.delete(U)
    else:
        with pytest.raises(Failure):
            made.delete(U)
    if not asked_before:
        made.audit()
        asked = question(made)
    answer_list(made, A.hostname, [ON_A, Listed(V, A.hostname, True)], asked)
    assert set(made.instances) == ({V} if asked_before else {U, V})
    made.take_effects()
    made.audit()
    made.take_effects()
    made.audit()
    assert (question(made) is not None) is asked_before  # another one is asked for


def test_a_server_that_names_a_deleted_instance_is_told_at_once():
    made = enabled()
    made.delete(U)
    made.take_effects()
    made.server_answer(info())  # it was under way
    assert made.take_effects() == [send(A, DEL, DeleteInstance(U))] and not made.instances
    made.create(named())
    made.take_effects()
    made.server_answer(info(reporting=False))
    assert of(Send, made.take_effects()) == [] and U in made.instances


@pytest.mark.parametrize("by", COMMANDS)
def test_a_list_from_before_a_move_moves_nothing_back(by):
    made = Inventory()
    for host in (A, B):
        made.host_set(host)
    asked = of(AskVim, made.take_effects())[1].serial
    made.server_state(info(A))
    if by == "set":
        made.set(named(B), True, NOW)
    else:
        made.create(named(B))
    made.take_effects()
    answer_list(made, A.hostname, [ON_A], asked)
    assert made.take_effects() == [] and made.instances[U].host.name == B.hostname


def test_of_very_many_deleted_instances_none_is_brought_back(monkeypatch):
    monkeypatch.setattr(ledger, "DELETED_MAX", 2)
    made = Inventory()
    made.host_set(A)
    asked = question(made)
    uuids = ["%08x%s" % (step, U[8:]) for step in range(5)]
    for uuid in [*uuids, "no uuid", "x" * 9999]:
        with pytest.raises(Failure):
            made.delete(uuid)
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
        made.server_answer(info(A))
    answer_list(made, A.hostname, [Listed(U, hostname, True)])
    assert made.instances[U].host.name == host.hostname and not made.instances[U].adopted
    assert made.reply(U)["hostname"] == spelled


# --- the questions on their way ---


def test_a_newer_question_takes_the_place_of_one_that_waits_but_not_of_one_that_is_under_way():
    outbox = Outbox(0.5, 10.0)
    for serial, instances in ((1, False), (2, True)):
        outbox.take(AskVim(A.uuid, A.hostname, instances, serial))
    under_way = outbox.next(0.0)
    for serial, instances in ((3, False), (4, True), (5, True)):
        outbox.take(AskVim(A.uuid, A.hostname, instances, serial))
    outbox.delivered(under_way)
    waited = outbox.next(0.0)
    outbox.delivered(waited)
    assert [(item.what, item.serial) for item in (under_way, waited)] == [("state", 1), ("instances", 5)]
    assert outbox.next(0.0) is None


def test_what_the_vim_enables_and_only_a_server_has_named_is_enabled_anew():
    made = settled()
    made.server_state(info())
    made.take_effects()
    made.set(named(), True, NOW)
    made.set(named(), True, NOW)
    sent = [one for one in of(Send, made.take_effects()) if isinstance(one.command, SetInstance)]
    assert [one.anew for one in sent] == [True, False]


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("later, anew", [(0.0, True), (1.9, True), (2.0, False), (2.1, False)])
def test_what_the_vim_enables_just_after_its_list_said_so_is_enabled_anew(later, anew, adopted):
    """An agent before this one was told that it is disabled, and killed: the server may not have heard."""
    made = inventory(A, listed=False)
    if adopted:
        made.server_answer(info())
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)], now=NOW)
    made.take_effects()
    for _ in range(2):
        made.set(named(), True, NOW + later)
    assert [one.anew for one in of(Send, made.take_effects())] == [anew, False]


def test_a_loss_of_an_instance_that_the_last_list_lacks_waits_for_two_lists_that_do_not_come():
    made = settled()
    assert not made.server_loss(info(heartbeating=False), origin(5))
    made.take_effects()
    unanswered = 0
    while unanswered < 2:
        made.audit()
        effects = made.take_effects()
        unanswered += asks(A, True) in effects
        assert len(of(TellAlarm, effects)) == (unanswered == 2)


def test_only_the_first_list_of_a_host_is_logged(caplog):
    caplog.set_level("INFO")
    made = Inventory()
    made.host_set(A)
    for _ in range(3):
        answer_list(made, A.hostname, [])
    assert caplog.text.count("the VIM lists 0 instances") == 1
