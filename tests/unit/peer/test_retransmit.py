from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.peer import retransmit
from guestmtce.peer.retransmit import (
    BLOCK,
    REPEAT_MAX,
    SEEN_FOR,
    SEEN_MAX,
    STALE_MAX,
    Deadlines,
    Outgoing,
    Seen,
    SeenByPeer,
    Sequences,
)
from guestmtce.wire.datagram_ext import is_newer


def times(outgoing, until):
    """When messages fall due, run on time."""
    found = []
    while outgoing.next_due <= until:
        now = outgoing.next_due
        found += [(round(now, 3), message.content) for message in outgoing.due(now)]
    return found


def test_a_message_is_repeated_at_doubling_intervals_until_it_is_acknowledged():
    outgoing = Outgoing()
    outgoing.add("state", 1, "stopped", 0.0)
    assert times(outgoing, 10.0) == [(at, "stopped") for at in (0.2, 0.6, 1.4, 3.0, 6.2)]
    assert [at for at, _ in times(outgoing, 30.0)] == [11.2, 16.2, 21.2, 26.2]
    assert outgoing.confirm(1).content == "stopped"
    assert outgoing.confirm(1) is None
    assert times(outgoing, 1000.0) == [] and len(outgoing) == 0


def test_a_newer_message_of_the_same_key_takes_the_place_of_the_older():
    outgoing = Outgoing()
    outgoing.add("state", 1, "stopped", 0.0)
    outgoing.add("failure", 2, "lost", 0.0)
    outgoing.add("state", 3, "running", 0.1)
    assert outgoing.confirm(1) is None
    assert times(outgoing, 0.35) == [(0.2, "lost"), (0.3, "running")]
    outgoing.drop("failure")
    outgoing.drop("no such key")
    assert times(outgoing, 1.0) == [(0.7, "running")]


def test_what_nobody_wants_any_more_is_not_repeated():
    outgoing = Outgoing()
    outgoing.add("vote", 1, "stop?", 0.0, until=1.0)
    assert [at for at, _ in times(outgoing, 100.0)] == [0.2, 0.6]
    assert len(outgoing) == 0


def test_a_new_listener_hears_all_at_once():
    outgoing = Outgoing()
    for number in range(1, 4):
        outgoing.add(number, number, number, 0.0)
    times(outgoing, 20.0)
    outgoing.again(20.0)
    assert times(outgoing, 20.3) == [(20.0, 1), (20.0, 2), (20.0, 3), (20.2, 1), (20.2, 2), (20.2, 3)]


def test_numbers_grow_over_restarts_wrap_and_are_never_zero():
    reserved = [2**32 - 3]

    def reserve(count):
        reserved.append(reserved[-1] + count)
        return reserved[-2]

    first, second = Sequences(reserve), None
    taken = [first.next_sequence() for _ in range(5)]
    assert taken == [2**32 - 3, 2**32 - 2, 2**32 - 1, 1, 2]
    second = Sequences(reserve)
    assert is_newer(second.next_sequence(), taken[-1])
    for _ in range(BLOCK):
        second.next_sequence()
    assert len(reserved) == 4


@given(st.lists(st.tuples(st.sampled_from("akd"), st.integers(0, 5), st.floats(0, 9)), max_size=60))
def test_nothing_is_forgotten_and_nothing_lingers(steps):
    outgoing, now, numbers, wanted = Outgoing(), 0.0, iter(range(1, 100)), {}
    for what, key, wait in steps:
        now += wait
        outgoing.due(now)
        if what == "a":
            wanted[key] = next(numbers)
            outgoing.add(key, wanted[key], key, now)
        elif what == "k" and key in wanted:
            assert outgoing.confirm(wanted.pop(key)).content == key
        elif what == "d":
            wanted.pop(key, None)
            outgoing.drop(key)
        assert outgoing.next_due == float("inf") or outgoing.next_due <= now + REPEAT_MAX
    assert {message.key for message in outgoing.due(now + 2 * REPEAT_MAX)} == set(wanted)


def test_seen_remembers_and_is_bounded():
    seen = Seen()
    assert seen.add(1, 1) and not seen.add(1, 1) and seen.add(2, 1)
    assert (1, 1) in seen and (1, 2) not in seen
    for number in range(2, SEEN_MAX + 2):
        seen.add(1, number)
    assert (1, 1) not in seen and (1, SEEN_MAX + 1) in seen


# --- bounds ----------------------------------------------------------------------------------------


def sizes(outgoing):
    return len(outgoing._repeats), len(outgoing._ends)


@pytest.mark.parametrize("ends", [{}, {"until": 1e9}])
def test_what_waits_takes_no_more_room_however_often_it_changes(ends):
    """As while nobody listens: nothing is ever due, and the state of one guest changes for days."""
    outgoing = Outgoing()
    for number in range(1, 100_000):
        outgoing.add("state", number, "running", float(number), **ends)
        assert max(sizes(outgoing)) <= 2 + STALE_MAX + 1
    assert (len(outgoing), len(outgoing._back_offs), len(outgoing._by_sequence)) == (1, 1, 1)


def test_what_waited_takes_no_room_once_it_is_confirmed_or_dropped():
    outgoing = Outgoing()
    for number in range(1, 10_001):
        outgoing.add(number, number, "lost", 0.0, until=1e9)
    for number in range(1, 5_001):
        assert outgoing.confirm(number).key == number
    for number in range(5_001, 10_001):
        outgoing.drop(number)
    assert len(outgoing) == 0 and max(sizes(outgoing)) <= STALE_MAX
    assert outgoing.next_due == float("inf")


def test_an_expired_message_is_returned_once_and_never_due():
    outgoing = Outgoing()
    outgoing.add("vote", 1, "no", 0.0, until=0.1)
    outgoing.add("state", 2, "running", 0.05)
    assert (outgoing.next_end, outgoing.next_due, outgoing.since) == (0.1, 0.1, 0.0)
    assert [message.key for message in outgoing.expire(0.1)] == ["vote"]
    assert outgoing.expire(1.0) == [] and outgoing.confirm(1) is None
    assert (outgoing.next_end, outgoing.since) == (float("inf"), 0.05)


@given(st.lists(st.tuples(st.sampled_from("sdt"), st.integers(0, 3), st.integers(0, 9)), max_size=80))
def test_deadlines_are_what_a_table_of_times_is(steps):
    deadlines, table = Deadlines(), {}
    for what, number, when in steps:
        if what == "s":
            deadlines.set(number, when)
            table[number] = when
        elif what == "d":
            deadlines.drop(number)
            table.pop(number, None)
        else:
            due = sorted((at, one) for one, at in table.items() if at <= when)
            assert deadlines.pop_due(when) == [one for _, one in due]
            table = {one: at for one, at in table.items() if at > when}
        assert deadlines.next == min(table.values(), default=float("inf"))


def test_what_has_come_is_forgotten_after_a_while_but_not_while_it_is_repeated():
    seen, now = SeenByPeer(), 0.0
    seen.add("a", 1, 1, now)
    assert seen.came_before("a", 1, 1, now) and not seen.came_before("b", 1, 1, now)
    for number in range(2, 2000):
        now += SEEN_FOR / 100
        assert seen.came_before("a", 1, 1, now)
        seen.add("b", 1, number, now)
        assert len(seen) <= 2 + 1.5 * 100 + 2
    now += 2 * SEEN_FOR
    seen.add("c", 1, 1, now)
    assert not seen.came_before("a", 1, 1, now) and len(seen) == 1 == len(seen._peers)


def test_a_crowd_on_one_peer_pushes_out_nothing_of_another(monkeypatch):
    monkeypatch.setattr(retransmit, "SEEN_MAX", 10)
    seen = SeenByPeer()
    seen.add("a", 1, 1, 0.0)
    for number in range(100):
        seen.add("b", 1, number, 0.0)
    assert seen.came_before("a", 1, 1, 0.0) and len(seen) == 11
