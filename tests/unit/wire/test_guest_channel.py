"""Messages on the guest channel, against docs/protocol/1-guest-channel.md#messages."""

import ast
import json
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import TRANSCRIPTS
from tiers import examples

from guestmtce.wire import guest_channel, guest_channel_fast, json_lines
from guestmtce.wire.guest_channel import FROM_GUEST, FROM_HOST, Refused, build, parse
from guestmtce.wire.json_lines import NotAMessage

INT_MAX = 2**31 - 1
PATIENT = settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])

# msg_type → further fields in the order of the tuple, with values filled in
# (docs/protocol/1-guest-channel.md#messages).
MESSAGES = {
    "init": {
        "invocation_id": 1804289383, "name": "vm-1", "heartbeat_interval_ms": 1000, "vote_secs": 9,
        "shutdown_notice_secs": 10, "suspend_notice_secs": 11, "resume_notice_secs": 14, "restart_secs": 601,
        "corrective_action": "reboot",
    },
    "challenge_response": {
        "heartbeat_response": 1001, "heartbeat_health": "healthy", "corrective_action": "reboot",
        "log_msg": "ok",
    },
    "action_response": {
        "invocation_id": 5, "event_type": "live_migrate_begin", "notification_type": "revocable",
        "vote_result": "reject", "log_msg": "busy",
    },
    "exit": {"log_msg": "bye"},
    "init_ack": {"invocation_id": 5},
    "challenge": {"heartbeat_challenge": 1001},
    "action_notify": {
        "invocation_id": 5, "event_type": "stop", "notification_type": "irrevocable", "timeout_ms": 9,
    },
    "nack": {"invocation_id": 5, "log_msg": "Bad version: 2, expect version: 3"},
}  # fmt: skip
TYPES = {kind: getattr(guest_channel, kind.title().replace("_", "")) for kind in MESSAGES}
BOTH = {**FROM_GUEST, **FROM_HOST}
COMMON = {"version": 3, "revision": 1, "sequence": 7}
MAY_BE_NEGATIVE = ("version", "revision", "sequence", "heartbeat_interval_ms", "heartbeat_response")
FIELDS = [(kind, field) for kind in MESSAGES for field in [*COMMON, "msg_type", *MESSAGES[kind]]]
BAD_INTS = [True, 1.0, "1", None, [1], {"a": 1}, 2**31, -(2**31) - 1, 10**40]
BAD_TEXTS = [True, 1, 1.5, None, ["healthy"], {"a": 1}]


def fields_of(kind, **changes):
    return {**COMMON, "msg_type": kind, **MESSAGES[kind], **changes}


def read(fields):
    return parse(json.dumps(fields).encode(), BOTH)


def refusal(fields):
    with pytest.raises(Refused) as caught:
        parse(json.dumps(fields).encode(), BOTH)
    return str(caught.value)


def raw(kind, log_msg):
    """A message as a deployed guest prints it: `log_msg` last and as it came."""
    fields = fields_of(kind)
    del fields["log_msg"]
    return json.dumps(fields)[:-1].encode() + b',"log_msg":"' + log_msg + b'"}'


@pytest.mark.parametrize("kind", MESSAGES)
def test_every_message_is_read_into_its_tuple_on_the_side_it_is_for(kind):
    message = read(fields_of(kind, unknown={"a": [1]}))
    assert type(message) is TYPES[kind]
    assert message._asdict() == MESSAGES[kind]
    with pytest.raises(Refused, match="^unsupported message type: %s$" % kind):
        parse(json.dumps(fields_of(kind)).encode(), FROM_HOST if kind in FROM_GUEST else FROM_GUEST)


@pytest.mark.parametrize("kind, field", FIELDS)
def test_a_missing_field_is_named_in_the_nack(kind, field):
    fields = fields_of(kind)
    del fields[field]
    if (kind, field) == ("exit", "log_msg"):  # a goodbye needs no words
        assert read(fields) == guest_channel.Exit("")
    else:
        assert refusal(fields) == "failed to parse " + field


@pytest.mark.parametrize("kind, field", FIELDS)
def test_a_wrong_type_or_a_number_out_of_range_is_named_in_the_nack(kind, field):
    is_int = isinstance(fields_of(kind)[field], int)
    bad = BAD_INTS + ([] if field in MAY_BE_NEGATIVE else [-1]) if is_int else BAD_TEXTS
    for value in bad:
        assert refusal(fields_of(kind, **{field: value})) == "failed to parse " + field, value


@pytest.mark.parametrize(
    "kind, field, value, taken",
    [
        ("init", "invocation_id", INT_MAX, INT_MAX), ("init", "invocation_id", 0, 0),
        ("init", "heartbeat_interval_ms", -(2**31), -(2**31)), ("init", "vote_secs", INT_MAX, 2147483),
        ("init", "restart_secs", 2147484, 2147483), ("init", "name", "n" * 64, "n" * 63),
        ("init", "name", "é" * 40, "é" * 31), ("init", "name", "", ""),
        ("init", "corrective_action", "explode", "unknown"),
        ("challenge_response", "heartbeat_response", -1, -1),
        ("challenge_response", "heartbeat_health", "so-so", "so-so"),
        ("challenge_response", "log_msg", "x" * 224, "x" * 223),
        ("challenge_response", "log_msg", "\ud800.", "?."),
        ("action_response", "event_type", "Stop", "unknown"),
        ("action_response", "notification_type", "", "unknown"),
        ("action_response", "vote_result", "maybe", "unknown"),
        ("action_notify", "timeout_ms", INT_MAX, INT_MAX), ("challenge", "heartbeat_challenge", 0, 0),
    ],
)  # fmt: skip
def test_values_at_and_beyond_the_limits(kind, field, value, taken):
    assert getattr(read(fields_of(kind, **{field: value})), field) == taken


def test_old_versions_are_refused_and_new_ones_taken():
    for version in (2, 1, 0, -1, -(2**31)):
        assert refusal(fields_of("exit", version=version)) == "Bad version: %d, expect version: 3" % version
    for version in (3, 4, INT_MAX):
        assert read(fields_of("exit", version=version, revision=9)) == guest_channel.Exit("bye")


@pytest.mark.parametrize("kind, text", [("hello", "hello"), ("", ""), ("é" * 40, "é" * 15), ("\ud800", "?")])
def test_an_unsupported_type_is_named_in_the_nack(kind, text):
    assert refusal({**COMMON, "msg_type": kind}) == "unsupported message type: " + text


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b"\xff\xfe", b"hello", b"{", b"}", b"{}x", b"[]", b"3", b'"init"', b"null",
        b"\xef\xbb\xbf{}", b'{"version":3', b'{"version":3}{"version":3}', b'[{"version":3}]',
        b'{"a":"log_msg":"x"}', b'{"a" "log_msg":"x"}', b'{"a":[{"log_msg":"x"y"}]}', b"{'version':3}",
        b"[" * 100000, b'{"a":' * 100000, b'{"a":' * 100000 + b'"log_msg":"x',
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_no_message(line):
    with pytest.raises(NotAMessage):
        parse(line)


@pytest.mark.parametrize(
    "number, errors",
    [(b"NaN", NotAMessage), (b"Infinity", NotAMessage), (b"-Infinity", NotAMessage), (b"1e400", Refused),
     (b"9" * 400, Refused), (b"9" * 5000, (Refused, NotAMessage))],
)  # fmt: skip
def test_numbers_that_no_field_can_hold(number, errors):
    with pytest.raises(errors):
        parse(raw("challenge_response", b"").replace(b"1001", number))


def test_deep_nesting_in_an_unknown_field_ends_in_an_answer_or_none():
    for depth in (10, 500, 5000, 100000):
        nested = b'{"x":' + b"[" * depth + b"]" * depth + b"," + raw("exit", b"bye")[1:]
        try:
            assert parse(nested) == guest_channel.Exit("bye")
        except NotAMessage:
            assert depth > 10


def test_of_a_duplicate_key_the_last_counts():
    line = raw("challenge_response", b"").replace(b'"sequence"', b'"heartbeat_response": "x", "sequence"')
    assert parse(line).heartbeat_response == 1001
    assert parse(raw("exit", b'first", "log_msg": "second')) == guest_channel.Exit("second")


@pytest.mark.parametrize("kind", ["challenge_response", "action_response", "exit"])
@pytest.mark.parametrize(
    "sent, read_as",
    [
        (b'disk "sda" is full', 'disk "sda" is full'), (b'"quoted"', '"quoted"'), (b'"', '"'), (b'""', '""'),
        (b'a "b" : {"c": "d"}', 'a "b" : {"c": "d"}'), (b'x", "y', 'x", "y'),
        (b'again "log_msg":"deeper', 'again "log_msg":"deeper'),
        (b"C:\\windows", "C:\\windows"), (b"ends in a backslash\\", "ends in a backslash\\"),
        (b"half an escape \\u12", "half an escape \\u12"), (b"surrogate \\ud800", "surrogate ?"),
        (b"\t \\\"x\\\"", "\t \"x\""), (b'tab\tand "quote"', 'tab\tand "quote"'), (b"nul\x00", "nul\x00"),
        (b'proper \\"escape\\" \\u00e9', 'proper "escape" é'),
        (b"bad \xff utf-8", "bad \ufffd utf-8"), (b'bad \xff "utf-8"', 'bad \ufffd "utf-8"'),
        ('"é" '.encode() * 80, ('"é" ' * 80)[:178]),
    ],
)  # fmt: skip
def test_an_unescaped_log_msg_is_recovered(kind, sent, read_as):
    assert read(fields_of(kind, log_msg="")) == parse(raw(kind, sent))._replace(log_msg="")
    assert parse(raw(kind, sent)).log_msg == read_as


def test_a_log_msg_is_recovered_however_the_line_ends():
    for end in (b'"}', b'" }', b'"', b"", b'"}\r', b'" } '):
        assert parse(raw("exit", b'say "no')[:-2] + end) == guest_channel.Exit('say "no')


@PATIENT
@given(st.text('"\\/\tbtnu0{}[]: é', max_size=60))
def test_a_log_msg_is_read_as_json_or_as_it_came(text):
    try:
        expected = json.loads('"%s"' % text, strict=False)
    except ValueError:
        expected = text
    message = parse(raw("challenge_response", text.encode()))
    assert message == guest_channel.ChallengeResponse(1001, "healthy", "reboot", expected)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
objects = st.builds(
    lambda kind, changes: json.dumps({**fields_of(kind), **changes}).encode(),
    st.sampled_from(sorted(MESSAGES)),
    st.dictionaries(st.sampled_from(sorted({field for _, field in FIELDS})), values, max_size=3),
)
damaged = st.builds(
    lambda line, at, gone, junk: line[:at] + junk + line[at + gone :],
    objects, st.integers(0, 200), st.integers(0, 20), st.binary(max_size=8),
)  # fmt: skip


@PATIENT
@given(st.binary(max_size=300) | objects | damaged, st.sampled_from([FROM_GUEST, FROM_HOST]))
def test_any_bytes_give_a_message_or_one_of_two_errors(line, shapes):
    try:
        message = parse(line, shapes)
    except NotAMessage:
        return
    except Refused as refused:
        assert 0 < len(str(refused).encode()) <= json_lines.LOG_MSG_MAX
        return
    example = next(MESSAGES[kind] for kind in MESSAGES if TYPES[kind] is type(message))
    for name, value in message._asdict().items():
        assert type(value) is type(example[name])
        assert -(2**31) <= value < 2**31 if type(value) is int else len(value.encode()) <= 223


KNOWN_WORDS = {
    "corrective_action": guest_channel.CORRECTIVE_ACTIONS, "event_type": (*guest_channel.EVENT_TYPES,
    "unknown"),
    "notification_type": (*guest_channel.NOTIFICATION_TYPES, "unknown"),
    "vote_result": guest_channel.VOTE_RESULTS,
    "heartbeat_health": ("healthy", "unhealthy", "so-so"),
}  # fmt: skip


def messages_of(kind):
    def strategy(field, value):
        if field in KNOWN_WORDS:
            return st.sampled_from(KNOWN_WORDS[field])
        largest = guest_channel.SECS_MAX if field.endswith("_secs") else INT_MAX
        return st.integers(0, largest) if isinstance(value, int) else st.text(max_size=300)

    return st.builds(TYPES[kind], *[strategy(*item) for item in MESSAGES[kind].items()])


@PATIENT
@given(st.sampled_from(sorted(MESSAGES)).flatmap(messages_of), st.integers(0, INT_MAX))
def test_what_is_built_is_read_back(message, sequence):
    data = build(message, sequence)
    assert (
        data[:1] == data[-1:] == b"\n" and data.count(b"\n") == 2 and len(data) <= guest_channel.MESSAGE_MAX
    )
    if type(message) is guest_channel.Challenge:
        assert data == guest_channel_fast.build_challenge(sequence, message.heartbeat_challenge)
    fields = json.loads(data)
    assert (fields["version"], fields["revision"], fields["sequence"]) == (3, 1, sequence)
    back = parse(data.strip(), BOTH)
    for name, value in message._asdict().items():
        taken = getattr(back, name)
        if name == "log_msg":  # cut when its escapes make the message too long
            cut = json_lines.clean_text(value)
            assert cut.startswith(taken) and (taken == cut or len(data) > guest_channel.MESSAGE_MAX - 50)
        else:
            assert taken == (
                json_lines.clean_text(value, guest_channel.NAME_MAX) if name == "name" else value
            )


@pytest.mark.parametrize("message", [TYPES[kind](*MESSAGES[kind].values()) for kind in MESSAGES])
def test_no_text_makes_a_message_too_long(message):
    for text in ("\x01" * 999, "\U0001f600" * 999, '"' * 999, "é\ud800" * 999):
        dirty = message._replace(**{n: text for n, v in message._asdict().items() if isinstance(v, str)})
        data = build(dirty, INT_MAX)
        assert len(data) <= 1056
        for name, value in json.loads(data).items():
            limit = {"name": 63, "log_msg": 223}.get(name, 31)
            assert isinstance(value, int) or len(value.encode()) <= limit


def test_the_bytes_on_the_wire():
    head = b'\n{"version":3,"revision":1,"msg_type":"'
    notify = (
        b'action_notify","sequence":6,"invocation_id":5,"event_type":"stop","notification_type":"revocable"'
    )
    nack = head + b'nack","sequence":2,"invocation_id":5,"log_msg":"say \\"no\\""}\n'
    assert build(guest_channel.InitAck(5), 1) == head + b'init_ack","sequence":1,"invocation_id":5}\n'
    assert (
        build(guest_channel.ActionNotify(5, "stop", "revocable", 9), 6)
        == head + notify + b',"timeout_ms":9}\n'
    )
    assert build(guest_channel.Nack(5, 'say "no"'), 2) == nack
    assert (
        guest_channel_fast.build_challenge(2, 1001)
        == head + b'challenge","sequence":2,"heartbeat_challenge":1001}\n'
    )


@pytest.mark.parametrize("kind, field", [(k, f) for k, f in FIELDS if isinstance(MESSAGES[k].get(f), int)])
def test_numbers_that_the_other_side_would_misread_are_not_built(kind, field):
    for bad in [2**31, True] + ([] if field == "heartbeat_interval_ms" else [-1]):
        with pytest.raises(ValueError):
            build(TYPES[kind](**{**MESSAGES[kind], field: bad}), 1)


@pytest.mark.parametrize(
    "secs, events",
    [
        (10, "stop reboot"),
        (11, "suspend pause resize_begin live_migrate_begin cold_migrate_begin"),
        (14, "unpause resume resize_end live_migrate_end cold_migrate_end"),
    ],
)
def test_how_long_a_guest_may_take(secs, events):
    guest = guest_channel.Init(*MESSAGES["init"].values())
    for event in events.split():
        assert guest_channel.timeout_secs(guest, "irrevocable", event) == secs
        assert guest_channel.timeout_secs(guest, "revocable", event) == 9
    for kind in guest_channel.NOTIFICATION_TYPES:
        with pytest.raises(ValueError, match="unknown event type"):
            guest_channel.timeout_secs(guest, kind, "unknown")


def test_recorded_lines():
    stream = (
        b'\n{"version":3,"revision":1,"msg_type":"init","sequence":1,"invocation_id":1804289383,'
        b'"name":"vm-1","heartbeat_interval_ms":1000,"vote_secs":9,"shutdown_notice_secs":9,'
        b'"suspend_notice_secs":9,"resume_notice_secs":14,"restart_secs":601,"corrective_action":"reboot"}\n'
        b'\n{"version":3,"revision":1,"msg_type":"challenge_response","sequence":2,"heartbeat_response":17,'
        b'"heartbeat_health":"unhealthy","corrective_action":"log","log_msg":"fs "/" is full"}\n'
        b'\n{"version":3,"revision":1,"msg_type":"action_response","sequence":6,"invocation_id":1804289383,'
        b'"event_type":"stop","notification_type":"revocable","vote_result":"accept","log_msg":""}\n'
    )
    assert [parse(line) for line in json_lines.LineBuffer().feed(stream)] == [
        guest_channel.Init(1804289383, "vm-1", 1000, 9, 9, 9, 14, 601, "reboot"),
        guest_channel.ChallengeResponse(17, "unhealthy", "log", 'fs "/" is full'),
        guest_channel.ActionResponse(1804289383, "stop", "revocable", "accept", ""),
    ]
    assert guest_channel.DEFAULT_INIT[2:] == (1000, 10, 10, 10, 10, 120, "log")


def test_every_recorded_message_is_understood():
    understood = 0
    for path in sorted(TRANSCRIPTS.glob("*.jsonl")):
        buffer = json_lines.LineBuffer()
        for entry in map(json.loads, path.read_text("utf-8").splitlines()):
            if entry.get("from") == "guest":
                for message in map(parse, buffer.feed(entry["bytes"].encode())):
                    assert "unknown" not in message[:-1], (path.name, message)
                    understood += 1
    assert understood > 50


@pytest.mark.parametrize("module", [guest_channel, json_lines], ids=lambda module: module.__name__)
def test_the_guest_side_can_use_the_module_on_an_old_python(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text("utf-8"), feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    needed = {ast.unparse(node).split()[1] for node in imports}
    assert needed <= {"json", "re", "typing", "guestmtce.wire.json_lines"}


# --- at the limits ---------------------------------------------------------------------------------


def test_an_interval_may_be_negative_and_a_name_has_63_bytes():
    init = guest_channel.DEFAULT_INIT._replace(heartbeat_interval_ms=-1, name="n" * 64)
    assert parse(build(init, 1).strip()) == init._replace(name="n" * 63)


@pytest.mark.parametrize("escaped", range(120, 160))
def test_a_log_msg_is_cut_no_more_than_it_must_be(escaped):
    """An escaped character has 6 bytes: less than that is left of the 1056."""
    message = guest_channel.ChallengeResponse(1, "healthy", "none", "\1" * escaped + "a" * (223 - escaped))
    uncut = len(build(message._replace(log_msg=""), 1)) + 6 * escaped + 223 - escaped
    data = build(message, 1)
    assert len(data) == uncut if uncut <= 1056 else 1050 < len(data) <= 1056


def test_the_sizes_and_defaults_of_the_specification():
    assert (guest_channel.VERSION, guest_channel.REVISION, guest_channel.RESYNC) == (3, 1, b" \n")
    assert (guest_channel.MESSAGE_MAX, guest_channel.NAME_MAX) == (1056, 63)
    assert (json_lines.LOG_MSG_MAX, guest_channel.WORD_MAX) == (223, 31)
    assert (guest_channel.INT32_MIN, guest_channel.INT32_MAX, guest_channel.SECS_MAX) == (
        -(2**31),
        2**31 - 1,
        2_147_483,
    )
    assert guest_channel.DEFAULT_INIT[2:] == (1000, 10, 10, 10, 10, 120, "log")
    assert guest_channel.DEFAULT_INIT[:2] == (0, "")


def test_a_message_of_1056_bytes_is_not_cut():
    message = guest_channel.ChallengeResponse(1, "healthy", "none", "")
    left = 1056 - len(build(message, 1)) - 6 * 145
    text = "\1" * 145 + "a" * left
    assert 0 < left <= 223 - 145
    assert parse(build(message._replace(log_msg=text), 1).strip()).log_msg == text


def test_the_words_of_the_specification():
    events = "stop reboot suspend pause unpause resume resize_begin resize_end live_migrate_begin "
    events += "live_migrate_end cold_migrate_begin cold_migrate_end"
    assert tuple(events.split()) == guest_channel.EVENT_TYPES
    assert guest_channel.VOTE_RESULTS == ("accept", "reject", "complete", "timeout", "error", "unknown")
    assert guest_channel.CORRECTIVE_ACTIONS == ("none", "reboot", "stop", "log", "unknown")
    assert guest_channel.NOTIFICATION_TYPES == ("revocable", "irrevocable")
