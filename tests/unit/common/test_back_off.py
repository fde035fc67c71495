"""Waits double up to a bound, and a success forgets."""

from guestmtce.common.back_off import BackOff


def test_waits_double_up_to_the_most_and_a_success_forgets():
    back_off = BackOff(0.5, 3.0)
    assert [back_off.next_delay() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert back_off.delay == 3.0
    back_off.reset()
    assert [back_off.next_delay() for _ in range(2)] == [0.5, 1.0]


def test_a_bound_for_one_time_holds_from_there_on():
    back_off = BackOff(0.5, 10.0)
    assert [back_off.next_delay(most) for most in (4.0,) * 5] == [0.5, 1, 2, 4, 4]
    assert [back_off.next_delay() for _ in range(2)] == [8, 10]
    assert back_off.next_delay(4.0) == 4


def test_a_bound_below_the_first_delay_shortens_no_other():
    back_off = BackOff(6.0, 10.0)
    assert [back_off.next_delay(1.0), back_off.next_delay(1.0), back_off.next_delay()] == [1, 1, 6]
