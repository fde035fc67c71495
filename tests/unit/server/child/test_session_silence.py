"""The silence that a notice announces, a bridge and no holiday; what enabled reporting asks of a guest."""

from __future__ import annotations

import pytest
from session_driver import BEGIN, GUEST, Bench

from guestmtce.server.child.session_heartbeat import GONE, STOPPED
from guestmtce.server.child.session_states import CHALLENGED, CLOSED, RESTING, RESUMING, WAITING
from guestmtce.server.child.session_types import (
    RETURNING,
    SILENCING,
    Acknowledged,
    Answered,
    Ill,
    Lost,
    Missed,
    Resume,
    Running,
    Stopped,
)
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import EVENT_TYPES, NOTICE, Challenge

LINGERING = tuple(event for event in SILENCING if event != "pause")
AGREED = ("accept", "complete", "timeout", None)  # None: no answer in time
SILENCE, PATIENCE = 15.0, 5.0  # s


def settle(bench, event, result):
    """Put a notice to a guest, which answers so, or not at all while it still answers challenges."""
    bench.ask(1, NOTICE, event, 2500)
    if result is None:
        bench.run(2.5, answers=True)
    else:
        bench.respond(event, NOTICE, result)


def agreed(event="reboot", answers_for=0.0, **fields):
    """A guest that agreed to a notice now, and then answers challenges for so long and no longer."""
    bench = Bench().heartbeat(**fields)
    settle(bench, event, "complete")
    bench.run(answers_for, answers=True) if answers_for else None
    bench.forget()
    return bench


def test_every_event_silences_or_returns():
    assert sorted((*SILENCING, *RETURNING)) == sorted(EVENT_TYPES)


# --- while it lasts --------------------------------------------------------------------------------


@pytest.mark.parametrize("event", LINGERING)
@pytest.mark.parametrize("result", AGREED)
def test_misses_are_judged_and_the_stop_is_told_within_two_intervals(event, result):
    bench = Bench().heartbeat()
    settle(bench, event, result)
    bench.forget()
    bench.run(3, answers=False)
    assert bench.kinds()[-3:] == ["Missed", "Missed", "Stopped"]
    assert bench.told(Lost) == []
    before = len(bench.wrote(Challenge))
    bench.run(5, answers=False)
    assert len(bench.wrote(Challenge)) == before + 5, "challenges go on"
    assert bench.told((Stopped, Missed))[2:] == [STOPPED]


@pytest.mark.parametrize("event", SILENCING)
def test_silence_begins_when_the_notice_is_put_to_the_guest(event):
    bench = Bench().heartbeat()
    bench.ask(1, NOTICE, event, 9000)
    bench.run(8.9, answers=False)
    assert bench.kinds() == ["Missed", "Missed", "Stopped"]
    bench.run(9, answers=False)
    assert bench.told(Answered) == [Answered(1, "complete", "no answer in time")]
    assert bench.told(Lost) == []


def test_who_answers_in_the_silence_heartbeats_again():
    bench = agreed("live_migrate_begin")
    bench.run(10, answers=False)
    bench.forget()
    bench.answer()
    assert bench.reports == [Running()]


@pytest.mark.parametrize("result", AGREED)
def test_after_a_pause_the_stop_is_told_at_once_and_nobody_challenges(result):
    bench = Bench().heartbeat()
    settle(bench, "pause", result)
    assert (bench.session.heartbeat.state, bench.session.heartbeat.was_heartbeating) == (WAITING, False)
    assert bench.kinds()[-2:] == ["Answered", "Stopped"]
    bench.forget()
    bench.answer()  # the last one, which it had before it answered the notice
    bench.run(100, answers=False)
    assert (bench.told((Running, Lost)), bench.sent) == ([], [])
    bench.init()
    bench.answer()
    assert bench.kinds()[-2:] == ["Acknowledged", "Running"]


# --- its time ends it ------------------------------------------------------------------------------


@pytest.mark.parametrize("event", LINGERING)
@pytest.mark.parametrize("answers_for", [1.0, 10.0, 12.5])
def test_a_hang_after_an_answer_is_lost_when_the_silence_and_the_patience_are_over(event, answers_for):
    bench = agreed(event, answers_for)
    bench.run(SILENCE - answers_for + PATIENCE - 0.1, answers=False)
    assert bench.told(Lost) == []
    bench.run(2.1, answers=False)  # two misses can take longer than what is left of the silence
    assert len(bench.told(Lost)) == 1
    assert bench.session.heartbeat.state == WAITING


def test_a_hang_at_the_end_of_the_silence_is_a_loss_like_any_other():
    bench = agreed("reboot", SILENCE + 1)
    bench.run(3, answers=False)
    assert bench.kinds()[-3:] == ["Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", LINGERING)
def test_who_has_not_answered_since_the_notice_goes_quiet(event):
    bench = agreed(event)
    bench.run(100, answers=False)
    assert bench.told((Lost, Running)) == []
    assert bench.session.heartbeat.state == WAITING
    bench.forget()
    bench.answer()
    assert bench.reports == [Running()], "its last challenge stays open"


@pytest.mark.parametrize("event", LINGERING)
def test_who_answers_all_the_time_is_watched_on(event):
    bench = agreed(event, SILENCE + 5)
    assert bench.session.heartbeat.state in (RESTING, CHALLENGED)
    assert bench.told((Stopped, Lost, Missed)) == []


@pytest.mark.parametrize("interval", [400, 7000, 20000, 31000, 90000])
@pytest.mark.parametrize("before", [0.0, 0.2])
def test_no_loss_after_a_notice_however_the_timers_fall(interval, before):
    bench = Bench().heartbeat(heartbeat_interval_ms=interval)
    bench.run(before, answers=True)
    settle(bench, "reboot", "complete")
    bench.run(600, answers=False)
    assert bench.told(Lost) == []
    assert bench.told(Stopped) != []


@pytest.mark.parametrize("interval", [20000, 90000])
def test_who_was_not_challenged_since_the_notice_is_asked_before_it_counts_as_quiet(interval):
    bench = agreed("reboot", heartbeat_interval_ms=interval)
    bench.run(SILENCE + 1, answers=False)
    bench.answer()
    assert (bench.kinds(), bench.session.heartbeat.state) == (["Running"], RESTING)


# --- what else ends it -----------------------------------------------------------------------------


@pytest.mark.parametrize("event", SILENCING)
@pytest.mark.parametrize("result", ["reject", "error", "unknown"])
def test_a_refusal_ends_it_and_misses_count_anew(event, result):
    bench = Bench().heartbeat()
    bench.ask(1, NOTICE, event, 9000)
    bench.run(1.5, answers=False)
    bench.respond(event, NOTICE, result)
    bench.forget()
    bench.run(2.5, answers=False)
    assert bench.kinds() == ["Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", RETURNING)
@pytest.mark.parametrize("result", AGREED)
def test_the_answer_to_the_notice_of_the_return_ends_it(event, result):
    bench = agreed("live_migrate_begin", 1)
    settle(bench, event, result)
    bench.forget()
    bench.run(3, answers=False)
    assert bench.kinds() == ["Missed", "Missed", "Lost"]


@pytest.mark.parametrize("event", LINGERING)
def test_the_guest_s_init_ends_it(event):
    bench = agreed(event)
    bench.run(8, answers=False)
    bench.forget()
    bench.init()
    bench.answer()
    assert bench.reports == [Acknowledged(GUEST), Running()]
    bench.run(3, answers=False)
    assert bench.told(Lost) == [Lost(2)]


def test_who_restarts_as_announced_and_never_answers_is_no_loss():
    bench = agreed("reboot", 1)
    bench.init()
    bench.run(60, answers=False)
    assert bench.told(Lost) == []
    assert bench.told(Stopped) != []


def test_exit_ends_it():
    bench = agreed("stop")
    bench.exit()
    bench.run(110, answers=False)
    assert bench.told(Stopped) == [GONE]
    assert bench.told((Lost, Missed)) == []


# --- over a reconnect ------------------------------------------------------------------------------


def test_silence_goes_on_over_a_reconnect_and_ends_quietly():
    bench = Bench(resume=Resume(GUEST, True, 10.0, False))
    bench.run(30, answers=False)
    assert bench.told(Lost) == []
    assert bench.told(Stopped) != []
    assert bench.session.heartbeat.state == WAITING


def test_who_had_answered_since_the_notice_is_lost_over_a_reconnect_too():
    bench = Bench(resume=Resume(GUEST, True, 10.0, True))
    bench.run(10 + PATIENCE - 0.1, answers=False)
    assert bench.told(Lost) == []
    bench.run(0.2, answers=False)
    assert len(bench.told(Lost)) == 1


def test_who_answers_in_a_resumed_silence_is_watched_on():
    bench = Bench(resume=Resume(GUEST, True, 10.0))
    bench.run(11, answers=True)
    assert bench.reports == [Running()]
    bench.run(10, answers=False)
    assert len(bench.told(Lost)) == 1


# --- reporting becomes enabled ---------------------------------------------------------------------


def enable(bench):
    bench.forget()
    bench._keep(bench.session.enable_reporting(bench.now))


def paused():
    bench = agreed("pause")
    bench.run(30, answers=False)
    return bench


def silent_for(seconds):
    def silent():
        bench = Bench().heartbeat()
        bench.run(seconds, answers=False)
        return bench

    return silent


def lost():
    bench = silent_for(3)()
    assert bench.told(Lost)
    return bench


STATES = [paused, lost, silent_for(0), silent_for(0.5), silent_for(1.5), lambda: agreed("reboot", 0.5)]


@pytest.mark.parametrize("make", STATES)
def test_whoever_is_known_is_challenged_at_once_and_owes_nothing(make):
    bench = make()
    enable(bench)
    assert bench.kinds() == ["ReportingEnabled"]
    assert len(bench.wrote(Challenge)) == 1
    bench.run(4.9, answers=False)
    assert len(bench.wrote(Challenge)) == 5, "and at its interval"
    bench.run(60, answers=False)
    assert bench.told(Lost) == []
    assert bench.told(Stopped)[-1] == GONE
    assert bench.session.heartbeat.state == WAITING


def test_the_patience_that_reporting_gives_does_not_put_off_what_its_misses_say():
    bench = silent_for(2.5)()
    assert len(bench.told(Missed)) == 1
    enable(bench)
    bench.run(1.05, answers=False)
    assert bench.told(Stopped) == [STOPPED], "after two misses, the one of before with it"
    bench.answer()
    assert Running() in bench.reports


def test_who_missed_before_its_silence_ended_is_told_as_stopped_after_two_misses():
    """By an interval of 5 s it would read as heartbeating 10 s longer."""
    bench = agreed("reboot")
    bench.run(12.5, answers=True)
    bench.run(3.6, answers=False)  # the silence ends after 15 s, in the middle of its misses
    assert bench.told(Missed) and bench.told(Lost) == []
    assert bench.told(Stopped) == [STOPPED]
    bench.run(10, answers=False)
    assert len(bench.told(Lost)) == 1, "its patience is over, and it owed an answer"


def test_time_that_was_ours_makes_nobody_stopped():
    bench = silent_for(2.5)()
    enable(bench)
    bench.now += 3
    bench._keep(bench.session.tick(bench.now))
    assert bench.told(Stopped) == []
    bench.answer()
    assert Running() in bench.reports


@pytest.mark.parametrize("make", STATES)
@pytest.mark.parametrize("after", [0.001, 2.3, 5.5, 20.0, 80.0])
def test_its_answer_however_late_makes_it_heartbeat(make, after):
    bench = make()
    enable(bench)
    bench.run(after, answers=False)
    bench.forget()
    bench.answer()
    assert bench.reports == [Running()]
    bench.run(10, answers=False)
    assert len(bench.told(Lost)) == 1, "from then on it owes answers"


def test_any_of_the_challenges_may_be_answered():
    """A machine that was paused answers what has piled up, the oldest first."""
    bench = paused()
    enable(bench)
    first = bench.challenge
    bench.run(3.5, answers=False)
    bench.forget()
    bench.challenge = first
    bench.answer()
    assert bench.reports == [Running()]


def test_a_guest_that_is_well_is_only_challenged_sooner():
    bench = Bench().heartbeat()
    bench.run(10, answers=True)
    enable(bench)
    bench.run(30, answers=True)
    assert bench.kinds() == ["ReportingEnabled", "Running"]


def test_who_never_introduced_itself_is_sent_nothing():
    bench = Bench()
    enable(bench)
    assert (bench.kinds(), bench.sent) == (["ReportingEnabled"], [])


def test_an_init_while_it_is_asked_is_taken():
    bench = paused()
    enable(bench)
    bench.run(2, answers=False)
    bench.init()
    bench.run(1, answers=True)
    assert bench.kinds()[-2:] == ["Acknowledged", "Running"]


def test_who_says_init_after_the_enabling_and_hangs_before_its_first_answer_is_no_loss():
    bench = lost()
    enable(bench)
    bench.init()
    bench.run(60, answers=False)
    assert bench.told(Lost) == []


def test_who_is_ill_when_reporting_becomes_enabled_is_told_again():
    bench = Bench().heartbeat()
    bench.tick()
    bench.answer("unhealthy")
    assert bench.told(Ill) == [Ill("reboot", "")]
    enable(bench)
    bench.answer("unhealthy")
    assert bench.told(Ill) == [Ill("reboot", "")]


def test_it_ends_a_silence():
    bench = agreed("reboot", 0.5)
    enable(bench)
    bench.answer()
    bench.forget()
    bench.run(3, answers=False)
    assert bench.kinds() == ["Missed", "Missed", "Lost"]


def test_a_closed_connection_stays_closed():
    bench = Bench()
    bench.run(120, answers=False)
    assert bench.session.heartbeat.state == CLOSED
    enable(bench)
    assert (bench.session.heartbeat.state, bench.sent) == (CLOSED, [])


def test_a_question_may_be_put_while_it_is_asked():
    bench = paused()
    enable(bench)
    assert bench.session.heartbeat.state == RESUMING
    settle(bench, "resume", "complete")
    assert bench.told(Answered) == [Answered(1, "complete", "why")]


# --- init without an answer ------------------------------------------------------------------------


@pytest.mark.parametrize("period", [0.05, 0.3, 0.9, 1.5])
def test_a_guest_that_says_init_again_and_again_and_answers_nothing_is_lost(period):
    bench = Bench().heartbeat()
    until = bench.now + 10
    while bench.now < until and not bench.told(Lost):
        bench.run(period, answers=False)
        bench.init()
    assert len(bench.told(Lost)) == 1
    assert bench.now - BEGIN <= 2 + 2 * period + 0.1
    for _ in range(100):
        bench.run(period, answers=False)
        bench.init()
    assert len(bench.told(Lost)) == 1


def test_a_guest_that_restarts_and_answers_is_not_lost():
    bench = Bench().heartbeat()
    for _ in range(20):
        bench.run(1.9, answers=False)
        bench.init()
        bench.answer()
    assert bench.told(Lost) == []


def test_inits_that_we_read_late_are_no_loss():
    bench = Bench().heartbeat()
    bench.run(0.9, answers=False)
    bench.init()
    bench.now += 10  # this process stood still, and the guest introduced itself again meanwhile
    for _ in range(3):
        bench.init()
    bench.tick(bench.now)
    bench.answer()
    bench.run(5, answers=True)
    assert bench.told(Lost) == []


def test_init_acks_keep_their_distance_and_the_latest_init_counts():
    bench = Bench()
    for ident in range(1, 11):
        bench.init(invocation_id=ident)
        bench.now += 0.001
    acks = [message.invocation_id for message in bench.wrote(guest_channel.InitAck)]
    assert acks == [1]
    bench.run(0.2, answers=False)
    acks = [message.invocation_id for message in bench.wrote(guest_channel.InitAck)]
    assert acks == [1, 10]


def test_a_goodbye_takes_back_an_init_that_waits():
    bench = Bench().heartbeat()
    bench.run(0.2, answers=False)
    bench.init()
    bench.init()
    bench.exit()
    bench.forget()
    bench.run(5, answers=False)
    assert (bench.reports, bench.sent) == ([], [])


# --- after a long absence of ours ------------------------------------------------------------------


def test_a_longer_patience_puts_the_loss_off_and_no_answer():
    bench = Bench(resume=Resume(GUEST, True, 0.0, False, 121.0))
    bench.run(120.9, answers=False)
    assert bench.told((Lost, Stopped)) == []
    bench.run(0.2, answers=False)
    assert bench.told(Lost) == [Lost(1)]


def test_who_had_restarted_meanwhile_says_init_within_its_time():
    bench = Bench(resume=Resume(GUEST, True, 0.0, False, 121.0))
    bench.run(60, answers=False)
    bench.init()
    bench.answer()
    assert bench.kinds()[-2:] == ["Acknowledged", "Running"]


def test_who_refuses_after_its_patience_was_spent_in_the_question_s_time_has_it_anew():
    bench = Bench().heartbeat()
    bench.ask(1, NOTICE, "suspend", 20000)
    enable(bench)
    bench.run(PATIENCE + 2, answers=False)
    bench.respond("suspend", NOTICE, "reject")
    bench.run(PATIENCE + 2, answers=False)
    assert bench.session.heartbeat.state == WAITING, "it is not challenged for ever"
    assert bench.told(Lost) == []


def test_who_owes_an_answer_has_its_patience_anew_when_it_refuses():
    bench = agreed("reboot")
    bench.run(12.5, answers=True)
    bench.run(
        3.6, answers=False
    )  # the silence has ended: it is asked whether it is there, and owes an answer
    bench.ask(2, NOTICE, "suspend", 60000)
    bench.run(20, answers=False)
    bench.respond("suspend", NOTICE, "reject")
    bench.forget()
    bench.run(PATIENCE - 0.5, answers=False)
    assert bench.told(Lost) == []
    bench.run(1, answers=False)
    assert len(bench.told(Lost)) == 1


# --- the end of the silence finds a guest that waits -----------------------------------------------


def test_the_end_of_the_silence_changes_nothing_for_whom_nobody_challenges():
    bench = agreed("pause")
    bench.run(SILENCE - 0.1, answers=False)
    assert bench.session.deadline == pytest.approx(bench.now + 0.1)
    bench.run(0.1, answers=False)
    assert (bench.session.heartbeat.state, bench.reports, bench.sent) == (WAITING, [], [])
    assert bench.session.deadline > bench.now + 60  # it is given up like any other


@pytest.mark.parametrize("answers", [False, True])
def test_who_says_init_after_the_silence_is_lost_once_it_has_answered(answers):
    bench = agreed("pause")
    bench.run(SILENCE + 1, answers=False)
    bench.init()
    if answers:
        bench.answer()
    bench.run(10, answers=False)
    assert len(bench.told(Lost)) == answers


@pytest.mark.parametrize("silence", [0.01, 0.5, 1.0])
def test_the_last_second_of_a_silence_counts_over_a_reconnect(silence):
    bench = Bench(resume=Resume(GUEST, True, silence))
    bench.run(30, answers=False)
    assert (bench.told(Lost), len(bench.told(Stopped))) == ([], 1)


def test_an_init_that_followed_another_at_once_is_reported_after_its_second():
    bench = Bench()
    bench.init(name="vm-1")
    bench.run(0.5, answers=False)
    bench.init(name="vm-2")
    assert [report.init.name for report in bench.told(Acknowledged)] == ["vm-1"]
    bench.run(1.1, answers=False)
    assert [report.init.name for report in bench.told(Acknowledged)] == ["vm-1", "vm-2"]


def test_an_early_wake_up_acknowledges_no_init_before_its_turn():
    bench = Bench()
    bench.init()
    bench.init(invocation_id=7)
    bench.tick(bench.now + 0.09)
    assert len(bench.wrote(guest_channel.InitAck)) == 1
    bench.tick(BEGIN + 0.1)
    assert [message.invocation_id for message in bench.wrote(guest_channel.InitAck)][1:] == [7]


# --- the patience of who is asked --------------------------------------------------------------


@pytest.mark.parametrize(("interval_ms", "patience"), [(400, 5.0), (1000, 5.0), (2500, 5.0), (4000, 8.0)])
def test_who_is_asked_has_two_intervals_and_at_least_five_seconds(interval_ms, patience):
    bench = Bench().heartbeat(heartbeat_interval_ms=interval_ms)
    enable(bench)
    bench.run(patience - 0.1, answers=False)
    assert bench.told((Stopped, Lost)) == []
    bench.run(0.2, answers=False)
    assert (len(bench.told(Stopped)) > 0, bench.told(Lost)) == (True, [])


def test_who_answered_the_first_time_has_all_its_patience_the_second_time():
    bench = Bench().heartbeat()
    enable(bench)
    bench.run(20, answers=True)
    enable(bench)
    bench.run(4.9, answers=False)
    assert bench.told((Stopped, Lost)) == []


def test_who_has_gone_is_not_told_as_stopped_again_before_its_patience_is_over():
    bench = Bench().heartbeat()
    bench.exit()
    enable(bench)
    bench.forget()
    bench.run(4.9, answers=False)
    assert bench.told(Stopped) == []


def missing_at_the_end_of_its_silence():
    """It answers until 12.8 s, misses at 14.4 s, and its silence ends at 15 s."""
    bench = agreed("stop", 13.0, heartbeat_interval_ms=800)
    bench.run(SILENCE - 13.0, answers=False)
    assert [report.in_a_row for report in bench.told(Missed)] == [1]
    return bench


def test_its_next_miss_after_the_silence_stops_it_and_its_patience_loses_it():
    bench = missing_at_the_end_of_its_silence()
    bench.run(0.7, answers=False)
    assert bench.told(Stopped) == []
    bench.run(0.2, answers=False)
    assert bench.told(Stopped) == [STOPPED]
    bench.run(4.0, answers=False)
    assert bench.told(Lost) == []
    bench.run(0.2, answers=False)
    assert len(bench.told(Lost)) == 1


def test_an_enabling_does_not_put_off_the_stop_that_is_near():
    bench = missing_at_the_end_of_its_silence()
    bench.run(0.2, answers=False)
    enable(bench)
    bench.run(0.7, answers=False)
    assert bench.told(Stopped) == [STOPPED]
    bench.run(60, answers=False)
    assert bench.told(Lost) == []


# --- how long who begs has ---------------------------------------------------------------------


def lost_after(bench, period):
    """How many s after the first of its inits, one each `period` s, it is lost."""
    first = bench.now
    while not bench.told(Lost) and bench.now < first + 60:
        bench.init()
        bench.run(period, answers=False)
    return bench.now - first


@pytest.mark.parametrize("period", [0.15, 0.3, 0.45, 0.9])
def test_who_only_says_init_has_as_long_as_two_misses_take(period):
    assert 2.0 <= lost_after(Bench().heartbeat(), period) <= 2.1 + period + 0.01


def test_time_that_we_read_late_is_added_once_to_what_who_only_says_init_has():
    bench = Bench().heartbeat()
    bench.run(0.2, answers=False)
    bench.init()
    bench.now += 1.5  # half a second after the challenge's interval
    assert 0.9 <= lost_after(bench, 0.3) <= 1.6


def test_who_has_gone_is_not_asked():
    bench = Bench().heartbeat()
    bench.exit()
    bench.forget()
    bench.ask(1, NOTICE, "reboot")
    assert (bench.reports, bench.sent) == ([Answered(1, "complete", "the guest is not heartbeating")], [])


def test_who_answers_after_it_was_stopped_within_its_patience_heartbeats_again():
    bench = missing_at_the_end_of_its_silence()
    bench.run(1.0, answers=False)
    assert bench.told(Stopped) == [STOPPED]
    bench.forget()
    bench.answer()
    assert bench.reports == [Running()]


def test_the_end_of_a_question_and_a_stop_at_the_same_instant_are_both_reported():
    bench = Bench().heartbeat()
    bench.ask(1, NOTICE, "reboot", 3000)
    bench.run(3, answers=False)
    assert bench.kinds() == ["Missed", "Answered", "Missed", "Stopped"]
    assert [missed.in_a_row for missed in bench.told(Missed)] == [1, 2]
