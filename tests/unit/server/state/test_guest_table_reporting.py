"""What enabled reporting, an announced silence and our own absence mean for what counts as a loss."""

from __future__ import annotations

import pytest
from guests_driver import (
    INIT,
    NOW,
    SETTINGS,
    UUID,
    Bench,
    connected,
    heartbeating,
    lost,
    recalled,
    resumes,
)

from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state.effects import Connect, PutCommand
from guestmtce.server.state.guest import GuestMemory
from guestmtce.wire import datagram
from guestmtce.wire.guest_channel import NOTICE, VOTE

MEMORY = GuestMemory(UUID, True, True, INIT, True, True, -row.NEVER, (1, 2))


def resumed_after_death(bench):
    """What the next child is given when the present one dies."""
    bench.take()
    bench.end(session_types.DIED)
    bench.run(2 * SETTINGS.reconnect_first)
    (resume,) = resumes(bench.take())
    return resume


def commands(bench):
    return [effect.command for effect in bench.take() if isinstance(effect, PutCommand)]


# --- reporting becomes enabled ---------------------------------------------------------------------


def enable_instance(bench):
    bench.set(True)


def enable_host(bench):
    bench.table.handle_command(datagram.SetHost("h", True), bench.now)


def unreported(enable):
    """A guest that heartbeats and of which nobody wants to hear."""
    bench = heartbeating(reporting=enable is enable_host)
    if enable is enable_host:
        bench.table.handle_command(datagram.SetHost("h", False), bench.now)
    bench.take()
    return bench


ENABLE = pytest.mark.parametrize("enable", [enable_instance, enable_host])


@ENABLE
def test_the_child_is_told_once(enable):
    bench = unreported(enable)
    enable(bench)
    enable(bench)
    assert commands(bench) == [pipe_protocol.EnableReporting()]


@ENABLE
def test_a_loss_from_before_the_child_has_heard_of_it_is_none(enable):
    bench = unreported(enable)
    bench.report(session_types.Missed(1))
    bench.run(1)
    enable(bench)
    bench.report(session_types.Missed(2), session_types.Lost(2), session_types.ReportingEnabled())
    assert bench.told() == [datagram.STOPPED]
    assert bench.guest.liveness.losses == 0


@ENABLE
def test_the_child_takes_note_of_each_enabling(enable):
    bench = unreported(enable)
    enable(bench)
    bench.set(False)
    bench.set(True)
    bench.report(session_types.ReportingEnabled(), session_types.Running(), session_types.Lost(2))
    assert datagram.LOSS not in bench.told()
    bench.report(session_types.ReportingEnabled(), session_types.Running())
    bench.run(5)
    bench.report(session_types.Lost(2))
    assert datagram.LOSS in bench.told()


@ENABLE
def test_a_loss_after_an_answer_since_is_one(enable):
    bench = unreported(enable)
    enable(bench)
    bench.report(session_types.ReportingEnabled(), session_types.Running())
    bench.run(5)
    bench.report(session_types.Lost(2))
    assert bench.told() == [datagram.LOSS, datagram.STOPPED]


@ENABLE
def test_an_answer_from_before_the_child_has_heard_of_it_proves_nothing(enable):
    bench = unreported(enable)
    enable(bench)
    bench.report(session_types.Running())
    assert resumed_after_death(bench) == session_types.Resume(INIT, False, 0.0)


def test_a_child_that_is_being_made_hears_of_it_when_it_is_there():
    bench = Bench()
    bench.found()
    bench.set(True)
    bench.take()
    bench.table.child_started(UUID, bench.now)
    assert commands(bench) == [pipe_protocol.EnableReporting()]
    bench.report(session_types.Lost(1))
    assert bench.told() == []


def test_it_ends_the_silence_of_a_notice_and_its_answers_count_for_nothing():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Running(), session_types.Answered(1, "complete", ""))
    bench.set(False)
    bench.set(True)
    assert resumed_after_death(bench) == session_types.Resume(INIT, False, 0.0)


def test_what_is_enabled_stays_enabled_without_a_new_question():
    bench = heartbeating(reporting=True)
    bench.set(True)
    assert commands(bench) == []
    assert bench.guest.liveness.owes_answer


def test_a_lost_guest_that_is_to_be_reported_again_is_not_lost_twice():
    bench = lost()
    bench.set(False)
    bench.set(True)
    bench.take()
    bench.report(session_types.ReportingEnabled(), session_types.Stopped())
    bench.run(60)
    assert datagram.LOSS not in bench.told()


# --- an announced silence --------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["reboot", "suspend", "stop", "live_migrate_begin", "resize_begin"])
def test_a_child_that_dies_right_after_the_answer_leaves_the_silence_behind(event):
    bench = heartbeating(reporting=True)
    bench.ask(event, NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    resume = resumed_after_death(bench)
    assert (resume.was_heartbeating, resume.silence, resume.answered_since_notice) == (
        True, pytest.approx(15.0, abs=0.03), False,
    )  # fmt: skip


def test_a_paused_guest_owes_nothing_whatever_becomes_of_its_child():
    bench = heartbeating(reporting=True)
    bench.ask("pause", NOTICE)
    bench.report(session_types.Running(), session_types.Answered(1, "accept", ""))
    resume = resumed_after_death(bench)
    assert (resume.was_heartbeating, resume.answered_since_notice) == (False, False)


def test_an_open_notice_silences_for_as_long_as_it_may_be_answered():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.run(2)
    resume = resumed_after_death(bench)
    left = INIT.shutdown_notice_secs - 2 + SETTINGS.question_grace + 15
    assert resume.silence == pytest.approx(left, abs=0.03)
    bench.connect()
    bench.report(session_types.Lost(1))
    assert datagram.LOSS not in bench.told()


@pytest.mark.parametrize(
    ("event", "vote", "silent"),
    [("reboot", "complete", True), ("reboot", "reject", False), ("resume", "complete", False)],
)
def test_the_answer_says_whether_the_guest_may_be_silent(event, vote, silent):
    bench = heartbeating(reporting=True)
    bench.ask("suspend", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    bench.ask(event, NOTICE)
    bench.report(session_types.Answered(2, vote, ""))
    resume = resumed_after_death(bench)
    assert (resume.silence > 0) is silent


def test_who_has_answered_since_the_notice_is_known_over_a_new_child():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""), session_types.Running(), session_types.Stopped())
    resume = resumed_after_death(bench)
    assert (resume.was_heartbeating, resume.answered_since_notice) == (True, True)


def test_a_stop_in_the_silence_is_told():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    bench.take()
    bench.report(session_types.Stopped())
    assert bench.told() == [datagram.STOPPED]


# --- outcomes end with their question --------------------------------------------------------------


@pytest.mark.parametrize("kind", [VOTE, NOTICE])
def test_an_outcome_is_of_use_until_a_second_after_its_question(kind):
    bench = heartbeating()
    bench.ask("stop", kind)
    seconds = INIT.vote_secs if kind == VOTE else INIT.shutdown_notice_secs
    bench.report(session_types.Answered(1, "reject", "no"))
    (tell,) = bench.tells()
    assert tell.until == NOW + seconds + 1
    assert bench.guest.pending.events[tell.key].until == tell.until


def test_an_answer_that_comes_too_late_is_not_told():
    bench = heartbeating()
    bench.ask("stop")
    bench.now += INIT.vote_secs + 1.1
    bench.report(session_types.Answered(1, "reject", "no"))
    assert (bench.votes(), bench.guest.questions) == ([], {})


@pytest.mark.parametrize(("after", "told"), [(0.5, ["reject"]), (20.0, [])])
def test_an_outcome_is_not_told_after_a_restart_that_it_does_not_outlive(after, told):
    bench = heartbeating()
    bench.ask("stop")
    bench.report(session_types.Answered(1, "reject", "no"))
    again = Bench()
    again.now = bench.now + after
    again.table.recall_guest(bench.saved(), again.now - after, again.now)
    assert [vote for _, vote, _ in again.votes()] == told


def test_a_refused_question_is_told_and_ends_soon():
    bench = connected()
    bench.ask("dance")
    (tell,) = bench.tells()
    assert (tell.event.vote, tell.until) == ("error", NOW + 1)


# --- our own absence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absence", "owes", "patience"),
    [(0.0, True, 0.0), (30.0, True, 0.0), (30.1, True, 120.0), (300.0, True, 120.0), (300.1, False, 0.0)],
)
def test_after_a_long_absence_a_guest_has_the_time_to_restart(absence, owes, patience):
    bench = recalled(MEMORY, absence)
    bench.found(ident=(1, 2))
    (resume,) = resumes(bench.take())
    assert (resume.was_heartbeating, resume.patience) == (owes, patience)


def test_what_hung_in_a_long_absence_is_lost_after_that_time():
    bench = recalled(MEMORY, 100.0)
    bench.found(ident=(1, 2))
    bench.connect()
    assert bench.table.child_patience(UUID) > 120
    bench.run(120)
    bench.take()
    bench.report(session_types.Lost(1))
    assert bench.told() == [datagram.LOSS]


def test_the_time_to_restart_is_not_given_twice():
    bench = recalled(MEMORY, 100.0)
    bench.found(ident=(1, 2))
    bench.run(50)
    again = Bench()
    again.now = bench.now + 3
    again.table.recall_guest(bench.saved(), bench.now, again.now)
    again.found(ident=(1, 2))
    (resume,) = resumes(again.take())
    assert resume.patience == pytest.approx(120 - 53)


@pytest.mark.parametrize("said", [session_types.Acknowledged(INIT), session_types.Running()])
def test_who_is_back_has_no_such_time_any_more(said):
    bench = recalled(MEMORY, 100.0)
    bench.found(ident=(1, 2))
    bench.connect()
    bench.report(said)
    resume = resumed_after_death(bench)
    assert (resume.was_heartbeating, resume.patience) == (True, 0.0)


def test_what_made_it_quiet_holds_over_an_absence():
    quiet = MEMORY._replace(owes_answer=False, heartbeating=False)
    bench = recalled(quiet, 100.0)
    bench.found(ident=(1, 2))
    (resume,) = resumes(bench.take())
    assert (resume.was_heartbeating, resume.patience) == (False, 0.0)


# --- DEL_INST and ADD_INST -------------------------------------------------------------------------


def test_a_guest_that_is_provisioned_soon_after_it_was_deleted_is_resumed_at_once():
    bench = heartbeating(reporting=True)
    bench.table.handle_command(datagram.DeleteInstance(UUID), bench.now)
    assert bench.infos() == []
    bench.take()
    bench.run(10)
    bench.set(True)
    bench.take()
    bench.found()
    assert resumes(bench.take()) == [session_types.Resume(INIT, False, 0.0)]


# --- what a new child is told --------------------------------------------------------------------


@pytest.mark.parametrize(("answers", "owes"), [(False, False), (True, True)])
def test_who_went_quiet_as_announced_owes_nothing_when_its_silence_is_over(answers, owes):
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    if answers:
        bench.report(session_types.Running())
    bench.run(SETTINGS.expected_silence)
    assert resumed_after_death(bench) == session_types.Resume(INIT, owes, 0.0)


def test_a_channel_that_goes_takes_its_silence_along():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    bench.gone()
    bench.take()
    bench.found()
    assert [effect.resume for effect in bench.take() if isinstance(effect, Connect)] == [
        session_types.Resume(INIT, False, 0.0)
    ]


def test_earlier_answers_count_for_nothing_once_reporting_is_disabled():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Running(), session_types.Answered(1, "complete", ""))
    bench.set(False)
    bench.report(session_types.Stopped())
    assert not bench.guest.liveness.owes_answer


def test_a_new_child_takes_note_of_all_enablings_at_once():
    bench = Bench()
    bench.found()
    for enabled in (True, False, True):
        bench.set(enabled)
    bench.table.child_started(UUID, bench.now)
    bench.report(session_types.ReportingEnabled(), session_types.Acknowledged(INIT), session_types.Running())
    bench.run(5)
    bench.report(session_types.Lost(2))
    assert datagram.LOSS in bench.told()


@pytest.mark.parametrize("answers", [False, True])
def test_the_last_half_second_of_a_silence_is_known_to_a_new_child(answers):
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""))
    if answers:
        bench.report(session_types.Running())
    bench.run(SETTINGS.expected_silence - 0.5)
    assert resumed_after_death(bench) == session_types.Resume(INIT, True, pytest.approx(0.5), answers)
