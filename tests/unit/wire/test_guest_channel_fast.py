"""What is known by heart must say just what the general parser and builder say, or nothing."""

import ast
import json
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.wire import guest_channel, guest_channel_fast, json_lines

INT_MAX = 2**31 - 1
ANSWER = guest_channel.ChallengeResponse(1804289383, "healthy", "reboot", "")
INIT = guest_channel.Init(1804289383, "vm-1", 1000, 9, 9, 9, 14, 601, "reboot")
BORDERS = [-(2**31) - 1, -1, 0, 1, 10**9 - 1, 10**9, INT_MAX, INT_MAX + 1, 2**32, 10**10, 2**64]
NUMBERS = st.one_of(st.sampled_from(BORDERS), st.integers(-5, 2**32))
PATIENT = settings(deadline=None, max_examples=examples(500))


def line_of(message, sequence=2):
    return guest_channel.build(message, sequence).strip()


def general(line):
    try:
        return guest_channel.parse(line)
    except (json_lines.NotAMessage, guest_channel.Refused):
        return None


def agrees(line):
    """Whatever is recognised, the general parser finds the same; whether it was recognised."""
    number, init = guest_channel_fast.parse_healthy_answer(line), guest_channel_fast.parse_init(line)
    message = general(line)
    if number is not None:
        assert type(message) is guest_channel.ChallengeResponse
        assert (message.heartbeat_response, message.heartbeat_health, message.log_msg) == (
            number,
            "healthy",
            "",
        )
    if init is not None:
        assert (type(message), message) == (guest_channel.Init, init)
        assert [type(value) for value in message] == [type(value) for value in init]
    return number is not None or init is not None


@pytest.mark.parametrize("action", guest_channel.CORRECTIVE_ACTIONS)
def test_what_the_deployed_client_prints_is_recognised(action):
    for number in (0, 7, 10**9 - 1, INT_MAX):
        answer = ANSWER._replace(heartbeat_response=number, corrective_action=action)
        assert guest_channel_fast.parse_healthy_answer(line_of(answer)) == number
        init = INIT._replace(invocation_id=number, heartbeat_interval_ms=number, corrective_action=action)
        assert guest_channel_fast.parse_init(line_of(init)) == init
    assert (
        guest_channel_fast.parse_init(line_of(INIT._replace(name="x" * guest_channel.NAME_MAX))) is not None
    )


NOT_REGULAR = [
    line_of(ANSWER._replace(heartbeat_health="unhealthy")),
    line_of(ANSWER._replace(heartbeat_health="Healthy")),
    line_of(ANSWER._replace(log_msg="fine")),
    line_of(ANSWER) + b" ",
    b" " + line_of(ANSWER),
    line_of(ANSWER) + b"\n",
    line_of(ANSWER)[:-1],
    line_of(ANSWER).replace(b"1804289383", b"01804289383"),
    line_of(ANSWER).replace(b"1804289383", b"+804289383"),
    line_of(ANSWER).replace(b"1804289383", b"1804289383.0"),
    line_of(ANSWER).replace(b"1804289383", b"2147483648"),
    line_of(ANSWER).replace(b"1804289383", "١".encode()),
    line_of(ANSWER).replace(b'"version":3', b'"version":2'),
    line_of(ANSWER).replace(b'"sequence":2', b'"sequence":-2'),
    line_of(ANSWER).replace(b"reboot", b"explode"),
    line_of(INIT).replace(b"vm-1", b'vm\\"1'),
    line_of(INIT).replace(b"vm-1", b'","name":"x'),
    line_of(INIT).replace(b"vm-1", "vm\u00e4".encode()),
    line_of(INIT).replace(b"vm-1", b"x" * (guest_channel.NAME_MAX + 1)),
    line_of(INIT).replace(b"1804289383", b"2147483648"),
    line_of(INIT).replace(b":1000", b":2147483648"),
    line_of(INIT).replace(b":601", b":2147484"),
    line_of(INIT).replace(b":601", b":-1"),
]


@pytest.mark.parametrize("line", NOT_REGULAR)
def test_what_is_a_little_different_is_left_to_the_parser(line):
    assert not agrees(line)


@PATIENT
@given(
    NUMBERS, NUMBERS, st.sampled_from(["healthy", "unhealthy", "x"]), st.sampled_from(["none", "log", "x"])
)
def test_answers_are_read_as_the_parser_reads_them(sequence, number, health, action):
    agrees(
        b'{"version":3,"revision":1,"msg_type":"challenge_response","sequence":%d,"heartbeat_response":%d,'
        b'"heartbeat_health":"%s","corrective_action":"%s","log_msg":""}'
        % (sequence, number, health.encode(), action.encode())
    )


@PATIENT
@given(st.integers(0, 2**31), st.text(max_size=70), st.lists(NUMBERS, min_size=7, max_size=7))
@example(0, "\x7f", [1] * 7)
@example(0, "\\u0041", [1] * 7)
@example(0, "\ud800", [1] * 7)
def test_inits_are_read_as_the_parser_reads_them(sequence, name, numbers):
    ident, interval, *secs = numbers
    fields = {"version": 3, "revision": 1, "msg_type": "init", "sequence": sequence, "invocation_id": ident}
    fields.update(name=name, heartbeat_interval_ms=interval)
    fields.update(zip([field for field in guest_channel.Init._fields if field.endswith("secs")], secs))
    fields["corrective_action"] = "log"
    for escaped in (True, False):
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=escaped)
        agrees(text.encode("utf-8", "surrogatepass"))


@PATIENT
@given(st.sampled_from([ANSWER, INIT]), st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3))
def test_a_line_with_a_change_anywhere_is_read_as_the_parser_reads_it(message, at, cut, put):
    line = line_of(message)
    agrees(line[:at] + put + line[at + cut :])


@given(st.integers(0, INT_MAX), st.integers(0, INT_MAX))
def test_what_is_built_by_heart_is_what_the_builder_builds(sequence, number):
    assert guest_channel_fast.build_challenge(sequence, number) == guest_channel.build(
        guest_channel.Challenge(number), sequence
    )
    assert guest_channel_fast.build_init_ack(sequence, number) == guest_channel.build(
        guest_channel.InitAck(number), sequence
    )


def test_the_module_is_python_3_6():
    source = pathlib.Path(guest_channel_fast.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "annotations" not in source
