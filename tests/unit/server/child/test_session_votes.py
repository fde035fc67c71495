"""Votes and notices: every outcome. The silence that a notice may bring is in `test_session_silence`."""

from __future__ import annotations

import pytest
from session_driver import BEGIN, GUEST, Bench

from guestmtce.server.child import session_types
from guestmtce.server.child.session_states import RESTING
from guestmtce.server.child.session_types import Answered, Lost, Resume
from guestmtce.wire.guest_channel import (
    EVENT_TYPES,
    NOTICE,
    NOTIFICATION_TYPES,
    VOTE,
    VOTE_RESULTS,
    ActionNotify,
    Nack,
)

SILENT_RESULT = {VOTE: "accept", NOTICE: "complete"}


def settle(bench, event, result, kind=NOTICE):
    """Ask, and let the guest answer so."""
    bench.ask(1, kind, event, 2500)
    bench.respond(event, kind, result)


# --- outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
@pytest.mark.parametrize("event", EVENT_TYPES)
def test_the_question_as_sent(kind, event):
    bench = Bench().heartbeat()
    bench.ask(1, kind, event, 9000)
    assert bench.sent == [ActionNotify(GUEST.invocation_id, event, kind, 9000)]
    assert bench.reports == []


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
@pytest.mark.parametrize("result", VOTE_RESULTS)
@pytest.mark.parametrize("event", ["stop", "pause", "resize_end"])
def test_the_answer_is_passed_on_once(kind, result, event):
    bench = Bench().heartbeat()
    bench.ask(7, kind, event)
    bench.respond(event, kind, result)
    bench.respond(event, kind, result)
    bench.run(20, answers=True)
    assert bench.told(Answered) == [Answered(7, result, "why")]


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
def test_no_answer_in_time_is_silent_agreement_at_the_deadline(kind):
    bench = Bench().heartbeat()
    bench.ask(7, kind, "resize_begin", 2500)
    bench.run(2.499, answers=True)
    assert bench.told(Answered) == []
    bench.tick()
    assert bench.now == BEGIN + 2.5
    assert bench.told(Answered) == [Answered(7, SILENT_RESULT[kind], "no answer in time")]


def test_an_answer_with_another_invocation_id_is_nacked_and_the_question_stays_open():
    bench = Bench().heartbeat()
    bench.ask(7, VOTE, "stop")
    bench.respond("stop", VOTE, "reject", ident=77)
    text = "Invocation id mismatch. Received: 77 expect: %d" % GUEST.invocation_id
    assert bench.wrote(Nack) == [Nack(GUEST.invocation_id, text)]
    assert bench.told(Answered) == []
    bench.respond("stop", VOTE, "accept")
    assert bench.told(Answered) == [Answered(7, "accept", "why")]


@pytest.mark.parametrize(("event", "kind"), [("reboot", VOTE), ("stop", NOTICE), ("unknown", VOTE)])
def test_a_foreign_answer_is_logged_and_dropped(event, kind):
    bench = Bench().heartbeat()
    bench.ask(7, VOTE, "stop")
    bench.respond(event, kind, "reject")
    assert (bench.kinds(), bench.wrote(Nack)) == (["Note"], [])
    bench.respond("stop", VOTE, "accept")
    assert bench.told(Answered) == [Answered(7, "accept", "why")]


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
def test_a_new_question_ends_the_open_one_and_is_sent(kind):
    bench = Bench().heartbeat()
    bench.ask(1, kind, "resize_begin")
    bench.now += 1
    bench.ask(2, VOTE, "reboot")
    assert bench.told(Answered) == [Answered(1, SILENT_RESULT[kind], "overtaken by a new question")]
    assert [notify.event_type for notify in bench.wrote(ActionNotify)] == ["resize_begin", "reboot"]
    bench.respond("resize_begin", kind, "reject")
    bench.respond("reboot", VOTE, "reject")
    assert bench.told(Answered)[1:] == [Answered(2, "reject", "why")]


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
def test_a_guest_that_is_not_there_agrees_at_once(kind):
    bench = Bench()
    bench.ask(7, kind, "reboot")
    assert bench.sent == []
    assert [answer[:2] for answer in bench.told(Answered)] == [(7, SILENT_RESULT[kind])]


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
@pytest.mark.parametrize("going", ["init", "exit", "loss"])
def test_a_question_ends_with_the_guest_s_going(kind, going):
    bench = Bench().heartbeat()
    bench.ask(7, kind, "resize_end", 100000)
    if going == "loss":
        bench.run(5, answers=False)
        assert len(bench.told(Lost)) == 1
    else:
        bench.run(0.2, answers=True)
        getattr(bench, going)()
    assert [answer[:2] for answer in bench.told(Answered)] == [(7, SILENT_RESULT[kind])]
    bench.run(119, answers=True)
    assert len(bench.told(Answered)) == 1


def test_a_question_s_deadline_wants_the_socket_drained_first():
    bench = Bench().heartbeat()
    assert not bench.session.awaits_answer()
    bench.ask(7, VOTE, "stop", 500)
    assert bench.session.heartbeat.state == RESTING
    assert bench.session.deadline == BEGIN + 0.5
    assert bench.session.awaits_answer()


def test_a_resumed_guest_can_be_asked():
    bench = Bench(resume=Resume(GUEST, True, 0.0))
    bench.ask(7, VOTE, "stop")
    assert len(bench.wrote(ActionNotify)) == 1
    bench.respond("stop", VOTE, "reject")
    assert bench.reports == [Answered(7, "reject", "why")]


# --- what does not silence -------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENT_TYPES)
@pytest.mark.parametrize("result", ["accept", "complete", "reject"])
def test_a_vote_never_changes_the_heartbeat(event, result):
    bench = Bench().heartbeat()
    settle(bench, event, result, VOTE)
    assert bench.session.heartbeat.state == RESTING
    bench.run(3, answers=False)
    assert bench.kinds() == ["Answered", "Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", EVENT_TYPES)
def test_an_open_vote_excuses_no_miss(event):
    bench = Bench().heartbeat()
    bench.ask(1, VOTE, event, 100000)
    bench.run(3, answers=False)
    assert bench.told(Lost) == [Lost(2)]


@pytest.mark.parametrize("event", [event for event in EVENT_TYPES if event not in session_types.SILENCING])
def test_other_notices_silence_nobody(event):
    bench = Bench().heartbeat()
    settle(bench, event, "complete")
    bench.run(3, answers=False)
    assert bench.kinds() == ["Answered", "Missed", "Missed", "Lost"]
