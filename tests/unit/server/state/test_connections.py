"""How long a child may sleep before it counts as stuck: longer than any session of an honest one does."""

from __future__ import annotations

import dataclasses

import pytest
from guests_driver import INIT, NOW, PATH, SETTINGS, UUID

from guestmtce.server.child import session_types
from guestmtce.server.child.session import Session
from guestmtce.server.state import guest as row
from guestmtce.server.state import guest_table
from guestmtce.server.state.guest import GuestMemory

INTERVALS = [400, 1000, 43_000, 60_000, 3_600_000]  # ms


def table(threshold):
    """A guest that has a child."""
    one = guest_table.GuestTable(dataclasses.replace(SETTINGS, failure_threshold=threshold))
    one.socket_found(UUID, PATH, None, True, NOW)
    one.child_started(UUID, NOW)
    return one


@pytest.mark.parametrize("interval_ms", INTERVALS)
@pytest.mark.parametrize("threshold", [0, 1, 100])
@pytest.mark.parametrize("running", [False, True])
def test_no_child_is_stuck_while_its_session_sleeps(interval_ms, threshold, running):
    one, init = table(threshold), INIT._replace(heartbeat_interval_ms=interval_ms)
    one.handle_report(UUID, session_types.Acknowledged(init), NOW)
    session = Session(one._settings.session(), lambda: 7)
    session.start(session_types.Resume(init, True, 0.0), NOW)
    sleeps = session.deadline - NOW
    if running:
        one.handle_report(UUID, session_types.Running(), NOW)
        sleeps = interval_ms / 1000
    assert one.child_patience(UUID) >= sleeps + SETTINGS.child_patience


def test_one_that_waits_for_init_sleeps_until_it_is_given_up():
    session = Session(SETTINGS.session(), lambda: 7)
    session.start(None, NOW)
    assert table(1).child_patience(UUID) == session.deadline - NOW + SETTINGS.child_patience
    assert guest_table.GuestTable(SETTINGS).child_patience(UUID) == table(1).child_patience(UUID)


def test_the_child_of_a_guest_that_heartbeats_wakes_up_every_interval():
    one = table(1)
    one.handle_report(UUID, session_types.Acknowledged(INIT), NOW)
    one.handle_report(UUID, session_types.Running(), NOW)
    assert one.child_patience(UUID) == 2 * 1.0 + SETTINGS.child_patience


@pytest.mark.parametrize(("absence", "sleeps"), [(1.0, SETTINGS.idle_reconnect), (200.0, 500.0)])
def test_the_child_of_a_guest_that_may_restart_sleeps_for_as_long_as_that_takes(absence, sleeps):
    one = guest_table.GuestTable(SETTINGS)
    init = INIT._replace(restart_secs=500)
    one.recall_guest(GuestMemory(UUID, True, True, init, True, True, -row.NEVER, 1), NOW - absence, NOW)
    assert one.child_patience(UUID) == sleeps + SETTINGS.child_patience
