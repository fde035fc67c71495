"""The master's table: what guestAgent has not confirmed is told while it is true."""

from __future__ import annotations

import pytest
from guests_driver import ENDS, INIT, OTHER, SETTINGS, UUID, Bench, heartbeating, ill, lost, recalled, resumes
from guests_world import BEGINNING, World
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.server.child import session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state.effects import DropChild, ForgetGuest, ReportEvent, SaveGuest, WithdrawEvent
from guestmtce.server.state.questions import OUTCOMES_MAX
from guestmtce.wire import datagram


def pending(bench):
    return {kind: one.cmd for kind, one in bench.pending.items()}


def untells(bench):
    return [effect.key for effect in bench.take() if isinstance(effect, WithdrawEvent)]


# --- levels ----------------------------------------------------------------------------------------


def test_what_is_told_stays_untold_until_it_is_confirmed():
    bench = lost()
    loss, stopped = bench.tells()
    assert (loss.cmd, loss.key, stopped.cmd, stopped.key) == (
        datagram.LOSS, row.PendingKey(UUID, row.LOSS), datagram.STOPPED, row.PendingKey(UUID, row.STATE),
    )  # fmt: skip
    assert stopped.sequence < loss.sequence  # one that ran in between has stopped after its loss
    assert pending(bench) == {row.LOSS: datagram.LOSS, row.STATE: datagram.STOPPED}
    bench.confirm(row.LOSS)
    assert pending(bench) == {row.STATE: datagram.STOPPED}
    bench.confirm(row.STATE)
    assert (pending(bench), bench.saved().pending) == ({}, ())


def test_a_loss_carries_the_state_that_follows_from_it():
    (loss, _) = lost().tells()
    assert loss.event == datagram.InstanceInfo("host-0", UUID, True, False, "reboot", 120, 9, 11, 13, 8)


def test_a_newer_state_takes_the_place_of_the_older():
    bench = heartbeating()
    for report in (session_types.Stopped(), session_types.Running(), session_types.Stopped()):
        bench.run(1)
        bench.report(report)
    numbers = [tell.sequence for tell in bench.tells()]
    assert numbers == sorted(set(numbers)) and len(numbers) == 3
    assert bench.pending == {row.STATE: bench.pending[row.STATE]}
    assert bench.pending[row.STATE].sequence == numbers[-1]


def test_confirmations_of_what_is_not_untold_change_nothing():
    bench = lost()
    bench.take()
    for uuid, kind in [(UUID, row.ILLNESS), (UUID, row.OUTCOME), (OTHER, row.STATE)]:
        bench.table.confirm_event(row.PendingKey(uuid, kind))
    assert (bench.take(), len(pending(bench))) == ([], 2)


def test_outcomes_are_kept_each_for_itself_but_not_without_end():
    bench = heartbeating()
    for _ in range(OUTCOMES_MAX + 2):
        bench.ask("dance")
    tells, dropped = [], []
    for effect in bench.take():
        tells += [effect] if isinstance(effect, ReportEvent) else []
        dropped += [effect.key] if isinstance(effect, WithdrawEvent) else []
    assert dropped == [tell.key for tell in tells[:2]]
    assert list(bench.guest.pending.events) == [tell.key for tell in tells[2:]]
    bench.table.confirm_event(tells[5].key)
    assert len(bench.pending) == OUTCOMES_MAX - 1


# --- what is over is withdrawn ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("make", "kind"), [(lost, row.LOSS), (ill, row.ILLNESS)])
def test_a_failure_that_is_over_is_withdrawn(make, kind, end):
    bench = make()
    bench.take()
    end(bench)
    effects = bench.take()
    assert WithdrawEvent(row.PendingKey(UUID, kind)) in effects
    assert kind not in pending(bench)
    assert bench.guest.pending.withdrawn == 1
    saved = [effect.memory for effect in effects if isinstance(effect, SaveGuest)][-1]
    assert kind not in [key.kind for key, _ in saved.pending]


def dies(bench):
    bench.end(session_types.DIED)
    bench.run(100)


def goes(bench):
    bench.gone()
    bench.run(100)


def goes_for_a_moment(bench):
    # As when the folder could not be read, or was moved away and back.
    bench.gone()
    bench.found(ident=1)


def is_set_again(bench):
    bench.set(True)
    bench.table.handle_command(datagram.SetHost("h", True), bench.now)


def introduces_itself(bench):
    bench.report(session_types.Acknowledged(INIT))


@pytest.mark.parametrize("what", [dies, goes, goes_for_a_moment, is_set_again, introduces_itself])
def test_a_loss_is_not_forgotten(what):
    bench = lost()
    what(bench)
    assert pending(bench)[row.LOSS] == datagram.LOSS
    assert untells(bench) == []


@pytest.mark.parametrize(
    "report",
    [session_types.Well(), session_types.Stopped(), session_types.Lost(2), session_types.Acknowledged(INIT)],
)
def test_the_illness_of_a_guest_that_is_well_or_gone_is_over(report):
    bench = ill()
    bench.report(report)
    assert untells(bench) == [row.PendingKey(UUID, row.ILLNESS)]
    assert row.ILLNESS not in pending(bench)


@pytest.mark.parametrize("what", [Bench.gone, lambda bench: bench.end(session_types.PEER_CLOSED)])
def test_the_illness_of_a_guest_without_a_channel_is_over(what):
    bench = ill()
    what(bench)
    assert untells(bench) == [row.PendingKey(UUID, row.ILLNESS)]


def test_the_illness_of_a_guest_whose_child_died_goes_on():
    bench = ill()
    assert replaced_child(bench, 5) is False
    assert pending(bench)[row.ILLNESS] == datagram.ILLHEALTH


def test_a_deleted_instance_takes_all_of_it_along():
    bench = lost()
    bench.ask("dance")
    keys = list(bench.guest.pending.events)
    bench.take()
    bench.table.handle_command(datagram.DeleteInstance(UUID), bench.now)
    assert bench.take() == [ForgetGuest(UUID), *map(WithdrawEvent, keys), DropChild(UUID)]
    assert len(keys) == 3


# --- illness and a new child -----------------------------------------------------------------------


def replaced_child(bench, seconds):
    bench.end(session_types.DIED)
    bench.run(0.1)
    bench.connect()
    bench.run(seconds)
    bench.take()
    bench.report(session_types.Running(), session_types.Ill("reboot", "disk"))
    return datagram.ILLHEALTH in bench.told()


@pytest.mark.parametrize(("seconds", "again"), [(5, False), (60, True)])
@pytest.mark.parametrize("confirmed", [True, False])
def test_a_new_child_repeats_no_illness_before_its_time(confirmed, seconds, again):
    bench = ill()
    if confirmed:
        bench.confirm()
    assert replaced_child(bench, seconds) is (again and confirmed)
    assert (row.ILLNESS in pending(bench)) is (again or not confirmed)


def test_an_illness_that_goes_on_while_the_vim_stands_still_is_one_alarm():
    bench = ill()
    number = bench.pending[row.ILLNESS].sequence
    bench.run(60)
    bench.report(session_types.Ill("reboot", "disk"))
    assert (bench.told(), bench.pending[row.ILLNESS].sequence) == ([], number)
    bench.report(session_types.Ill("stop", "disk"))  # it wants something else
    assert bench.told() == [datagram.ILLHEALTH]
    bench.confirm()
    bench.run(60)
    bench.report(session_types.Ill("stop", "disk"))
    assert bench.told() == [datagram.ILLHEALTH]


def test_a_new_child_knows_that_its_guest_was_ill_and_says_when_it_is_well():
    bench = ill()
    bench.end(session_types.DIED)
    bench.run(0.1)
    assert [resume.ill for resume in resumes(bench.take())] == [True]
    bench.connect()
    bench.report(session_types.Running(), session_types.Well())
    assert row.ILLNESS not in pending(bench)
    bench.end(session_types.DIED)
    bench.run(0.1)
    assert [resume.ill for resume in resumes(bench.take())] == [False]


def test_an_illness_that_is_known_is_not_told_again_after_a_restart():
    bench = ill()
    bench.confirm()
    again = recalled(bench.saved(), 3.0)
    again.found()
    assert [resume.ill for resume in resumes(again.take())] == [True]
    again.connect()
    again.report(session_types.Running(), session_types.Ill("reboot", "disk"))
    assert datagram.ILLHEALTH not in again.told()


def test_an_illness_is_told_again_after_a_healthy_answer():
    bench = ill()
    bench.confirm()
    bench.run(SETTINGS.state_period)
    bench.report(session_types.Ill("reboot", "disk"))
    assert bench.told() == []
    bench.report(session_types.Well(), session_types.Ill("reboot", "disk"))
    assert bench.told() == [datagram.ILLHEALTH]


# --- any history -----------------------------------------------------------------------------------

TROUBLE = st.one_of(
    st.sampled_from([
        ("report", session_types.Running()), ("report", session_types.Lost(2)),
        ("report", session_types.Ill("log", "")),
        ("report", session_types.Acknowledged(INIT)), ("report", session_types.Stopped()),
        ("report", session_types.Well()),
        ("set", True), ("set", False), ("host", True), ("host", False), ("gone", "/q/x"),
        ("found", "/q/x", 1, False), ("found", "/q/x", 2, True), ("child", "started"),
        ("confirm", ""), ("confirm", row.LOSS), ("restart", 0.0), ("restart", 31.0),
        ("wait", 3), ("wait", 10), ("end", session_types.DIED),
    ])
)  # fmt: skip


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(TROUBLE, max_size=30))
def test_what_is_untold_is_what_is_true_and_unconfirmed(steps):
    world = World()
    for step in [("found", "/q/x", 1, True), *BEGINNING[1:], *steps]:
        world.step(*step)


def test_a_child_that_is_being_made_hears_of_no_enabling_that_is_over():
    world = World()
    steps = [("set", False), ("found", "/q/x", 2, True), ("set", True), ("set", False), ("child", "started")]
    for step in [("found", "/q/x", 1, True), *BEGINNING[1:], *steps]:
        world.step(*step)


def test_a_guest_that_falls_ill_again_and_again_is_told_once_in_two_seconds_and_at_last():
    bench, told = heartbeating(reporting=True), []
    for _ in range(100):
        bench.report(
            session_types.Acknowledged(INIT), session_types.Running(), session_types.Ill("reboot", "disk")
        )
        bench.run(0.1)
        told += bench.told()
    bench.run(SETTINGS.state_period)
    assert 5 <= (told + bench.told()).count(datagram.ILLHEALTH) <= 7
    assert pending(bench)[row.ILLNESS] == datagram.ILLHEALTH


def test_a_held_illness_that_is_over_is_not_told():
    bench = heartbeating(reporting=True)
    bench.report(
        session_types.Ill("reboot", ""),
        session_types.Well(),
        session_types.Ill("reboot", ""),
        session_types.Well(),
    )
    bench.take()
    bench.run(10)
    assert datagram.ILLHEALTH not in bench.told()


@pytest.mark.parametrize(("absence", "held"), [(3.0, 7.0), (200.0, 122.0)])
def test_after_a_long_absence_a_failure_is_held_until_the_guest_may_have_restarted(absence, held):
    again = recalled(lost().saved(), absence)
    again.run(held - 0.1)
    assert datagram.LOSS not in again.told()
    again.run(0.2)
    assert datagram.LOSS in again.told()


def test_after_too_long_an_absence_nobody_knows_of_the_failure():
    again = recalled(lost().saved(), 301.0)
    again.run(1000)
    assert datagram.LOSS not in again.told()


@pytest.mark.parametrize(("confirmed", "again"), [(False, True), (True, False)])
def test_an_illness_that_was_taken_back_is_told_anew_and_one_that_is_known_is_not(confirmed, again):
    bench = ill()
    if confirmed:
        bench.confirm()
    bench.report(session_types.Stopped(), session_types.Running())
    bench.run(SETTINGS.state_period)
    bench.take()
    bench.report(session_types.Ill("reboot", "disk"))
    assert (datagram.ILLHEALTH in bench.told()) is again


def test_what_is_withdrawn_is_counted():
    bench = lost()
    for count in (1, 2, 3):
        bench.report(session_types.Acknowledged(INIT), session_types.Running())
        assert bench.guest.pending.withdrawn == count
        bench.report(session_types.Lost(2))


def falls_ill_again_too_soon():
    """Its second illness waits for its turn."""
    bench = ill()
    bench.confirm()
    bench.report(session_types.Well(), session_types.Ill("reboot", "disk"))
    assert bench.told() == []
    return bench


def is_lost(bench):
    bench.report(session_types.Lost(2))


def has_stopped(bench):
    bench.report(session_types.Stopped())


def is_not_wanted(bench):
    bench.set(False)


def restarts(bench):
    bench.report(session_types.Acknowledged(INIT))


def is_gone(bench):
    bench.gone()


def closes_the_channel(bench):
    bench.end(session_types.PEER_CLOSED)


def is_created_anew(bench):
    bench.found(ident=2, fresh=True)


@pytest.mark.parametrize(
    "end",
    [is_lost, has_stopped, is_not_wanted, restarts, is_gone, closes_the_channel, is_created_anew],
)
def test_an_illness_that_waits_is_not_told_when_it_is_over(end):
    bench = falls_ill_again_too_soon()
    end(bench)
    bench.run(10)
    assert datagram.ILLHEALTH not in bench.told()


def test_an_illness_that_waits_is_told_in_its_turn():
    bench = falls_ill_again_too_soon()
    bench.run(SETTINGS.state_period)
    assert bench.told() == [datagram.ILLHEALTH]


@pytest.mark.parametrize(("seconds", "told"), [(54.0, False), (54.5, True), (55.0, True)])
def test_an_illness_that_goes_on_is_told_every_55_s(seconds, told):
    bench = ill()
    bench.confirm()
    bench.run(seconds)
    bench.report(session_types.Ill("reboot", "disk"))
    assert (datagram.ILLHEALTH in bench.told()) is told


def test_a_state_that_waits_is_told_in_its_turn():
    bench = heartbeating()
    bench.run(10)
    bench.report(session_types.Stopped(), session_types.Running(), session_types.Stopped())
    bench.take()
    bench.run(SETTINGS.state_period)
    assert bench.told() == [datagram.STOPPED]


def test_a_stop_that_waits_is_told_at_once_with_the_loss_that_follows():
    bench = heartbeating(reporting=True)
    bench.run(10)
    bench.report(session_types.Stopped(), session_types.Running(), session_types.Stopped())
    assert bench.told() == [datagram.STOPPED, datagram.RUNNING]
    bench.report(session_types.Lost(2))
    assert bench.told() == [datagram.LOSS, datagram.STOPPED]
    bench.run(10)
    assert bench.told() == []


def test_a_failure_is_held_once():
    again = recalled(lost().saved(), 3.0)
    assert again.pending[row.LOSS].held
    again.run(100)
    assert not again.pending[row.LOSS].held
