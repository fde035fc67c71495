"""REST bodies between the VIM and guestAgent, both ways.

docs/protocol/3-vim-http.md#commands
docs/protocol/3-vim-http.md#events

The VIM's client is unforgiving: every reply that is not 204 is a JSON object, every timeout a string
of digits. `Failure` carries what a refused command is answered with.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.datagram import HEARTBEAT, HOSTNAME_MAX, UUID, state_word

BODY_MAX = 64 * 1024
VIM_USER_AGENT = "vim/1.0"
AGENT_USER_AGENT = "guest-agent/1.0"
EVENT_PATH = "/nfvi-plugins/v1/"

PARSE_ERROR = "command parse error"
NO_BUFFER = "no buffer"
NOT_FOUND = "entity not found"
INVALID = "invalid data"
BAD_STATE = "bad state"
UNSUPPORTED = "unsupported http command"


class Failure(Exception):
    """A refused command: the HTTP `status` and the `reason` of the body that answers it."""

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.detail = detail

    def body(self) -> Dict[str, str]:
        """The JSON object to answer with."""
        return {"status": "fail", "reason": self.reason}


PASS = {"status": "pass"}


# --- commands: the VIM → guestAgent ----------------------------------------------------------------


class Named(NamedTuple):
    """A command's body as far as all commands share it. `uuid` is spelled as in the path: so is the reply."""

    uuid: str
    hostname: str
    fields: Dict[str, Any]


def load_body(data: bytes) -> Dict[str, Any]:
    """The JSON object in a request's body. Raises Failure 400."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Failure(400, PARSE_ERROR, "the body is no JSON") from None
    if not isinstance(value, dict):
        raise Failure(400, PARSE_ERROR, "the body is no JSON object")
    return value


def _text(fields: Dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value or len(value) > HOSTNAME_MAX:
        raise Failure(400, INVALID, "no usable %r" % name)
    return json_lines.clean_text(value, HOSTNAME_MAX)


def parse_named(uuid: str, data: bytes) -> Named:
    """A body `{uuid, hostname, …}` for the path's `uuid`. Raises Failure 400."""
    fields = load_body(data)
    if str(fields.get("uuid", uuid)).lower() != uuid.lower():
        raise Failure(400, INVALID, "the body's uuid is not the path's")
    if not UUID.fullmatch(uuid):
        raise Failure(400, INVALID, "the path's uuid is none")
    return Named(uuid, _text(fields, "hostname"), fields)


def parse_create(uuid: str, data: bytes) -> Named:
    """An instance create: its services are a list that holds only `heartbeat`. Raises Failure 400."""
    named = parse_named(uuid, data)
    services = named.fields.get("services", [HEARTBEAT])
    if not isinstance(services, list) or any(service != HEARTBEAT for service in services):
        raise Failure(400, INVALID, "services other than heartbeat")
    return named


def parse_set(uuid: str, data: bytes) -> tuple[Named, bool]:
    """An instance set: who, and whether reporting is to be enabled. Raises Failure 400."""
    named = parse_named(uuid, data)
    services = named.fields.get("services")
    if not isinstance(services, list) or len(services) != 1 or not isinstance(services[0], dict):
        raise Failure(400, INVALID, "not one service")
    if services[0].get("service") != HEARTBEAT:
        raise Failure(400, INVALID, "a service other than heartbeat")
    state = services[0].get("state")
    if state not in ("enabled", "disabled"):
        raise Failure(400, INVALID, "a state that is neither enabled nor disabled")
    return named, state == "enabled"


def parse_action(uuid: str, data: bytes) -> tuple[Named, str]:
    """A vote or notify: who, and the event type. Raises Failure 400."""
    named = parse_named(uuid, data)
    action = named.fields.get("action")
    if action not in guest_channel.EVENT_TYPES:
        raise Failure(400, INVALID, "unknown action")
    return named, str(action)


def host_reply(uuid: str, hostname: str, reporting: bool) -> Dict[str, str]:
    """The reply to a host query."""
    return {"uuid": uuid, "hostname": hostname, "state": state_word(reporting)}


def _service(reporting: bool, heartbeating: bool, restart_secs: int) -> Dict[str, str]:
    return {
        "service": HEARTBEAT,
        "state": state_word(reporting),
        "status": state_word(heartbeating),
        "restart-timeout": str(restart_secs if heartbeating else 0),
    }


def services_reply(
    uuid: str, hostname: str, reporting: bool, heartbeating: bool, restart_secs: int
) -> Dict[str, Any]:
    """The reply to an instance set or query."""
    return {"uuid": uuid, "hostname": hostname, "services": [_service(reporting, heartbeating, restart_secs)]}


def action_reply(uuid: str, hostname: str, action: str, timeout_secs: int) -> Dict[str, str]:
    """The reply to a vote or notify; a timeout of 0 means that the guest will not answer."""
    return {"uuid": uuid, "hostname": hostname, "action": action, "timeout": str(timeout_secs)}


# --- events: guestAgent → the VIM ------------------------------------------------------------------


def service_event(
    uuid: str, hostname: str, reporting: bool, heartbeating: bool, restart_secs: int
) -> Dict[str, Any]:
    """The body that tells a changed state or status."""
    data = {"services": [_service(reporting, heartbeating, restart_secs)]}
    return {"uuid": uuid, "hostname": hostname, "event-type": "service", "event-data": data}


def alarm_event(uuid: str, hostname: str, state: str, repair_action: str) -> Dict[str, Any]:
    """The body that tells a failure; `state` is `failed` (heartbeat loss) or `unhealthy`."""
    data = {"services": [{"service": HEARTBEAT, "state": state, "repair-action": repair_action}]}
    return {"uuid": uuid, "hostname": hostname, "event-type": "alarm", "event-data": data}


def action_event(uuid: str, notification_type: str, action: str, vote: str, reason: str) -> Dict[str, Any]:
    """The body that tells the outcome of a vote or notice.

    Only a `reject` is a no: a guest that timed out or is broken must not hang the VIM
    (docs/protocol/3-vim-http.md#outcomes).
    """
    consent = "allow" if notification_type == guest_channel.VOTE else "proceed"
    data = {
        "action": action,
        "guest-response": "reject" if vote == "reject" else consent,
        "reason": reason or ("" if vote in ("accept", "complete", "reject") else vote),
    }
    return {"uuid": uuid, "event-type": "action", "event-data": data}


# --- what the VIM answers --------------------------------------------------------------------------


class Listed(NamedTuple):
    """One instance in the VIM's list of a host's instances.

    `uuid` is in lower case. An empty `hostname` stands for the host whose instances were asked for.
    """

    uuid: str
    hostname: str
    reporting: bool


def parse_host_state(reply: Any) -> Optional[bool]:
    """Whether reporting is enabled for the host, or None when the reply does not say."""
    state = reply.get("state") if isinstance(reply, dict) else None
    return {"enabled": True, "disabled": False}.get(state) if isinstance(state, str) else None


def parse_instances(reply: Any) -> Optional[List[Listed]]:
    """The instances that take part in heartbeating, or None when the reply is no such list.

    An entry that cannot be read is left out: the others must not suffer.
    """
    entries = reply.get("instances") if isinstance(reply, dict) else None
    if not isinstance(entries, list):
        return None
    return [listed for listed in map(_listed, entries) if listed is not None]


def _listed(entry: Any) -> Optional[Listed]:
    if not isinstance(entry, dict):
        return None
    uuid, hostname, services = entry.get("uuid"), entry.get("hostname"), entry.get("services")
    if not isinstance(uuid, str) or not UUID.fullmatch(uuid) or not isinstance(services, list):
        return None
    hostname = "" if hostname is None else hostname
    if not isinstance(hostname, str) or len(hostname) > HOSTNAME_MAX:
        return None
    hostname = json_lines.clean_text(hostname, HOSTNAME_MAX)
    for service in services:
        if isinstance(service, dict) and service.get("service") == HEARTBEAT:
            return Listed(uuid.lower(), hostname, service.get("state") == "enabled")
    return None
