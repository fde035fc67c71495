"""What child and master say to each other: small JSON arrays, one a packet; and last, an exit status.

A packet is the name of a type and its fields in order: `["Missed",1]`. From the child come the reports of
`session_types`, from the master the commands here.

The child is expendable and its guest is hostile, so the master believes nothing: `decode_report` checks
every field's type and range, as strictly as if the guest itself had written it. A child believes its master.
"""

from __future__ import annotations

import json
import math
from json.encoder import encode_basestring_ascii
from typing import Any, Dict, List, NamedTuple, Union

from guestmtce.server.child import session_types
from guestmtce.wire import guest_channel, json_lines

PACKET_MAX = 4096  # bytes

# Exit statuses of a child. A death by signal, or any other status, is a crash.
END_PEER_CLOSED = 0
END_RECONNECT = 10
END_MASTER_GONE = 11
END_BOOT_FAILURE = 12
END_DEFECT = 13

_REPORTS: Dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        session_types.Acknowledged, session_types.Running, session_types.Stopped, session_types.Lost,
        session_types.Missed, session_types.Ill,
        session_types.Well, session_types.ReportingEnabled, session_types.Answered, session_types.Late,
        session_types.Reconnect,
        session_types.Note,
    )
}  # fmt: skip
_WORDS_OF = {"vote": guest_channel.VOTE_RESULTS, "action": guest_channel.CORRECTIVE_ACTIONS}
_TEXT_MAX = {"log_msg": json_lines.LOG_MSG_MAX, "reason": json_lines.LOG_MSG_MAX}  # bytes of UTF-8


class BrokenRules(ValueError):
    """A packet that no honest child sends."""


class AskGuest(NamedTuple):
    """master → child: put this question to the guest; it has `timeout_ms`."""

    question_id: int
    notification_type: str
    event_type: str
    timeout_ms: int


class EnableReporting(NamedTuple):
    """master → child: losses are to be reported from now on."""


Command = Union[AskGuest, EnableReporting]


def encode(message: Any) -> bytes:
    """A report or a command as a packet."""
    return _dump_json((type(message).__name__, *message)).encode()


def _dump_json(value: Any) -> str:
    """A text, a finite number or an `Init`. Not json.dumps: it makes an encoder each time."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    if isinstance(value, tuple):
        return "[" + ",".join(map(_dump_json, value)) + "]"
    return repr(value)


# Every child is told this one, and most nothing else: it is known by its bytes, without a parser.
ENABLE_REPORTING_PACKET = encode(EnableReporting())


def decode_ask(packet: bytes) -> AskGuest:
    """The question in a packet from the master, whom a child trusts."""
    return AskGuest(*json.loads(packet)[1:])


def decode_report(packet: bytes) -> session_types.Report:
    """The report in a packet from a child. Raises BrokenRules."""
    if len(packet) > PACKET_MAX:
        raise BrokenRules("a packet of more than %d bytes" % PACKET_MAX)
    try:
        # `encode` writes nothing else: any other byte is no honest child's.
        message = json.loads(packet.decode("ascii"))
        if type(message) is not list:
            raise ValueError
        name, *values = message
        kind = _REPORTS[name]
        return kind(*_validate_fields(kind, values))  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BrokenRules("a malformed packet: %s" % type(error).__name__) from None


def _validate_fields(kind: Any, values: List[Any]) -> List[Any]:
    if len(values) != len(kind._fields):
        raise ValueError
    return [_validate(name, kind.__annotations__[name], value) for name, value in zip(kind._fields, values)]


def _validate(name: str, annotation: Any, value: Any) -> Any:
    """`value` if the field `name` may have it. Raises ValueError, or what else comes of odd types."""
    # A NamedTuple's annotations are forward references or plain strings, by Python version.
    wanted = getattr(annotation, "__forward_arg__", annotation)
    if wanted == "Init":
        _, fields = guest_channel.FROM_GUEST["init"]
        if len(value) != len(fields):
            raise ValueError
        return guest_channel.Init(*[validate(item) for (_, validate), item in zip(fields, value)])
    if wanted == "float":
        # `type` and no isinstance: True and False are ints to that. json.loads also makes NaN and Infinity.
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise ValueError
    elif wanted == "int":
        if type(value) is not int or not 0 <= value <= guest_channel.INT32_MAX:
            raise ValueError
    elif type(value) is not str or value not in _WORDS_OF.get(name, (value,)):
        raise ValueError
    # It goes into log lines and datagrams as it is: no control characters, and no more than these take.
    elif value != json_lines.clean_text(value, _TEXT_MAX.get(name, PACKET_MAX)):
        raise ValueError
    return value
