"""Maintenance datagrams, against docs/protocol/2-datagrams.md#layout."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.wire import datagram, guest_channel
from guestmtce.wire.datagram import BadDatagram, pack, parse_command, parse_event, parse_host, unpack

PATIENT = settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
AGENT = b"guest msg header:"
MTC = b"cgts mtc cmd req:"

# cmd, body without its source, what it means
COMMANDS = [
    (0x11110020, {"uuid": U, "service": "heartbeat", "state": "enabled"}, datagram.SetInstance(U, True)),
    (0x11110020, {"uuid": U, "service": "heartbeat", "state": "disabled"}, datagram.SetInstance(U, False)),
    (0x11110022, {"uuid": U, "service": "heartbeat", "state": "enabled"}, datagram.SetInstance(U, True)),
    (0x11110021, {"uuid": U, "service": "heartbeat", "state": "disabled"}, datagram.DeleteInstance(U)),
    (0x11110023, {}, datagram.Query()),
    (0x11110024, {"uuid": U, "event": "stop"}, datagram.Ask(U, "revocable", "stop")),
    (0x11110025, {"uuid": U, "event": "pause"}, datagram.Ask(U, "irrevocable", "pause")),
    (0x11110012, {"uuid": U, "heartbeat": "enabled"}, datagram.SetHost(U, True)),
    (0x11110012, {"uuid": U, "heartbeat": "disabled"}, datagram.SetHost(U, False)),
    (0x01010101, {}, datagram.Loopback()),
]
INFO = {
    "hostname": "compute-0", "uuid": U, "reporting": "enabled", "heartbeating": "disabled",
    "repair-action": "reboot", "restart-to": "601", "shutdown-to": "9", "suspend-to": "10",
    "resume-to": "14", "vote-to": "8",
}  # fmt: skip
INFO_TUPLE = datagram.InstanceInfo("compute-0", U, True, False, "reboot", 601, 9, 10, 14, 8)
VOTE = {
    "hostname": "compute-0", "uuid": U, "notification_type": "revocable", "event-type": "stop",
    "vote": "reject", "reason": "busy",
}  # fmt: skip
VOTE_TUPLE = datagram.VoteResult("compute-0", U, "revocable", "stop", "reject", "busy")
EVENTS = [
    (0xF0F0F0F0, {"hostname": "compute-0"}, datagram.Ready("compute-0")),
    (0x0110FEAD, INFO, INFO_TUPLE),
    (0x0100FEAD, INFO, INFO_TUPLE),
    (0x0001FEAD, INFO, INFO_TUPLE),
    (0x11110023, INFO, INFO_TUPLE),
    (0x0000FEAD, {"hostname": "compute-0", "uuid": U}, datagram.Loss("compute-0", U)),
    (0xFEEDFEED, VOTE, VOTE_TUPLE),
]
HOST = {"hostname": "compute-0", "uuid": U, "ip": "fd00::2", "personality": "worker"}
HOSTS = [
    (0x11110010, HOST, datagram.HostRecord("compute-0", U, "fd00::2")),
    (0x11110012, HOST, datagram.HostRecord("compute-0", U, "fd00::2")),
    (0x11110011, {"hostname": "compute-0", "uuid": U}, datagram.HostRecord("compute-0", U, "")),
]
WAYS = [(parse_command, COMMANDS, AGENT), (parse_event, EVENTS, b""), (parse_host, HOSTS, MTC)]
ALL = [(parse, cmd, body, signature) for parse, table, signature in WAYS for cmd, body, _ in table]
# Fields that a sender may leave out, and those that nobody looks at.
OPTIONAL = ("source", "service", "reason", "personality")


def frame(cmd, text, signature=b"", size=0):
    """A datagram made by offsets, not by the module."""
    data = bytearray(100 + len(text))
    data[0 : len(signature)] = signature
    data[72:76] = cmd.to_bytes(4, "little")
    data[100:] = text
    return bytes(data).ljust(size, b"\0")


def framed(cmd, body, signature=b"", size=0):
    return frame(cmd, json.dumps(body).encode(), signature, size)


# --- the frame ---


def test_every_byte_has_its_place():
    data = (
        b"guest msg header:\0guestAgent".ljust(64, b"\0")
        + b"\x01\x02" + b"\x03\x04" + b"\x05\x06\x07\x08" + b"\x23\x00\x11\x11" + b"\x09\x0a\x0b\x0c"
        + b"\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\x80" + b'{"source":"10.0.0.1"}'
    )  # fmt: skip
    assert unpack(data) == datagram.Datagram(
        AGENT,
        0x0201,
        0x0403,
        0x08070605,
        0x11110023,
        0x0C0B0A09,
        (1, 2, 3, 4, 0x80000005),
        {"source": "10.0.0.1"},
    )


def test_bytes_of_a_command_and_of_an_event():
    zeros = b"\0" * 8
    command = datagram.build_command(datagram.QRY_INST, "10.0.0.1", datagram.Query())
    assert (
        command == AGENT.ljust(64, b"\0") + zeros + b"\x23\0\x11\x11" + b"\0" * 24 + b'{"source":"10.0.0.1"}'
    )
    event = datagram.build_event(datagram.LOSS, datagram.Loss("c0", U))
    text = b'{"hostname":"c0","uuid":"' + U.encode() + b'"}'
    assert event == (b"\0" * 64 + zeros + b"\xad\xfe\0\0" + b"\0" * 24 + text).ljust(1060, b"\0")


def test_the_agents_ready_has_its_name_in_the_header_and_no_body():
    data = datagram.build_agent_ready()
    assert data == b"guest msg header:\0guestAgent".ljust(72, b"\0") + b"\xf0\xf0\xf0\xf0" + b"\0" * 24
    assert unpack(data)[:1] + unpack(data)[4:5] + unpack(data)[7:] == (AGENT, datagram.MONITOR_READY, {})


def test_longest_json():
    body = {"x": "y" * (959 - len('{"x":""}'))}
    for full, size in ((False, 1059), (True, 1060)):
        data = pack(1, body, full=full)
        assert (len(data), unpack(data).body) == (size, body)
    with pytest.raises(BadDatagram, match="QRY_INST.* 960 "):
        pack(datagram.QRY_INST, {"x": body["x"] + "y"})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", frame(1, b"")[:99], frame(1, b"{}", size=1061), frame(1, b'{"a":"' + b"x" * 952 + b'"}'),
        frame(1, b"{"), frame(1, b"[]"), frame(1, b"3\0"), frame(1, b"{} {}"), frame(1, b"\xff\0{}"),
        frame(1, b'{"a":NaN}'), frame(1, b'{"a":-Infinity}'), frame(1, b"[" * 900), frame(1, b'{"a":' * 190),
    ],
)  # fmt: skip
def test_bad_frames(data):
    with pytest.raises(BadDatagram):
        unpack(data)


@pytest.mark.parametrize("text", [b"", b"\0", b" \n", b"{}", b"{}\0garbage", b'\0{"a":1}'])
def test_no_body(text):
    assert unpack(frame(7, text)).body == {}
    assert unpack(frame(7, text, size=1060)).body == {}


def test_what_follows_the_nul_is_not_read_and_of_a_duplicate_key_the_first_counts():
    assert unpack(frame(7, b'{"a":1,"a":2}\0{"a":3}')).body == {"a": 1}


def test_a_reason_that_was_not_escaped_cannot_answer_for_another_guest():
    text = b'{"uuid":"mine","vote":"reject","reason":"x","vote":"accept","uuid":"another","y":"z"}'
    body = unpack(frame(datagram.VOTE_NOTIFY, text)).body
    assert (body["uuid"], body["vote"]) == ("mine", "reject")


@PATIENT
@given(
    st.integers(0, 2**32 - 1),
    st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=20) | st.none(), max_size=4),
    st.sampled_from([b"", AGENT, MTC]),
    st.booleans(),
)
def test_what_is_packed_is_unpacked(cmd, body, signature, full):
    data = pack(cmd, body, signature, full)
    text = json.dumps(body, separators=(",", ":")).encode() if body else b""
    assert data[100:] == (text.ljust(960, b"\0") if full else text)
    assert unpack(data) == (signature, 0, 0, 0, cmd, 0, (0, 0, 0, 0, 0), body)


# --- what the datagrams mean ---


@pytest.mark.parametrize("cmd, body, meaning", COMMANDS)
def test_commands(cmd, body, meaning):
    body = {"source": "10.0.0.1", **body}
    data = datagram.build_command(cmd, "10.0.0.1", meaning)
    assert (data[:17], data[72:76], json.loads(data[100:])) == (AGENT, cmd.to_bytes(4, "little"), body)
    assert parse_command(unpack(data)) == meaning
    assert parse_command(unpack(framed(cmd, body, size=1060))) == meaning


@pytest.mark.parametrize("cmd, body, meaning", EVENTS)
def test_events(cmd, body, meaning):
    data = datagram.build_event(cmd, meaning)
    assert (len(data), data[:64], data[72:76]) == (1060, b"\0" * 64, cmd.to_bytes(4, "little"))
    assert json.loads(data[100:].rstrip(b"\0")) == body
    assert all(isinstance(value, str) for value in unpack(data).body.values())
    assert parse_event(unpack(data)) == parse_event(unpack(framed(cmd, body, AGENT))) == meaning


@pytest.mark.parametrize("cmd, body, meaning", HOSTS)
def test_hosts(cmd, body, meaning):
    data = datagram.build_host(cmd, meaning)
    assert (data[:18], data[72:76], json.loads(data[100:])) == (MTC + b"\0", cmd.to_bytes(4, "little"), body)
    assert parse_host(unpack(data)) == parse_host(unpack(framed(cmd, body, MTC, 1060))) == meaning


@pytest.mark.parametrize("signature", [b"", AGENT, MTC[:-1], MTC + b"x", b"x" * 64])
def test_a_host_is_taken_from_mtc_agent_only(signature):
    with pytest.raises(BadDatagram, match="signature"):
        parse_host(unpack(framed(datagram.ADD_HOST, HOST, signature)))


@pytest.mark.parametrize("parse, table, signature", WAYS)
def test_commands_of_another_way_are_unknown(parse, table, signature):
    known = {cmd for cmd, _, _ in table}
    for cmd in {0, 1, 2**32 - 1, *datagram.NAMES} - known:
        with pytest.raises(BadDatagram, match="unknown .*%#x" % cmd):
            parse(unpack(framed(cmd, {**INFO, **VOTE, **HOST}, signature)))
    assert known <= set(datagram.NAMES)


@pytest.mark.parametrize("parse, cmd, body, signature", ALL)
def test_a_field_that_is_missing_or_of_a_wrong_type(parse, cmd, body, signature):
    unread = ("state", "service") if cmd == datagram.DEL_INST else ("personality",)
    for field in set(body) - set(unread):
        for bad in (None, True, 1, 1.5, ["enabled"], {"a": 1}):
            with pytest.raises(BadDatagram, match=field):
                parse(unpack(framed(cmd, {**body, field: bad}, signature)))
        less = {name: value for name, value in body.items() if name != field}
        if field in OPTIONAL:
            parse(unpack(framed(cmd, less, signature)))
        else:
            with pytest.raises(BadDatagram, match=field):
                parse(unpack(framed(cmd, less, signature)))


@pytest.mark.parametrize("parse, cmd, body, signature", ALL)
def test_a_text_that_a_field_cannot_have(parse, cmd, body, signature):
    if cmd in (datagram.MOD_HOST, *(c for c, _, _ in HOSTS)):
        bad = {"hostname": [""], "uuid": [""], "ip": [""]}
    else:
        bad = {"hostname": [""], "uuid": ["", U[:-1], U + "0", U + "\n", U.replace("-", "_"), "g" + U[1:]]}
    bad.update({field: ["", "on", "Enabled"] for field in ("reporting", "heartbeating", "heartbeat")})
    bad.update(
        {field: ["", "-1", "1.5", "1s", "9" * 11, "٣", " 1"] for field in body if field.endswith("-to")}
    )
    if cmd != datagram.DEL_INST:
        bad.update(state=["", "on"], service=["", "other"])
    for field in set(bad) & set(body):
        for text in bad[field]:
            with pytest.raises(BadDatagram):
                parse(unpack(framed(cmd, {**body, field: text}, signature)))


@pytest.mark.parametrize(
    "cmd, field, text, name, taken",
    [
        (datagram.RUNNING, "repair-action", "explode", "repair_action", "unknown"),
        (datagram.RUNNING, "restart-to", "0000000601", "restart_to", 601),
        (datagram.RUNNING, "restart-to", "9999999999", "restart_to", guest_channel.SECS_MAX),
        (datagram.RUNNING, "hostname", "c\ud800", "hostname", "c?"),
        (datagram.VOTE_NOTIFY, "vote", "perhaps", "vote", "unknown"),
        (datagram.VOTE_NOTIFY, "notification_type", "maybe", "notification_type", "unknown"),
        (datagram.VOTE_NOTIFY, "event-type", "no_such_event", "event_type", "no_such_event"),
        (datagram.VOTE_NOTIFY, "reason", "x" * 224, "reason", "x" * 223),
        (datagram.VOTE_NOTIFY, "reason", "\udfff", "reason", "?"),
    ],
)
def test_texts_that_are_taken_in_part(cmd, field, text, name, taken):
    body = {**(VOTE if cmd == datagram.VOTE_NOTIFY else INFO), field: text}
    assert getattr(parse_event(unpack(framed(cmd, body))), name) == taken


def test_an_unknown_event_of_a_question_is_left_to_the_session():
    body = {"uuid": U, "event": "no_such_event"}
    assert parse_command(unpack(framed(datagram.VOTE_INST, body))).event == "no_such_event"


@pytest.mark.parametrize(
    "sent, reason",
    [
        (b'the "db" is busy', 'the "db" is busy'), (b'"', '"'), (b"", ""), (b"C:\\dir\\", "C:\\dir\\"),
        (b"tab\there", "tab\there"), (b"\xff \"x\"", '\ufffd "x"'), (b'a\\"b', 'a"b'), (b'", "x', '", "x'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1060])
def test_an_unescaped_reason_of_an_old_server_is_recovered(sent, reason, size):
    text = json.dumps({**VOTE, "reason": ""}).encode()[:-2] + sent + b'"}'
    assert parse_event(unpack(frame(datagram.VOTE_NOTIFY, text, size=size))) == VOTE_TUPLE._replace(
        reason=reason
    )


def test_a_reason_is_cut_until_the_datagram_holds_it():
    for reason in ("\x01" * 223, "\U0001f600" * 55, '"' * 5000):
        data = datagram.build_event(datagram.VOTE_NOTIFY, VOTE_TUPLE._replace(reason=reason))
        back = parse_event(unpack(data))
        assert reason.startswith(back.reason) and len(back.reason) > 20
        assert back == VOTE_TUPLE._replace(reason=back.reason)


def test_names_that_no_datagram_can_hold():
    for event in (datagram.Ready("\x01" * 255), VOTE_TUPLE._replace(hostname="\x01" * 255)):
        cmd = datagram.VOTE_NOTIFY if event[1:] else datagram.MONITOR_READY
        with pytest.raises(BadDatagram, match="at most 959"):
            datagram.build_event(cmd, event)


# --- whatever arrives ---

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from([U, "enabled"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({field for _, _, body, _ in ALL for field in body})
known = st.builds(
    lambda way, changes, junk: framed(way[1], {**way[2], **changes}, way[3]) + junk,
    st.sampled_from(ALL),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=2),
    st.binary(max_size=4),
)
arbitrary = st.builds(frame, st.sampled_from(sorted(datagram.NAMES)), st.binary(max_size=200), st.just(MTC))


@PATIENT
@given(st.binary(max_size=300) | known | arbitrary)
def test_any_bytes_give_a_meaning_or_bad_datagram(data):
    try:
        taken = unpack(data)
    except BadDatagram as bad:
        assert str(bad)
        return
    for parse in (parse_command, parse_event, parse_host):
        try:
            meaning = parse(taken)
        except BadDatagram as bad:
            assert str(bad)
            continue
        for value in meaning:
            assert type(value) in (str, bool, int)
            assert not isinstance(value, str) or len(value.encode()) <= datagram.HOSTNAME_MAX


@pytest.mark.parametrize("field", FIELDS)
def test_deep_nesting_in_any_field(field):
    for parse, cmd, body, signature in ALL:
        less = {name: "" for name in body if name != field}
        depth = (950 - len(json.dumps(less)) - len(field) - 6) // 2
        text = json.dumps({field: 0, **less}).replace(": 0", ": " + "[" * depth + "]" * depth, 1).encode()
        if field in body and cmd not in (datagram.DEL_INST, datagram.QRY_INST, datagram.LOOPBACK):
            with pytest.raises(BadDatagram):
                parse(unpack(frame(cmd, text, signature)))


def test_every_command_is_named_as_the_specification_names_it():
    named = {"ADD_INST", "DEL_INST", "MOD_INST", "QRY_INST", "RUNNING", "STOPPED", "MONITOR_READY"}
    assert named <= set(datagram.NAMES.values())
    for number, name in datagram.NAMES.items():
        assert getattr(datagram, name, number) == number


def test_a_signature_is_read_up_to_its_padding():
    assert unpack(pack(1, {}, b"X marks: X")).signature == b"X marks: X"


@pytest.mark.parametrize(("beyond", "kept"), [(0, 90), (1, 67)])
def test_a_reason_is_cut_only_when_no_datagram_holds_it(beyond, kept):
    event = datagram.VoteResult("h", "u" * 36, guest_channel.VOTE, "stop", "reject", "\xe9" * 90)
    size = len(json.dumps(datagram.event_body(event), separators=(",", ":")))
    event = event._replace(hostname="h" * (1 + datagram.JSON_MAX - size + beyond))
    body = datagram.event_body(event)
    assert body["reason"] == "\xe9" * kept
    assert len(datagram.build_event(datagram.VOTE_NOTIFY, event)) == 1060


def test_the_sizes_of_the_specification():
    assert (datagram.FULL_SIZE, datagram.HEADER.size, datagram.JSON_MAX) == (1060, 100, 959)
    assert (datagram.SIGNATURE_SIZE, datagram.HOSTNAME_MAX) == (18, 255)


def test_a_loss_may_carry_the_whole_state():
    info = datagram.InstanceInfo(
        "h", "11111111-2222-3333-4444-555555555555", True, False, "log", 1, 2, 3, 4, 5
    )
    assert parse_event(unpack(datagram.build_event(datagram.LOSS, info))) == info
    assert datagram.event_of(datagram.LOSS, datagram.event_body(info)) == info
