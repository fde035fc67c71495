"""Datagrams that come late, twice or in another order.

docs/protocol/2-datagrams.md#late-and-out-of-order
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inventory_facts import A, B, U, drain_effects, info, inventory, loss, named, of, origin
from tiers import examples

from guestmtce.agent.effects import ReportAlarm, ReportService
from guestmtce.agent.inventory_order import RULES, Said, Verdict, judge_datagram
from guestmtce.agent.model import ANYTHING, BEAT, FAILED, START, STATE, UNHEALTHY
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import ALARM, SERVICE
from guestmtce.wire import datagram_ext

NOW = 1000.0
BEATS, SILENT = {"heartbeating": True}, {"heartbeating": False}

# What a guestServer says: the inventory's method, and what the datagram shows.
SAID = {
    "RUNNING": ("note_state", BEATS),
    "STOPPED": ("note_state", SILENT),
    "LOSS": ("note_loss", SILENT),
    "ILL": ("note_illness", BEATS),
    "BEATS": ("note_answer", BEATS),
    "SILENT": ("note_answer", SILENT),
}


def provisioned():
    made = inventory(A, B)
    made.set_instance(named(), True, NOW)
    drain_effects(made)
    return made


def say(made, what, number, sender=7, short=False):
    """Whether it was understood."""
    name, shows = SAID[what]
    event = loss() if short and what == "LOSS" else info(**shows)
    return getattr(made.events, name)(event, number and origin(number, sender=sender))


def tell(outbox, made):
    for effect in drain_effects(made):
        outbox.accept_effect(effect)


def left(outbox):
    """The kinds of what the outbox would tell, and the last service state."""
    kinds, status = [], None
    while True:
        item = outbox.next_request(NOW)
        if item is None:
            return kinds, status
        kinds.append(item.topic or item.kind)
        if item.kind == SERVICE:
            status = item.body["event-data"]["services"][0]["status"]
        outbox.note_delivered(item)


def outcome(*said, sender=7, short=False):
    """What is told of these, `NAME number` each, and whether the instance heartbeats in the end."""
    made, outbox = provisioned(), VimQueue(0.5, 10.0)
    for words in said:
        what, number = words.split()
        say(made, what, int(number), sender, short)
        tell(outbox, made)
    return left(outbox)[0], made.instances[U].heartbeating


# --- one by one ---

NEWEST_WINS = [
    # said in this order                       what the VIM hears             heartbeating
    (["RUNNING 1", "LOSS 3", "STOPPED 2"],     ["failed", SERVICE],           False),
    (["STOPPED 2", "LOSS 3", "RUNNING 1"],     ["failed", SERVICE],           False),
    (["LOSS 3", "RUNNING 1", "STOPPED 2"],     ["failed", SERVICE],           False),
    (["LOSS 3", "STOPPED 2", "RUNNING 1"],     ["failed", SERVICE],           False),
    (["LOSS 3", "STOPPED 2", "STOPPED 5"],     [SERVICE],                     False),
    (["STOPPED 5", "LOSS 3", "STOPPED 2"],     [SERVICE],                     False),
    (["RUNNING 4", "LOSS 3", "STOPPED 2"],     [SERVICE],                     True),
    (["LOSS 3", "RUNNING 4", "STOPPED 2"],     [SERVICE],                     True),
    (["LOSS 2", "STOPPED 5", "RUNNING 4"],     [SERVICE],                     False),
    (["RUNNING 1", "LOSS 5", "RUNNING 4"],     ["failed", SERVICE],           True),
    (["ILL 2", "RUNNING 1"],                   ["unhealthy", SERVICE],        True),
    (["ILL 2", "RUNNING 3"],                   [SERVICE],                     True),
    (["RUNNING 3", "ILL 2"],                   [SERVICE],                     True),
    (["RUNNING 1", "ILL 3", "LOSS 2"],         ["unhealthy", SERVICE],        True),
    (["RUNNING 1", "LOSS 3", "BEATS 2"],       ["failed", SERVICE],           True),
    (["RUNNING 1", "LOSS 2", "BEATS 3"],       [SERVICE],                     True),
    (["RUNNING 1", "BEATS 3", "LOSS 2"],       [SERVICE],                     True),
    (["RUNNING 1", "BEATS 3", "ILL 2"],        ["unhealthy", SERVICE],        True),
    (["RUNNING 1", "ILL 2", "BEATS 3"],        ["unhealthy", SERVICE],        True),
    (["RUNNING 3", "SILENT 2"],                [SERVICE],                     True),
    (["STOPPED 3", "BEATS 2"],                 [SERVICE],                     False),
    (["RUNNING 1", "SILENT 3", "BEATS 2"],     [SERVICE],                     False),
    (["RUNNING 1", "ILL 3", "SILENT 2"],       ["unhealthy", SERVICE],        True),
]  # fmt: skip


@pytest.mark.parametrize("said, told, heartbeating", NEWEST_WINS)
@pytest.mark.parametrize("first", [0, datagram_ext.SEQUENCES - 3])
def test_what_is_newer_makes_void_what_is_older(said, told, heartbeating, first):
    shifted = []
    for words in said:
        what, number = words.split()
        sequence = (first + int(number)) % datagram_ext.SEQUENCES or datagram_ext.SEQUENCES
        shifted.append("%s %d" % (what, sequence))
    assert outcome(*shifted) == (told, heartbeating)


@pytest.mark.parametrize("what", SAID)
def test_a_repetition_has_no_effect(what):
    made = provisioned()
    say(made, "RUNNING" if what in ("LOSS", "STOPPED", "SILENT") else "STOPPED", 1)
    assert say(made, what, 2)
    assert of(ReportService, drain_effects(made)) or of(ReportAlarm, drain_effects(made)) or what == "LOSS"
    for _ in range(3):
        assert say(made, what, 2)
        assert of(ReportService, drain_effects(made)) == of(ReportAlarm, drain_effects(made)) == []


def test_an_older_loss_after_one_that_the_vim_has_is_no_second_one():
    made = provisioned()
    for what, number, alarms in (("RUNNING", 1, 0), ("LOSS", 5, 1), ("LOSS", 3, 0), ("LOSS", 6, 1)):
        assert say(made, what, number)
        assert len(of(ReportAlarm, drain_effects(made))) == alarms, (what, number)


def test_the_same_datagram_from_another_address_is_the_same():
    made = provisioned()
    assert made.events.note_loss(info(**SILENT), origin(5))
    drain_effects(made)
    assert made.events.note_loss(info(**SILENT), origin(5)._replace(ip="10.9.9.9"))
    assert of(ReportAlarm, drain_effects(made)) == []


def test_another_senders_numbers_are_not_compared():
    made = provisioned()
    say(made, "RUNNING", 900, sender=7)
    say(made, "LOSS", 1, sender=8)
    assert len(of(ReportAlarm, drain_effects(made))) == 1
    say(made, "STOPPED", 2, sender=8)
    assert not made.instances[U].heartbeating
    say(made, "RUNNING", 3, sender=8)
    assert made.instances[U].heartbeating


def test_an_old_server_has_no_numbers_and_its_order_counts():
    made = provisioned()
    say(made, "RUNNING", 900)  # it was one of ours a moment ago
    for what, heartbeating, alarms in (
        ("LOSS", True, 1), ("STOPPED", False, 0), ("RUNNING", True, 0), ("LOSS", True, 1), ("LOSS", True, 1),
    ):  # fmt: skip
        say(made, what, None)
        assert len(of(ReportAlarm, drain_effects(made))) == alarms
        assert made.instances[U].heartbeating == heartbeating


def test_after_a_move_the_numbers_of_before_do_not_count():
    made = provisioned()
    say(made, "RUNNING", 900)
    made.set_instance(named(B), True, NOW)
    made.events.note_state(info(B), origin(5, B, sender=9))
    made.set_instance(named(A), True, NOW)
    drain_effects(made)
    say(made, "RUNNING", 6)
    assert len(of(ReportService, drain_effects(made))) == 1 and made.instances[U].heartbeating


# --- the table ---

ASPECTS = (FAILED, UNHEALTHY, START, BEAT, STATE, ANYTHING)
SHOWN_BY = st.dictionaries(st.sampled_from(ASPECTS), st.builds(origin, st.integers(1, 5)))


@pytest.mark.parametrize("said", Said)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_kind_of_datagram_after_a_newer_one_that_showed_this(said, aspect):
    """Each pair of the table: what a rule names is overtaken or kept, and nothing else is."""
    rule, newest = RULES[said], {aspect: origin(9)}
    verdict = judge_datagram(newest, said, origin(5))
    assert verdict.counts is (aspect not in rule.overtaken_by)
    assert newest[aspect] == origin(9)
    if verdict.counts:
        assert verdict.ends == tuple(state for state in rule.ends if state != aspect)
        assert verdict.state_counts is (aspect != STATE)
        shown = {*rule.shows, *(rule.state_shows if aspect != STATE else ())}
        assert {one for one, by in newest.items() if by == origin(5)} == shown - {aspect}


@pytest.mark.parametrize("said", Said)
@given(SHOWN_BY)
def test_what_bears_no_number_or_comes_from_another_sender_is_not_overtaken(said, newest):
    before = dict(newest)
    whole = Verdict(True, RULES[said].ends, True)
    assert judge_datagram(newest, said, None) == whole and newest == before
    assert judge_datagram(newest, said, origin(1, sender=8)) == whole


@pytest.mark.parametrize("said", [said for said in Said if said is not Said.LOSS_THAT_WAITS])
def test_a_datagram_that_comes_twice_shows_nothing_new(said):
    newest = {}
    judge_datagram(newest, said, origin(5))
    before = dict(newest)
    again = judge_datagram(newest, said, origin(5))
    assert newest == before and not (again.counts and RULES[said].overtaken_by)


# --- any order ---

HISTORY = st.lists(st.sampled_from(["RUNNING", "STOPPED", "LOSS"]), min_size=1, max_size=7)


@st.composite
def deliveries(draw):
    """A guest's history and the numbers of its events in the order of their arrival, each at least once."""
    history = draw(HISTORY)
    numbers = list(range(1, len(history) + 1))
    again = draw(st.lists(st.sampled_from(numbers), max_size=6))
    return history, draw(st.permutations(numbers + again)), draw(st.booleans())


@settings(deadline=None, max_examples=examples(500), suppress_health_check=[HealthCheck.too_slow])
@given(deliveries())
def test_in_any_order_the_newest_state_stands_and_no_loss_is_lost_or_made_up(delivery):
    history, order, short = delivery
    made, outbox = provisioned(), VimQueue(0.5, 10.0)
    for number in order:
        what = history[number - 1]
        # One that was not understood comes again, as a server does, once it knows that we want all of it.
        assert say(made, what, number, short=short) or say(made, what, number)
        tell(outbox, made)
    states = [what for what in history if what != "LOSS"]
    kinds, status = left(outbox)
    assert made.instances[U].heartbeating == (states[-1:] == ["RUNNING"])
    assert status == ({"RUNNING": "enabled", "STOPPED": "disabled"}[states[-1]] if states else None)
    assert kinds.count("failed") == (history[-1] == "LOSS")


@settings(deadline=None, max_examples=examples(500), suppress_health_check=[HealthCheck.too_slow])
@given(deliveries(), st.lists(st.booleans(), min_size=14, max_size=14))
def test_no_loss_is_told_twice_and_none_that_was_over_when_it_came(delivery, turns):
    """The VIM takes what there is at some moments: an alarm that it has is not told again by anything old."""
    history, order, _ = delivery
    made, outbox, came, told = provisioned(), VimQueue(0.5, 10.0), [], []
    for number, turn in zip(order, turns):
        assert say(made, history[number - 1], number)
        came.append(number)
        tell(outbox, made)
        while turn:
            item = outbox.next_request(NOW)
            if item is None:
                break
            outbox.note_delivered(item)
            if item.kind == ALARM:
                told.append(item.origin.sequence)
                starts = [one for one in came if history[one - 1] != "LOSS"]
                assert history[told[-1] - 1] == "LOSS" and told[-1] > max(starts, default=0)
    assert told == sorted(set(told))


@pytest.mark.parametrize("ill_first", [True, False])
def test_an_illness_outlives_a_running_that_says_so(ill_first):
    """A guestServer that was restarted says RUNNING, and the guest is as ill as before."""
    made, outbox = provisioned(), VimQueue(0.5, 10.0)
    if ill_first:
        say(made, "ILL", 5)
    assert made.events.note_state(info(), origin(6), True)
    say(made, "ILL", 5)
    tell(outbox, made)
    assert left(outbox) == (["unhealthy", SERVICE], "enabled")


def test_a_loss_does_not_outlive_a_running_of_one_that_is_still_ill():
    made, outbox = provisioned(), VimQueue(0.5, 10.0)
    say(made, "LOSS", 5)
    made.events.note_state(info(), origin(6), True)
    say(made, "LOSS", 5)
    tell(outbox, made)
    assert left(outbox) == ([SERVICE], "enabled")
