"""The master's table after a restart: what is told again, when, and what is over."""

from __future__ import annotations

import pytest
from guests_driver import (
    BUSY,
    ENDS,
    INIT,
    NOW,
    REFUSED,
    SETTINGS,
    UUID,
    Bench,
    connected,
    heartbeating,
    ill,
    lost,
    recalled,
)

from guestmtce.server.child import session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state.effects import Connect, PutCommand, SaveGuest, SaveHost, WithdrawEvent
from guestmtce.server.state.questions import OUTCOMES_MAX
from guestmtce.wire import datagram, guest_channel

HOLD = SETTINGS.guest_patience + SETTINGS.stopped_grace


def restarted(bench, age=3.0):
    """The table after a restart `age` s later, with what `bench` saved at last."""
    return recalled(bench.saved(), age)


def test_what_was_not_confirmed_is_told_again_under_its_number_and_a_failure_later():
    bench = lost()
    tells = bench.tells()
    again = restarted(bench)
    assert again.tells() == tells[1:]
    again.run(HOLD - 0.01)
    assert again.tells() == []
    again.run(0.02)
    assert again.tells() == tells[:1]
    again.run(1000)
    again.set(True)
    again.run(1000)
    assert again.tells() == []
    again.confirm()
    assert again.saved().pending == ()


def test_a_slow_guest_has_longer_to_show_that_it_lives():
    bench = heartbeating(reporting=True)
    bench.report(
        session_types.Acknowledged(INIT._replace(heartbeat_interval_ms=20_000)), session_types.Lost(2)
    )
    again = restarted(bench)
    again.take()
    again.run(40 + SETTINGS.stopped_grace - 0.01)
    assert again.told() == []
    again.run(0.02)
    assert again.told() == [datagram.LOSS]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("make", "kind"), [(lost, row.LOSS), (ill, row.ILLNESS)])
def test_a_failure_that_is_over_while_it_is_held_back_is_never_told(make, kind, end):
    bench = make()
    again = restarted(bench)
    again.found()
    again.run(1)
    again.connect()
    end(again)
    again.run(1000)
    assert {datagram.LOSS, datagram.ILLHEALTH}.isdisjoint(again.told())
    assert kind not in again.pending


def test_a_new_loss_does_not_wait_and_is_told_once():
    bench = lost()
    again = restarted(bench)
    again.found()
    again.connect()
    again.take()
    again.report(session_types.Lost(2))
    (loss,) = again.tells()
    assert loss.cmd == datagram.LOSS
    again.run(1000)
    assert datagram.LOSS not in again.told()


def test_a_confirmed_failure_is_not_told_after_a_restart():
    bench = lost()
    bench.confirm(row.LOSS)
    again = restarted(bench)
    again.run(100)
    assert again.told() == [datagram.STOPPED]


def test_nothing_held_back_is_told_where_the_host_is_not_reported():
    bench = lost()
    memory = bench.saved()
    again = Bench()
    again.table.recall_host(False)
    again.table.recall_guest(memory, NOW, NOW)
    again.run(100)
    assert again.told() == [datagram.STOPPED]


@pytest.mark.parametrize(("age", "told"), [(3.0, [datagram.RUNNING]), (301.0, [])])
def test_a_running_is_told_only_if_it_may_still_be_so(age, told):
    bench = heartbeating()
    bench.run(2)
    bench.report(session_types.Stopped(), session_types.Running())
    again = restarted(bench, age)
    assert again.told() == told
    assert again.guest.liveness.heartbeating is bool(told)
    again.found()
    again.connect()
    again.report(session_types.Running())
    # What it has said already under the old number is not news.
    assert again.told() == ([] if told else [datagram.RUNNING])


def test_who_is_to_be_told_stopped_does_not_heartbeat_after_a_restart():
    bench = heartbeating()
    bench.end(session_types.DIED)
    bench.run(3)
    assert bench.guest.liveness.owes_answer
    again = restarted(bench)
    assert again.told() == [datagram.STOPPED]
    assert (again.guest.liveness.heartbeating, again.guest.liveness.owes_answer) == (False, True)
    again.run(100)
    assert again.told() == []


def test_a_memory_that_was_too_old_is_not_believed_by_the_restart_after_that():
    bench = heartbeating(reporting=True)
    again = recalled(restarted(bench, 301.0).saved(), 3.0)
    again.found()
    assert [e.resume.was_heartbeating for e in again.take() if isinstance(e, Connect)] == [False]


def test_new_questions_do_not_take_the_place_of_untold_outcomes():
    bench = heartbeating()
    for _ in range(3):
        bench.ask("dance")
    told = bench.tells()
    again = restarted(bench)
    assert [tell.sequence for tell in again.tells()] == [tell.sequence for tell in told]
    for _ in range(3):
        again.ask("dance")
    assert not [effect for effect in again.take() if isinstance(effect, WithdrawEvent)]
    assert len(again.pending) == 6


def test_an_open_question_outlives_a_restart_with_the_time_that_is_left():
    bench = heartbeating()
    bench.ask("reboot", guest_channel.VOTE)
    again = restarted(bench)
    again.found()
    again.connect()
    again.report(session_types.Running())
    (ask,) = [effect.command for effect in again.take() if isinstance(effect, PutCommand)]
    assert ask[1:] == (guest_channel.VOTE, "reboot", 8000)
    again.report(session_types.Answered(ask.question_id, "reject", "no"))
    assert again.votes() == [("reboot", "reject", "no")]
    again.run(100)
    assert (again.votes(), again.guest.questions) == ([], {})


def test_an_open_question_whose_time_is_up_is_settled_after_a_restart():
    bench = heartbeating()
    bench.ask("reboot", guest_channel.NOTICE)
    again = restarted(bench)
    again.run(9 + SETTINGS.question_grace + 0.01)
    assert again.votes() == [("reboot", "complete", "no answer in time")]


def test_the_host_reporting_is_remembered_once_it_changes():
    bench = Bench()
    for reporting in (True, False, False, True):
        bench.table.handle_command(datagram.SetHost("h", reporting), NOW)
    assert bench.take() == [SaveHost(False), SaveHost(True)]


def test_a_stop_that_guest_agent_has_confirmed_is_not_undone_by_a_restart():
    bench = heartbeating(reporting=True)
    bench.end(session_types.DIED)  # it still owes an answer
    bench.run(SETTINGS.stopped_grace)
    bench.confirm()
    again = restarted(bench)
    assert not again.guest.liveness.heartbeating
    assert again.guest.liveness.owes_answer


def test_a_guest_whose_end_was_not_told_before_the_restart_stops_after_it():
    bench = heartbeating(reporting=True)
    bench.end(session_types.PEER_CLOSED)  # nobody has heard of it: it has its time to come back
    again = restarted(bench)
    assert (again.guest.liveness.heartbeating, again.guest.liveness.owes_answer) == (True, False)
    again.run(SETTINGS.stopped_grace)
    assert again.told() == [datagram.STOPPED]


# --- a machine that accepts no connection ------------------------------------------------------


def turned_away(bench, seconds, why=BUSY):
    """Nobody accepts us for this long; what is told."""
    until, told = bench.now + seconds, []
    while bench.now < until:
        if bench.guest.connection.state == row.CONNECTING:
            bench.table.connect_failed(UUID, why, bench.now)
        told += bench.told()
        bench.run(0.01)
    return told


def refound(bench):
    again = restarted(bench)
    again.found()
    again.take()
    return again


def test_a_guest_that_heartbeated_and_accepts_us_no_more_is_lost():
    told = turned_away(refound(heartbeating(reporting=True)), 30)
    assert told == [datagram.STOPPED, datagram.LOSS]


@pytest.mark.parametrize(
    ("bench", "why", "seconds"),
    [
        (heartbeating(reporting=True), BUSY, SETTINGS.guest_patience - 0.5),  # not yet
        (heartbeating(reporting=True), REFUSED, 100),  # nobody listens: it was shut down
        (connected(reporting=True), BUSY, 100),  # it never heartbeated
    ],
)
def test_who_accepts_us_no_more_is_not_lost_without_reason(bench, why, seconds):
    assert datagram.LOSS not in turned_away(refound(bench), seconds, why)


def test_time_in_which_this_host_stood_still_is_no_refusal():
    bench = refound(heartbeating(reporting=True))
    turned_away(bench, 0.05)
    bench.now += 100
    assert datagram.LOSS not in turned_away(bench, 1)


def test_a_refused_guest_that_may_be_silent_is_retried_later_and_never_twice_at_once():
    bench = heartbeating(reporting=True)
    bench.ask("suspend", guest_channel.NOTICE)
    bench.report(session_types.Running())  # it answers after the notice: its silence will be judged
    bench.end(session_types.GAVE_UP)
    for _ in range(1000):
        bench.take()
        if bench.guest.connection.state == row.CONNECTING:
            bench.table.connect_failed(UUID, BUSY, bench.now)
            assert bench.guest.connection.state == row.RETRYING
            assert not [effect for effect in bench.take() if isinstance(effect, Connect)]
        bench.run(0.01)


def test_a_guest_whose_loss_nobody_has_heard_of_is_lost_after_a_restart_too():
    again = recalled(lost().saved(), 1.0)
    assert again.guest.liveness.failure == row.LOST
    again.found()
    again.connect()
    again.report(session_types.Acknowledged(INIT), session_types.Running())
    assert again.guest.liveness.failure == "" and row.LOSS not in again.pending


def test_what_is_told_is_remembered_first():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Lost(2))
    assert bench.take_kinds() == ["SaveGuest", "ReportEvent", "ReportEvent"]


def test_who_heartbeats_again_and_is_ill_as_before_is_told_as_still_ill():
    """guestAgent takes an illness for over that is older than what says that the guest heartbeats."""
    again = restarted(ill())
    again.found()
    again.run(0.1)
    again.connect()
    again.take()
    again.report(session_types.Running())
    (running,) = again.tells()
    assert running.cmd == datagram.RUNNING and running.still_ill
    again.run(HOLD)
    (illness,) = again.tells()
    assert illness.cmd == datagram.ILLHEALTH and not illness.still_ill


def test_nobody_else_is_still_ill():
    again = restarted(heartbeating(reporting=True))
    again.found()
    again.run(0.1)
    again.connect()
    again.take()
    again.report(session_types.Running())
    assert [tell.still_ill for tell in again.tells()] == [False]


# --- what a restart finds is what was true last ------------------------------------------------


def is_quiet(bench):
    bench.report(session_types.Stopped(1))


def is_quiet_when_it_was_stopped(bench):
    bench.report(session_types.Stopped())
    bench.take()
    bench.report(session_types.Stopped(1))


def goes_when_it_was_stopped(bench):
    bench.run(SETTINGS.stopped_grace)
    bench.report(session_types.Stopped())
    bench.take()
    bench.end(session_types.PEER_CLOSED)


def says_init(bench):
    bench.report(session_types.Acknowledged(INIT._replace(restart_secs=77)))


def is_well(bench):
    bench.report(session_types.Ill("reboot", "disk"))
    bench.confirm()
    bench.take()
    bench.report(session_types.Well())


def is_agreed_to_pause(bench):
    bench.ask("pause", guest_channel.NOTICE)
    (number,) = bench.guest.questions
    bench.take()
    bench.report(session_types.Answered(number, "complete", ""))


def dies(bench):
    bench.end(session_types.DIED)


def is_disabled(bench):
    bench.set(False)


def is_asked(bench):
    bench.ask("reboot", guest_channel.NOTICE)


def is_lost(bench):
    bench.report(session_types.Lost(2))


def is_ill(bench):
    bench.report(session_types.Ill("reboot", "disk"))


def runs_after_its_stop(bench):
    bench.report(session_types.Stopped())
    bench.confirm()
    bench.take()
    bench.report(session_types.Running())


def is_confirmed(bench):
    bench.report(session_types.Stopped())
    bench.take()
    bench.confirm()


CHANGES = [
    is_quiet, is_quiet_when_it_was_stopped, goes_when_it_was_stopped, says_init, is_well, is_agreed_to_pause,
    dies, is_disabled, is_asked, is_lost, is_ill, runs_after_its_stop, is_confirmed,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_remembered(change):
    bench = heartbeating(reporting=True)
    before = bench.saved()
    change(bench)
    saves = [effect.memory for effect in bench.take() if isinstance(effect, SaveGuest)]
    assert (saves or [before])[-1] == bench.saved()


def test_who_went_quiet_owes_nothing_after_a_restart():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Stopped(1))
    again = restarted(bench)
    assert (again.guest.liveness.owes_answer, again.guest.liveness.heartbeating) == (False, False)


@pytest.mark.parametrize("age", [0.0, 3.0])
def test_a_stop_that_was_not_confirmed_is_told_after_a_restart_once(age):
    bench = heartbeating(reporting=True)
    bench.report(session_types.Stopped())
    again = restarted(bench, age)
    assert again.told() == [datagram.STOPPED]
    again.run(1000)
    assert again.told() == []


@pytest.mark.parametrize(("before_its_end", "told"), [(0.001, False), (0.0, True)])
def test_a_loss_is_one_from_the_end_of_the_silence_on(before_its_end, told):
    bench = heartbeating(reporting=True)
    bench.ask("stop", guest_channel.NOTICE)
    (number,) = bench.guest.questions
    bench.report(session_types.Answered(number, "complete", ""), session_types.Running())
    bench.now = bench.guest.liveness.silence_until - before_its_end
    bench.report(session_types.Lost(2))
    assert (datagram.LOSS in bench.told()) is told


# --- outcomes and time ---------------------------------------------------------------------------


def test_who_is_not_found_is_forgotten_after_the_grace_and_not_before():
    again = recalled(connected(provisioned=False).saved())
    again.run(SETTINGS.stopped_grace - 0.01)
    assert UUID in again.table.guests
    again.run(0.01)
    assert (UUID in again.table.guests, again.take_kinds()[-2:]) == (False, ["ForgetGuest", "DropChild"])


def test_the_outcomes_of_before_count_among_those_that_are_kept():
    bench = heartbeating()
    for _ in range(OUTCOMES_MAX):
        bench.ask("dance")
    again = restarted(bench, 0.0)
    again.ask("sing")
    votes = [one.event.event_type for one in again.pending.values()]
    assert votes == ["dance"] * (OUTCOMES_MAX - 1) + ["sing"]


@pytest.mark.parametrize(("after", "told"), [(0.999, ["reject"]), (1.0, []), (1.001, [])])
def test_an_outcome_is_told_until_a_second_after_its_question_and_no_longer(after, told):
    bench = Bench()
    bench.now = 1000.0
    memory = heartbeating().saved()
    event = datagram.VoteResult("host-0", UUID, guest_channel.VOTE, "stop", "reject", "no")
    pending = row.PendingEvent(5, datagram.VOTE_NOTIFY, event, until=1001.0 - after)
    memory = memory._replace(pending=((row.PendingKey(UUID, row.OUTCOME, 1), pending),))
    bench.table.recall_guest(memory, 1000.0, 1000.0)
    assert [vote for _, vote, _ in bench.votes()] == told


@pytest.mark.parametrize(
    ("absence", "known"), [(0.0, True), (0.5, True), (300.0, True), (300.1, False), (-0.1, False)]
)
def test_a_failure_is_known_for_as_long_as_a_memory_is_valid(absence, known):
    bench = Bench()
    bench.now = 10_000.0
    bench.table.recall_guest(lost().saved(), bench.now - absence, bench.now)
    assert (row.LOSS in bench.pending) is known


def test_a_failure_is_held_for_as_long_as_this_guest_takes_to_restart():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Acknowledged(INIT._replace(restart_secs=33)), session_types.Lost(2))
    again = restarted(bench, SETTINGS.short_absence + 1)
    assert again.guest.pending.report_failures_after == NOW + 33 + SETTINGS.stopped_grace


@pytest.mark.parametrize(("left", "owes"), [(0.5, False), (0.0, True)])
def test_who_restarts_in_its_silence_owes_nothing_and_later_it_does(left, owes):
    bench = heartbeating(reporting=True)
    bench.ask("reboot", guest_channel.NOTICE)
    (number,) = bench.guest.questions
    bench.report(session_types.Answered(number, "complete", ""), session_types.Running())
    bench.now = bench.guest.liveness.silence_until - left
    bench.report(session_types.Acknowledged(INIT))
    assert bench.guest.liveness.owes_answer is owes


def test_who_accepts_us_no_more_is_lost_after_its_patience():
    told = turned_away(refound(heartbeating(reporting=True)), SETTINGS.guest_patience + 1)
    assert datagram.LOSS in told


def test_life_goes_on_after_a_failure_was_held():
    again = restarted(lost())
    again.run(HOLD + 1)
    again.take()
    again.found()
    again.connect()
    again.report(session_types.Running())
    assert datagram.RUNNING in again.told()


@pytest.mark.parametrize(("age", "changed"), [(3.0, False), (1000.0, True)])
def test_what_is_not_believed_is_not_remembered_either(age, changed):
    again = recalled(heartbeating(reporting=True).saved(), age)
    saves = [effect.memory for effect in again.take() if isinstance(effect, SaveGuest)]
    assert saves == [again.saved()] * changed


@pytest.mark.parametrize(("beyond", "restarts"), [(0.0, False), (0.5, True)])
def test_a_short_absence_leaves_no_time_to_restart(beyond, restarts):
    bench = Bench()
    bench.now = 10_000.0
    bench.table.recall_guest(lost().saved(), bench.now - SETTINGS.short_absence - beyond, bench.now)
    assert bench.guest.pending.report_failures_after == bench.now + (122 if restarts else HOLD)


@pytest.mark.parametrize("reported", [True, False])
def test_what_was_remembered_of_the_host_decides_over_losses(reported):
    again = restarted(heartbeating(reporting=True))
    again.table.recall_host(reported)
    again.found()
    again.connect()
    again.report(session_types.Running(), session_types.Lost(2))
    assert (datagram.LOSS in again.told()) is reported


def test_who_has_gone_is_not_silent_on_the_next_connection():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", guest_channel.NOTICE)
    (number,) = bench.guest.questions
    bench.report(session_types.Answered(number, "complete", ""), session_types.Stopped(1))
    bench.end(session_types.GAVE_UP)
    bench.run(100)
    assert bench.guest.connection.state == row.CONNECTING
    effects = [effect for effect in bench.take() if isinstance(effect, Connect)]
    assert [effect.resume.silence for effect in effects] == [0.0]


@pytest.mark.parametrize(("beyond", "kept"), [(0.0, 1), (1.0, 0)])
def test_no_question_is_taken_up_that_is_open_for_longer_than_a_timeout_can_be(beyond, kept):
    bench = Bench()
    bench.now = 1000.0
    deadline = bench.now + guest_channel.SECS_MAX + beyond
    memory = heartbeating().saved()._replace(questions=((1, guest_channel.VOTE, "stop", deadline),))
    bench.table.recall_guest(memory, bench.now, bench.now)
    assert len(bench.guest.questions) == kept


def test_refusals_before_a_connection_count_for_nothing_after_it():
    bench = refound(heartbeating(reporting=True))
    assert turned_away(bench, 3) == [datagram.STOPPED]
    bench.run(10)
    bench.connect()
    assert bench.guest.connection.refused_for == 0
    bench.end(session_types.DIED)
    assert datagram.LOSS not in turned_away(bench, 4)
