"""When the outbox is done with what a guestServer told: the server waits for the confirmation."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.agent import vim_queue
from guestmtce.agent.effects import (
    AskVim,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Withdraw,
)
from guestmtce.agent.model import Origin
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import ALARM

FIRST, MOST = 0.5, 10.0
NOW = 1000.0
TELLS = {
    "service": lambda uuid, origin: ReportService(uuid, {}, origin),
    "failed": lambda uuid, origin: ReportAlarm(uuid, "failed", {}, origin),
    "unhealthy": lambda uuid, origin: ReportAlarm(uuid, "unhealthy", {}, origin),
    "action": lambda uuid, origin: ReportAction(uuid, {}, origin),
}


def origin(number, sender=7, ip="10.0.0.1"):
    return Origin(ip, sender, number)


def outbox(*kinds):
    """One that holds these of U, numbered from 1."""
    made = VimQueue(FIRST, MOST)
    for number, kind in enumerate(kinds, 1):
        made.accept_effect(TELLS[kind]("U", origin(number)))
    return made


def settled(made):
    """The numbers that were settled since the last time; of none does anything wait."""
    origins = made.take_confirmable()
    assert not any(made.holds_origin(one) for one in origins)
    return [one.sequence for one in origins]


def deliver_all(made, now):
    while True:
        item = made.next_request(now)
        if item is None:
            return
        made.note_delivered(item)


def give_up(made):
    now = NOW
    while len(made):
        made.note_refused(made.next_request(now), now)
        now = min(made.next_due(), now + MOST)


ENDS = {
    "delivered": lambda made: made.note_delivered(made.next_request(NOW)),
    "replaced": lambda made: made.accept_effect(TELLS["failed"]("U", origin(99))),
    "replaced by one without an origin": lambda made: made.accept_effect(TELLS["failed"]("U", None)),
    "withdrawn": lambda made: made.accept_effect(Withdraw("U", "why", ("failed",))),
    "dropped": lambda made: made.accept_effect(ForgetVimEvents("U")),
    "given up": give_up,
}


@pytest.mark.parametrize("name", ENDS)
def test_whatever_becomes_of_an_alarm_its_server_hears_once(name):
    made = outbox("failed")
    assert made.holds_origin(origin(1)) and settled(made) == []
    ENDS[name](made)
    assert not made.holds_origin(origin(1))
    assert settled(made) == [1] and settled(made) == []


@pytest.mark.parametrize("kind", TELLS)
def test_what_is_held_is_not_settled_by_trouble(kind):
    made = outbox(kind)
    made.note_unreached(made.next_request(NOW), NOW)
    made.accept_effect(Withdraw("V", "another"))
    made.accept_effect(ForgetVimEvents("V"))
    made.accept_effect(TELLS[kind]("V", origin(9)))
    assert made.holds_origin(origin(1)) and settled(made) == []
    now = made.next_due()
    made.note_refused(made.next_request(now), now)
    assert settled(made) == ([] if kind in ("failed", "unhealthy") else [1])
    assert made.holds_origin(origin(9))


def test_the_refusal_of_an_alarm_settles_nothing_until_it_is_given_up():
    made, now = outbox("failed"), NOW
    for _ in range(vim_queue.REFUSALS_MAX - 1):
        made.note_refused(made.next_request(now), now)
        assert settled(made) == [] and made.holds_origin(origin(1))
        now = made.next_due()
    made.note_refused(made.next_request(now), now)
    assert settled(made) == [1] and made.given_up == 1


def test_a_newer_outcome_settles_no_older_one_but_too_many_do():
    made = outbox(*["action"] * vim_queue.ACTIONS_MAX)
    assert settled(made) == []
    made.accept_effect(TELLS["action"]("U", origin(99)))
    assert settled(made) == [1]


def test_two_things_from_one_datagram_settle_together():
    """A query's answer may bring an alarm that waited for it, and a state."""
    made = VimQueue(FIRST, MOST)
    made.accept_effect(TELLS["failed"]("U", origin(1)))
    made.accept_effect(TELLS["service"]("U", origin(1)))
    made.note_delivered(made.next_request(NOW))
    assert settled(made) == [] and made.holds_origin(origin(1))
    made.note_delivered(made.next_request(NOW))
    assert settled(made) == [1]


def test_the_same_datagram_taken_again_is_still_held():
    made = outbox("failed")
    made.accept_effect(TELLS["failed"]("U", origin(1)))
    assert settled(made) == [] and made.holds_origin(origin(1))
    made.note_delivered(made.next_request(NOW))
    assert settled(made) == [1]


def test_a_datagram_is_known_by_sender_and_number_whatever_its_address():
    made = outbox("failed")
    assert made.holds_origin(origin(1, ip="10.9.9.9"))
    assert not made.holds_origin(origin(1, sender=8)) and not made.holds_origin(origin(2))


def test_the_end_of_a_delivery_settles_nothing_else_that_came_meanwhile():
    made = outbox("failed")
    under_way = made.next_request(NOW)
    made.accept_effect(TELLS["failed"]("U", origin(2))._replace(body={"another": "repair action"}))
    assert settled(made) == [1]
    made.note_delivered(under_way)
    assert settled(made) == [] and made.holds_origin(origin(2))
    made.note_delivered(made.next_request(NOW))
    assert settled(made) == [2]


def test_what_has_no_origin_settles_nothing():
    made = VimQueue(FIRST, MOST)
    for kind in TELLS:
        made.accept_effect(TELLS[kind]("U", None))
    made.accept_effect(AskVim("h-uuid", "h", True))
    deliver_all(made, NOW)
    assert settled(made) == []


# --- whatever happens ---

NEWS = st.one_of(
    st.tuples(st.sampled_from(sorted(TELLS)), st.sampled_from("UV"), st.booleans()),
    st.builds(Withdraw, st.sampled_from("UV"), st.just("why")),
    st.builds(ForgetVimEvents, st.sampled_from("UV")),
)
TURN = st.tuples(NEWS, st.sampled_from(["delivered", "refused", "unreached", None]), st.floats(0, 3))


@settings(deadline=None, max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TURN, max_size=30))
def test_every_datagram_is_settled_once_and_never_while_it_waits(turns):
    made, now, taken, done = VimQueue(FIRST, MOST), NOW, [], []
    for number, (news, outcome, seconds) in enumerate(turns, 1):
        if isinstance(news, tuple) and news[0] in TELLS:
            kind, uuid, numbered = news
            made.accept_effect(TELLS[kind](uuid, origin(number) if numbered else None))
            taken += [number] if numbered else []
        else:
            made.accept_effect(news)
        now += seconds
        item = made.next_request(now) if outcome else None
        if item is not None:
            before = len(made)
            made.note_delivered(item) if outcome == "delivered" else getattr(made, "note_" + outcome)(
                item, now
            )
            kept = outcome == "unreached" or (outcome == "refused" and item.kind == ALARM)
            assert len(made) == (before if kept else before - 1)
        done += settled(made)
        assert [one for one in taken if made.holds_origin(origin(one))] == [
            one for one in taken if one not in done
        ]
    deliver_all(made, now + 3600)
    done += settled(made)
    assert sorted(done) == taken
