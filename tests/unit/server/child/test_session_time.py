"""Resuming after a reconnect, our own lateness, and random lives of a guest."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from session_driver import BEGIN, GUEST, Bench
from tiers import examples

from guestmtce.server.child.session_heartbeat import GONE
from guestmtce.server.child.session_states import CHALLENGED, CLOSED, RESTING, WAITING
from guestmtce.server.child.session_types import (
    AGREEMENTS,
    SILENCING,
    Acknowledged,
    Answered,
    Late,
    Lost,
    Missed,
    Note,
    Resume,
    Running,
    SessionSettings,
    Stopped,
)
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import ActionNotify, Challenge, ChallengeResponse, InitAck

# --- resume after a reconnect ----------------------------------------------------------------------


@pytest.mark.parametrize("heartbeating", [True, False])
def test_resume_sends_one_challenge_and_its_answer_resumes_the_heartbeat(heartbeating):
    bench = Bench(resume=Resume(GUEST, heartbeating, 0.0))
    assert bench.first_bytes.startswith(b" \n\n{")
    assert bench.sent == [Challenge(0)]
    bench.run(4, answers=True)
    assert bench.reports == [Running()]
    assert bench.session.heartbeat.state == RESTING


def test_resume_by_init():
    bench = Bench(resume=Resume(GUEST, True, 0.0))
    bench.now += 5
    bench.init(invocation_id=846930886)
    assert bench.wrote(InitAck) == [InitAck(846930886)]
    bench.answer()
    assert bench.kinds() == ["Acknowledged", "Running"]


@pytest.mark.parametrize(
    ("interval", "threshold", "patience"),
    [(1000, 1, 6.0), (5000, 1, 15.0), (400, 1, 5.4), (5000, 4, 25.0), (1000, 10, 11.0)],
)
def test_a_resumed_guest_gets_its_patience_and_never_less_than_a_loss_takes(interval, threshold, patience):
    init = GUEST._replace(heartbeat_interval_ms=interval)
    bench = Bench(SessionSettings(failure_threshold=threshold), Resume(init, True, 0.0))
    bench.tick(BEGIN + patience - 0.01)
    assert bench.reports == []
    bench.tick()
    assert bench.now == pytest.approx(BEGIN + patience)
    assert bench.reports == [Lost(1)]
    assert bench.sent == [Challenge(0)]


def test_who_did_not_heartbeat_before_is_not_lost_by_a_resume():
    bench = Bench(resume=Resume(GUEST, False, 0.0))
    bench.run(119, answers=False)
    assert (bench.session.heartbeat.state, bench.reports) == (WAITING, [GONE])
    bench.tick()
    assert (bench.now, bench.session.heartbeat.state) == (BEGIN + 120, CLOSED)


def test_exit_ends_a_resume():
    bench = Bench(resume=Resume(GUEST, True, 0.0))
    bench.exit()
    bench.run(100, answers=False)
    assert bench.kinds() == ["Note", "Stopped"]


def test_a_kept_interval_is_raised_to_the_floor_too():
    bench = Bench(resume=Resume(GUEST._replace(heartbeat_interval_ms=0), True, 0.0))
    bench.answer()
    assert bench.session.deadline == pytest.approx(BEGIN + 0.4)


# --- our own lateness ------------------------------------------------------------------------------


def challenged(interval=1000):
    bench = Bench().heartbeat(heartbeat_interval_ms=interval)
    bench.tick()
    return bench


@pytest.mark.parametrize("late", [0.0, 0.02])
def test_a_punctual_wake_up_judges(late):
    bench = challenged()
    bench.tick(bench.session.deadline + late)
    assert bench.reports == [Missed(1)]


@pytest.mark.parametrize(("late", "extra"), [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (3600.0, 1.0)])
def test_a_late_wake_up_is_given_to_the_guest(late, extra):
    bench = challenged()
    bench.tick(bench.session.deadline + late)
    assert bench.reports == [Late(late)]
    assert bench.session.deadline == bench.now + extra
    bench.now += extra / 2
    bench.answer()
    assert bench.session.heartbeat.state == RESTING
    assert bench.session.heartbeat.misses == 0


@pytest.mark.parametrize(
    ("interval", "late", "excused"),
    [(1000, 0.999, 1.0), (1000, 1.0, 2.0), (4000, 3.9, 4.0), (4000, 4.0, 8.0), (4000, 60, 8.0)],
)
def test_what_is_excused_for_one_challenge_in_all(interval, late, excused):
    """Delays shorter than the interval: one interval. Longer ones: two."""
    bench, given = challenged(interval), 0.0
    while not bench.told(Missed):
        bench.tick(bench.session.deadline + late)
        given += bench.session.deadline - bench.now if not bench.told(Missed) else 0.0
    assert given == pytest.approx(excused)


def test_a_long_stall_is_excused_even_after_short_ones():
    bench = challenged()
    for _ in range(4):
        bench.tick(bench.session.deadline + 0.25)
    bench.tick(bench.session.deadline + 30)
    assert bench.told(Missed) == []
    assert bench.session.deadline == bench.now + 1.0


def test_every_challenge_has_its_own_excuse():
    bench = challenged()
    bench.tick(bench.session.deadline + 3)
    bench.answer()
    bench.tick()
    bench.forget()
    bench.tick(bench.session.deadline + 0.5)
    assert bench.reports == [Late(0.5)]


@pytest.mark.parametrize("late", [0.03, 0.3, 0.99, 1.0, 5.0, 600.0])
def test_a_loss_is_told_on_a_machine_that_is_always_late(late):
    bench = challenged()
    began = bench.now
    for _ in range(1000):
        if bench.told(Lost):
            break
        bench.tick(bench.session.deadline + late)
    assert bench.told(Missed) == [Missed(1), Missed(2)]
    assert bench.told(Lost) == [Lost(2)]
    assert bench.now - began <= 2 * (1 + 3 * (1 + late))


def test_a_late_challenge_is_not_made_later_by_an_open_question():
    bench = Bench().heartbeat()
    bench.ask(1, guest_channel.VOTE, "stop")
    bench.tick(BEGIN + 1.5)
    assert bench.session.heartbeat.state == CHALLENGED
    assert bench.told(Late) == [Late(0.5)]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([0.0, 0.01, 0.4, 1.0, 7.0, 500.0])), max_size=60),
    st.sampled_from([400, 1000, 30000]),
)
def test_a_guest_that_answers_is_never_charged_for_our_lateness(rounds, interval):
    bench = Bench().heartbeat(heartbeat_interval_ms=interval)
    for part, late in rounds:
        bench.tick(bench.session.deadline + late)
        assert bench.session.heartbeat.state == CHALLENGED
        said_at = bench.now + part * interval / 1000
        bench.now = said_at + late  # read late: the socket is drained before the judgement
        bench.answer()
        assert bench.session.heartbeat.state == RESTING
    assert bench.told((Missed, Lost, Stopped)) == []


# --- random lives ----------------------------------------------------------------------------------

INITS = st.tuples(st.just("init"), st.sampled_from([0, 400, 1000, 5000, 40000]), st.integers(0, 2))
ANSWERS = st.tuples(
    st.just("answer"), st.sampled_from(["healthy", "unhealthy", "?"]), st.sampled_from([0, 0, 0, 1, -1])
)
ASKS = st.tuples(
    st.just("ask"),
    st.sampled_from(guest_channel.NOTIFICATION_TYPES),
    st.sampled_from(guest_channel.EVENT_TYPES),
    st.sampled_from([0, 300, 9000, 100000]),
)
RESPONSES = st.tuples(st.just("respond"), st.sampled_from(guest_channel.VOTE_RESULTS), st.booleans())
WAITS = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.0, 2.5, 9.0, 61.0, 200.0]))
RUNS = st.tuples(st.just("run"), st.sampled_from([0.5, 3.0, 20.0, 70.0]), st.booleans())
BYTES = st.tuples(
    st.just("bytes"),
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"\n", b"{", b'"}\n', b"x" * 5000, b'{"version":3}\n', b'{"version":1}\n']),
    ),
)
EXITS = st.just(("exit",))
ENABLINGS = st.just(("enable",))
STEPS = st.lists(
    st.one_of(INITS, ANSWERS, ASKS, RESPONSES, WAITS, RUNS, BYTES, EXITS, ENABLINGS), max_size=40
)
RESUMES = st.one_of(
    st.none(),
    st.builds(
        Resume, st.just(GUEST), st.booleans(), st.sampled_from([0.0, 5.0, 15.0]), st.booleans(),
        st.sampled_from([0.0, 121.0]),
    ),
)  # fmt: skip


class Watched(Bench):
    """A bench that checks, after every step of time and every message, what must always hold."""

    def __init__(self, config, resume):
        self.config = config
        self.interval = self.said_interval = 1.0
        self.sign_at = BEGIN  # of the last right answer, or the first init after it
        self.begs = False
        self.proven = resume is not None and resume.was_heartbeating  # it has shown that it is there
        self.proven_in_silence = resume is not None and resume.answered_since_notice
        self.silent_until = BEGIN + resume.silence if resume is not None else -1.0
        self.open = {}
        self.settled = []
        super().__init__(config, resume)

    def _keep(self, output):
        data, reports = output
        if b'"init_ack"' in data:
            self._acknowledged()
        for report in reports:
            self._check(report)
        return super()._keep(output)

    def _acknowledged(self):
        if self.silent():
            self.proven = False
        self.silent_until = -1.0
        self.interval = self.said_interval
        if not self.begs:
            self.sign_at, self.begs = self.now, True

    def silent(self):
        notices = [event for event, kind, _ in self.open.values() if kind == guest_channel.NOTICE]
        return any(event in SILENCING for event in notices) or self.now < self.silent_until

    def _check(self, report):
        if isinstance(report, Answered):
            self.settled.append(report.question_id)
            self._settled(report.vote, *self.open.pop(report.question_id)[:2])
        elif isinstance(report, Acknowledged):
            self.silent_until = -1.0
        elif isinstance(report, Lost):
            assert self.proven or self.proven_in_silence
            assert not self.silent()
            assert self.now - self.sign_at >= (self.config.failure_threshold + 1) * self.interval - 1e-6
        if isinstance(report, Lost):
            self.proven = self.proven_in_silence = self.begs = False

    def _settled(self, vote, event, kind):
        if kind == guest_channel.NOTICE and event in SILENCING and vote in AGREEMENTS:
            self.silent_until = self.now + self.config.expected_silence
        elif kind == guest_channel.NOTICE:
            self.silent_until = -1.0

    def init(self, **fields):
        self.said_interval = max(400, fields["heartbeat_interval_ms"]) / 1000
        super().init(**fields)

    def answer(self, *args, **fields):
        before = self.session.heartbeat.state
        super().answer(*args, **fields)
        if before != RESTING and self.session.heartbeat.state == RESTING:
            self.sign_at = self.now
            self.proven, self.begs = True, False
            self.proven_in_silence = True

    def exit(self):
        super().exit()
        self.silent_until = -1.0

    def enable(self):
        self.proven = self.proven_in_silence = False
        self.silent_until = -1.0
        self._keep(self.session.enable_reporting(self.now))

    def ask(self, number, kind, event, timeout_ms=9000):
        if kind == guest_channel.NOTICE and event in SILENCING:
            self.proven |= self.proven_in_silence and not self.silent()
            self.proven_in_silence = False
        self.open[number] = (event, kind, self.now + timeout_ms / 1000)
        super().ask(number, kind, event, timeout_ms)

    def settle_time(self):
        """What a late owner does: tick until the deadline is ahead, which must come soon."""
        for _ in range(6):
            if self.session.deadline > self.now:
                break
            self.tick(self.now)
        assert self.session.deadline > self.now
        assert len(self.open) <= 1
        assert all(deadline > self.now for _, _, deadline in self.open.values())


def step(bench, number, what, *how):
    if what == "init":
        bench.init(heartbeat_interval_ms=how[0], invocation_id=how[1])
    elif what == "answer":
        bench.answer(how[0], off=how[1])
    elif what == "ask":
        bench.ask(number, *how)
    elif what == "respond" and bench.wrote(ActionNotify):
        asked = bench.wrote(ActionNotify)[-1]
        bench.respond(asked.event_type, asked.notification_type, how[0], asked.invocation_id + (not how[1]))
    elif what == "wait":
        bench.now += how[0]
    elif what == "run":
        bench.run(*how)
    elif what == "bytes":
        bench.say(how[0])
    elif what == "exit":
        bench.exit()
    elif what == "enable":
        bench.enable()
    bench.settle_time()


@settings(max_examples=examples(400), deadline=None)
@given(RESUMES, st.sampled_from([0, 1, 3]), STEPS)
@example(Resume(GUEST, True, 0.0), 1, [("ask", guest_channel.NOTICE, "reboot", 300), ("run", 70.0, False)])
@example(None, 1, [("init", 40000, 0), ("answer", "healthy", 0), ("ask", guest_channel.NOTICE, "stop", 0)]
         + [("run", 70.0, False)] * 3)  # fmt: skip
def test_random_lives(resume, threshold, steps):
    bench = Watched(SessionSettings(failure_threshold=threshold), resume)
    numbers = [number for number, one in enumerate(steps) if one[0] == "ask"]
    for number, one in enumerate(steps):
        step(bench, number, *one)
    bench.run(100, answers=False)
    assert bench.settled == numbers


# --- a guest that will not stop introducing itself -------------------------------------------------


def test_many_inits_are_acknowledged_ten_times_a_second_and_reported_once():
    bench = Watched(SessionSettings(), None)
    for number in range(900):
        bench.init(invocation_id=number, heartbeat_interval_ms=1000)
        bench.now += 0.001
        bench.settle_time()
    assert len(bench.wrote(InitAck)) == 9
    assert len(bench.told(Acknowledged)) == 1
    bench.run(0.2, answers=False)
    bench.answer()
    bench.run(2.0, answers=True)
    assert [report.init.invocation_id for report in bench.told(Acknowledged)] == [0, 899]
    assert bench.kinds().count("Running") == 1


# --- phases, and our own lateness ------------------------------------------------------------------


MOST = guest_channel.INT32_MAX


@pytest.mark.parametrize(
    ("spread", "number", "rest"),
    [(0.0, MOST, 1.0), (1.0, 0, 1.0), (1.0, MOST // 4, 0.75), (1.0, MOST, 0.0), (0.5, MOST, 0.5)],
)
def test_the_first_rest_is_cut_by_chance_and_no_other(spread, number, rest):
    bench = Bench(SessionSettings(phase_spread=spread))
    bench.session.heartbeat._next_challenge = lambda: number
    bench.init()
    bench.answer()
    assert bench.session.deadline == pytest.approx(BEGIN + rest)
    bench.tick(bench.session.deadline)
    bench.answer()
    assert bench.session.deadline == pytest.approx(BEGIN + rest + 1.0)


def test_challenges_that_we_make_late_are_told_now_and_then():
    bench = Bench().heartbeat()
    for _ in range(1, 25):
        bench.tick(bench.session.deadline + 0.1)
        bench.answer()
    told = bench.told(Late)
    assert [round(one.seconds, 3) for one in told] == [0.1] * 3  # one in ten seconds


@pytest.mark.parametrize(("late", "told"), [(0.25, []), (0.375, [Late(0.375)])])
def test_a_late_challenge_is_a_sign_beyond_the_slack(late, told):
    bench = Bench(SessionSettings(wake_slack=0.25)).heartbeat()
    bench.tick(bench.session.deadline + late)
    assert bench.reports == told


@pytest.mark.parametrize(("missed", "what"), [(8, "a late answer"), (9, "a wrong heartbeat_response")])
def test_the_answers_to_the_last_eight_challenges_are_known_as_late(missed, what):
    bench = Bench(SessionSettings(failure_threshold=100)).heartbeat()
    bench.tick()
    first = bench.challenge
    for _ in range(missed):
        bench.tick()
    bench.forget()
    bench.say(ChallengeResponse(first, "healthy", "none", ""))
    (note,) = bench.told(Note)
    assert note.text.startswith(what)


@pytest.mark.parametrize(("late", "judged"), [(0.25, [Missed(1)]), (0.375, [Late(0.375)])])
def test_who_is_not_in_time_is_judged_within_the_slack_and_excused_beyond_it(late, judged):
    bench = Bench(SessionSettings(wake_slack=0.25)).heartbeat()
    bench.tick()
    bench.tick(bench.session.deadline + late)
    assert bench.reports == judged


def test_a_late_wake_up_at_the_end_of_the_patience_is_given_to_the_guest():
    bench = Bench(resume=Resume(GUEST, True, 0.0))
    bench.run(5.9, answers=False)
    bench.tick(BEGIN + 6.5)
    assert (bench.told(Late), bench.told(Lost)) == ([Late(0.5)], [])
    bench.answer()
    assert bench.kinds()[-1] == "Running"


def test_who_ends_a_question_by_its_init_is_reported_at_once():
    """An init within a second of another waits, but this one shows that the agreement silences nobody."""
    bench = Bench().heartbeat()
    bench.ask(1, guest_channel.NOTICE, "reboot")
    bench.run(0.5, answers=True)
    bench.init()
    assert bench.kinds() == ["Answered", "Acknowledged"]
