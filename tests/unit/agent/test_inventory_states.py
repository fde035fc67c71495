"""A host's state is the VIM's answer of a moment, and an instance's first state is always told."""

import pytest
from inventory_facts import (
    NOW,
    A,
    U,
    answer_list,
    answer_state,
    asks,
    drain_effects,
    enabled,
    info,
    inventory,
    loss,
    named,
    of,
    origin,
    send,
)

from guestmtce.agent.effects import AskVim, ReportAlarm, ReportService, Send, Withdraw
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.inventory_events import ServerEvents
from guestmtce.wire import datagram, guest_channel
from guestmtce.wire.datagram import SetHost
from guestmtce.wire.vim_http import Listed

ON_A = Listed(U, A.hostname, True)

# --- the state of a host ---


def state_questions(made):
    return [one.serial for one in of(AskVim, drain_effects(made)) if not one.instances]


def test_a_host_that_is_disabled_at_the_moment_is_asked_about_at_every_audit_until_it_is_enabled():
    made = enabled()
    answer_state(made, A.hostname, False)
    made.events.note_loss(loss())
    assert of(ReportAlarm, drain_effects(made)) == []
    for _ in range(3):
        made.run_audit()
        assert len(state_questions(made)) == 2  # B's is not known at all
        answer_state(made, A.hostname, False)
        assert drain_effects(made) == []
    answer_state(made, A.hostname, True)
    assert drain_effects(made) == [send(A, datagram.MOD_HOST, SetHost(A.uuid, True))]
    made.run_audit()
    assert len(state_questions(made)) == 1
    made.events.note_loss(loss())
    assert len(of(ReportAlarm, drain_effects(made))) == 1


@pytest.mark.parametrize("before", [None, True, False])
@pytest.mark.parametrize("answer", [None, True, False])
def test_the_state_is_asked_whenever_mtcagent_names_the_host(before, answer):
    made = enabled()
    answer_state(made, A.hostname, before)
    drain_effects(made)
    made.note_host(A)
    assert drain_effects(made) == [asks(A, False)]
    answer_state(made, A.hostname, answer)
    after = before if answer is None else answer
    assert made.find_host(A.uuid).reporting is after
    sent = [] if after is before else [send(A, datagram.MOD_HOST, SetHost(A.uuid, after))]
    withdrawn = [Withdraw] * (after is False and before is not False)
    effects = drain_effects(made)
    assert of(Send, effects) == sent and [type(one) for one in of(Withdraw, effects)] == withdrawn


@pytest.mark.parametrize("command", [True, False])
@pytest.mark.parametrize("answer", [True, False])
def test_what_the_vim_commands_of_a_host_stays_until_it_commands_otherwise(command, answer):
    made = enabled()
    answer_state(made, A.hostname, not command)
    made.set_host_reporting(A.uuid, command)
    drain_effects(made)
    made.note_host(A)
    made.run_audit()
    assert A.uuid not in [one.uuid for one in of(AskVim, drain_effects(made))]
    answer_state(made, A.hostname, answer)
    assert made.find_host(A.uuid).reporting is command and drain_effects(made) == []
    made.set_host_reporting(A.uuid, not command)
    assert made.find_host(A.uuid).reporting is not command


def test_the_newer_of_two_answers_about_a_host_counts_whichever_comes_last():
    made = Inventory()
    made.note_host(A)
    first = state_questions(made)[0]
    made.run_audit()
    second = state_questions(made)[0]
    answer_state(made, A.hostname, True, second)
    answer_state(made, A.hostname, False, first)
    assert made.find_host(A.uuid).reporting is True


# --- the first answer after a start ---


@pytest.mark.parametrize("heartbeating", [True, False])
@pytest.mark.parametrize("by", ["list", "command", "server"])
def test_the_first_answer_about_an_instance_is_told_whatever_it_says(heartbeating, by):
    """The VIM may still believe what the agent before this one told it."""
    made = inventory(listed=by == "command")
    if by == "list":
        answer_list(made, A.hostname, [ON_A])
    elif by == "command":
        made.set_instance(named(), True, NOW)
    drain_effects(made)
    for told in (1, 0, 0):
        made.events.note_answer(info(heartbeating=heartbeating))
        events = of(ReportService, drain_effects(made))
        status = [one.body["event-data"]["services"][0]["status"] for one in events]
        assert status == [datagram.state_word(heartbeating)] * told
    made.events.note_answer(info(heartbeating=not heartbeating))
    assert len(of(ReportService, drain_effects(made))) == 1


def test_after_an_event_the_first_answer_that_says_the_same_is_no_news():
    for tell in (ServerEvents.note_state, ServerEvents.note_illness):
        made = inventory()
        made.set_instance(named(), True, NOW)
        drain_effects(made)
        tell(made.events, info(heartbeating=False))
        assert len(of(ReportService, drain_effects(made))) == 1
        made.events.note_answer(info(heartbeating=False))
        assert of(ReportService, drain_effects(made)) == []


def test_a_new_guestservers_first_answer_does_not_undo_its_own_loss():
    """An old guestServer is exchanged for ours, or back, between two of its datagrams."""
    for before, after in (
        (None, origin(1, sender=9)),
        (origin(900), None),
        (origin(900), origin(1, sender=9)),
    ):
        made = enabled()
        made.events.note_answer(info(), before)
        made.events.note_loss(info(heartbeating=False), after)
        effects = drain_effects(made)
        assert len(of(ReportAlarm, effects)) == 1
        made.events.note_answer(info(heartbeating=False), after and origin(2, sender=9))
        effects = drain_effects(made)
        assert of(Withdraw, effects) == [] and len(of(ReportService, effects)) == 1
        assert made.ask_guest(named(), guest_channel.VOTE, "stop", NOW)["timeout"] == "0"
