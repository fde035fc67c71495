"""The master's table: votes and notices, and what is recalled after a restart."""

from __future__ import annotations

import pytest
from guests_driver import INIT, NOW, OTHER, PATH, SETTINGS, UUID, Bench, connected, heartbeating, recalled

from guestmtce.server.child import session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state import liveness
from guestmtce.server.state.effects import Connect, PutCommand, ReportEvent
from guestmtce.server.state.guest import GuestMemory
from guestmtce.wire import datagram, guest_channel

NOTICE, VOTE = guest_channel.NOTICE, guest_channel.VOTE


def puts(bench):
    return [effect.command for effect in bench.take() if isinstance(effect, PutCommand)]


# --- outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", guest_channel.VOTE_RESULTS)
@pytest.mark.parametrize(
    ("kind", "event", "ms"), [(VOTE, "stop", 8000), (NOTICE, "stop", 9000), (NOTICE, "resize_end", 13000)]
)
def test_each_answer_is_told_once(kind, event, ms, vote):
    bench = heartbeating()
    bench.ask(event, kind)
    (ask,) = puts(bench)
    assert ask[1:] == (kind, event, ms)
    bench.report(
        session_types.Answered(ask.question_id, vote, "because"),
        session_types.Answered(ask.question_id, "error", ""),
    )
    (tell,) = [effect for effect in bench.take() if isinstance(effect, ReportEvent)]
    assert tell.cmd == datagram.VOTE_NOTIFY
    assert tell.event == datagram.VoteResult("host-0", UUID, kind, event, vote, "because")
    bench.run(60)
    assert bench.votes() == []


@pytest.mark.parametrize(
    ("uuid", "event", "why"),
    [(OTHER, "stop", "unknown instance"), (UUID, "dance", "unknown event type dance"),
     (UUID, "unknown", "unknown event type unknown"), (UUID, "", "unknown event type ")],
)  # fmt: skip
def test_a_refused_question_is_an_error_at_once(uuid, event, why):
    bench = heartbeating()
    bench.ask(event, VOTE, uuid)
    effects = bench.take()
    assert [type(effect).__name__ for effect in effects] == ["SaveGuest"] * (uuid == UUID) + ["ReportEvent"]
    assert effects[-1].event == datagram.VoteResult("host-0", uuid, VOTE, event, "error", why)
    assert effects[-1].key[0] == uuid
    assert OTHER not in bench.table.guests


@pytest.mark.parametrize(("kind", "vote"), [(VOTE, "accept"), (NOTICE, "complete")])
@pytest.mark.parametrize("make", [Bench, connected])
def test_who_is_not_heartbeating_agrees_at_once(make, kind, vote):
    bench = make()
    bench.set(True)
    bench.ask("reboot", kind)
    assert bench.votes() == [("reboot", vote, "the guest is not heartbeating")]


@pytest.mark.parametrize(("kind", "vote"), [(VOTE, "accept"), (NOTICE, "complete")])
def test_a_child_that_says_nothing_is_not_waited_for_for_ever(kind, vote):
    bench = heartbeating()
    bench.ask("suspend", kind)
    seconds = 8 if kind == VOTE else 11
    bench.run(seconds + SETTINGS.question_grace - 0.01)
    assert bench.votes() == []
    bench.run(0.02)
    assert bench.votes() == [("suspend", vote, "no answer in time")]


def test_a_guest_without_time_to_answer_agrees():
    bench = heartbeating()
    bench.report(session_types.Acknowledged(INIT._replace(vote_secs=0)))
    bench.ask()
    bench.run(SETTINGS.question_grace + 0.01)
    assert bench.votes() == [("reboot", "accept", "no answer in time")]


# --- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["connected", "retrying", "connecting"])
def test_a_resume_notice_reconnects_and_is_asked_when_the_guest_answers(state):
    bench = connected()
    bench.report(session_types.Acknowledged(INIT))
    if state != "connected":
        bench.end(session_types.DIED)
    if state == "connecting":
        bench.run(0.1)
    bench.take()
    bench.ask("resume", NOTICE)
    assert bench.take_kinds() == ["SaveGuest", "DropChild", "Connect"]
    bench.connect()
    bench.now += 3
    bench.report(session_types.Running())
    (ask,) = puts(bench)
    assert ask[1:] == (NOTICE, "resume", 10_000)


@pytest.mark.parametrize(("event", "kind"), [("resume", VOTE), ("unpause", NOTICE)])
def test_nothing_else_reconnects(event, kind):
    bench = connected()
    bench.ask(event, kind)
    assert bench.take_kinds() == ["SaveGuest", "ReportEvent"]


def test_a_heartbeating_guest_is_resumed_without_a_reconnect():
    bench = heartbeating()
    bench.ask("resume", NOTICE)
    assert bench.take_kinds() == ["SaveGuest", "PutCommand"]


# --- a question and the end of a child -------------------------------------------------------------


def test_a_new_child_is_given_the_open_question_with_the_time_left():
    bench = heartbeating()
    bench.ask("reboot", VOTE)
    (first,) = puts(bench)
    bench.run(2)
    bench.end(session_types.DIED)
    bench.connect()
    bench.run(1)
    assert puts(bench) == []
    bench.report(session_types.Running())
    (again,) = puts(bench)
    assert again == first._replace(timeout_ms=5000)
    bench.report(session_types.Answered(again.question_id, "reject", "no"))
    assert bench.votes() == [("reboot", "reject", "no")]


def test_a_question_is_given_to_a_child_once():
    # A session takes a second one as a new question, and agrees to the first on the guest's behalf.
    bench = heartbeating()
    bench.ask("reboot", VOTE)
    assert len(puts(bench)) == 1
    bench.report(session_types.Acknowledged(INIT), session_types.Running())
    assert puts(bench) == []


def test_a_child_that_has_not_heard_the_guest_is_not_asked_yet():
    bench = heartbeating()
    bench.end(session_types.DIED)
    bench.run(0.1)
    bench.take()
    bench.ask()
    assert puts(bench) == []
    # The first report may overtake the news of the child's pid.
    bench.report(session_types.Running())
    assert len(puts(bench)) == 1
    bench.connect()
    bench.report(session_types.Running())
    assert puts(bench) == []


def test_a_new_question_ends_one_that_waits_and_leaves_a_given_one_to_the_child():
    bench = heartbeating()
    bench.ask("stop", VOTE)
    bench.ask("pause", VOTE)
    assert bench.votes() == []
    bench.end(session_types.DIED)
    bench.ask("reboot", VOTE)
    assert [vote[0] for vote in bench.votes()] == ["stop", "pause"]


@pytest.mark.parametrize("how", ["closed", "gone", "replaced"])
def test_a_guest_that_is_gone_agrees(how):
    bench = heartbeating()
    bench.ask("stop", NOTICE)
    bench.take()
    if how == "closed":
        bench.end(session_types.PEER_CLOSED)
    elif how == "gone":
        bench.gone()
    else:
        bench.found(ident=2)
    assert bench.votes() == [("stop", "complete", "the guest is gone")]


# --- no false alarm after a notice -----------------------------------------------------------------


def agreed_by_deadline(bench):
    bench.run(11 + SETTINGS.question_grace)


def agreed_by_overtaking(bench):
    bench.end(session_types.DIED)
    bench.ask("stop", VOTE)


def agreed_by_peer(bench):
    bench.run(2)
    bench.end(session_types.PEER_CLOSED)
    bench.connect()
    bench.report(session_types.Running())


@pytest.mark.parametrize("agreed", [agreed_by_deadline, agreed_by_overtaking, agreed_by_peer])
@pytest.mark.parametrize(("after", "told"), [(10, False), (16, True)])
@pytest.mark.parametrize("returned", [True, False])
def test_a_notice_that_we_agreed_to_silences_the_loss(agreed, after, told, returned):
    bench = heartbeating(reporting=True)
    bench.ask("pause", NOTICE)
    agreed(bench)
    if returned:
        bench.report(session_types.Acknowledged(INIT))
    bench.run(after)
    bench.take()
    bench.report(session_types.Lost(2))
    assert (datagram.LOSS in bench.told()) is (told or returned)
    assert not bench.guest.liveness.running


@pytest.mark.parametrize(("kind", "event"), [(VOTE, "pause"), (NOTICE, "resize_end")])
def test_what_does_not_silence_a_guest_does_not_silence_its_loss(kind, event):
    bench = heartbeating(reporting=True)
    bench.ask(event, kind)
    bench.run(20)
    bench.report(session_types.Lost(2))
    assert datagram.LOSS in bench.told()


# --- after a restart -------------------------------------------------------------------------------

MEMORY = GuestMemory(UUID, True, True, INIT, True, True, NOW + 10, (1, 2))


def taken_up(memory=MEMORY, age=3.0, ident=(1, 2), found=True):
    bench = recalled(memory, age)
    if found:
        bench.found(ident=ident)
    return bench


@pytest.mark.parametrize(
    ("age", "owes"), [(0, True), (30, True), (300, True), (300.1, False), (float("inf"), False), (-1, False)]
)
def test_a_fresh_memory_is_believed_and_an_old_one_for_its_parameters_only(age, owes):
    bench = taken_up(age=age)
    connect = [effect for effect in bench.take() if isinstance(effect, Connect)][0]
    assert connect.resume.init == INIT
    assert connect.resume.was_heartbeating is owes
    assert connect.resume.silence == pytest.approx(10)
    info = bench.infos()[0]
    assert (info.reporting, info.heartbeating) == (True, owes)


def test_a_recalled_guest_that_is_gone_is_stopped_and_one_that_died_meanwhile_is_lost():
    bench = taken_up(found=False)
    bench.run(3)
    assert bench.told() == [datagram.STOPPED]
    bench = taken_up(MEMORY._replace(silence_until=-row.NEVER))
    bench.connect()
    bench.run(6)
    bench.report(session_types.Lost(1))
    assert bench.told() == [datagram.STOPPED, datagram.LOSS]


def test_a_guest_made_anew_while_we_did_not_run_owes_nothing():
    bench = taken_up(ident=(1, 3))
    connect = [effect for effect in bench.take() if isinstance(effect, Connect)][0]
    assert connect.resume == session_types.Resume(INIT, False, 0.0)
    bench.run(3)
    assert bench.told() == [datagram.STOPPED]


def test_who_was_told_to_have_stopped_is_not_stopped_again():
    bench = taken_up(MEMORY._replace(heartbeating=False, owes_answer=False))
    bench.run(10)
    assert bench.told() == []


@pytest.mark.parametrize("heartbeating", [True, False])
def test_an_unprovisioned_memory_without_a_channel_is_forgotten(heartbeating):
    bench = taken_up(MEMORY._replace(provisioned=False, heartbeating=heartbeating), found=False)
    bench.run(3)
    assert bench.told() == ([datagram.STOPPED] if heartbeating else [])
    if heartbeating:
        bench.confirm()
        assert "ForgetGuest" in bench.take_kinds()
    assert UUID not in bench.table.guests


def test_no_memory_silences_for_longer_than_there_is():
    bench = taken_up(MEMORY._replace(silence_until=float("inf")))
    connect = [effect for effect in bench.take() if isinstance(effect, Connect)][0]
    assert connect.resume.silence == pytest.approx(SETTINGS.expected_silence)


def test_what_is_saved_is_what_is_recalled():
    bench = heartbeating(reporting=True)
    bench.ask("reboot", NOTICE)
    bench.report(session_types.Answered(1, "complete", ""), session_types.Running())
    bench.confirm()
    saved = bench.saved()
    assert saved == GuestMemory(UUID, True, True, INIT, True, True, NOW + 15, 1, (), (), True)
    again = Bench()
    again.table.recall_guest(saved, NOW, NOW)
    again.found()
    connect = [effect for effect in again.take() if isinstance(effect, Connect)][0]
    assert connect == Connect(UUID, PATH, session_types.Resume(INIT, True, pytest.approx(15), True))


# --- to the millisecond --------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "asked"), [(0.002, True), (0.001, True), (0.0, False), (-0.001, False)])
def test_who_comes_late_is_asked_if_a_millisecond_is_left(left, asked):
    bench = connected()
    bench.guest.liveness.state = liveness.LEAVING  # an earlier child's: the question waits for this one
    bench.ask("reboot")
    (question,) = bench.guest.questions.values()
    bench.now = question.deadline - left
    bench.report(session_types.Running())
    assert [put.timeout_ms for put in puts(bench)] == [round(left * 1000)] * asked


@pytest.mark.parametrize(("late", "told"), [(-0.001, True), (0.0, False)])
def test_an_outcome_is_told_before_its_time_is_over(late, told):
    bench = heartbeating()
    bench.ask("stop")
    ((number, question),) = bench.guest.questions.items()
    bench.now = question.deadline + SETTINGS.outcome_valid + late
    bench.report(session_types.Answered(number, "reject", "no"))
    assert bool(bench.votes()) is told
