"""The master's table: discovery, connections, heartbeats and commands."""

from __future__ import annotations

import logging

import pytest
from guests_driver import (
    INIT,
    MISSING,
    NOW,
    OTHER,
    PATH,
    REFUSED,
    SETTINGS,
    UUID,
    Bench,
    connected,
    heartbeating,
    resumes,
)

from guestmtce.server.child import session_types
from guestmtce.server.state import connections, liveness
from guestmtce.server.state import guest as row
from guestmtce.server.state.effects import Connect, DropChild, ReportEvent
from guestmtce.server.state.guest import GuestMemory
from guestmtce.wire import datagram, guest_channel

WRS = "/q/wrs.heartbeat.agent.0.%s.sock" % UUID

# --- discovery -------------------------------------------------------------------------------------


def test_a_found_channel_is_connected_at_once_and_shown_disabled():
    bench = Bench()
    bench.found()
    assert bench.take() == [Connect(UUID, PATH, None)]
    (info,) = bench.infos()
    assert (info.uuid, info.reporting, info.heartbeating) == (UUID, False, False)
    assert (info.repair_action, info.restart_to, info.vote_to) == ("log", 120, 10)


@pytest.mark.parametrize("path", [PATH, WRS])
def test_a_channel_that_we_have_is_left_alone(path):
    bench = heartbeating()
    bench.found(path, ident=1 if path == PATH else 2)
    bench.run(10)
    assert bench.take() == []


@pytest.mark.parametrize(
    ("path", "ident", "fresh"), [(PATH, 2, False), (PATH, 1, True), (PATH, 2, True), (WRS, 2, True)]
)
def test_a_replaced_or_fresh_file_is_connected_anew(path, ident, fresh):
    bench = heartbeating()
    bench.found(path, ident, fresh)
    effects = bench.take()
    assert type(effects[1]) is DropChild
    # The new guest owes nothing: it never answered us.
    assert effects[-1] == Connect(UUID, path, session_types.Resume(INIT, False, 0.0))


def test_a_deleted_channel_stops_the_guest_after_the_grace_without_a_loss():
    bench = heartbeating(reporting=True)
    bench.gone()
    assert bench.take_kinds()[:2] == ["SaveGuest", "DropChild"]
    bench.run(1.99)
    assert bench.told() == []
    bench.run(0.02)
    assert bench.told() == [datagram.STOPPED]
    assert bench.guest.connection.state == row.ABSENT


def test_a_guest_created_again_within_the_grace_makes_no_noise():
    bench = heartbeating()
    bench.gone()
    bench.run(1)
    bench.found(ident=2, fresh=True)
    bench.connect()
    bench.report(session_types.Running())
    bench.run(10)
    assert bench.told() == []


def test_the_other_name_does_not_drop_the_channel_but_replaces_it_when_it_goes():
    bench = heartbeating()
    bench.gone(WRS)
    assert bench.take() == []
    bench.gone(PATH)
    assert bench.take_kinds()[-1] == "LookForSocket"
    bench.found(WRS, 2)
    assert [e.path for e in bench.take() if isinstance(e, Connect)] == [WRS]


@pytest.mark.parametrize("how", ["gone", "missing"])
@pytest.mark.parametrize("provisioned", [True, False])
def test_only_the_provisioned_outlive_their_channel(how, provisioned):
    bench = Bench()
    bench.found()
    if provisioned:
        bench.set(True)
    if how == "gone":
        bench.gone()
    else:
        bench.table.connect_failed(UUID, MISSING, bench.now)
    bench.run(0.01)
    assert (UUID in bench.table.guests) is provisioned
    assert ("ForgetGuest" in bench.take_kinds()) is not provisioned
    if provisioned:
        bench.found(ident=2, fresh=True)
        bench.connect()
        bench.report(session_types.Running(), session_types.Lost(2))
        assert bench.told() == [datagram.RUNNING, datagram.LOSS, datagram.STOPPED]


def test_an_unprovisioned_guest_is_forgotten_when_its_stopped_is_confirmed():
    bench = heartbeating(provisioned=False)
    bench.gone()
    bench.run(100)
    assert bench.told() == [datagram.STOPPED]
    assert [info.heartbeating for info in bench.infos()] == [False]
    bench.confirm()
    assert bench.take_kinds() == ["ForgetGuest", "DropChild"]
    assert bench.infos() == []


def test_gone_and_failures_of_strangers_are_nothing():
    bench = Bench()
    bench.gone()
    bench.table.connect_failed(UUID, REFUSED, NOW)
    bench.table.handle_command(datagram.DeleteInstance(UUID), NOW)
    assert bench.take() == []
    bench = heartbeating()
    bench.table.connect_failed(UUID, MISSING, NOW)
    assert (bench.guest.connection.state, bench.take()) == (row.CONNECTED, [])


# --- back-off --------------------------------------------------------------------------------------


def delays(bench, end, count):
    """The time to each of `count` next attempts, `end()` failing the present one."""
    found = []
    for _ in range(count):
        end()
        began = bench.now
        assert bench.guest.connection.state == row.RETRYING
        while bench.guest.connection.state == row.RETRYING:
            bench.now = bench.table.next_due
            bench.table.tick(bench.now)
        found.append(round(bench.now - began, 4))
    return found


def refuse(bench):
    return lambda: bench.table.connect_failed(UUID, REFUSED, bench.now)


def test_failing_connections_back_off_from_10_ms_to_60_s():
    bench = Bench()
    bench.found()
    expected = [0.01 * 2**n for n in range(13)] + [60.0, 60.0]
    assert delays(bench, refuse(bench), 15) == pytest.approx(expected)


@pytest.mark.parametrize("why", [session_types.PEER_CLOSED, session_types.GAVE_UP, session_types.DIED])
def test_short_lived_connections_back_off_and_a_settled_one_resets(why):
    bench = Bench()
    bench.found()

    def live_shortly():
        bench.connect()
        bench.now += 0.5
        bench.end(why)

    assert delays(bench, live_shortly, 4) == pytest.approx([0.01, 0.02, 0.04, 0.08])
    bench.connect()
    bench.now += SETTINGS.stable_after
    bench.take()
    bench.end(why)
    assert "Connect" in bench.take_kinds()
    assert delays(bench, refuse(bench), 2) == pytest.approx([0.01, 0.02])


def test_a_child_that_never_started_backs_off():
    bench = Bench()
    bench.found()
    assert delays(bench, lambda: bench.end(session_types.DIED), 3) == pytest.approx([0.01, 0.02, 0.04])


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(("how", "next_delay"), [("short", 0.64), ("settled", 0.01), ("fresh", 0.01)])
def test_what_resets_the_back_off(how, next_delay, running):
    bench = Bench()
    bench.found()
    delays(bench, refuse(bench), 5)
    bench.connect()
    if running:  # a guest that breaks its child after the first answer is not served any faster
        bench.report(session_types.Running())
    if how == "fresh":
        bench.found(fresh=True)
    else:
        bench.now += SETTINGS.stable_after if how == "settled" else 0.0
        bench.end(session_types.DIED)
        bench.run(0.32)
    assert bench.guest.connection.state == row.CONNECTING
    assert delays(bench, refuse(bench), 1) == pytest.approx([next_delay])


# --- the end of a connection -----------------------------------------------------------------------


@pytest.mark.parametrize(("why", "owes"), [(session_types.PEER_CLOSED, False), (session_types.DIED, True)])
def test_a_broken_link_is_resumed_at_once_and_only_a_dead_child_leaves_a_debt(why, owes):
    bench = heartbeating()
    bench.run(5)
    bench.end(why)
    connects = [effect for effect in bench.take() if isinstance(effect, Connect)]
    assert connects == [Connect(UUID, PATH, session_types.Resume(INIT, owes, 0.0))]


@pytest.mark.parametrize("why", [session_types.PEER_CLOSED, session_types.DIED])
@pytest.mark.parametrize(("back", "told"), [(1.9, []), (2.5, [datagram.STOPPED, datagram.RUNNING])])
def test_stopped_only_when_not_resumed_within_the_grace(why, back, told):
    bench = heartbeating(reporting=True)
    bench.run(5)
    bench.end(why)
    bench.connect()
    bench.run(back)
    bench.report(session_types.Running())
    bench.run(10)
    assert bench.told() == told


def test_a_second_break_does_not_lengthen_the_grace():
    bench = heartbeating()
    bench.end(session_types.DIED)
    bench.run(1.5)
    bench.connect()
    bench.end(session_types.DIED)
    bench.run(0.6)
    assert bench.told() == [datagram.STOPPED]


def test_a_loss_is_told_though_the_child_died_before_it():
    bench = heartbeating(reporting=True)
    bench.end(session_types.DIED)
    bench.run(0.1)
    bench.connect()
    bench.run(6)
    bench.report(session_types.Lost(1))
    assert bench.told() == [datagram.STOPPED, datagram.LOSS]


# --- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "host", "told"),
    [
        (True, True, [datagram.LOSS, datagram.STOPPED]),
        (True, False, [datagram.STOPPED]),
        (False, True, [datagram.STOPPED]),
        (False, False, [datagram.STOPPED]),
    ],
)
def test_a_loss_needs_reporting_of_instance_and_host_and_comes_before_stopped(instance, host, told):
    bench = heartbeating(reporting=instance)
    bench.table.handle_command(datagram.SetHost("h", host), bench.now)
    bench.report(session_types.Lost(2))
    bench.run(10)
    assert bench.told() == told
    assert (
        bench.guest.liveness.losses,
        bench.guest.liveness.heartbeating,
        bench.guest.liveness.owes_answer,
    ) == (1, False, False)


def test_reporting_does_not_touch_the_heartbeat():
    bench = heartbeating()
    bench.set(True)
    bench.set(False)
    bench.table.handle_command(datagram.SetHost("h", False), bench.now)
    bench.table.handle_command(datagram.SetHost("h", False), bench.now)
    bench.run(10)
    assert bench.take_kinds() == ["SaveGuest", "PutCommand", "SaveHost"]
    assert bench.guest.liveness.heartbeating


def test_running_is_told_once_until_something_changed():
    bench = heartbeating()
    bench.report(session_types.Running())
    assert bench.told() == []
    bench.report(session_types.Acknowledged(INIT._replace(restart_secs=7)), session_types.Running())
    (tell,) = [effect for effect in bench.take() if isinstance(effect, ReportEvent)]
    assert (tell.cmd, tell.event.restart_to, tell.event.heartbeating) == (datagram.RUNNING, 7, True)
    bench.run(2)
    bench.report(session_types.Stopped(), session_types.Running())
    assert bench.told() == [datagram.STOPPED, datagram.RUNNING]


def test_a_goodbye_after_the_grace_does_not_tell_stopped_twice():
    bench = heartbeating()
    bench.end(session_types.DIED)
    bench.run(0.1)
    bench.connect()
    bench.run(3)
    assert bench.told() == [datagram.STOPPED]
    bench.report(session_types.Stopped(1))
    assert bench.told() == []
    assert not bench.guest.liveness.owes_answer


def test_a_guest_that_comes_and_goes_is_told_once_in_two_seconds_and_its_last_state_always():
    bench = heartbeating(reporting=True)
    began, told = bench.now, []
    while bench.now < began + 10:
        for report in (session_types.Stopped(), session_types.Running(), session_types.Stopped()):
            bench.report(report)
            bench.run(0.05)
            told += bench.told()
    assert told[0] == datagram.STOPPED, "at once"
    assert 10 <= len(told) <= 12
    bench.run(2)
    assert (*told, *bench.told())[-1] == datagram.STOPPED
    assert not bench.infos()[0].heartbeating


def test_a_loss_is_told_at_once_however_often_the_guest_has_come_and_gone():
    bench = heartbeating(reporting=True)
    for _ in range(10):
        bench.report(session_types.Stopped(), session_types.Running())
    bench.run(0.01)
    bench.take()
    bench.report(session_types.Lost(2))
    loss, stopped = bench.tells()
    assert (loss.cmd, stopped.cmd) == (datagram.LOSS, datagram.STOPPED)
    assert stopped.sequence < loss.sequence
    bench.run(10)
    assert bench.told() == []


def test_the_log_has_a_line_a_second_about_a_guest_that_comes_and_goes(caplog):
    caplog.set_level("INFO")
    bench = heartbeating()
    caplog.clear()
    for _ in range(200):
        bench.report(session_types.Acknowledged(INIT), session_types.Running(), session_types.Stopped())
        bench.end(session_types.DIED)
        bench.run(0.05)
        bench.connect() if bench.guest.connection.state == row.CONNECTING else None
    bench.take()
    mine = [record for record in caplog.records if UUID in record.getMessage()]
    assert len(mine) <= 30 + 10 + 1


def test_ill_carries_the_wanted_action():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Ill("reboot", "disk"))
    (tell,) = bench.tells()
    assert (tell.cmd, tell.event.repair_action, tell.event.uuid) == (datagram.ILLHEALTH, "reboot", UUID)
    assert bench.infos()[0].repair_action == INIT.corrective_action


def test_what_is_only_counted_or_logged(caplog):
    bench = heartbeating()
    bench.report(
        session_types.Missed(1), session_types.Late(0.5), session_types.Well(), session_types.Reconnect("x")
    )
    bench.report(session_types.Note("a\nb", 3))
    assert bench.take() == []
    assert (bench.guest.liveness.misses, bench.guest.liveness.late) == (1, 1)
    assert UUID + ": a\\nb (and 3 more like it)" in caplog.text


def test_illness_is_told_only_where_reporting_is_enabled():
    bench = heartbeating(reporting=False)
    bench.report(session_types.Ill("reboot", "disk"))
    assert bench.tells() == []
    bench.set(True)
    bench.take()
    bench.report(session_types.Ill("reboot", "disk"))
    assert bench.told() == [datagram.ILLHEALTH]


# --- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reporting", [True, False])
def test_an_unknown_instance_is_added_and_looked_for(reporting):
    bench = Bench()
    bench.set(reporting)
    effects = bench.take()
    assert effects[0].memory == GuestMemory(
        UUID, True, reporting, None, False, False, -row.NEVER, None, (), ()
    )
    assert [type(effect).__name__ for effect in effects] == ["SaveGuest", "LookForSocket"]
    assert bench.infos()[0].reporting is reporting
    bench.set(reporting)
    assert bench.take_kinds() == ["LookForSocket"]


def test_a_set_instance_does_not_wait_for_the_back_off():
    bench = Bench()
    bench.found()
    delays(bench, refuse(bench), 12)
    refuse(bench)()
    bench.take()
    bench.set(True)
    assert bench.take_kinds() == ["SaveGuest", "Connect"]


def test_a_deleted_instance_is_forgotten_without_a_word_until_it_is_found_again():
    bench = heartbeating(reporting=True)
    bench.table.handle_command(datagram.DeleteInstance(UUID), bench.now)
    assert bench.take_kinds() == ["ForgetGuest", "DropChild"]
    bench.run(100)
    assert (bench.take(), bench.infos()) == ([], [])
    bench.found()
    assert resumes(bench.take()) == [session_types.Resume(INIT, False, 0.0)]
    assert not bench.infos()[0].reporting


def test_what_a_deleted_guest_said_of_itself_is_kept_for_the_same_socket_only():
    bench = heartbeating(reporting=True)
    bench.table.handle_command(datagram.DeleteInstance(UUID), bench.now)
    bench.take()
    bench.found(ident=2)
    assert resumes(bench.take()) == [None]


def test_guests_do_not_touch_each_other():
    bench = heartbeating(reporting=True)
    bench.table.socket_found(OTHER, "/q/other", 7, True, bench.now)
    bench.table.child_started(OTHER, bench.now)
    bench.table.handle_report(OTHER, session_types.Running(), bench.now)
    bench.take()
    bench.table.child_ended(OTHER, session_types.DIED, " of signal 9", bench.now)
    bench.run(5)
    assert [effect.event.uuid for effect in bench.take() if isinstance(effect, ReportEvent)] == [OTHER]
    assert bench.guest.liveness.heartbeating


def test_the_info_takes_the_guests_own_words():
    init = guest_channel.Init(1, "n", 1000, 1, 2, 3, 4, 5, "stop")
    bench = connected()
    bench.report(session_types.Acknowledged(init))
    info = bench.infos()[0]
    assert info[4:] == ("stop", 5, 2, 3, 4, 1)
    assert info.hostname == "host-0"


# --- children that die ---------------------------------------------------------------------------


def die(bench, times, apart=1.5):
    """Its children die so often, `apart` s after their start; what is told meanwhile."""
    told = []
    for _ in range(times):
        bench.connect()
        bench.report(session_types.Running())
        bench.run(apart)
        bench.end(session_types.DIED)
        bench.run(0.02)
        told += bench.told()
    return told


def retrying(reporting=True):
    bench = heartbeating(reporting=reporting)
    bench.run(2)
    bench.end(session_types.GAVE_UP)
    return bench


def test_children_that_die_too_often_rest_and_the_guest_shows_as_failing():
    bench = retrying()
    bench.end(session_types.DIED)
    bench.guest.liveness.note(liveness.EXCUSED)
    for _ in range(SETTINGS.child_deaths_max):
        bench.run(0.02)
        assert not bench.guest.crashes.crash_looping
        bench.connect()
        bench.run(1.5)
        bench.end(session_types.DIED)
    assert bench.guest.crashes.crash_looping
    bench.set(True)  # nobody wakes it
    bench.run(SETTINGS.child_rest - 1)
    assert bench.told() == [datagram.STOPPED] and bench.guest.connection.state == row.RETRYING
    bench.run(2)
    bench.connect()
    bench.report(session_types.Running())
    assert not bench.guest.crashes.crash_looping and bench.told() == [datagram.RUNNING]


def test_a_guest_that_was_heartbeating_rests_1_2_4_and_at_most_8_s():
    """Whoever kills its children hides its hang no longer."""
    bench = retrying()
    assert die(bench, SETTINGS.child_deaths_max) == []
    assert not bench.guest.crashes.crash_looping and bench.guest.connection.state == row.CONNECTING
    for rest in (1, 2, 4, 8, 8):
        die(bench, 1)
        assert bench.guest.crashes.crash_looping and bench.guest.connection.state == row.RETRYING
        bench.run(rest - 0.1)
        assert bench.guest.connection.state == row.RETRYING
        bench.run(0.2)
        assert bench.guest.connection.state == row.CONNECTING


def test_a_child_that_we_could_not_make_is_no_failure_of_its_guest():
    bench = retrying()
    bench.told()
    for _ in range(30):
        bench.end(session_types.FORK_FAILED)
        bench.run(SETTINGS.child_rest_watched_max + 0.1)
        assert bench.guest.connection.state == row.CONNECTING
    assert bench.guest.liveness.losses == 0 and bench.guest.liveness.owes_answer
    assert datagram.LOSS not in bench.told()


def test_deaths_far_between_are_no_reason_to_rest():
    bench = retrying()
    die(
        bench,
        3 * SETTINGS.child_deaths_max,
        apart=connections.CRASHES_WINDOW / SETTINGS.child_deaths_max + 0.1,
    )
    assert not bench.guest.crashes.crash_looping


@pytest.mark.parametrize(("seconds", "rests"), [(59.9, True), (60.0, False)])
def test_deaths_within_a_minute_count(seconds, rests):
    bench = retrying()
    bench.guest.crashes.recent = (bench.now,) * SETTINGS.child_deaths_max
    bench.now += seconds
    assert bench.table._connections._is_crash_looping(bench.guest, bench.now) is rests


def test_only_so_many_deleted_guests_are_remembered():
    """What a guest behind the same socket would have to tell again is kept, and not for all who ever were."""
    table = Bench().table
    for number in range(connections.DEPARTED_MAX + 3):
        uuid = "%08x-2222-3333-4444-555555555555" % number
        table.socket_found(uuid, PATH, 1, False, NOW)
        table.child_started(uuid, NOW)
        table.handle_report(uuid, session_types.Acknowledged(INIT), NOW)
        table.handle_command(datagram.DeleteInstance(uuid), NOW)
        table.drain_effects()
    assert len(table._connections._departed) == connections.DEPARTED_MAX


def test_how_late_this_host_was_is_said_in_ms(caplog):
    bench = heartbeating()
    bench.report(session_types.Late(0.25))
    bench.take()
    assert "this host was 250 ms late" in caplog.text


def test_a_machine_that_is_made_anew_does_not_rest():
    bench = retrying()
    die(bench, SETTINGS.child_deaths_max + 1)
    assert bench.guest.crashes.crash_looping
    bench.found(ident=2, fresh=True)
    assert not bench.guest.crashes.crash_looping and bench.guest.connection.state == row.CONNECTING


# --- a host without time -------------------------------------------------------------------------


def missed_and_lost(apart):
    bench = heartbeating(reporting=True)
    bench.run(2)
    bench.report(session_types.Missed(1))
    bench.run(apart)
    bench.report(session_types.Missed(2), session_types.Lost(2))  # the second miss is the loss
    return bench


def test_a_loss_that_comes_with_its_first_miss_is_asked_after_once_more():
    bench = missed_and_lost(0.49)
    assert [type(effect).__name__ for effect in bench.take()] == ["DropChild", "Connect"]
    bench.connect()
    bench.run(5)
    bench.report(session_types.Lost(0))
    assert bench.told() == [datagram.STOPPED, datagram.LOSS]


def test_a_guest_that_answers_when_it_is_asked_once_more_is_not_lost():
    bench = missed_and_lost(0.0)
    bench.take()
    bench.connect()
    bench.report(session_types.Running())
    bench.run(100)
    assert bench.told() == [] and bench.guest.liveness.losses == 0


def test_a_loss_an_interval_after_its_first_miss_is_one():
    assert missed_and_lost(0.51).told() == [datagram.LOSS, datagram.STOPPED]


def test_what_a_child_says_does_not_fill_the_log(caplog):
    caplog.set_level(logging.INFO)
    bench = heartbeating()
    caplog.clear()
    for number in range(1200):
        bench.now += 0.05
        bench.report(session_types.Note("note %d" % number, 0))
    bench.take()
    assert 30 <= len(caplog.messages) <= 30 + 60 + 1
    assert "lines were left out" in caplog.messages[-1]
    bench.now += 60
    bench.report(session_types.Missed(1))
    bench.take()
    assert "missed 1 in a row" in caplog.messages[-1]


# --- what is wrong with a guest, for the health report -----------------------------------------


def gets_a_new_child(bench):
    bench.end(session_types.DIED)
    bench.run(0.1)
    bench.connect()


def is_created_anew(bench):
    bench.found(ident=2, fresh=True)


SAYS = {
    "init": lambda bench: bench.report(session_types.Acknowledged(INIT)),
    "running": lambda bench: bench.report(session_types.Running()),
    "stopped": lambda bench: bench.report(session_types.Stopped()),
    "lost": lambda bench: bench.report(session_types.Lost(2)),
    "ill": lambda bench: bench.report(session_types.Ill("log", "")),
    "well": lambda bench: bench.report(session_types.Well()),
    "new child": gets_a_new_child,
    "created anew": is_created_anew,
}


@pytest.mark.parametrize(
    ("says", "after_lost", "after_ill"),
    [
        ("init", row.LOST, ""),  # who says init has not answered yet
        ("running", "", row.ILL),  # a healthy answer says `well`
        ("stopped", "", ""),
        ("lost", row.LOST, row.LOST),
        ("ill", row.ILL, row.ILL),
        ("well", "", ""),
        ("new child", row.LOST, ""),  # it finds out anew
        ("created anew", "", ""),
    ],
)
def test_what_is_wrong_with_a_guest_is_over_when_it_shows_otherwise(says, after_lost, after_ill):
    for first, expected in (("lost", after_lost), ("ill", after_ill)):
        bench = heartbeating()
        assert bench.guest.liveness.failure == ""
        SAYS[first](bench)
        SAYS[says](bench)
        assert bench.guest.liveness.failure == expected


def test_what_has_happened_is_counted():
    bench = heartbeating(reporting=True)
    for count in (2, 3):
        bench.report(session_types.Missed(1), session_types.Late(0.1))
        bench.end(session_types.DIED)
        bench.run(0.1)
        bench.connect()
        assert (bench.guest.connection.connections_made, bench.guest.crashes.count) == (count, count - 1)
        assert (bench.guest.liveness.misses, bench.guest.liveness.late) == (count - 1, count - 1)
        bench.report(session_types.Acknowledged(INIT), session_types.Running())
        bench.run(2)
        bench.report(session_types.Lost(2), session_types.Acknowledged(INIT), session_types.Running())
        assert bench.guest.liveness.losses == count - 1


@pytest.mark.parametrize(("apart", "told"), [(0.25, False), (0.5, True), (1.0, True)])
def test_misses_that_are_heard_of_within_half_an_interval_are_asked_after(apart, told):
    bench = heartbeating(reporting=True)
    bench.now = 200_000.0
    bench.report(session_types.Missed(1))
    bench.now += apart
    bench.report(session_types.Missed(2))
    bench.report(session_types.Lost(2))
    assert (datagram.LOSS in bench.told()) is told


def test_a_resume_notice_ends_the_rest_of_a_guest():
    bench = connected()
    while not bench.guest.crashes.crash_looping:
        bench.end(session_types.DIED)
        bench.run(0.1)
        if bench.guest.connection.state == row.CONNECTING:
            bench.connect()
    bench.take()
    bench.ask("resume", guest_channel.NOTICE)
    assert (bench.guest.crashes.crash_looping, bench.guest.connection.state) == (False, row.CONNECTING)


def test_the_log_says_how_many_lines_were_left_out(caplog):
    caplog.set_level(logging.INFO)
    bench = heartbeating()
    bench.run(100)
    bench.report(*[session_types.Well()] * 35)
    bench.take()
    caplog.clear()
    for _ in range(2):
        bench.run(1.01)
        bench.report(session_types.Well())
    bench.take()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "healthy again (5 lines were left out)",
        "healthy again",
    ]
