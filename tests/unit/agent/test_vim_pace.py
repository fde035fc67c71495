"""How many requests to the VIM are under way, and from when on another one may be begun."""

import pytest

from guestmtce.agent.vim_pace import BESIDE_AFTER, CONNECTIONS, DOWN_RETRY_MAX, OTHERS_MAX, VimPace
from guestmtce.agent.vim_request import ACTION, ALARM, SERVICE, VIM_QUERY

NOW = 1000.0
FIRST, MOST = 0.5, 10.0


@pytest.mark.parametrize("place", [ACTION, SERVICE, VIM_QUERY])
def test_all_but_one_place_is_for_alarms_and_that_one_too(place):
    pace = VimPace(FIRST, MOST)
    for order in range(OTHERS_MAX):
        assert pace.has_room(place)
        pace.begin_request(order, place, NOW)
    assert not pace.has_room(place)
    for order in range(OTHERS_MAX, CONNECTIONS):
        assert pace.has_room(ALARM)
        pace.begin_request(order, ALARM, NOW)
    assert not pace.has_room(ALARM)
    pace.end_request(0, place)
    assert pace.has_room(ALARM) and pace.has_room(place)


def test_another_is_begun_at_once_only_beside_none():
    pace = VimPace(FIRST, MOST)
    assert pace.allowed_at() < NOW
    pace.begin_request(1, ALARM, NOW)
    pace.begin_request(2, ALARM, NOW + 1)
    assert pace.allowed_at() == NOW + 1 + BESIDE_AFTER
    pace.end_request(2, ALARM)
    assert pace.allowed_at() == NOW + BESIDE_AFTER


def waits(pace, *downs):
    """How long nothing is begun after each failure; each is noticed when the wait before is over."""
    now, seconds = NOW, []
    for down in downs:
        pace.note_unreached(now, down)
        seconds.append(pace.allowed_at() - now)
        now = pace.allowed_at()
    return seconds


WAITS = {
    "unreached": ([False] * 7, [0.5, 1, 2, 4, 8, 10, 10]),
    "down": ([True] * 6, [0.5, 1, 2, 4, 4, 4]),
    "down, then something listens": ([True] * 5 + [False] * 2, [0.5, 1, 2, 4, 4, 8, 10]),
    "unreached, then nothing listens": ([False] * 6 + [True] * 2, [0.5, 1, 2, 4, 8, 10, 4, 4]),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_back_off_has_a_bound_for_each_kind_of_absence(name):
    downs, seconds = WAITS[name]
    assert waits(VimPace(FIRST, MOST), *downs) == seconds


def test_a_first_wait_that_is_longer_than_the_bound_of_a_vim_that_does_not_listen():
    pace = VimPace(6.0, MOST)
    assert waits(pace, True, True, False) == [DOWN_RETRY_MAX, DOWN_RETRY_MAX, 8.0]


def test_an_answer_ends_the_back_off_and_a_second_failure_meanwhile_lengthens_nothing():
    pace = VimPace(FIRST, MOST)
    pace.note_unreached(NOW, False)
    pace.note_unreached(NOW + FIRST / 2, False)
    assert pace.allowed_at() == NOW + FIRST
    pace.note_reached()
    pace.note_unreached(NOW + FIRST, False)
    assert pace.allowed_at() == NOW + 2 * FIRST
