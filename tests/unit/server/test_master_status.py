"""What guestServer waits for, and what it says of its guests to systemd and in its dump."""

from __future__ import annotations

import pytest
from master_bench import Bench

from guestmtce.lab.guest import uuid_of
from guestmtce.server import master, reports
from guestmtce.server.child import session_types
from guestmtce.server.state import guest

ONE = uuid_of(1)


@pytest.fixture
def make(tmp_path):
    """Gives a function that makes a master; it is closed afterwards."""
    made = []

    def of(**values):
        made.append(Bench(tmp_path, **values))
        return made[-1].master

    yield of
    for bench in made:
        bench.close()


def test_a_host_without_starlingx_waits_for_nothing_and_says_so(make, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(master, "PLATFORM", str(tmp_path / "platform"))
    one = make(no_wait=False)
    caplog.set_level("INFO")
    one.open()
    assert one.status() == "0 guests"
    assert "there is no %s" % (tmp_path / "platform") in caplog.text


def test_a_host_of_starlingx_is_waited_for_and_systemd_is_told_what_for(make, tmp_path, monkeypatch):
    configured, go = tmp_path / "configured", tmp_path / "go"
    monkeypatch.setattr(master, "PLATFORM", str(tmp_path))
    monkeypatch.setattr(master, "CONFIGURED_FLAG", str(configured))
    monkeypatch.setattr(master, "GO_FLAG", str(go))
    one = make(no_wait=False)
    one.open()
    assert one.status() == "waiting for %s and %s" % (configured, go)
    configured.touch()
    assert one.status() == "waiting for %s" % go
    go.touch()
    assert one.status() == "waiting for the end of [timeouts] start_delay"


def shown(one, row):
    line = reports.guest_line(row, 0)
    words = dict(word.split("=", 1) for word in line.split()[2:])
    return words["failing"], words["failure"], words["crash_looping"], one.status()


def test_a_guest_that_is_lost_or_ill_is_failing_in_the_dump_and_in_the_status(make):
    one = make()
    one.open()
    table = one._guests
    now = one._loop.now
    table.socket_found(ONE, "/nowhere", (1, 2), True, now)
    row = table.guests[ONE]
    assert shown(one, row) == ("no", "none", "no", "1 guests: 1 not heartbeating")
    table.handle_report(ONE, session_types.Running(), now)
    assert shown(one, row) == ("no", "none", "no", "1 guests: 1 ok")
    table.handle_report(ONE, session_types.Ill("reboot", "no disk"), now)
    assert shown(one, row) == ("yes", "ill", "no", "1 guests: 1 ill")
    table.handle_report(ONE, session_types.Well(), now)
    assert shown(one, row) == ("no", "none", "no", "1 guests: 1 ok")
    table.handle_report(ONE, session_types.Lost(0), now)
    assert shown(one, row) == ("yes", "lost", "no", "1 guests: 1 lost")
    assert "failing 1 crash-looping 0" in one.health()
    table.handle_report(ONE, session_types.Running(), now)
    row.crashes.crash_looping = True
    assert shown(one, row) == ("yes", "none", "yes", "1 guests: 1 without process")
    table.socket_found(ONE, "/nowhere", (3, 4), True, now)
    assert shown(one, row)[0] == "no"
    assert guest.LOST in reports.STATES and guest.ILL in reports.STATES
