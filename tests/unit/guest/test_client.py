"""The guest's side of the heartbeat: every state and input, init, challenges, health, hang-ups."""

from __future__ import annotations

import json

import pytest
from client_driver import BEGIN, Bench, names
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.common.log_line import LogLine
from guestmtce.guest import client as c
from guestmtce.guest.client import ALONE, ENABLED, ENABLING, GONE, INTERRUPTED, AskVoters, WithdrawQuestion
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.wire import guest_channel, guest_channel_fast, json_lines
from guestmtce.wire.guest_channel import ActionResponse, ChallengeResponse, Exit, Init, InitAck

# --- every pair of state and input -----------------------------------------------------------------

WALK = {
    (ALONE, c.OPENED): (ENABLING, "Init"),
    (ALONE, c.CLOSED): (ALONE, ""),
    (ALONE, c.ACK): (ALONE, ""),
    (ALONE, c.CHALLENGE): (ALONE, ""),
    (ALONE, c.DUE): (ALONE, ""),
    (ALONE, c.EXIT): (GONE, ""),
    (ENABLING, c.OPENED): (ENABLING, "Init"),
    (ENABLING, c.CLOSED): (ALONE, ""),
    (ENABLING, c.ACK): (ENABLED, ""),
    (ENABLING, c.CHALLENGE): (ENABLING, ""),
    (ENABLING, c.DUE): (ENABLING, "Init"),
    (ENABLING, c.EXIT): (GONE, "Exit"),
    (ENABLED, c.OPENED): (ENABLED, ""),
    (ENABLED, c.CLOSED): (INTERRUPTED, ""),
    (ENABLED, c.ACK): (ENABLED, ""),
    (ENABLED, c.CHALLENGE): (ENABLED, "ChallengeResponse"),
    (ENABLED, c.DUE): (ENABLING, "Init"),
    (ENABLED, c.EXIT): (GONE, "Exit"),
    (INTERRUPTED, c.OPENED): (ENABLED, ""),
    (INTERRUPTED, c.CLOSED): (INTERRUPTED, ""),
    (INTERRUPTED, c.ACK): (INTERRUPTED, ""),
    (INTERRUPTED, c.CHALLENGE): (INTERRUPTED, ""),
    (INTERRUPTED, c.DUE): (ALONE, ""),
    (INTERRUPTED, c.EXIT): (GONE, ""),
    (GONE, c.OPENED): (GONE, ""),
    (GONE, c.CLOSED): (GONE, ""),
    (GONE, c.ACK): (GONE, ""),
    (GONE, c.CHALLENGE): (GONE, ""),
    (GONE, c.DUE): (GONE, ""),
    (GONE, c.EXIT): (GONE, ""),
    (ALONE, c.CHANGE): (ALONE, ""),
    (ENABLING, c.CHANGE): (ENABLING, "Init"),
    (ENABLED, c.CHANGE): (ENABLING, "Init"),
    (INTERRUPTED, c.CHANGE): (ALONE, ""),
    (GONE, c.CHANGE): (GONE, ""),
}


def give(bench, what, ident):
    if what == c.OPENED:
        bench.open()
    elif what == c.CLOSED:
        bench.close()
    elif what == c.ACK:
        bench.say(InitAck(ident))
    elif what == c.CHALLENGE:
        bench.challenge()
    elif what == c.EXIT:
        bench.keep(bench.client.say_goodbye("bye", bench.now))
    elif what == c.CHANGE:
        bench.keep(bench.client.configure(Config(vote=99), bench.now))
    else:
        bench.tick(BEGIN + 1e6 if bench.client.deadline == c.NEVER else None)


def test_the_walk_knows_every_pair():
    assert set(WALK) == set(c.TRANSITIONS) == {(state, what) for state in c.STATES for what in c.INPUTS}


@pytest.mark.parametrize("pair", WALK, ids="-".join)
def test_every_pair(pair):
    bench = Bench().bring_to(pair[0])
    ident = (bench.wrote(Init) or [Init(0, *range(8))])[-1].invocation_id
    bench.forget()
    give(bench, pair[1], ident)
    assert (bench.client.state, names(bench.sent)) == WALK[pair]
    assert bench.client.deadline > bench.now


def test_a_change_that_the_host_need_not_know_says_nothing():
    bench = Bench().enabled()
    bench.forget()
    bench.keep(bench.client.configure(Config(health_check_script="/bin/check"), bench.now))
    assert bench.sent == [] and bench.client.state == ENABLED


def test_a_new_interval_and_action_go_out_with_a_new_init_and_its_patience():
    bench = Bench().enabled()
    bench.forget()
    bench.keep(bench.client.configure(Config(interval_ms=10_000, corrective_action="stop"), bench.now))
    (init,) = bench.wrote(Init)
    assert (init.heartbeat_interval_ms, init.corrective_action) == (10_000, "stop")
    bench.ack()
    bench.challenge()
    assert bench.client.deadline == bench.now + 20


# --- init ------------------------------------------------------------------------------------------


def test_the_init_says_what_is_configured_and_one_second_more():
    bench = Bench(interval_ms=700, vote=3, shutdown_notice=4, suspend_notice=5, resume_notice=6, restart=7)
    bench.open()
    assert bench.sent == [Init(0, "vm-1", 700, 4, 5, 6, 7, 8, "reboot")]


def test_init_is_repeated_every_five_seconds_with_a_fresh_id():
    bench = Bench()
    bench.open()
    for _ in range(3):
        bench.tick()
    assert bench.now == BEGIN + 15
    ids = [init.invocation_id for init in bench.wrote(Init)]
    assert len(ids) == 4 == len(set(ids))


@pytest.mark.parametrize(("back", "state"), [(0, ENABLED), (1, ENABLED), (2, ENABLING)])
def test_the_latest_init_or_the_one_before_may_be_acknowledged(back, state):
    bench = Bench()
    bench.open()
    bench.tick()
    bench.tick()
    bench.ack(back)
    assert bench.client.state == state


def test_a_host_that_hung_up_acknowledges_nothing_old():
    bench = Bench()
    bench.open()
    bench.close()
    bench.open()
    old = bench.wrote(Init)[0].invocation_id
    bench.say(InitAck(old))
    assert bench.client.state == ENABLING


@pytest.mark.parametrize(("interval_ms", "patience"), [(400, 5), (2500, 5), (2501, 5.002), (10000, 20)])
def test_without_challenges_init_comes_after_two_intervals_and_five_seconds_at_least(interval_ms, patience):
    bench = Bench(interval_ms=interval_ms).enabled()
    bench.now += 3
    bench.challenge()
    challenged = bench.now
    bench.forget()
    bench.tick()
    assert (bench.now - challenged, names(bench.sent)) == (pytest.approx(patience), "Init")


# --- challenges and health -------------------------------------------------------------------------


def test_every_challenge_is_answered_those_that_piled_up_too():
    bench = Bench().enabled()
    bench.say(b"".join(guest_channel_fast.build_challenge(n, n) for n in (0, 5, guest_channel.INT32_MAX)))
    numbers = [answer.heartbeat_response for answer in bench.wrote(ChallengeResponse)]
    assert numbers == [0, 5, guest_channel.INT32_MAX]
    assert bench.wrote(ChallengeResponse)[0][1:] == ("healthy", "reboot", "")
    assert bench.client.answers == 3


def test_messages_are_counted_up():
    client = Bench().enabled().client
    sent = [client.receive(guest_channel_fast.build_challenge(n, n), BEGIN).messages[0] for n in range(3)]
    first, *others = [json.loads(data.decode())["sequence"] for data in sent]
    assert others == [first + 1, first + 2]


def test_half_lines_garbage_and_refusals_cost_only_themselves():
    bench = Bench().enabled()
    text = guest_channel_fast.build_challenge(1, 1)
    for data in (
        text[:20],
        text[20:],
        b"garbage\n",
        b'{"version":2}\n',
        b"x" * 9000 + b"\n",
        text[:30],
        text,
    ):
        bench.say(data)
    bench.say(guest_channel.RESYNC + text)
    bench.say(guest_channel.build(guest_channel.Nack(1, "what?"), 1))
    assert len(bench.wrote(ChallengeResponse)) == 3
    abouts = [note.subject for note in bench.told(LogLine)]
    assert {"garbage", "nack"} <= set(abouts) and abouts.count("overflow") == 1


def test_an_illness_asks_for_its_action_once_a_minute_and_anew_when_it_was_over():
    bench = Bench().enabled()
    bench.keep(bench.client.set_health(Illness("stop", 'said "no"')))
    for seconds in (0, 1, 58, 1, 60):
        bench.now += seconds
        bench.challenge()
    bench.keep(bench.client.set_health(None))
    bench.challenge()
    bench.keep(bench.client.set_health(Illness("stop", "again")))
    bench.challenge()
    told = [(answer.heartbeat_health, answer.corrective_action) for answer in bench.wrote(ChallengeResponse)]
    ill = [("unhealthy", action) for action in ("stop", "none", "none", "stop", "stop")]
    assert told == [*ill, ("healthy", "reboot"), ("unhealthy", "stop")]
    assert bench.wrote(ChallengeResponse)[0].log_msg == 'said "no"'


def test_a_change_of_health_is_noted_once():
    bench = Bench().enabled()
    for illness in (None, Illness("log", "a"), Illness("log", "a"), Illness("log", "b"), None, None):
        bench.keep(bench.client.set_health(illness))
    notes = [note.text % note.values for note in bench.told(LogLine) if note.subject == "health"]
    ill = "the guest is ill, corrective action log: "
    assert notes == [ill + "a", ill + "b", "the guest is healthy"]


def test_a_graver_illness_is_told_at_once():
    bench = Bench().enabled()
    for action in ("log", "reboot"):
        bench.keep(bench.client.set_health(Illness(action, "why")))
        bench.challenge()
    assert [answer.corrective_action for answer in bench.wrote(ChallengeResponse)] == ["log", "reboot"]


@given(st.text(max_size=2000))
def test_whatever_a_script_says_fits_a_message(text):
    bench = Bench().enabled()
    bench.keep(bench.client.set_health(Illness("log", text)))
    bench.challenge()
    said = bench.wrote(ChallengeResponse)[0].log_msg
    assert len(said.encode("utf-8")) <= json_lines.LOG_MSG_MAX
    assert text.encode("utf-8", "replace").decode("utf-8").startswith(said)


# --- a host that hangs up --------------------------------------------------------------------------


def test_a_host_that_remembers_us_goes_on_and_gets_no_init():
    bench = Bench().enabled()
    bench.forget()
    bench.now += 0.3
    bench.close()
    bench.now += 2
    bench.open()
    bench.challenge()
    assert names(bench.sent) == "ChallengeResponse"


def test_a_host_that_forgot_us_gets_an_init_one_second_after_it_is_back():
    bench = Bench().enabled()
    bench.forget()
    bench.close()
    bench.now += 2
    bench.open()
    back = bench.now
    bench.tick()
    assert (bench.now - back, names(bench.sent)) == (1, "Init")


def test_a_half_line_does_not_outlive_its_connection():
    bench = Bench().enabled()
    bench.say(b'{"version":3,')
    bench.close()
    bench.open()
    bench.say(guest_channel_fast.build_challenge(1, 1)[1:])
    assert names(bench.wrote(ChallengeResponse)) == "ChallengeResponse"


# --- anything in any order -------------------------------------------------------------------------

LINES = [
    guest_channel_fast.build_challenge(1, 1), b"garbage\n", b'{"version":3', guest_channel.RESYNC,
    guest_channel.build(InitAck(0), 1), guest_channel.build(InitAck(guest_channel.INT32_MAX), 1),
    guest_channel.build(InitAck(10), 1),
    guest_channel.build(guest_channel.ActionNotify(1, "stop", "revocable", 3000), 1),
    guest_channel.build(guest_channel.ActionNotify(1, "pause", "irrevocable", 0), 1),
    guest_channel.build(guest_channel.ActionNotify(1, "nonsense", "irrevocable", 10), 1),
    guest_channel.build(guest_channel.Nack(1, "x"), 1),
]  # fmt: skip
STEPS = st.one_of(
    st.sampled_from(LINES),
    st.sampled_from(["open", "close", "tick", "exit", "vote", "leave", "ill", "well"]),
    st.floats(0, 20),
)


def step(bench, what):
    client = bench.client
    if isinstance(what, bytes):
        bench.say(what)
    elif isinstance(what, float):
        bench.now += what
    elif what == "tick":
        bench.tick(bench.now)
    elif what == "vote":
        for put in bench.told(AskVoters):
            bench.vote(put.question_id, "script")
    else:
        bench.keep(
            {
                "open": lambda: client.note_opened(bench.now), "close": lambda: client.note_closed(bench.now),
                "exit": lambda: client.say_goodbye("bye", bench.now),
                "leave": lambda: client.remove_voter("script"),
                "ill": lambda: client.set_health(Illness("log", "x")),
                "well": lambda: client.set_health(None),
            }[what]()
        )  # fmt: skip


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens_the_rules_hold(steps):
    bench = Bench(voters=["script"])
    for what in steps:
        before = len(bench.sent)
        gone = bench.client.state == GONE
        step(bench, what)
        assert not gone or bench.sent[before:] == []
        if bench.client.state in (ALONE, INTERRUPTED):
            assert bench.sent[before:] == []
        assert what != "tick" or bench.client.deadline > bench.now
    # Every question is put once, and ends once at most; no answer without a question.
    puts = [put.question_id for put in bench.told(AskVoters)]
    ends = [one.question_id for one in bench.told(WithdrawQuestion)]
    assert len(puts) == len(set(puts)) and len(ends) == len(set(ends))
    assert len(bench.wrote(ActionResponse)) <= len(ends)
    assert len(bench.wrote(Exit)) <= 1
