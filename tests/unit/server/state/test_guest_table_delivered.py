"""A failure that guestAgent has is withdrawn, too, when it is over: an old agent has only heard of it."""

from __future__ import annotations

import dataclasses

import pytest
from guests_driver import ENDS, OTHER, SETTINGS, UUID, Bench, heartbeating, ill, lost

from guestmtce.server.child import session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state import guest_table
from guestmtce.server.state.effects import WithdrawEvent
from guestmtce.wire import datagram


def untells(bench):
    return [effect.key for effect in bench.take() if isinstance(effect, WithdrawEvent)]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("make", "kind"), [(lost, row.LOSS), (ill, row.ILLNESS)])
def test_what_was_delivered_is_withdrawn_once_when_it_is_over(make, kind, end):
    bench = make()
    bench.confirm()
    bench.take()
    end(bench)
    assert untells(bench).count(row.PendingKey(UUID, kind)) == 1
    assert bench.guest.pending.withdrawn == 0  # it was told
    end(bench)
    assert row.PendingKey(UUID, kind) not in untells(bench)


def test_a_deleted_instance_takes_it_along():
    bench = lost()
    bench.confirm()
    bench.take()
    bench.table.handle_command(datagram.DeleteInstance(UUID), bench.now)
    assert row.PendingKey(UUID, row.LOSS) in untells(bench)
    assert bench.table._pending._delivered == {}


def test_a_newer_failure_is_one_of_its_own():
    bench = lost()
    bench.confirm()
    bench.report(session_types.Running(), session_types.Lost(2))
    assert bench.table._pending._delivered == {}
    bench.confirm()
    assert list(bench.table._pending._delivered) == [row.PendingKey(UUID, row.LOSS)]


def test_states_and_outcomes_are_not_kept():
    bench = heartbeating()
    bench.ask("dance")
    bench.report(session_types.Stopped())
    bench.confirm()
    assert bench.table._pending._delivered == {}


# --- how many guests a host has --------------------------------------------------------------------


def test_no_more_guests_are_taken_than_the_setting_says(caplog):
    bench = Bench()
    bench.table = guest_table.GuestTable(dataclasses.replace(SETTINGS, max_guests=2))
    uuids = ["%08d%s" % (number, UUID[8:]) for number in range(100)]
    for reporting in (True, False):
        for uuid in uuids:
            bench.table.handle_command(datagram.SetInstance(uuid, reporting), bench.now)
    bench.take()
    assert list(bench.table.guests) == uuids[:2]
    assert not any(one.reporting for one in bench.table.guests.values())  # known ones are set all the same
    lines = [record.getMessage() for record in caplog.records if "max_guests" in record.getMessage()]
    assert lines == ["%s: not taken: 2 guests are known already, [supervision] max_guests" % uuids[2]]
    bench.found()  # a guest that is there is served
    assert UUID in bench.table.guests and OTHER not in bench.table.guests


# --- what is to be repeated ------------------------------------------------------------------------


def test_what_is_pending_is_found_as_it_was_reported_until_it_is_over():
    bench = lost()
    for told in bench.tells():
        assert bench.table.find_report(told.key) == told
    bench.report(session_types.Running())
    assert bench.table.find_report(row.PendingKey(UUID, row.LOSS)) is None
    (running,) = bench.tells()
    assert bench.table.find_report(running.key) == running


def test_a_delivered_failure_is_found_while_it_is_true_and_a_state_is_not():
    bench = lost()
    loss, stopped = bench.tells()
    bench.confirm()
    assert bench.table.find_report(loss.key) == loss
    assert bench.table.find_report(stopped.key) is None
    bench.report(session_types.Running())
    assert bench.table.find_report(loss.key) is None


def test_that_a_guest_is_still_ill_is_repeated_as_it_was_said_first():
    bench = ill()
    bench.report(session_types.Running())
    bench.run(SETTINGS.state_period)
    bench.end(session_types.PEER_CLOSED)
    bench.run(SETTINGS.stopped_grace)
    bench.connect()
    bench.report(session_types.Running())
    running = bench.tells()[-1]
    bench.report(session_types.Ill("reboot", "disk"))
    assert bench.table.find_report(running.key) == running


def test_an_outcome_of_an_unknown_instance_is_found_until_nobody_waits_for_it():
    bench = Bench()
    bench.ask(uuid=OTHER)
    (outcome,) = bench.tells()
    assert bench.table.find_report(outcome.key) == outcome
    bench.table.confirm_event(outcome.key)
    assert bench.table.find_report(outcome.key) is None
    assert bench.table._pending._of_unknown == {}
