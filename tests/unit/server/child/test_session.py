"""The heartbeat itself: init, challenges, misses, health, exit, nacks, lateness, reconnects."""

from __future__ import annotations

import json

import pytest
from session_driver import BEGIN, GUEST, Bench

from guestmtce.server.child import process
from guestmtce.server.child.session import NEVER, Session
from guestmtce.server.child.session_heartbeat import GONE
from guestmtce.server.child.session_states import (
    CHALLENGED,
    CLOSED,
    DUE,
    EXIT,
    INIT,
    INPUTS,
    LOSS,
    MISS,
    REPEAT,
    RESTING,
    RESUMING,
    RIGHT,
    STATES,
    STOP,
    TRANSITIONS,
    WAITING,
    WRONG,
)
from guestmtce.server.child.session_types import (
    Acknowledged,
    Ill,
    Lost,
    Missed,
    Note,
    Reconnect,
    Resume,
    SessionSettings,
    Stopped,
)
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import Challenge, ChallengeResponse, InitAck, Nack

# --- every pair of state and input -----------------------------------------------------------------


def bench_in(state):
    """A bench whose session came into `state` the way a real one does."""
    resuming = state == RESUMING
    bench = Bench(resume=Resume(GUEST, True, 0.0)) if resuming else Bench().heartbeat()
    if state == CHALLENGED:
        bench.tick()
    elif state in (WAITING, CLOSED):
        bench.ask(1, guest_channel.NOTICE, "reboot")
        bench.respond("reboot", guest_channel.NOTICE, "complete")
        bench.run(20, answers=False)  # it goes quiet, and its last challenge stays open
    if state == CLOSED:
        bench.tick()
    assert bench.session.heartbeat.state == state
    bench.now += 20  # beyond every limit on repeated log lines, within nobody's judgement
    bench.forget()
    return bench


def give(bench, what):
    if what == INIT:
        bench.init()
    elif what == RIGHT:
        bench.answer()
    elif what == WRONG:
        bench.answer(off=12345)
    elif what == EXIT:
        bench.exit()
    else:
        bench.now = BEGIN
        if what == STOP:
            bench.ask(1, guest_channel.NOTICE, "reboot")
        if what in (LOSS, STOP):
            bench.tick()
        if what == REPEAT:
            bench._keep(bench.session.enable_reporting(bench.now))
        bench.forget()
        bench.tick(BEGIN + 1e6 if bench.session.heartbeat.state == CLOSED else None)


WALK = {
    (WAITING, INIT): (CHALLENGED, "Acknowledged", "InitAck Challenge"),
    (WAITING, RIGHT): (RESTING, "Running", ""),
    (WAITING, WRONG): (WAITING, "Note", ""),
    (WAITING, EXIT): (WAITING, "Note Stopped", ""),
    (WAITING, DUE): (CLOSED, "Reconnect", ""),
    (RESUMING, INIT): (CHALLENGED, "Acknowledged", "InitAck Challenge"),
    (RESUMING, RIGHT): (RESTING, "Running", ""),
    (RESUMING, WRONG): (RESUMING, "Note", ""),
    (RESUMING, EXIT): (WAITING, "Note Stopped", ""),
    (RESUMING, REPEAT): (RESUMING, "", "Challenge"),
    (RESUMING, DUE): (WAITING, "Lost", ""),
    (CHALLENGED, INIT): (CHALLENGED, "Acknowledged", "InitAck Challenge"),
    (CHALLENGED, RIGHT): (RESTING, "", ""),
    (CHALLENGED, WRONG): (CHALLENGED, "Note", ""),
    (CHALLENGED, EXIT): (WAITING, "Note Stopped", ""),
    (CHALLENGED, MISS): (CHALLENGED, "Missed", "Challenge"),
    (CHALLENGED, STOP): (CHALLENGED, "Missed Stopped", "Challenge"),
    (CHALLENGED, LOSS): (WAITING, "Missed Lost", ""),
    (RESTING, INIT): (CHALLENGED, "Acknowledged", "InitAck Challenge"),
    (RESTING, RIGHT): (RESTING, "", ""),
    (RESTING, WRONG): (RESTING, "Note", ""),
    (RESTING, EXIT): (WAITING, "Note Stopped", ""),
    (RESTING, DUE): (CHALLENGED, "", "Challenge"),
    (CLOSED, INIT): (CLOSED, "", ""),
    (CLOSED, RIGHT): (CLOSED, "", ""),
    (CLOSED, WRONG): (CLOSED, "Note", ""),
    (CLOSED, EXIT): (CLOSED, "", ""),
    (CLOSED, DUE): (CLOSED, "", ""),
}


def test_the_walk_knows_every_pair():
    assert set(WALK) == set(TRANSITIONS)
    assert {state for state, _ in WALK} == set(STATES)
    assert {what for _, what in WALK} == set(INPUTS)


@pytest.mark.parametrize(("state", "what"), sorted(WALK))
def test_walk(state, what):
    bench = bench_in(state)
    give(bench, what)
    after, reports, sent = WALK[state, what]
    assert bench.session.heartbeat.state == after == TRANSITIONS[state, what][0]
    assert bench.kinds() == reports.split()
    assert [type(message).__name__ for message in bench.sent] == sent.split()


# --- init ------------------------------------------------------------------------------------------


def test_a_new_connection_begins_with_the_resync_and_nothing_else():
    assert Bench().first_bytes == b" \n"


def test_init_is_acknowledged_and_challenged_at_once():
    bench = Bench()
    bench.init(invocation_id=846930886)
    assert bench.sent == [InitAck(846930886), Challenge(0)]
    assert bench.reports == [Acknowledged(GUEST._replace(invocation_id=846930886))]
    assert not bench.session.heartbeat.was_heartbeating


@pytest.mark.parametrize(("interval", "taken"), [(399, 400), (0, 400), (-5, 400), (400, 400), (401, 401)])
def test_interval_below_the_floor_is_raised_and_logged(interval, taken):
    bench = Bench()
    bench.say(guest_channel.build(GUEST._replace(heartbeat_interval_ms=interval), 1))
    assert bench.told(Acknowledged) == [Acknowledged(GUEST._replace(heartbeat_interval_ms=taken))]
    assert len(bench.told(Note)) == (interval < taken)
    assert bench.session.deadline == pytest.approx(BEGIN + taken / 1000)


def test_init_in_mid_heartbeat_is_taken_in_one_step():
    bench = Bench().heartbeat()
    bench.run(1.5, answers=False)
    bench.init(invocation_id=846930886, heartbeat_interval_ms=2000)
    assert bench.sent[-2:] == [InitAck(846930886), Challenge(bench.challenge)]
    assert bench.session.deadline == bench.now + 2.0
    bench.answer()
    assert bench.kinds() == ["Acknowledged", "Running"]


def test_init_resets_the_misses():
    bench = Bench().heartbeat()
    bench.run(2.5, answers=False)
    assert bench.session.heartbeat.misses == 1
    bench.init()
    bench.run(1.5, answers=False)
    assert bench.told(Lost) == []


# --- answers, misses, loss -------------------------------------------------------------------------


def test_the_rest_of_the_interval_passes_before_the_next_challenge():
    bench = Bench()
    bench.init()
    bench.now += 0.25
    bench.answer()
    assert bench.kinds() == ["Acknowledged", "Running"]
    assert bench.session.deadline == BEGIN + 1.0
    bench.tick(BEGIN + 0.999)
    assert len(bench.wrote(Challenge)) == 1
    bench.tick()
    assert [message.heartbeat_challenge for message in bench.wrote(Challenge)] == [0, guest_channel.INT32_MAX]


def test_running_is_told_once():
    bench = Bench().heartbeat()
    bench.run(10, answers=True)
    assert bench.reports == []
    assert len(bench.wrote(Challenge)) == 10


def test_a_wrong_answer_leaves_the_challenge_open():
    bench = Bench().heartbeat()
    bench.tick()
    bench.answer(off=777)
    assert (bench.session.heartbeat.state, bench.kinds()) == (CHALLENGED, ["Note"])
    bench.answer()
    assert bench.session.heartbeat.state == RESTING


def test_an_answer_to_an_older_challenge_is_late_and_ignored():
    bench = Bench().heartbeat()
    bench.tick()
    old = bench.challenge
    bench.tick()
    bench.say(ChallengeResponse(old, "healthy", "reboot", ""))
    assert bench.session.heartbeat.state == CHALLENGED
    assert bench.session.heartbeat.misses == 1
    assert "late" in bench.told(Note)[0].text


@pytest.mark.parametrize(("threshold", "interval"), [(0, 1000), (1, 1000), (1, 2500), (3, 500)])
def test_loss_comes_at_exactly_one_interval_beyond_the_threshold(threshold, interval):
    bench = Bench(SessionSettings(failure_threshold=threshold)).heartbeat(heartbeat_interval_ms=interval)
    bench.tick()
    challenged = bench.now
    allowed = interval / 1000 * (threshold + 1)
    bench.run(allowed - 0.001, answers=False)
    assert bench.reports == [Missed(count) for count in range(1, threshold + 1)]
    bench.forget()
    bench.tick()
    assert bench.now == challenged + allowed
    assert bench.reports == [Missed(threshold + 1), Lost(threshold + 1)]
    assert (bench.session.heartbeat.state, bench.session.heartbeat.was_heartbeating) == (WAITING, False)


def test_a_right_answer_resets_the_misses():
    bench = Bench().heartbeat()
    for _ in range(5):
        bench.tick()
        bench.tick()
        bench.answer()
    assert bench.told(Missed) == [Missed(1)] * 5
    assert bench.told(Lost) == []


def test_who_never_heartbeat_is_not_lost():
    bench = Bench()
    bench.init()
    bench.run(119, answers=False)
    assert bench.kinds() == ["Acknowledged", "Missed", "Missed", "Stopped"]
    assert bench.session.heartbeat.state == WAITING


def test_after_a_loss_only_init_counts():
    bench = Bench().heartbeat()
    bench.run(5, answers=False)
    bench.forget()
    bench.answer()
    assert (bench.session.heartbeat.state, bench.sent, bench.kinds()) == (WAITING, [], ["Note"])
    bench.init()
    bench.answer()
    assert bench.kinds() == ["Note", "Acknowledged", "Running"]


# --- health ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", guest_channel.CORRECTIVE_ACTIONS)
def test_unhealthy_by_action(action):
    bench = Bench()
    bench.init()
    bench.answer("unhealthy", action, "disk full")
    assert bench.session.heartbeat.was_heartbeating
    last = bench.reports[-1]
    if action in ("none", "unknown"):
        assert bench.kinds() == ["Acknowledged", "Running", "Note"]
        assert "disk full" in last.text
    else:
        assert bench.kinds() == ["Acknowledged", "Running", "Ill"]
        assert last == Ill(action, "disk full")


def test_illness_is_repeated_after_55_s_and_counted_anew_after_health():
    bench = Bench().heartbeat()
    ill_at = []
    for _ in range(60):
        bench.tick()
        bench.answer("unhealthy")
        ill_at += [bench.now - BEGIN] * len(bench.told(Ill))
        bench.forget()
    assert ill_at == [1.0, 56.0]
    bench.tick()
    bench.answer()
    assert bench.kinds() == ["Well"]
    bench.tick()
    bench.answer("unhealthy")
    assert bench.kinds() == ["Well", "Ill"]


def test_a_restarted_guest_s_illness_is_told_at_once():
    bench = Bench().heartbeat()
    for _ in range(2):
        bench.run(0.5, answers=False)
        bench.init()
        bench.answer("unhealthy")
    assert bench.told(Ill) == [Ill("reboot", "")] * 2


def test_who_was_ill_before_this_connection_is_not_reported_anew_and_its_health_is():
    bench = Bench(resume=Resume(GUEST, True, 0.0, ill=True))
    bench.answer("unhealthy")
    assert bench.kinds() == ["Running"]
    bench.tick()
    bench.answer()
    assert bench.kinds() == ["Running", "Well"]


def test_the_init_of_a_guest_is_reported_before_its_illness_however_often_it_says_init():
    bench = Bench()
    for _ in range(3):
        bench.run(0.2, answers=False)
        bench.init()
        bench.answer("unhealthy")
    assert bench.kinds() == ["Acknowledged", "Running", "Ill"] * 3


def test_an_unknown_health_word_counts_as_unhealthy_and_is_logged():
    bench = Bench().heartbeat()
    bench.tick()
    bench.answer("poorly", "stop", "x")
    assert bench.kinds() == ["Note", "Ill"]
    assert "poorly" in bench.reports[0].text


def test_an_ill_guest_is_challenged_on_and_can_be_lost():
    bench = Bench().heartbeat()
    bench.tick()
    bench.answer("unhealthy")
    bench.run(3, answers=False)
    assert bench.kinds() == ["Ill", "Missed", "Missed", "Lost"]


# --- exit and idleness -----------------------------------------------------------------------------


def test_exit_is_a_stop_and_no_loss():
    bench = Bench().heartbeat()
    bench.exit()
    bench.run(119, answers=False)
    assert bench.kinds() == ["Note", "Stopped"]
    assert bench.sent == []


def test_not_heartbeating_for_120_s_closes_the_connection():
    bench = Bench()
    bench.tick(BEGIN + 119.9)
    assert bench.reports == []
    bench.tick()
    assert bench.now == BEGIN + 120
    assert (bench.session.heartbeat.state, bench.kinds(), bench.session.deadline) == (
        CLOSED,
        ["Reconnect"],
        NEVER,
    )


def test_idleness_counts_from_the_end_of_the_heartbeat_and_init_without_answers_does_not_stop_it():
    bench = Bench().heartbeat()
    bench.run(100, answers=True)
    bench.exit()
    gone = bench.now
    for _ in range(20):
        bench.run(5, answers=False)
        bench.init()
    bench.run(10, answers=False)
    assert bench.told(Reconnect) == []
    bench.tick()
    assert bench.now == gone + 120
    assert bench.session.heartbeat.state == CLOSED


# --- errors ----------------------------------------------------------------------------------------

NO_RESPONSE = "failed to parse heartbeat_response"
HEAD = b'{"version":3,"revision":1,"sequence":1,"msg_type":'


@pytest.mark.parametrize(
    ("line", "nack"),
    [
        (b'{"revision":1,"sequence":1,"msg_type":"exit"}', "failed to parse version"),
        (HEAD + b'"init","invocation_id":"1"}', "failed to parse invocation_id"),
        (HEAD + b'"challenge_response"}', NO_RESPONSE),
        (HEAD + b'"challenge_response","heartbeat_response":2147483648}', NO_RESPONSE),
        (b'{"version":2,"msg_type":"exit"}', "Bad version: 2, expect version: 3"),
        (HEAD + b'"quit"}', "unsupported message type: quit"),
        (
            HEAD + b'"action_response","invocation_id":5,"event_type":"stop","notification_type":"revocable",'
            b'"vote_result":"accept","log_msg":""}',
            "Invocation id mismatch. Received: 5 expect: 1804289383",
        ),
        (b"no JSON at all", None),
        (b"\xff\xfe{", None),
        (b"[1,2]", None),
        (b"5", None),
    ],
)
def test_errors_are_nacked_and_cost_no_heartbeat(line, nack):
    bench = Bench().heartbeat()
    bench.tick()
    bench.forget()
    bench.say(line + b"\n")
    assert bench.sent == ([] if nack is None else [Nack(GUEST.invocation_id, nack)])
    assert bench.kinds() == ["Note"]
    bench.answer()
    assert bench.session.heartbeat.state == RESTING


def test_at_most_one_nack_a_second():
    bench = Bench()
    nacked = []
    for tenth in range(31):
        bench.now = BEGIN + tenth / 8
        bench.say(HEAD + b'"quit"}\n')
        nacked += [bench.now - BEGIN] * len(bench.wrote(Nack))
        bench.forget()
    assert nacked == [0.0, 1.0, 2.0, 3.0]


def test_a_line_too_long_is_dropped_and_the_next_is_taken():
    bench = Bench()
    bench.say(b"x" * (json_lines.LINE_MAX + 1))
    bench.say(b'"}\n' + guest_channel.build(GUEST, 1))
    assert bench.kinds() == ["Note", "Acknowledged"]


def test_log_lines_of_a_kind_are_limited_and_counted():
    bench = Bench()
    for _ in range(5):
        bench.say(b"rubbish\n")
    bench.now += 10
    bench.say(b"rubbish\n")
    assert [note.held_back for note in bench.told(Note)] == [0, 4]


@pytest.mark.parametrize(
    ("raw", "number"), [(b"\xff" * 4, guest_channel.INT32_MAX), (b"\x00\x00\x00\x80", 0)]
)
def test_the_challenges_of_a_child_fit_the_guest(monkeypatch, raw, number):
    monkeypatch.setattr(process, "random_bytes", lambda size: raw[:size])
    assert process.random_challenge() == number


# --- what is to be read before it is judged ----------------------------------------------------


def resting(bench):
    bench.heartbeat()


def challenged(bench):
    bench.init()


def asked(bench):
    bench.heartbeat()
    bench.ask(1, guest_channel.VOTE, "reboot")


def asked_and_settled(bench):
    bench.heartbeat()
    bench.ask(1, guest_channel.VOTE, "reboot")
    bench.respond("reboot", guest_channel.VOTE, "accept")


def gone(bench):
    bench.heartbeat()
    bench.exit()


def resuming(bench):
    bench.heartbeat()
    bench._keep(bench.session.enable_reporting(bench.now))


@pytest.mark.parametrize(
    ("lives", "drains"),
    [
        (lambda bench: None, False),
        (resting, False),
        (challenged, True),
        (asked, True),
        (asked_and_settled, False),
        (gone, False),
        (resuming, True),
    ],
)
def test_what_was_sent_in_time_is_read_before_its_sender_is_judged(lives, drains):
    bench = Bench()
    lives(bench)
    assert bench.session.awaits_answer() is drains


def test_the_host_counts_its_messages_from_1():
    session = Session(SessionSettings(), lambda: 7)
    session.start(None, BEGIN)
    data, _ = session.receive(guest_channel.build(GUEST, 1), BEGIN)
    data += session.receive(b"{}\n", BEGIN)[0]
    sequences = [json.loads(line)["sequence"] for line in data.split(b"\n") if line]
    assert sequences == [1, 2, 3]


def test_who_has_not_introduced_itself_is_refused_under_the_id_0():
    bench = Bench()
    bench.say(b"{}\n")
    assert [nack.invocation_id for nack in bench.wrote(Nack)] == [0]


# --- what holds where nothing is configured ----------------------------------------------------


def test_the_defaults_of_the_specification():
    settings = SessionSettings()
    assert (settings.interval_floor_ms, settings.failure_threshold, settings.guest_patience) == (400, 1, 5)
    assert (settings.idle_reconnect, settings.expected_silence, settings.ill_repeat) == (120, 15, 55)
    assert (settings.nack_period, settings.phase_spread) == (1, 0)


def test_one_guest_s_share_of_the_work_and_of_the_log():
    settings = SessionSettings()
    assert (settings.ack_period, settings.init_report_period) == (0.1, 1)
    assert (settings.note_period, settings.wake_slack) == (10, 0.02)


def test_who_is_resumed_is_neither_ill_nor_silent_nor_patient_unless_said():
    assert Resume(GUEST, True, 0.0)[3:] == (False, 0.0, False)
    assert (Stopped(), GONE) == ((0,), (1,))


def test_one_read_may_bring_what_is_refused_and_an_init():
    bench = Bench()
    bench.say(b"{}\n" + guest_channel.build(GUEST, 1))
    assert [type(message) for message in bench.sent] == [Nack, InitAck, Challenge]
