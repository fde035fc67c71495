"""Votes and notices: every outcome, and the silence that a notice may bring."""

from __future__ import annotations

import pytest
from session_driver import BEGIN, GUEST, Bench

from guestmtce.server import session as s
from guestmtce.server.session import CHALLENGED, CLOSED, RESTING, WAITING, Answered, Resume
from guestmtce.wire.channel import (
    EVENT_TYPES,
    NOTICE,
    NOTIFICATION_TYPES,
    VOTE,
    VOTE_RESULTS,
    ActionNotify,
    Challenge,
    Nack,
)

SILENT_RESULT = {VOTE: "accept", NOTICE: "complete"}
SILENCING = ("stop", "reboot", "suspend", "pause", "live_migrate_begin", "cold_migrate_begin")
LINGERING = tuple(event for event in SILENCING if event != "pause")
AGREED = ("accept", "complete", "timeout", None)  # None: no answer in time


def settle(bench, event, result, kind=NOTICE):
    """Ask, and let the guest answer so, or not at all while it still answers challenges."""
    bench.ask(1, kind, event, 2500)
    if result is None:
        bench.run(2.5, answers=True)
    else:
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
    assert bench.reports == []
    bench.tick()
    assert bench.now == BEGIN + 2.5
    assert bench.reports == [Answered(7, SILENT_RESULT[kind], "no answer in time")]


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
    assert [(answer.number, answer.vote) for answer in bench.told(Answered)] == [(7, SILENT_RESULT[kind])]
    assert bench.told(s.Silence) == []


@pytest.mark.parametrize("kind", NOTIFICATION_TYPES)
@pytest.mark.parametrize("going", ["init", "exit", "loss"])
def test_a_question_ends_with_the_guest_s_going(kind, going):
    bench = Bench().heartbeat()
    bench.ask(7, kind, "resize_begin", 100000)
    if going == "loss":
        bench.run(5, answers=False)
        assert len(bench.told(s.Lost)) == 1
    else:
        getattr(bench, going)()
    assert [(answer.number, answer.vote) for answer in bench.told(Answered)] == [(7, SILENT_RESULT[kind])]
    bench.run(119, answers=True)
    assert len(bench.told(Answered)) == 1


def test_a_question_s_deadline_wants_the_socket_drained_first():
    bench = Bench().heartbeat()
    assert not bench.session.awaits_answer()
    bench.ask(7, VOTE, "stop", 500)
    assert bench.session.state == RESTING
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
    assert bench.session.state == RESTING
    bench.run(3, answers=False)
    assert bench.kinds() == ["Answered", "Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", EVENT_TYPES)
def test_an_open_vote_excuses_no_miss(event):
    bench = Bench().heartbeat()
    bench.ask(1, VOTE, event, 100000)
    bench.run(3, answers=False)
    assert bench.told(s.Lost) == [s.Lost(2)]


@pytest.mark.parametrize("event", SILENCING)
@pytest.mark.parametrize("result", ["reject", "error", "unknown"])
def test_a_notice_that_is_not_agreed_to_silences_nobody(event, result):
    bench = Bench().heartbeat()
    settle(bench, event, result)
    bench.run(3, answers=False)
    assert bench.kinds() == ["Answered", "Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", [event for event in EVENT_TYPES if event not in SILENCING])
def test_other_notices_silence_nobody(event):
    bench = Bench().heartbeat()
    settle(bench, event, "complete")
    bench.run(3, answers=False)
    assert bench.kinds() == ["Answered", "Missed", "Missed", "Lost"]


# --- expected silence ------------------------------------------------------------------------------


@pytest.mark.parametrize("event", LINGERING)
@pytest.mark.parametrize("result", AGREED)
def test_silence_ends_quietly_after_60_s(event, result):
    bench = Bench().heartbeat()
    settle(bench, event, result)
    assert bench.kinds() == ["Answered", "Silence"]
    assert bench.reports[-1] == s.Silence(60.0)
    bench.run(59.99, answers=False)
    assert bench.kinds() == ["Answered", "Silence"]
    assert len(bench.wrote(Challenge)) >= 59
    bench.forget()
    bench.tick()
    assert bench.reports[:2] == [s.Silence(0), s.Quiet()]
    bench.run(110, answers=False)
    assert bench.told((s.Lost, s.Stopped, s.Missed)) == []


@pytest.mark.parametrize("event", LINGERING)
@pytest.mark.parametrize("result", AGREED)
def test_a_guest_that_answers_is_monitored_on_after_60_s(event, result):
    bench = Bench().heartbeat()
    settle(bench, event, result)
    bench.run(60.5, answers=True)
    assert bench.kinds() == ["Answered", "Silence", "Silence"]
    assert bench.session.state in (CHALLENGED, RESTING)
    bench.run(3, answers=False)
    assert bench.told(s.Lost) == [s.Lost(2)]


@pytest.mark.parametrize("answering", [0.5, 10, 57])
def test_answers_in_between_do_not_end_the_silence(answering):
    bench = Bench().heartbeat()
    settle(bench, "reboot", "accept")
    bench.run(answering, answers=True)
    bench.run(120, answers=False)
    assert bench.kinds() == ["Answered", "Silence", "Silence", "Quiet"]


def test_a_guest_that_is_back_in_time_is_monitored_on():
    bench = Bench().heartbeat()
    settle(bench, "live_migrate_begin", "complete")
    bench.run(40, answers=False)
    bench.run(30, answers=True)
    assert bench.kinds() == ["Answered", "Silence", "Silence"]
    assert bench.session.heartbeating


@pytest.mark.parametrize("interval", [400, 20000, 31000, 45000, 90000])
@pytest.mark.parametrize("before", [0.0, 0.2])
def test_no_loss_after_a_notice_however_the_timers_fall(interval, before):
    bench = Bench().heartbeat(heartbeat_interval_ms=interval)
    bench.run(before, answers=True)
    settle(bench, "reboot", "complete")
    bench.run(600, answers=False)
    assert bench.told((s.Lost, s.Missed)) == []
    assert len(bench.told(s.Quiet)) == 1


@pytest.mark.parametrize("event", LINGERING)
def test_the_next_init_ends_the_silence(event):
    bench = Bench().heartbeat()
    settle(bench, event, "complete")
    bench.run(20, answers=False)
    bench.forget()
    bench.init()
    bench.answer()
    assert bench.reports == [s.Silence(0), s.Acknowledged(GUEST), s.Running()]
    bench.run(3, answers=False)
    assert bench.told(s.Lost) == [s.Lost(2)]


@pytest.mark.parametrize("event", SILENCING)
def test_a_guest_may_be_silent_before_it_has_answered_the_notice(event):
    bench = Bench().heartbeat()
    bench.ask(1, NOTICE, event, 9000)
    bench.run(30, answers=False)
    assert bench.told((s.Lost, s.Missed)) == []
    assert bench.told(Answered) == [Answered(1, "complete", "no answer in time")]


def test_misses_from_before_the_notice_do_not_count_after_it():
    bench = Bench().heartbeat()
    bench.run(2.5, answers=False)
    assert bench.told(s.Missed) == [s.Missed(1)]
    bench.ask(1, NOTICE, "reboot")
    bench.run(5, answers=False)
    bench.respond("reboot", NOTICE, "reject")
    bench.run(1, answers=False)
    assert bench.told(s.Lost) == []
    bench.run(2, answers=False)
    assert bench.told(s.Missed) == [s.Missed(1), s.Missed(1), s.Missed(2)]
    assert len(bench.told(s.Lost)) == 1


def test_silence_agreed_to_while_resuming_is_no_loss():
    bench = Bench(resume=Resume(GUEST, True, 0.0))
    settle(bench, "reboot", "complete")
    bench.run(118, answers=False)
    assert bench.kinds() == ["Answered", "Silence", "Silence", "Quiet"]
    assert bench.now < BEGIN + 120


def test_exit_in_the_silence_is_no_loss():
    bench = Bench().heartbeat()
    settle(bench, "stop", "accept")
    bench.exit()
    bench.run(110, answers=False)
    assert len(bench.told(s.Stopped)) == 1
    assert bench.told((s.Lost, s.Missed, s.Quiet)) == []


# --- pause and suspend -----------------------------------------------------------------------------


@pytest.mark.parametrize("result", AGREED)
def test_pause_waits_for_init_at_once_and_stopped_is_not_told(result):
    bench = Bench().heartbeat()
    settle(bench, "pause", result)
    assert (bench.session.state, bench.session.heartbeating) == (WAITING, False)
    assert bench.kinds() == ["Answered", "Quiet"]
    bench.sent = []
    bench.run(119, answers=False)
    assert (bench.kinds(), bench.sent) == (["Answered", "Quiet"], [])
    bench.init()
    bench.answer()
    assert bench.kinds()[2:] == ["Acknowledged", "Running"]


@pytest.mark.parametrize(("result", "closes"), [("complete", 1), ("accept", 1), (None, 1), ("timeout", 0)])
def test_suspend_closes_the_connection_after_the_silence(result, closes):
    bench = Bench().heartbeat()
    settle(bench, "suspend", result)
    bench.run(59, answers=False)
    assert bench.session.state != CLOSED
    bench.run(1, answers=False)
    assert bench.kinds()[:4] == ["Answered", "Silence", "Silence", "Quiet"]
    assert len(bench.told(s.Reconnect)) == closes
    assert bench.session.state == (CLOSED if closes else WAITING)


@pytest.mark.parametrize("event", LINGERING)
def test_only_suspend_closes_the_connection(event):
    bench = Bench().heartbeat()
    settle(bench, event, "complete")
    bench.run(61, answers=False)
    assert (bench.session.state == CLOSED) == (event == "suspend")
