"""Messages on the guest channel, both directions; `guest_channel_fast` has short cuts for the usual ones.

docs/protocol/1-guest-channel.md#framing
docs/protocol/1-guest-channel.md#messages

A message is one JSON object on one line. `parse` turns a line, as json_lines.LineBuffer cuts it from the
stream, into one of the tuples below; `build` turns a tuple into the bytes to write, framing included.

Two kinds of bad lines are told apart because they are answered differently
(docs/protocol/1-guest-channel.md#errors): json_lines.NotAMessage (no JSON object: it is dropped) and
`Refused` (a message with a fault: it is answered with a nack).

The guest's side of the channel uses this module, so it stays Python 3.6-clean and needs nothing but the
standard library and json_lines.
"""

import json
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

from guestmtce.wire.json_lines import LOG_MSG_MAX, clean_text, load_object

# docs/protocol/1-guest-channel.md#common-fields
VERSION = 3
REVISION = 1

# Bytes of UTF-8 that the deployed guest has room for (docs/protocol/1-guest-channel.md#sizes-and-numbers);
# LOG_MSG_MAX stands in json_lines.
MESSAGE_MAX = 1056  # with the newlines before and behind it
NAME_MAX = 63
WORD_MAX = 31  # any other string
_ESCAPE_MAX = 12  # bytes of JSON in ASCII for a character, at most: two escapes (RFC 8259, section 7)

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)
MS_PER_S = 1000
SECS_MAX = INT32_MAX // MS_PER_S  # timeouts travel as ms in a signed 32-bit int

# docs/protocol/1-guest-channel.md#values
HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
VOTE = "revocable"
NOTICE = "irrevocable"
UNKNOWN = "unknown"

CORRECTIVE_ACTIONS = ("none", "reboot", "stop", "log", UNKNOWN)
EVENT_TYPES = (
    "stop", "reboot", "suspend", "pause", "unpause", "resume", "resize_begin", "resize_end",
    "live_migrate_begin", "live_migrate_end", "cold_migrate_begin", "cold_migrate_end",
)  # fmt: skip
NOTIFICATION_TYPES = (VOTE, NOTICE)
VOTE_RESULTS = ("accept", "reject", "complete", "timeout", "error", UNKNOWN)

# What a host sends first on a new connection: it ends a half-sent message of the connection before
# (docs/protocol/1-guest-channel.md#framing).
RESYNC = b" \n"


class Refused(ValueError):
    """The line holds a message with a fault; `str()` of it is the nack's `log_msg`."""


class Init(NamedTuple):
    """guest → host: the guest's name and how it wants to be watched. Times are ms and s, as named.

    docs/protocol/1-guest-channel.md#init-and-acknowledgement
    """

    invocation_id: int
    name: str
    heartbeat_interval_ms: int
    vote_secs: int
    shutdown_notice_secs: int
    suspend_notice_secs: int
    resume_notice_secs: int
    restart_secs: int
    corrective_action: str


class InitAck(NamedTuple):
    """host → guest: the init with this id is accepted; challenges follow."""

    invocation_id: int


class Challenge(NamedTuple):
    """host → guest: answer with this random number, in 0 … 2³¹−1."""

    heartbeat_challenge: int


class ChallengeResponse(NamedTuple):
    """guest → host: the challenge's number, and the guest's health.

    `heartbeat_health` is a string of up to WORD_MAX bytes: what is neither `healthy` nor `unhealthy` is kept
    for the log. `corrective_action` is what an unhealthy guest wants to be done with it.
    """

    heartbeat_response: int
    heartbeat_health: str
    corrective_action: str
    log_msg: str


class ActionNotify(NamedTuple):
    """host → guest: a question, which is a vote (`revocable`) or a notice (`irrevocable`).

    docs/protocol/1-guest-channel.md#votes-and-notices
    """

    invocation_id: int
    event_type: str
    notification_type: str
    timeout_ms: int


class ActionResponse(NamedTuple):
    """guest → host: the answer to an `ActionNotify`."""

    invocation_id: int
    event_type: str
    notification_type: str
    vote_result: str
    log_msg: str


class Exit(NamedTuple):
    """guest → host: the guest's heartbeat client ends gracefully."""

    log_msg: str


class Nack(NamedTuple):
    """host → guest: what was wrong with the guest's last message."""

    invocation_id: int
    log_msg: str


Message = Union[Init, InitAck, Challenge, ChallengeResponse, ActionNotify, ActionResponse, Exit, Nack]

# Timeouts before a guest's init says otherwise (docs/protocol/1-guest-channel.md#init-and-acknowledgement).
DEFAULT_INIT = Init(0, "", 1000, 10, 10, 10, 10, 120, "log")


# --- fields ----------------------------------------------------------------------------------------
# Each validates a field's value and returns it cleaned, or raises ValueError. Types are compared exactly:
# JSON's true is Python's True, which is an int.


def _int32(value: Any) -> int:
    if type(value) is not int or not INT32_MIN <= value <= INT32_MAX:
        raise ValueError
    return value


def _uint31(value: Any) -> int:
    """An id, a challenge, a time: the guest reads what is larger as 2³¹−1."""
    if type(value) is not int or not 0 <= value <= INT32_MAX:
        raise ValueError
    return value


def _secs(value: Any) -> int:
    """Seconds that fit into an int32 as ms; more is cut to that."""
    return min(_uint31(value), SECS_MAX)


def _text(limit: int) -> Callable[[Any], str]:
    """The validator of a string, which is cut to `limit` bytes."""

    def validate(value: Any) -> str:
        if type(value) is not str:
            raise ValueError
        return clean_text(value, limit) if value else value

    return validate


def _known(known: Tuple[str, ...]) -> Callable[[Any], str]:
    """The validator of a word; one that is not `known` is `unknown`: refusing it would lose the guest."""

    def validate(value: Any) -> str:
        if type(value) is not str:
            raise ValueError
        return value if value in known else UNKNOWN

    return validate


_word = _text(WORD_MAX)
_log_msg = _text(LOG_MSG_MAX)
_corrective_action = _known(CORRECTIVE_ACTIONS)
_event_type = _known(EVENT_TYPES)
_notification_type = _known(NOTIFICATION_TYPES)

# What makes a message of its values, and its further fields in the order of the tuple, with their validators.
Shape = Tuple[Callable[..., Message], Tuple[Tuple[str, Callable[[Any], Any]], ...]]

FROM_GUEST = {
    "init": (Init, (
        ("invocation_id", _uint31), ("name", _text(NAME_MAX)), ("heartbeat_interval_ms", _int32),
        ("vote_secs", _secs), ("shutdown_notice_secs", _secs), ("suspend_notice_secs", _secs),
        ("resume_notice_secs", _secs), ("restart_secs", _secs), ("corrective_action", _corrective_action),
    )),
    "challenge_response": (ChallengeResponse, (
        ("heartbeat_response", _int32), ("heartbeat_health", _word),
        ("corrective_action", _corrective_action), ("log_msg", _log_msg),
    )),
    "action_response": (ActionResponse, (
        ("invocation_id", _uint31), ("event_type", _event_type), ("notification_type", _notification_type),
        ("vote_result", _known(VOTE_RESULTS)), ("log_msg", _log_msg),
    )),
    "exit": (Exit, (("log_msg", _log_msg),)),
}  # type: Dict[str, Shape]  # fmt: skip

FROM_HOST = {
    "init_ack": (InitAck, (("invocation_id", _uint31),)),
    "challenge": (Challenge, (("heartbeat_challenge", _uint31),)),
    "action_notify": (ActionNotify, (
        ("invocation_id", _uint31), ("event_type", _event_type), ("notification_type", _notification_type),
        ("timeout_ms", _uint31),
    )),
    "nack": (Nack, (("invocation_id", _uint31), ("log_msg", _log_msg))),
}  # type: Dict[str, Shape]  # fmt: skip


def _read_field(fields: Dict[str, Any], name: str, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(fields[name])
    except (KeyError, ValueError):
        raise Refused("failed to parse " + name) from None


def parse(line: bytes, shapes: Optional[Dict[str, Shape]] = None) -> Message:
    """The message in `line`, one line of the stream without its newline.

    `shapes` is FROM_GUEST (the default) or FROM_HOST: who sent it. Invalid UTF-8 is replaced, of a key that
    comes twice the last value counts, and unknown fields are ignored.
    Raises json_lines.NotAMessage, and Refused as docs/protocol/1-guest-channel.md#errors says.
    """
    if shapes is None:
        shapes = FROM_GUEST
    fields = load_object(line.decode("utf-8", "replace"), "log_msg")
    version = _read_field(fields, "version", _int32)
    if version < VERSION:
        raise Refused("Bad version: %d, expect version: %d" % (version, VERSION))
    _read_field(fields, "revision", _int32)
    _read_field(fields, "sequence", _int32)
    msg_type = _read_field(fields, "msg_type", _word)
    shape = shapes.get(msg_type)
    if shape is None:
        raise Refused("unsupported message type: " + msg_type)
    # In the order of the table: the nack names the first field that fails.
    make, validators = shape
    if make is Exit:  # a guest that says goodbye has gone, whatever else it says
        fields.setdefault("log_msg", "")
    values = []
    for name, validate in validators:
        values.append(_read_field(fields, name, validate))
    return make(*values)


# --- building --------------------------------------------------------------------------------------

_MSG_TYPES = {
    Init: "init", InitAck: "init_ack", Challenge: "challenge", ChallengeResponse: "challenge_response",
    ActionNotify: "action_notify", ActionResponse: "action_response", Exit: "exit", Nack: "nack",
}  # type: Dict[Any, str]  # fmt: skip


def build(message: Message, sequence: int) -> bytes:
    """The bytes of `message`, framing included, at most MESSAGE_MAX: `log_msg` is cut until they fit.

    docs/protocol/1-guest-channel.md#framing
    docs/protocol/1-guest-channel.md#sizes-and-numbers

    `sequence` is in 0 … 2³¹−1; each side counts its messages on a connection.
    Raises ValueError for an id, challenge or timeout outside 0 … 2³¹−1: the guest would read another.
    """
    msg_type = _MSG_TYPES[type(message)]
    fields = {"version": VERSION, "revision": REVISION, "msg_type": msg_type, "sequence": sequence}
    for name, value in zip(message._fields, message):
        if isinstance(value, int):
            # An interval may be negative in a guest's init: what it means is the session's affair.
            _int32(value) if name == "heartbeat_interval_ms" else _uint31(value)
            fields[name] = value
        else:
            limit = {"name": NAME_MAX, "log_msg": LOG_MSG_MAX}.get(name, WORD_MAX)
            fields[name] = clean_text(str(value), limit)
    data = _frame_fields(fields)
    # No character has more than _ESCAPE_MAX bytes: at most one is cut too many.
    while len(data) > MESSAGE_MAX and fields.get("log_msg"):
        fields["log_msg"] = str(fields["log_msg"])[: -(1 + (len(data) - MESSAGE_MAX) // _ESCAPE_MAX)]
        data = _frame_fields(fields)
    return data


def _frame_fields(fields: Dict[str, Any]) -> bytes:
    """`fields`, all int or str, as one line. Not by json.dumps as a whole: it makes an encoder each time."""
    parts = []
    for name, value in fields.items():
        parts.append('"%s":%s' % (name, value if isinstance(value, int) else json.dumps(value)))
    return ("\n{" + ",".join(parts) + "}\n").encode("ascii")


# --- votes and notices -----------------------------------------------------------------------------

# The event type of a notice → the field of the init that has its timeout.
_TIMEOUT_FIELD = {
    "stop": "shutdown_notice_secs", "reboot": "shutdown_notice_secs",
    "suspend": "suspend_notice_secs", "pause": "suspend_notice_secs", "resize_begin": "suspend_notice_secs",
    "live_migrate_begin": "suspend_notice_secs", "cold_migrate_begin": "suspend_notice_secs",
    "unpause": "resume_notice_secs", "resume": "resume_notice_secs", "resize_end": "resume_notice_secs",
    "live_migrate_end": "resume_notice_secs", "cold_migrate_end": "resume_notice_secs",
}  # fmt: skip


def timeout_secs(guest: Any, notification_type: str, event_type: str) -> int:
    """How long, in s, the guest may take to answer (docs/protocol/1-guest-channel.md#votes-and-notices).

    `guest` is anything that has the `*_secs` fields of its Init. Raises ValueError for an unknown event type.
    """
    if event_type not in _TIMEOUT_FIELD:
        raise ValueError("unknown event type " + repr(event_type))
    field = "vote_secs" if notification_type == VOTE else _TIMEOUT_FIELD[event_type]
    return int(getattr(guest, field))
