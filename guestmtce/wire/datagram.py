"""The maintenance datagram between guestServer, guestAgent and mtcAgent, both directions.

docs/protocol/2-datagrams.md#layout
docs/protocol/2-datagrams.md#commands
docs/protocol/2-datagrams.md#events
docs/protocol/2-datagrams.md#mtcagent

`unpack` takes the bytes of a datagram apart; `parse_command`, `parse_event` and `parse_host` read its body.
`pack` and the `build_*` functions make the bytes. Everything that is wrong with a datagram raises
BadDatagram, whose text names the fault. The sender gets no answer; the receiver logs the text.

Instances are named by their uuid in lower case, hosts by `hostname` as the sender spells it. Times are whole
seconds, 0 … guest_channel.SECS_MAX.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any, Dict, NamedTuple, Tuple, Union

from guestmtce.wire import guest_channel, json_lines

# docs/protocol/2-datagrams.md#layout
PARMS = 5
HEADER = struct.Struct("<64sHHIII%dI" % PARMS)  # hdr, ver, rev, res, cmd, num, parm; the JSON follows
FULL_SIZE = 1060  # bytes
JSON_MAX = FULL_SIZE - HEADER.size - 1  # bytes, without the NUL that ends it

# docs/protocol/2-datagrams.md#signatures
SIGNATURE_SIZE = 18  # bytes of hdr
AGENT_SIGNATURE = b"guest msg header:"
MTC_SIGNATURE = b"cgts mtc cmd req:"
NO_SIGNATURE = b""
AGENT_NAME = b"guestAgent"

# guestAgent → guestServer (docs/protocol/2-datagrams.md#commands)
ADD_INST = 0x11110020
DEL_INST = 0x11110021
MOD_INST = 0x11110022
QRY_INST = 0x11110023
VOTE_INST = 0x11110024
NOTIFY_INST = 0x11110025
LOOPBACK = 0x01010101
# mtcAgent → guestAgent (docs/protocol/2-datagrams.md#mtcagent); MOD_HOST, with another body, is a command of
# guestAgent to guestServer, too
ADD_HOST = 0x11110010
DEL_HOST = 0x11110011
MOD_HOST = 0x11110012
# guestServer → guestAgent (docs/protocol/2-datagrams.md#events); MONITOR_READY also guestAgent → mtcAgent
MONITOR_READY = 0xF0F0F0F0
RUNNING = 0x0110FEAD
STOPPED = 0x0100FEAD
ILLHEALTH = 0x0001FEAD
LOSS = 0x0000FEAD
VOTE_NOTIFY = 0xFEEDFEED

NAMES = {
    ADD_INST: "ADD_INST", DEL_INST: "DEL_INST", MOD_INST: "MOD_INST", QRY_INST: "QRY_INST",
    VOTE_INST: "VOTE_INST", NOTIFY_INST: "NOTIFY_INST", LOOPBACK: "LOOPBACK",
    ADD_HOST: "ADD_HOST", DEL_HOST: "DEL_HOST", MOD_HOST: "MOD_HOST",
    MONITOR_READY: "MONITOR_READY", RUNNING: "RUNNING", STOPPED: "STOPPED",
    ILLHEALTH: "ILLHEALTH", LOSS: "LOSS", VOTE_NOTIFY: "VOTE_NOTIFY",
}  # fmt: skip

HEARTBEAT = "heartbeat"  # the only service there is
UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")  # RFC 4122, section 3
HOSTNAME_MAX = 255  # bytes; a domain name's (RFC 1035, section 2.3.4)
_WHOLE_SECS = re.compile("[0-9]{1,10}")  # docs/protocol/2-datagrams.md#instance-info
_REASON_KEPT = 0.75  # of a reason that is too long, with each attempt to make it fit


class BadDatagram(ValueError):
    """The datagram cannot be read; the text says why."""


class Datagram(NamedTuple):
    """A datagram taken apart (docs/protocol/2-datagrams.md#layout).

    Old daemons send `ver`, `rev`, `res`, `num` and `parm` as 0; `datagram_ext` has what ours put there.
    `signature` is without its NULs, `body` the JSON object, empty where there is none.
    """

    signature: bytes
    ver: int
    rev: int
    res: int
    cmd: int
    num: int
    parm: Tuple[int, ...]
    body: Dict[str, Any]


class SetInstance(NamedTuple):
    """ADD_INST, MOD_INST: know this instance; `reporting` says whether its failures are reported."""

    uuid: str
    reporting: bool


class DeleteInstance(NamedTuple):
    """DEL_INST: close the instance's channel and forget it."""

    uuid: str


class Query(NamedTuple):
    """QRY_INST: answer with the state of every instance."""


class Ask(NamedTuple):
    """VOTE_INST, NOTIFY_INST: put this question to the guest.

    `notification_type` is guest_channel.VOTE or NOTICE; `event` may be a word that is no event type.
    """

    uuid: str
    notification_type: str
    event: str


class SetHost(NamedTuple):
    """MOD_HOST to a guestServer: switch fault reporting for the whole host, whose `uuid` it names."""

    uuid: str
    reporting: bool


class Loopback(NamedTuple):
    """LOOPBACK: nothing to do."""


class Ready(NamedTuple):
    """MONITOR_READY: a guestServer has started."""

    hostname: str


class InstanceInfo(NamedTuple):
    """The state of an instance (docs/protocol/2-datagrams.md#instance-info); `*_to` are timeouts in s.

    It is the body of RUNNING, STOPPED, ILLHEALTH, the answer to QRY_INST, and LOSS to an agent of ours.
    """

    hostname: str
    uuid: str
    reporting: bool
    heartbeating: bool
    repair_action: str
    restart_to: int
    shutdown_to: int
    suspend_to: int
    resume_to: int
    vote_to: int


class Loss(NamedTuple):
    """LOSS: the guest has stopped answering."""

    hostname: str
    uuid: str


class VoteResult(NamedTuple):
    """VOTE_NOTIFY: the outcome of a vote or notice; `vote` is one of guest_channel.VOTE_RESULTS."""

    hostname: str
    uuid: str
    notification_type: str
    event_type: str
    vote: str
    reason: str


class HostRecord(NamedTuple):
    """ADD_HOST, MOD_HOST and DEL_HOST (with an empty `ip`) from mtcAgent."""

    hostname: str
    uuid: str
    ip: str


Command = Union[SetInstance, DeleteInstance, Query, Ask, SetHost, Loopback]
Event = Union[Ready, InstanceInfo, Loss, VoteResult]


# --- the frame -------------------------------------------------------------------------------------


def pack(cmd: int, body: Dict[str, Any], signature: bytes = NO_SIGNATURE, full: bool = False) -> bytes:
    """A datagram without the added fields; with `full` it is filled up to FULL_SIZE bytes for old agents.

    Raises BadDatagram when the body's JSON is longer than JSON_MAX bytes.
    """
    text = json.dumps(body, separators=(",", ":")).encode("ascii") if body else b""
    if len(text) > JSON_MAX:
        name = NAMES.get(cmd, hex(cmd))
        raise BadDatagram("%s: JSON of %d bytes, at most %d" % (name, len(text), JSON_MAX))
    data = HEADER.pack(signature, 0, 0, 0, cmd, 0, 0, 0, 0, 0, 0) + text
    return data.ljust(FULL_SIZE, b"\0") if full else data


def unpack(data: bytes) -> Datagram:
    """Take a datagram apart. An unescaped text in its last field is recovered.

    docs/protocol/2-datagrams.md#layout

    Raises BadDatagram for one that is too short, too long, not terminated, or without a JSON object.
    """
    if not HEADER.size <= len(data) <= FULL_SIZE:
        raise BadDatagram("%d bytes, expected %d to %d" % (len(data), HEADER.size, FULL_SIZE))
    hdr, ver, rev, res, cmd, num, *parm = HEADER.unpack_from(data)
    text, nul, _ = data[HEADER.size :].partition(b"\0")
    # guestAgent and mtcAgent send no NUL: the datagram's end is the text's. A full one has room for it.
    if not nul and len(data) == FULL_SIZE:
        raise BadDatagram("no NUL ends the JSON")
    body: Dict[str, Any] = {}
    # guestAgent's MONITOR_READY, a confirmation and a mark have no body.
    if text.strip():
        try:
            # An old server does not escape a guest's reason: it must not answer for another guest.
            body = json_lines.load_object(text.decode("utf-8", "replace"), "reason", json_lines.FIRST_WINS)
        except json_lines.NotAMessage:
            raise BadDatagram("%s without a JSON object" % NAMES.get(cmd, hex(cmd))) from None
    signature = hdr[:SIGNATURE_SIZE].rstrip(b"\0")
    return Datagram(signature, ver, rev, res, cmd, num, tuple(parm), body)


# --- fields ----------------------------------------------------------------------------------------


def _read_string(body: Dict[str, Any], field: str, limit: int = HOSTNAME_MAX) -> str:
    """The field's value, cut to `limit` bytes. Raises BadDatagram, as all of these do."""
    value = body.get(field)
    if not isinstance(value, str):
        raise BadDatagram("no string %r" % field)
    return json_lines.clean_text(value, limit)


def _read_name(body: Dict[str, Any], field: str = "hostname") -> str:
    value = _read_string(body, field)
    if not value:
        raise BadDatagram("empty %r" % field)
    return value


def _read_uuid(body: Dict[str, Any]) -> str:
    """The instance's uuid in lower case: one uuid in two spellings is one instance."""
    value = _read_string(body, "uuid")
    if not UUID.fullmatch(value):
        raise BadDatagram("%r is no uuid" % value)
    return value.lower()


def _read_enabled(body: Dict[str, Any], field: str) -> bool:
    value = _read_string(body, field)
    if value not in ("enabled", "disabled"):
        # A guess would switch a guest's failures off, or on.
        raise BadDatagram("%r is neither enabled nor disabled but %r" % (field, value))
    return value == "enabled"


def _read_secs(body: Dict[str, Any], field: str) -> int:
    """The field's value as seconds; more than can travel in a guest's milliseconds is cut to that."""
    value = _read_string(body, field)
    if not _WHOLE_SECS.fullmatch(value):
        raise BadDatagram("%r is no whole number of seconds but %r" % (field, value))
    return min(int(value), guest_channel.SECS_MAX)


def _read_word(body: Dict[str, Any], field: str, known: Tuple[str, ...]) -> str:
    """The field's value if it is a `known` one, else `unknown`."""
    value = _read_string(body, field)
    return value if value in known else guest_channel.UNKNOWN


def state_word(enabled: bool) -> str:
    """`enabled` or `disabled`."""
    return "enabled" if enabled else "disabled"


# --- guestAgent → guestServer ----------------------------------------------------------------------


def parse_command(datagram: Datagram) -> Command:
    """What a guestAgent wants of a guestServer. Raises BadDatagram.

    docs/protocol/2-datagrams.md#commands
    """
    cmd, body = datagram.cmd, datagram.body
    if cmd in (ADD_INST, MOD_INST):
        service = body.get("service", HEARTBEAT)
        if service != HEARTBEAT:
            raise BadDatagram("unknown service %r" % (service,))
        return SetInstance(_read_uuid(body), _read_enabled(body, "state"))
    if cmd == DEL_INST:
        return DeleteInstance(_read_uuid(body))
    if cmd == QRY_INST:
        return Query()
    if cmd in (VOTE_INST, NOTIFY_INST):
        kind = guest_channel.VOTE if cmd == VOTE_INST else guest_channel.NOTICE
        return Ask(_read_uuid(body), kind, _read_string(body, "event", guest_channel.WORD_MAX))
    if cmd == MOD_HOST:
        # A host's uuid is mtcAgent's and is only compared: it need not have an instance's form.
        return SetHost(_read_name(body, "uuid"), _read_enabled(body, "heartbeat"))
    if cmd == LOOPBACK:
        return Loopback()
    raise BadDatagram("unknown command %#x" % cmd)


def build_command(cmd: int, source: str, command: Command) -> bytes:
    """The datagram of `command` under the number `cmd`; `source` is the sending agent's address.

    `cmd` tells ADD_INST from MOD_INST and VOTE_INST from NOTIFY_INST. Raises BadDatagram, as `pack` does.
    """
    body: Dict[str, Any] = {"source": source}
    if isinstance(command, (SetInstance, DeleteInstance)):
        reporting = isinstance(command, SetInstance) and command.reporting
        # DEL_INST says "disabled" (docs/protocol/2-datagrams.md#commands).
        body.update(uuid=command.uuid, service=HEARTBEAT, state=state_word(reporting))
    elif isinstance(command, Ask):
        body.update(uuid=command.uuid, event=command.event)
    elif isinstance(command, SetHost):
        body.update(uuid=command.uuid, heartbeat=state_word(command.reporting))
    return pack(cmd, body, AGENT_SIGNATURE)


# --- guestServer → guestAgent ----------------------------------------------------------------------


def parse_event(datagram: Datagram) -> Event:
    """What a guestServer reports. Raises BadDatagram.

    docs/protocol/2-datagrams.md#events
    """
    cmd, body = datagram.cmd, datagram.body
    if cmd == MONITOR_READY:
        return Ready(_read_name(body))
    if cmd in (RUNNING, STOPPED, ILLHEALTH, QRY_INST):
        return _parse_info(body)
    if cmd == LOSS:
        # Ours reports the whole state to an agent of ours (docs/protocol/2-datagrams.md#events).
        return _parse_info(body) if "repair-action" in body else Loss(_read_name(body), _read_uuid(body))
    if cmd == VOTE_NOTIFY:
        return VoteResult(
            _read_name(body),
            _read_uuid(body),
            _read_word(body, "notification_type", guest_channel.NOTIFICATION_TYPES),
            _read_string(body, "event-type", guest_channel.WORD_MAX),
            _read_word(body, "vote", guest_channel.VOTE_RESULTS),
            _read_string(body, "reason", json_lines.LOG_MSG_MAX) if "reason" in body else "",
        )
    raise BadDatagram("unknown event %#x" % cmd)


def _parse_info(body: Dict[str, Any]) -> InstanceInfo:
    """docs/protocol/2-datagrams.md#instance-info. Raises BadDatagram."""
    return InstanceInfo(
        _read_name(body),
        _read_uuid(body),
        _read_enabled(body, "reporting"),
        _read_enabled(body, "heartbeating"),
        _read_word(body, "repair-action", guest_channel.CORRECTIVE_ACTIONS),
        _read_secs(body, "restart-to"),
        _read_secs(body, "shutdown-to"),
        _read_secs(body, "suspend-to"),
        _read_secs(body, "resume-to"),
        _read_secs(body, "vote-to"),
    )


def event_body(event: Event) -> Dict[str, Any]:
    """The JSON object of `event`; all values are strings (docs/protocol/2-datagrams.md#events).

    A reason is cut until the object fits into JSON_MAX bytes.
    """
    body: Dict[str, Any] = {"hostname": event.hostname}
    if isinstance(event, InstanceInfo):
        body.update({
            "uuid": event.uuid,
            "reporting": state_word(event.reporting),
            "heartbeating": state_word(event.heartbeating),
            "repair-action": event.repair_action,
            "restart-to": str(event.restart_to),
            "shutdown-to": str(event.shutdown_to),
            "suspend-to": str(event.suspend_to),
            "resume-to": str(event.resume_to),
            "vote-to": str(event.vote_to),
        })  # fmt: skip
    elif isinstance(event, Loss):
        body["uuid"] = event.uuid
    elif isinstance(event, VoteResult):
        body.update({
            "uuid": event.uuid, "notification_type": event.notification_type,
            "event-type": event.event_type, "vote": event.vote, "reason": event.reason,
        })  # fmt: skip
        # Escaping can make the reason six times as long; a shorter reason is better than no vote.
        while body["reason"] and len(json.dumps(body, separators=(",", ":"))) > JSON_MAX:
            body["reason"] = body["reason"][: int(len(body["reason"]) * _REASON_KEPT)]
    return body


def build_event(cmd: int, event: Event, full: bool = True) -> bytes:
    """The datagram of `event` under the number `cmd`, at full size for old agents, or as short as can be."""
    return pack(cmd, event_body(event), full=full)


def event_of(cmd: int, body: Dict[str, Any]) -> Event:
    """The event whose `event_body` is `body`, under the number `cmd`. Raises BadDatagram."""
    return parse_event(Datagram(NO_SIGNATURE, 0, 0, 0, cmd, 0, (0,) * PARMS, body))


# --- mtcAgent ↔ guestAgent -------------------------------------------------------------------------


def parse_host(datagram: Datagram) -> HostRecord:
    """The host that mtcAgent adds, changes or deletes, as `datagram.cmd` says. Raises BadDatagram.

    docs/protocol/2-datagrams.md#mtcagent
    """
    if datagram.signature != MTC_SIGNATURE:
        raise BadDatagram("signature %r, expected %r" % (datagram.signature, MTC_SIGNATURE))
    if datagram.cmd not in (ADD_HOST, MOD_HOST, DEL_HOST):
        raise BadDatagram("unknown command %#x" % datagram.cmd)
    body = datagram.body
    ip = "" if datagram.cmd == DEL_HOST else _read_name(body, "ip")
    return HostRecord(_read_name(body), _read_name(body, "uuid"), ip)


def build_host(cmd: int, host: HostRecord) -> bytes:
    """The datagram in which mtcAgent adds, changes or deletes a host, as `cmd` says."""
    body = {"hostname": host.hostname, "uuid": host.uuid}
    if cmd != DEL_HOST:
        body.update(ip=host.ip, personality="worker")
    return pack(cmd, body, MTC_SIGNATURE)


def build_agent_ready() -> bytes:
    """guestAgent's MONITOR_READY to mtcAgent: the name stands in `hdr`, there is no body."""
    return pack(MONITOR_READY, {}, AGENT_SIGNATURE.ljust(SIGNATURE_SIZE, b"\0") + AGENT_NAME)
