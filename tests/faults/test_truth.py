"""The judge of the fault suite: what it must find, and what it must let pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from truth import Asked, Truth

UUID = "00000000-0000-4000-8000-000000000007"
ENDED = 200.0


def alarm(at, state="failed", action="reboot", processed=None):
    data = {"services": [{"service": "heartbeat", "state": state, "repair-action": action}]}
    body = {"uuid": UUID, "event-type": "alarm", "event-data": data}
    return {"at": at, "processed": processed or at, "body": body}


def outcome(at):
    data = {"action": "pause", "guest-response": "reject", "reason": ""}
    return {"at": at, "body": {"uuid": UUID, "event-type": "action", "event-data": data}}


def kinds(truth, *events):
    return [text.split(":")[0] for text in truth.complaints(UUID, list(events), ENDED)]


def hung(*periods, **others):
    truth = Truth()
    truth.hung[UUID] = list(periods)
    for name, value in others.items():
        setattr(truth, name, value)
    return truth


FOR_GOOD = (100.0, None)
FOR_GOOD_LATER = (102.6, None)


@pytest.mark.parametrize(
    ("truth", "events", "found"),
    [
        (hung(FOR_GOOD), [alarm(100.3)], []),
        (hung(FOR_GOOD), [], ["LOST"]),
        (hung(FOR_GOOD, gone={UUID}), [], []),
        (hung(FOR_GOOD, back={UUID: [99.0]}), [], []),  # it was not seen again yet
        (hung(FOR_GOOD), [alarm(100.3), alarm(150.0)], ["TWICE"]),
        (hung((100.0, 101.0)), [], []),
        (hung((100.0, 101.0)), [alarm(101.5)], []),  # it was on its way
        (hung((100.0, 101.0)), [alarm(102.0)], ["FALSE"]),
        (hung((100.0, 101.0), stalls=[(101.2, 107.0)]), [alarm(107.1)], []),  # and stayed there
        (hung((100.0, 101.0), unwatched={UUID: [(101.5, 103.0)]}), [alarm(103.5)], []),
        (hung((100.0, 101.0), unwatched={UUID: [(102.5, 103.0)]}), [alarm(103.5)], ["FALSE"]),
        (hung((100.0, 101.0), (103.0, None)), [alarm(100.3), alarm(103.3)], []),
        (hung((100.0, 101.0), FOR_GOOD, stalls=[(101.2, 104.0)]), [alarm(100.3), alarm(103.0)], []),
        # What a VIM that stood still reads late is of the failure that is over.
        (hung((100.0, 101.0), (102.0, None), stalls=[(100.5, 103.0)]), [alarm(103.1), alarm(103.9)], []),
        (
            hung((100.0, 101.0), (102.0, None), stalls=[(100.5, 103.0)]),
            [alarm(103.7), alarm(103.9)],
            ["TWICE"],
        ),
        (hung((100.0, 101.0), (102.0, None), stalls=[(100.5, 103.0)]), [alarm(103.1)], []),
        (hung((100.0, 101.0), FOR_GOOD_LATER), [alarm(100.3, processed=103.0)], []),
        (hung((100.0, 101.0), FOR_GOOD_LATER), [alarm(100.3, processed=101.0)], ["LOST"]),
        (hung(), [alarm(100.0)], ["FALSE"]),
        (hung(stood_still={UUID: [(99.7, 99.9)]}), [alarm(100.0)], []),
        (hung(FOR_GOOD, stood_still={UUID: [(99.7, 99.9)]}), [alarm(99.95)], []),
        (hung(FOR_GOOD, stood_still={UUID: [(101.0, 101.2)]}), [alarm(101.3)], []),
        (hung(FOR_GOOD, stood_still={UUID: [(97.7, 97.9)]}), [alarm(98.0)], ["LOST"]),
        (hung(FOR_GOOD, deaths=[100.35]), [alarm(100.3), alarm(101.0)], []),
        (hung(FOR_GOOD, deaths=[100.45]), [alarm(100.3), alarm(101.0)], ["TWICE"]),
        (hung(FOR_GOOD), [alarm(100.3, "unhealthy")], ["LOST", "FALSE"]),
        (hung(FOR_GOOD), [alarm(100.3, action="log")], ["ACTION"]),
        (hung((100.0, 100.5), repairs={UUID: [(100.4, 102.0)]}), [alarm(100.3)], []),
        (hung((100.0, 100.5), repairs={UUID: [(100.4, 102.0)]}), [alarm(101.0)], ["SECOND"]),
        (hung(asked=[Asked(100.0, UUID, "pause")]), [outcome(101.0)], []),
        (hung(asked=[Asked(100.0, UUID, "pause")]), [outcome(103.0)], ["STALE"]),
        (hung(asked=[Asked(100.0, UUID, "pause")], stalls=[(100.5, 103.0)]), [outcome(103.0)], []),
    ],
)
def test_the_judge(truth, events, found):
    assert kinds(truth, *events) == found


def test_a_machine_that_ends_before_it_was_seen_again_is_lost_until_it_comes():
    truth = hung((100.0, 100.5))
    truth.ends(UUID)
    assert truth.hung[UUID] == [(100.0, 100.5)], "that was long ago"
    truth = Truth()
    truth.begin(truth.hung, UUID)
    truth.end(truth.hung, UUID)
    truth.ends(UUID)
    assert truth.hung[UUID][-1][1] is None
