"""How long a child may sleep before it counts as stuck: longer than any session of an honest one does."""

from __future__ import annotations

import dataclasses

import pytest
from guests_driver import INIT, NOW, PATH, SETTINGS, UUID

from guestmtce.server import guests, reports
from guestmtce.server.session import Session

INTERVALS = [400, 1000, 43_000, 60_000, 3_600_000]  # ms


def table(threshold):
    """A guest that has a child."""
    one = guests.Guests(dataclasses.replace(SETTINGS, failure_threshold=threshold))
    one.channel_found(UUID, PATH, None, True, NOW)
    one.connected(UUID, NOW)
    return one


@pytest.mark.parametrize("interval_ms", INTERVALS)
@pytest.mark.parametrize("threshold", [0, 1, 100])
@pytest.mark.parametrize("running", [False, True])
def test_no_child_is_stuck_while_its_session_sleeps(interval_ms, threshold, running):
    one, init = table(threshold), INIT._replace(heartbeat_interval_ms=interval_ms)
    one.reported(UUID, reports.Acknowledged(init), NOW)
    session = Session(one._settings.session(), lambda: 7)
    session.start(reports.Resume(init, True, 0.0), NOW)
    sleeps = session.deadline - NOW
    if running:
        one.reported(UUID, reports.Running(), NOW)
        sleeps = interval_ms / 1000
    assert one.child_patience(UUID) >= sleeps + SETTINGS.child_patience


def test_one_that_waits_for_init_sleeps_until_it_is_given_up():
    session = Session(SETTINGS.session(), lambda: 7)
    session.start(None, NOW)
    assert table(1).child_patience(UUID) == session.deadline - NOW + SETTINGS.child_patience
    assert guests.Guests(SETTINGS).child_patience(UUID) == table(1).child_patience(UUID)
