"""guestServer's master in this process: its clock, its name, and what it keeps on disk."""

from __future__ import annotations

import pathlib
import shutil
import socket
import tempfile
import time

import pytest
from master_bench import ONE, Bench

from guestmtce.peer.authentication import NO_KEYS
from guestmtce.server import master as master_module
from guestmtce.server.state import effects
from guestmtce.server.state.effects import ReportEvent
from guestmtce.wire import datagram, guest_channel


@pytest.fixture
def make(monkeypatch):
    made = []
    folder = tempfile.mkdtemp(prefix="master-")  # a socket's path must be short

    def make_bench(**values):
        one = Bench(pathlib.Path(folder), **values)
        monkeypatch.setitem(
            master_module._CARRY_OUT, ReportEvent, lambda _, tell: one.told.append((tell.cmd, tell.event))
        )
        made.append(one)
        return one

    yield make_bench
    for one in made:
        one.close()
    shutil.rmtree(folder)


# --- the clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", ["reject", "accept"])
def test_a_vote_that_arrived_while_the_master_stood_still_counts(make, vote):
    bench = make()
    bench.master.open()
    bench.start_guest()
    bench.guests.say(1, "vote", vote, 0, "because")
    secs = guest_channel.timeout_secs(bench.master._guests.guests[ONE].init, guest_channel.VOTE, "stop")

    def stand_still():
        bench.master._handle_command(datagram.Ask(ONE, guest_channel.VOTE, "stop"))
        time.sleep(secs + bench.settings.question_grace + 0.5)

    def votes():
        return [event for cmd, event in bench.told if cmd == datagram.VOTE_NOTIFY]

    bench.loop.call_from_thread(stand_still)
    bench.turn(votes, "the vote is told")
    assert [(each.vote, each.reason) for each in votes()] == [(vote, "because")]
    assert bench.loop.stalls > 0


def test_a_guest_that_beat_while_the_master_stood_still_is_well(make):
    bench = make()
    bench.master.open()
    bench.start_guest()
    bench.loop.call_from_thread(lambda: time.sleep(1.5))
    until = time.monotonic() + 3
    bench.turn(lambda: time.monotonic() > until, "some turns")
    assert [cmd for cmd, _ in bench.told if cmd in (datagram.LOSS, datagram.STOPPED)] == []


# --- the name --------------------------------------------------------------------------------------


def test_the_host_s_name_is_the_one_that_it_has_when_serving_starts(make, monkeypatch):
    bench = make()
    assert bench.settings.hostname == ""
    monkeypatch.setattr(socket, "gethostname", lambda: "host-7")
    bench.master.open()
    bench.start_guest()
    assert {event.hostname for _, event in bench.told} == {"host-7"}


def test_a_name_that_is_configured_holds(make, monkeypatch):
    bench = make(hostname="host-8")
    monkeypatch.setattr(socket, "gethostname", lambda: "host-7")
    bench.master.open()
    bench.start_guest()
    assert {event.hostname for _, event in bench.told} == {"host-8"}


def test_hup_says_that_the_host_has_got_another_name(make, monkeypatch, caplog):
    bench = make()
    bench.master.reload(bench.settings, NO_KEYS)  # before it serves there is nothing to say
    monkeypatch.setattr(socket, "gethostname", lambda: "host-7")
    bench.master.open()
    bench.master.reload(bench.settings, NO_KEYS)
    assert "is called" not in caplog.text
    monkeypatch.setattr(socket, "gethostname", lambda: "host-9")
    bench.master.reload(bench.settings, NO_KEYS)
    assert "this host is called host-9 now, and is host-7 to guestAgent until" in caplog.text


# --- on disk ---------------------------------------------------------------------------------------


def test_what_is_cleaned_away_is_written_anew(make, caplog):
    bench = make()
    bench.master.open()
    bench.start_guest()
    kept = bench.files()
    assert {ONE, "alive", "sender"} <= kept
    shutil.rmtree(bench.folder / "run")
    bench.turn(lambda: (bench.folder / "run/guestServer.guests").exists(), "the folder is there")
    bench.turn(lambda: bench.files() == kept, "all is there")
    assert "was cleaned away" in caplog.text


def test_what_cannot_be_saved_is_saved_when_there_is_room_again(make, monkeypatch):
    bench = make()
    bench.master.open()
    bench.start_guest()
    full = [True]
    write = master_module.Store._write_file

    def fail(store, name, values):
        if full:
            store.unsaved[name] = values
            return False
        return write(store, name, values)

    monkeypatch.setattr(master_module.Store, "_write_file", fail)
    bench.master._handle_command(datagram.SetInstance(ONE, False))
    bench.turn(lambda: any("memory unsaved 2" in line for line in bench.master.health()), "nothing is saved")
    full.clear()
    bench.turn(lambda: "memory unsaved 0" in bench.master.health(), "all is saved")
    (memory,) = bench.master._store.load_guests()
    assert not memory.reporting


# --- effects ---------------------------------------------------------------------------------------


def test_what_an_effect_brings_about_comes_after_those_that_wait(make, monkeypatch):
    bench = make()
    bench.master.open()
    done = []

    def drop(master, effect):
        done.append(("drop", effect.uuid))
        if effect.uuid == "first":
            master._guests._agenda.add_effect(effects.LookForSocket("brought about"))
            master._carry_out()
            done.append("back")

    monkeypatch.setitem(master_module._CARRY_OUT, effects.DropChild, drop)
    monkeypatch.setitem(
        master_module._CARRY_OUT, effects.LookForSocket, lambda _, effect: done.append(effect.uuid)
    )
    for uuid in ("first", "second"):
        bench.master._guests._agenda.add_effect(effects.DropChild(uuid))
    bench.master._carry_out()
    assert done == [("drop", "first"), "back", ("drop", "second"), "brought about"]


def test_a_defect_of_the_table_does_not_stop_what_it_wants_later(make, monkeypatch):
    bench = make()
    bench.master.open()

    def fail():
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(bench.master._guests, "drain_effects", fail)
        with pytest.raises(ZeroDivisionError):
            bench.master._carry_out()
    bench.start_guest()
