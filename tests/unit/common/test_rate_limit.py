"""So much at once, so much a second, and never more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guestmtce.common.rate_limit import Bucket


def test_a_burst_and_then_its_rate():
    bucket = Bucket(2, 3, 100.0)
    assert [bucket.spend(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.spend(at) for at in (100.4, 100.5, 100.6, 101.0)] == [False, True, False, True]
    assert [bucket.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_seems_to_go_back_gives_nothing():
    bucket = Bucket(1, 1, 100.0)
    assert bucket.spend(100.0)
    assert not bucket.spend(50.0)


@given(st.lists(st.floats(0, 5), max_size=200))
def test_never_more_than_burst_and_rate(waits):
    bucket, now, had = Bucket(3, 10, 0.0), 0.0, 0
    for wait in waits:
        now += wait
        had += bucket.spend(now)
    assert had <= 10 + 3 * now + 1e-6


def test_several_at_once_are_had_together_or_not_at_all():
    bucket = Bucket(2, 5, 0.0)
    assert [bucket.spend(0.0, count) for count in (4, 2, 1, 0, 1)] == [True, False, True, True, False]
    assert bucket.wait(0.0, 2) == 1.0
    assert not bucket.spend(1000.0, 6)
