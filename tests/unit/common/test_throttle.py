"""One line per subject and period; those that were held back are counted; subjects are bounded."""

from guestmtce.common.throttle import Throttle


def test_one_line_passes_per_period_and_tells_how_many_did_not():
    throttle = Throttle(10.0, 100)
    assert [throttle.admit("a", now) for now in (0.0, 1.0, 9.9, 10.0, 10.1, 20.0)] == [
        0,
        None,
        None,
        2,
        None,
        1,
    ]


def test_subjects_do_not_hold_each_other_back():
    throttle = Throttle(10.0, 100)
    assert [throttle.admit(subject, 5.0) for subject in ("a", "b", "a")] == [0, 0, None]


def test_of_more_subjects_than_can_be_remembered_all_are_forgotten():
    throttle = Throttle(10.0, 2)
    assert [throttle.admit(subject, 0.0) for subject in ("a", "b", "a", "c", "a")] == [0, 0, None, 0, 0]
