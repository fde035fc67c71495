"""The table of the real VIM's order of calls: see `cloud_orders`."""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cloud_orders import NEVER, REFUSES, Row, play

from guestmtce.lab.pace import within

BEAT_AGAIN = 0.05  # s: a latency, not a period, so it is not scaled
REPAIRS = [Row(name) for name in ("repair_of_the_ill", "repair_of_the_hung", "reset_unasked", "rebuild")]
BRIDGES = [
    Row(name)
    for name in (
        "agreed_and_hangs", "hung_as_it_was_asked", "rejected_and_hangs", "ended_and_hangs", "voted_and_hangs"
    )
]  # fmt: skip
ACTIONS = (
    "pause", "unpause", "suspend", "save", "late_enable", "stop", "reboot", "no_return", "live_migrate",
    "cold_migrate", "resize",
)  # fmt: skip
CAN_FAIL = ("pause", "suspend", "stop", "reboot", "live_migrate", "cold_migrate", "resize")

QUICK = [
    *REPAIRS,
    *BRIDGES,
    *(Row(action) for action in ACTIONS),
    *(Row(action, REFUSES) for action in CAN_FAIL),
    Row("pause", "20", "3"),
    Row("suspend", "2", "3", 0.0),
    Row("reboot", "20", "mute"),
    Row("reboot", "2", "0", 0.0),
    Row("evacuate", "20"),
    Row("live_migrate", "20", "mute"),
    Row("live_migrate", NEVER, "3"),
    Row("suspend", REFUSES, "0", None, True),
]


def nova_takes(nova):
    """Every action with every answer of the guest."""
    failing = nova in (REFUSES, NEVER)
    rows = [
        Row(action, nova, answer, at_once)
        for action, answer, at_once in itertools.product(
            CAN_FAIL if failing else ACTIONS, ("0", "3", "mute"), (None,) if failing else (None, 0.0)
        )
    ]
    if failing:
        return rows + [Row(action, nova, answer, None, True) for action in CAN_FAIL for answer in ("0", "3")]
    return rows + [Row("evacuate", nova), *REPAIRS, *BRIDGES]


def judge(players):
    trouble = ["%s: %s" % (player.row.name, player.trouble) for player in players if player.trouble]
    assert not trouble, "%d of %d rows:\n%s" % (len(trouble), len(players), "\n".join(trouble))
    again = [player.again for player in players if player.again is not None]
    if again:
        assert within(BEAT_AGAIN, statistics.median(again))


def test_no_order_of_the_vim_invents_a_failure_or_hides_one():
    judge(play(QUICK, 2.0))


@pytest.mark.ci
@pytest.mark.parametrize("nova", ["2", "20", "90", REFUSES, NEVER])
def test_every_action_however_nova_takes_it(nova):
    judge(play(nova_takes(nova), 2.0))


@pytest.mark.ci
def test_a_guest_with_a_long_interval():
    judge(play(QUICK, 5.0))
