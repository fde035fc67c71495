"""Waits double up to a bound, and a success forgets."""

from guestmtce.common.back_off import BackOff


def test_waits_double_up_to_the_most_and_a_success_forgets():
    back_off = BackOff(0.5, 3.0)
    assert [back_off.next_delay() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert back_off.delay == 3.0
    back_off.reset()
    assert [back_off.next_delay() for _ in range(2)] == [0.5, 1.0]
