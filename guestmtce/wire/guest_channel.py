"""Messages on the guest channel, both directions; `guest_channel_fast` knows the usual ones by heart.

docs/protocol/1-guest-channel.md#framing
docs/protocol/1-guest-channel.md#messages

A message is one JSON object on one line. `parse` turns a line into one of the tuples below or says
what is wrong with it; the `build_*` functions turn values into the bytes to write, framing included.
`LineBuffer` cuts a stream into lines.

The guest's side of the channel uses this module too, so it stays Python 3.6-clean and needs nothing
but the standard library.

Two kinds of bad input are told apart because they are answered differently
(docs/protocol/1-guest-channel.md#errors):
`NotAMessage` (no JSON object: dropped) and `Refused` (a message we cannot take: answered with a nack).
"""

import json
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

from guestmtce.wire.json_lines import LOG_MSG_MAX, clean_text, load_object

VERSION = 3
REVISION = 1

# What the deployed guest takes, in bytes of UTF-8 (docs/protocol/1-guest-channel.md#sizes-and-numbers).
MESSAGE_MAX = 1056
NAME_MAX = 63
WORD_MAX = 31

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)
# Timeouts travel as milliseconds in a signed 32-bit int.
SECS_MAX = INT32_MAX // 1000

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
    """The line holds a message that cannot be taken; `str()` of it is the nack's `log_msg`."""


class Init(NamedTuple):
    """guest → host: who I am and how I want to be watched. Times in ms and s as named."""

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
    """host → guest: taken; challenges follow."""

    invocation_id: int


class Challenge(NamedTuple):
    """host → guest: are you there?"""

    heartbeat_challenge: int


class ChallengeResponse(NamedTuple):
    """guest → host: the challenge's number back, and how the guest feels."""

    heartbeat_response: int
    heartbeat_health: str
    corrective_action: str
    log_msg: str


class ActionNotify(NamedTuple):
    """host → guest: this is about to happen; a vote (`revocable`) or a notice (`irrevocable`)."""

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
    """host → guest: what was wrong with your message."""

    invocation_id: int
    log_msg: str


Message = Union[Init, InitAck, Challenge, ChallengeResponse, ActionNotify, ActionResponse, Exit, Nack]

# Timeouts before a guest's init says otherwise (docs/protocol/1-guest-channel.md#init-and-acknowledgement).
DEFAULT_INIT = Init(0, "", 1000, 10, 10, 10, 10, 120, "log")


# --- fields ----------------------------------------------------------------------------------------
# Each takes a field's value and returns it cleaned, or raises ValueError.


def _int32(value: Any) -> int:
    if type(value) is not int or not INT32_MIN <= value <= INT32_MAX:
        raise ValueError
    return value


def _ident(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= INT32_MAX:
        raise ValueError
    return value


def _secs(value: Any) -> int:
    return min(_ident(value), SECS_MAX)


def _text(limit: int) -> Callable[[Any], str]:
    """A string, cut to `limit` bytes."""

    def take(value: Any) -> str:
        if type(value) is not str:
            raise ValueError
        return clean_text(value, limit) if value else value

    return take


def _one_of(words: Tuple[str, ...]) -> Callable[[Any], str]:
    """A word of `words`; another word is taken as `unknown`: refusing it would lose the guest."""

    def take(value: Any) -> str:
        if type(value) is not str:
            raise ValueError
        return value if value in words else UNKNOWN

    return take


_word = _text(WORD_MAX)
_log_msg = _text(LOG_MSG_MAX)
_corrective_action = _one_of(CORRECTIVE_ACTIONS)
_event_type = _one_of(EVENT_TYPES)
_notification_type = _one_of(NOTIFICATION_TYPES)

Shape = Tuple[Callable[..., Message], Tuple[Tuple[str, Callable[[Any], Any]], ...]]

FROM_GUEST = {
    "init": (Init, (
        ("invocation_id", _ident), ("name", _text(NAME_MAX)), ("heartbeat_interval_ms", _int32),
        ("vote_secs", _secs), ("shutdown_notice_secs", _secs), ("suspend_notice_secs", _secs),
        ("resume_notice_secs", _secs), ("restart_secs", _secs), ("corrective_action", _corrective_action),
    )),
    "challenge_response": (ChallengeResponse, (
        ("heartbeat_response", _int32), ("heartbeat_health", _word),
        ("corrective_action", _corrective_action), ("log_msg", _log_msg),
    )),
    "action_response": (ActionResponse, (
        ("invocation_id", _ident), ("event_type", _event_type), ("notification_type", _notification_type),
        ("vote_result", _one_of(VOTE_RESULTS)), ("log_msg", _log_msg),
    )),
    "exit": (Exit, (("log_msg", _log_msg),)),
}  # type: Dict[str, Shape]  # fmt: skip

FROM_HOST = {
    "init_ack": (InitAck, (("invocation_id", _ident),)),
    "challenge": (Challenge, (("heartbeat_challenge", _ident),)),
    "action_notify": (ActionNotify, (
        ("invocation_id", _ident), ("event_type", _event_type), ("notification_type", _notification_type),
        ("timeout_ms", _ident),
    )),
    "nack": (Nack, (("invocation_id", _ident), ("log_msg", _log_msg))),
}  # type: Dict[str, Shape]  # fmt: skip


def _field(fields: Dict[str, Any], name: str, take: Callable[[Any], Any]) -> Any:
    try:
        return take(fields[name])
    except (KeyError, ValueError):
        raise Refused("failed to parse " + name) from None


def parse(line: bytes, shapes: Optional[Dict[str, Shape]] = None) -> Message:
    """The message in `line` (one line of the stream, without newline), sent by a guest.

    `shapes` is `FROM_GUEST` (the default) or `FROM_HOST`. Invalid UTF-8 is replaced, of a duplicate
    key the last value counts, unknown fields are ignored. Raises NotAMessage or Refused.
    """
    if shapes is None:
        shapes = FROM_GUEST
    fields = load_object(line.decode("utf-8", "replace"), "log_msg")
    version = _field(fields, "version", _int32)
    if version < VERSION:
        raise Refused("Bad version: %d, expect version: %d" % (version, VERSION))
    _field(fields, "revision", _int32)
    _field(fields, "sequence", _int32)
    msg_type = _field(fields, "msg_type", _word)
    shape = shapes.get(msg_type)
    if shape is None:
        raise Refused("unsupported message type: " + msg_type)
    make, takes = shape
    if make is Exit:  # a guest that says goodbye has gone, whatever else it says
        fields.setdefault("log_msg", "")
    values = []
    for name, take in takes:
        values.append(_field(fields, name, take))
    return make(*values)


# --- building --------------------------------------------------------------------------------------

_NAMES = {
    Init: "init", InitAck: "init_ack", Challenge: "challenge", ChallengeResponse: "challenge_response",
    ActionNotify: "action_notify", ActionResponse: "action_response", Exit: "exit", Nack: "nack",
}  # type: Dict[Any, str]  # fmt: skip


def build(message: Message, sequence: int) -> bytes:
    """The bytes of `message`, framing included, never above MESSAGE_MAX: `log_msg` is cut until it fits.

    Raises ValueError for an id, challenge or timeout outside 0 … 2³¹−1: the guest would read another.
    """
    msg_type = _NAMES[type(message)]
    fields = {"version": VERSION, "revision": REVISION, "msg_type": msg_type, "sequence": sequence}
    for name, value in zip(message._fields, message):
        if isinstance(value, int):
            _int32(value) if name == "heartbeat_interval_ms" else _ident(value)
            fields[name] = value
        else:
            limit = {"name": NAME_MAX, "log_msg": LOG_MSG_MAX}.get(name, WORD_MAX)
            fields[name] = clean_text(str(value), limit)
    data = _frame(fields)
    while len(data) > MESSAGE_MAX and fields.get("log_msg"):
        fields["log_msg"] = str(fields["log_msg"])[: -(1 + (len(data) - MESSAGE_MAX) // 12)]
        data = _frame(fields)
    return data


def _frame(fields: Dict[str, Any]) -> bytes:
    """`fields`, all int or str, as one line. Not by json.dumps as a whole: it makes an encoder each time."""
    parts = []
    for name, value in fields.items():
        parts.append('"%s":%s' % (name, value if isinstance(value, int) else json.dumps(value)))
    return ("\n{" + ",".join(parts) + "}\n").encode("ascii")


# --- votes and notices -----------------------------------------------------------------------------

_TIMEOUT_FIELD = {
    "stop": "shutdown_notice_secs", "reboot": "shutdown_notice_secs",
    "suspend": "suspend_notice_secs", "pause": "suspend_notice_secs", "resize_begin": "suspend_notice_secs",
    "live_migrate_begin": "suspend_notice_secs", "cold_migrate_begin": "suspend_notice_secs",
    "unpause": "resume_notice_secs", "resume": "resume_notice_secs", "resize_end": "resume_notice_secs",
    "live_migrate_end": "resume_notice_secs", "cold_migrate_end": "resume_notice_secs",
}  # fmt: skip


def timeout_secs(guest: Any, notification_type: str, event_type: str) -> int:
    """How long, in s, the guest may take to answer (docs/protocol/1-guest-channel.md#votes-and-notices).

    `guest` is anything that bears the `*_secs` of its init. Raises ValueError for an unknown event.
    """
    if event_type not in _TIMEOUT_FIELD:
        raise ValueError("unknown event type " + repr(event_type))
    field = "vote_secs" if notification_type == VOTE else _TIMEOUT_FIELD[event_type]
    return int(getattr(guest, field))
