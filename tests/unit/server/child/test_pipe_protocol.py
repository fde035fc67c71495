"""What a child may say to its master: everything honest, and nothing else."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from session_driver import GUEST, Bench

from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ActionResponse, ChallengeResponse

REPORTS = [
    session_types.Acknowledged(GUEST),
    session_types.Acknowledged(
        GUEST._replace(name="gäst \u20ac", heartbeat_interval_ms=guest_channel.INT32_MAX)
    ),
    session_types.Running(),
    session_types.Stopped(),
    session_types.Lost(2),
    session_types.Missed(1),
    session_types.Ill("reboot", 'disk "full"\n'),
    session_types.Well(),
    session_types.ReportingEnabled(),
    session_types.Answered(guest_channel.INT32_MAX, "reject", "n" * json_lines.LOG_MSG_MAX),
    session_types.Late(0.25),
    session_types.Reconnect("suspended"),
    session_types.Note("something", 4),
]


def packet(*values):
    return json.dumps(values).encode("ascii")


def test_the_list_above_names_every_report():
    assert {type(report) for report in REPORTS} == set(typing.get_args(session_types.Report))


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_crosses_the_pipe_unchanged(report):
    data = pipe_protocol.encode(report)
    decoded = pipe_protocol.decode_report(data)
    assert decoded == report
    assert type(decoded) is type(report)
    assert len(data) <= pipe_protocol.PACKET_MAX


@pytest.mark.parametrize("event", guest_channel.EVENT_TYPES)
@pytest.mark.parametrize("kind", guest_channel.NOTIFICATION_TYPES)
def test_a_question_crosses_the_pipe_unchanged(kind, event):
    question = pipe_protocol.AskGuest(guest_channel.INT32_MAX, kind, event, guest_channel.SECS_MAX * 1000)
    assert pipe_protocol.decode_ask(pipe_protocol.encode(question)) == question
    assert pipe_protocol.encode(pipe_protocol.EnableReporting()) == pipe_protocol.ENABLE_REPORTING_PACKET


INIT = list(GUEST)

BROKEN = {
    "empty": b"",
    "no JSON": b"Running",
    "not ASCII": '["Note","ä",0]'.encode(),
    "half": b'["Running"',
    "two": b'["Running"]["Running"]',
    "an object": b'{"Running":1}',
    "an object with fields": b'{"Reconnect":0,"why":0}',
    "a string": b'"Running"',
    "a number": b"1",
    "null": b"null",
    "an empty array": b"[]",
    "unknown report": packet("Rebooted"),
    "no name": packet(1),
    "a list for a name": packet(["Running"]),
    "a question": packet("Ask", 1, "revocable", "stop", 9000),
    "too many fields": packet("Running", 1),
    "too few fields": packet("Lost"),
    "negative": packet("Lost", -1),
    "bool for int": packet("Lost", True),
    "float for int": packet("Lost", 1.0),
    "int too large": packet("Missed", 2**31),
    "null for int": packet("Missed", None),
    "text for float": packet("Late", "60"),
    "bool for float": packet("Late", False),
    "negative float": packet("Late", -0.5),
    "not a number": b'["Late",NaN]',
    "infinite": b'["Late",Infinity]',
    "overflowing float": b'["Late",1e999]',
    "int beyond every float": b'["Late",1' + b"0" * 400 + b"]",
    "unknown action": packet("Ill", "explode", ""),
    "unknown vote": packet("Answered", 1, "maybe", ""),
    "int for text": packet("Reconnect", 1),
    "list for text": packet("Note", ["x"], 0),
    "object for text": packet("Note", {}, 0),
    "a lone surrogate": packet("Note", "\ud800", 0),
    "a reason beyond the guest's log_msg": packet(
        "Answered", 1, "reject", "n" * (json_lines.LOG_MSG_MAX + 1)
    ),
    "a log_msg too long in bytes": packet("Ill", "reboot", "ä" * json_lines.LOG_MSG_MAX),
    "init: no list": packet("Acknowledged", 1),
    "init: text": packet("Acknowledged", "123456789"),
    "init: object": packet("Acknowledged", GUEST._asdict()),
    "init: short": packet("Acknowledged", INIT[:-1]),
    "init: long": packet("Acknowledged", [*INIT, 1]),
    "init: text for int": packet("Acknowledged", ["1", *INIT[1:]]),
    "init: negative id": packet("Acknowledged", [-1, *INIT[1:]]),
    "init: int for name": packet("Acknowledged", [INIT[0], 1, *INIT[2:]]),
    "too long": packet("Note", "n" * pipe_protocol.PACKET_MAX, 0),
    "deep": b"[" * 2000,
    "deep text": b'["Note",' + b"[" * 2000 + b"]" * 2000 + b",0]",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_packet_is_refused(name):
    with pytest.raises(pipe_protocol.BrokenRules):
        pipe_protocol.decode_report(BROKEN[name])


def test_an_init_that_a_guest_could_not_send_is_cut_as_the_guest_s_would_be():
    values = [*INIT[:1], "n" * 100, *INIT[2:-1], "explode"]
    init = pipe_protocol.decode_report(packet("Acknowledged", values)).init
    assert (init.name, init.corrective_action) == ("n" * guest_channel.NAME_MAX, "unknown")


def test_the_packet_limit_is_where_it_says():
    room = pipe_protocol.PACKET_MAX - len(packet("Note", "", 0))
    longest = packet("Note", "n" * room, 0)
    assert pipe_protocol.decode_report(longest) == session_types.Note("n" * room, 0)
    with pytest.raises(pipe_protocol.BrokenRules, match=str(pipe_protocol.PACKET_MAX)):
        pipe_protocol.decode_report(packet("Note", "n" * (room + 1), 0))


def accepted_is_a_whole_report(data):
    """Whatever is accepted is a report that an honest child could have encoded."""
    try:
        report = pipe_protocol.decode_report(data)
    except pipe_protocol.BrokenRules:
        return
    assert type(report) in typing.get_args(session_types.Report)
    assert pipe_protocol.decode_report(pipe_protocol.encode(report)) == report


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.just(10**400)
)
NAMES = st.sampled_from([kind.__name__ for kind in typing.get_args(session_types.Report)])


@settings(deadline=None)
@given(st.binary(max_size=60))
@example(b'["Late",1' + b"0" * 400 + b"]")
def test_bytes_are_a_report_or_refused(data):
    accepted_is_a_whole_report(data)


@settings(deadline=None)
@given(NAMES, st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=9)), max_size=4))
def test_arrays_are_a_report_or_refused(name, values):
    accepted_is_a_whole_report(packet(name, *values))


@settings(deadline=None)
@given(st.lists(st.one_of(SCALARS, st.sampled_from(INIT)), min_size=9, max_size=9))
def test_inits_are_a_report_or_refused(values):
    accepted_is_a_whole_report(packet("Acknowledged", values))


@settings(deadline=None)
@given(st.text(max_size=400), st.sampled_from(guest_channel.VOTE_RESULTS), st.text(max_size=80))
@example("\U0001f600" * 60, "reject", "\x01" * 80)
@example("\x00" * 300, "accept", "\ud800")
def test_what_an_honest_child_reports_is_never_refused(text, vote, word):
    """Or a guest could have its child killed by an odd log_msg."""
    bench = Bench()
    bench.init(name=word)
    bench.say(guest_channel.build(ChallengeResponse(bench.challenge, word, "stop", text), 1))
    bench.ask(7, guest_channel.VOTE, "stop")
    bench.say(
        guest_channel.build(ActionResponse(GUEST.invocation_id, "stop", guest_channel.VOTE, vote, text), 1)
    )
    bench.say(json.dumps({"version": 3, "revision": 1, "sequence": 1, "msg_type": word}).encode() + b"\n")
    bench.say(guest_channel.build(guest_channel.Exit(text), 1))
    assert {"Acknowledged", "Running", "Answered", "Stopped"} <= set(bench.kinds())
    for report in bench.reports:
        assert pipe_protocol.decode_report(pipe_protocol.encode(report)) == report
