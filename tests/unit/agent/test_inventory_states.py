"""A host's state is the VIM's answer of a moment, and an instance's first state is always told."""

import pytest
from inventory_facts import (
    NOW,
    A,
    U,
    answer_list,
    answer_state,
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

from guestmtce.agent.inventory import Inventory
from guestmtce.agent.model import AskVim, Send, TellAlarm, TellService, Withdraw
from guestmtce.wire import datagram, guest_channel
from guestmtce.wire.datagram import SetHost
from guestmtce.wire.vim_http import Listed

ON_A = Listed(U, A.hostname, True)

# --- the state of a host ---


def state_questions(made):
    return [one.serial for one in of(AskVim, made.take_effects()) if not one.instances]


def test_a_host_that_is_disabled_at_the_moment_is_asked_about_at_every_audit_until_it_is_enabled():
    made = enabled()
    answer_state(made, A.hostname, False)
    made.server_loss(loss())
    assert of(TellAlarm, made.take_effects()) == []
    for _ in range(3):
        made.audit()
        assert len(state_questions(made)) == 2  # B's is not known at all
        answer_state(made, A.hostname, False)
        assert made.take_effects() == []
    answer_state(made, A.hostname, True)
    assert made.take_effects() == [send(A, datagram.MOD_HOST, SetHost(A.uuid, True))]
    made.audit()
    assert len(state_questions(made)) == 1
    made.server_loss(loss())
    assert len(of(TellAlarm, made.take_effects())) == 1


@pytest.mark.parametrize("before", [None, True, False])
@pytest.mark.parametrize("answer", [None, True, False])
def test_the_state_is_asked_whenever_mtcagent_names_the_host(before, answer):
    made = enabled()
    answer_state(made, A.hostname, before)
    made.take_effects()
    made.host_set(A)
    assert made.take_effects() == [asks(A, False)]
    answer_state(made, A.hostname, answer)
    after = before if answer is None else answer
    assert made.host(A.uuid).reporting is after
    sent = [] if after is before else [send(A, datagram.MOD_HOST, SetHost(A.uuid, after))]
    withdrawn = [Withdraw] * (after is False and before is not False)
    effects = made.take_effects()
    assert of(Send, effects) == sent and [type(one) for one in of(Withdraw, effects)] == withdrawn


@pytest.mark.parametrize("command", [True, False])
@pytest.mark.parametrize("answer", [True, False])
def test_what_the_vim_commands_of_a_host_stays_until_it_commands_otherwise(command, answer):
    made = enabled()
    answer_state(made, A.hostname, not command)
    made.host_reporting(A.uuid, command)
    made.take_effects()
    made.host_set(A)
    made.audit()
    assert A.uuid not in [one.uuid for one in of(AskVim, made.take_effects())]
    answer_state(made, A.hostname, answer)
    assert made.host(A.uuid).reporting is command and made.take_effects() == []
    made.host_reporting(A.uuid, not command)
    assert made.host(A.uuid).reporting is not command


def test_the_newer_of_two_answers_about_a_host_counts_whichever_comes_last():
    made = Inventory()
    made.host_set(A)
    first = state_questions(made)[0]
    made.audit()
    second = state_questions(made)[0]
    answer_state(made, A.hostname, True, second)
    answer_state(made, A.hostname, False, first)
    assert made.host(A.uuid).reporting is True


# --- the first answer after a start ---


@pytest.mark.parametrize("heartbeating", [True, False])
@pytest.mark.parametrize("by", ["list", "command", "server"])
def test_the_first_answer_about_an_instance_is_told_whatever_it_says(heartbeating, by):
    """The VIM may still believe what the agent before this one told it."""
    made = inventory(listed=by == "command")
    if by == "list":
        answer_list(made, A.hostname, [ON_A])
    elif by == "command":
        made.set(named(), True, NOW)
    made.take_effects()
    for told in (1, 0, 0):
        made.server_answer(info(heartbeating=heartbeating))
        events = of(TellService, made.take_effects())
        status = [one.body["event-data"]["services"][0]["status"] for one in events]
        assert status == [datagram.state_word(heartbeating)] * told
    made.server_answer(info(heartbeating=not heartbeating))
    assert len(of(TellService, made.take_effects())) == 1


def test_after_an_event_the_first_answer_that_says_the_same_is_no_news():
    for tell in (Inventory.server_state, Inventory.server_ill):
        made = inventory()
        made.set(named(), True, NOW)
        made.take_effects()
        tell(made, info(heartbeating=False))
        assert len(of(TellService, made.take_effects())) == 1
        made.server_answer(info(heartbeating=False))
        assert of(TellService, made.take_effects()) == []


def test_a_new_guestservers_first_answer_does_not_undo_its_own_loss():
    """An old guestServer is exchanged for ours, or back, between two of its datagrams."""
    for before, after in (
        (None, origin(1, sender=9)),
        (origin(900), None),
        (origin(900), origin(1, sender=9)),
    ):
        made = enabled()
        made.server_answer(info(), before)
        made.server_loss(info(heartbeating=False), after)
        effects = made.take_effects()
        assert len(of(TellAlarm, effects)) == 1
        made.server_answer(info(heartbeating=False), after and origin(2, sender=9))
        effects = made.take_effects()
        assert of(Withdraw, effects) == [] and len(of(TellService, effects)) == 1
        assert made.ask(named(), guest_channel.VOTE, "stop", NOW)["timeout"] == "0"
