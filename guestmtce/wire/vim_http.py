"""REST bodies between the VIM and guestAgent, both ways.

docs/protocol/3-vim-http.md#commands
docs/protocol/3-vim-http.md#events

The VIM's client is unforgiving: every reply that is not 204 must be a JSON object, every timeout a string of
digits (docs/protocol/3-vim-http.md#failures). `Failure` carries what a refused command is answered with.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Optional

from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.datagram import HEARTBEAT, HOSTNAME_MAX, UUID, state_word

# docs/protocol/3-vim-http.md#requests-and-their-limits, #events
BODY_MAX = 64 * 1024  # bytes
VIM_USER_AGENT = "vim/1.0"
AGENT_USER_AGENT = "guest-agent/1.0"
EVENT_PATH = "/nfvi-plugins/v1/"

# The `reason` of a failure (docs/protocol/3-vim-http.md#failures).
PARSE_ERROR = "command parse error"
NO_BUFFER = "no buffer"
NOT_FOUND = "entity not found"
INVALID = "invalid data"
BAD_STATE = "bad state"
UNSUPPORTED = "unsupported http command"


class Failure(Exception):
    """A refused command: the HTTP `status` and the `reason` of the body that answers it.

    docs/protocol/3-vim-http.md#failures

    `detail` is for the log alone: it says what was wrong.
    """

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
    """The body of a command: what all commands have, and all its `fields`.

    `uuid` is spelled as in the path, and so it is in the reply. `hostname` has 1 … HOSTNAME_MAX bytes.
    """

    uuid: str
    hostname: str
    fields: Dict[str, Any]


def load_body(data: bytes) -> Dict[str, Any]:
    """The JSON object in a request's body, `data`. Raises Failure 400."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Failure(400, PARSE_ERROR, "the body is no JSON") from None
    if not isinstance(value, dict):
        raise Failure(400, PARSE_ERROR, "the body is no JSON object")
    return value


def _read_hostname(fields: Dict[str, Any], name: str = "hostname") -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value or len(value) > HOSTNAME_MAX:
        raise Failure(400, INVALID, "no usable %r" % name)
    return json_lines.clean_text(value, HOSTNAME_MAX)


def parse_named(uuid: str, data: bytes) -> Named:
    """A body `{uuid, hostname, …}` for the path's `uuid`; its own may be missing. Raises Failure 400."""
    fields = load_body(data)
    # One uuid in two spellings is one instance; the reply has the path's
    # (docs/protocol/3-vim-http.md#commands).
    if str(fields.get("uuid", uuid)).lower() != uuid.lower():
        raise Failure(400, INVALID, "the body's uuid is not the path's")
    if not UUID.fullmatch(uuid):
        raise Failure(400, INVALID, "the path's uuid is none")
    return Named(uuid, _read_hostname(fields), fields)


def parse_create(uuid: str, data: bytes) -> Named:
    """An instance create: its services, if named, are a list of `heartbeat` only. Raises Failure 400."""
    named = parse_named(uuid, data)
    services = named.fields.get("services", [HEARTBEAT])
    if not isinstance(services, list) or any(service != HEARTBEAT for service in services):
        raise Failure(400, INVALID, "services other than heartbeat")
    return named


def parse_set(uuid: str, data: bytes) -> tuple[Named, bool]:
    """An instance set: the body, and whether reporting is to be enabled. Raises Failure 400."""
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
    """A vote or notify: the body, and one of guest_channel.EVENT_TYPES. Raises Failure 400."""
    named = parse_named(uuid, data)
    action = named.fields.get("action")
    if action not in guest_channel.EVENT_TYPES:
        raise Failure(400, INVALID, "unknown action")
    return named, str(action)


def host_reply(uuid: str, hostname: str, reporting: bool) -> Dict[str, str]:
    """The reply to a host query (docs/protocol/3-vim-http.md#commands)."""
    return {"uuid": uuid, "hostname": hostname, "state": state_word(reporting)}


def _make_service(reporting: bool, heartbeating: bool, restart_secs: int) -> Dict[str, str]:
    return {
        "service": HEARTBEAT,
        "state": state_word(reporting),
        "status": state_word(heartbeating),
        # One that is missing, empty or no integer breaks the VIM's client
        # (docs/protocol/3-vim-http.md#how-the-vims-client-behaves).
        "restart-timeout": str(restart_secs if heartbeating else 0),
    }


def services_reply(
    uuid: str, hostname: str, reporting: bool, heartbeating: bool, restart_secs: int
) -> Dict[str, Any]:
    """The reply to an instance set or query (docs/protocol/3-vim-http.md#services-reply).

    `restart_secs` is the guest's restart timeout, s; it is "0" to the VIM while the guest does not heartbeat.
    """
    return {
        "uuid": uuid,
        "hostname": hostname,
        "services": [_make_service(reporting, heartbeating, restart_secs)],
    }


def action_reply(uuid: str, hostname: str, action: str, timeout_secs: int) -> Dict[str, str]:
    """The reply to a vote or notify (docs/protocol/3-vim-http.md#timeouts-of-votes-and-notices).

    `timeout_secs` is how long, in s, the VIM is to wait; 0: the guest will not answer.
    """
    return {"uuid": uuid, "hostname": hostname, "action": action, "timeout": str(timeout_secs)}


# --- events: guestAgent → the VIM ------------------------------------------------------------------


def service_event(
    uuid: str, hostname: str, reporting: bool, heartbeating: bool, restart_secs: int
) -> Dict[str, Any]:
    """The event that reports a changed state or status; the fields are those of `services_reply`."""
    data = {"services": [_make_service(reporting, heartbeating, restart_secs)]}
    return {"uuid": uuid, "hostname": hostname, "event-type": "service", "event-data": data}


def alarm_event(uuid: str, hostname: str, state: str, repair_action: str) -> Dict[str, Any]:
    """The event that reports a failure; `state` is `failed` (heartbeat loss) or `unhealthy`."""
    data = {"services": [{"service": HEARTBEAT, "state": state, "repair-action": repair_action}]}
    return {"uuid": uuid, "hostname": hostname, "event-type": "alarm", "event-data": data}


def action_event(uuid: str, notification_type: str, action: str, vote: str, reason: str) -> Dict[str, Any]:
    """The event that reports the outcome of a vote or notice (docs/protocol/3-vim-http.md#outcomes).

    `vote` is one of guest_channel.VOTE_RESULTS. Only `reject` is a no: a guest that timed out or is broken
    must not hang the VIM.
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
    """An instance in the VIM's list of a host's instances.

    docs/protocol/3-vim-http.md#questions-to-the-vim

    `uuid` is in lower case. An empty `hostname` stands for the host whose instances were asked for.
    """

    uuid: str
    hostname: str
    reporting: bool


def parse_host_state(reply: Any) -> Optional[bool]:
    """Whether reporting is enabled for the host, or None when the reply does not say."""
    state = reply.get("state") if isinstance(reply, dict) else None
    # Another JSON value may be no key of a dict: a list raises TypeError.
    return {"enabled": True, "disabled": False}.get(state) if isinstance(state, str) else None


def parse_instances(reply: Any) -> Optional[List[Listed]]:
    """The instances that have the service `heartbeat`, or None when the reply is no list of instances.

    An entry that cannot be read is left out: it must not hide the others.
    """
    entries = reply.get("instances") if isinstance(reply, dict) else None
    # None and an empty list differ: a VIM that answers nonsense must not take all instances from a host.
    if not isinstance(entries, list):
        return None
    instances = [_parse_instance(entry) for entry in entries]
    return [instance for instance in instances if instance is not None]


def _parse_instance(entry: Any) -> Optional[Listed]:
    """The instance of an entry; None: it cannot be read, or does not take part in heartbeating."""
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
