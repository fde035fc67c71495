"""One request to the VIM, as a value (docs/protocol/3-vim-http.md#events)."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional, Union

from guestmtce.agent.effects import AskVim, ReportAction, ReportAlarm, ReportService
from guestmtce.agent.model import Origin
from guestmtce.wire import vim_http

# What a request is, the gravest first: so they go. A VIM_QUERY is a GET that the audit wants answered; a
# *question* is always one to a guest.
ALARM, ACTION, SERVICE, VIM_QUERY = range(4)

HOST_STATE, HOST_INSTANCES = "state", "instances"  # topics of a VIM_QUERY

Report = Union[ReportService, ReportAlarm, ReportAction]


class EventKey(NamedTuple):
    """What tells one event of an instance from its others; a newer one of the same key takes its place.

    `topic` is an alarm's state, nothing for a service state, and a number for an outcome: each is kept.
    """

    kind: int
    topic: str


class VimRequest(NamedTuple):
    """`body` is what it carries; `order` is its place among all, and identifies it.

    `uuid` is the instance's; of a VIM_QUERY it is the host's name, and `topic` HOST_STATE or HOST_INSTANCES.
    `serial` is that of the query (`effects.AskVim`): its answer is noted with it.

    `asks`: an alarm that the VIM may have already; the request only asks about it. `sent_to` is then the VIM
    (`vim_listener.identify_listener`) that may have it, 0 if that is not known.
    """

    kind: int
    uuid: str
    topic: str
    order: int
    method: str
    path: str
    body: Mapping[str, object]
    origin: Optional[Origin] = None
    serial: int = 0
    asks: bool = False
    sent_to: int = 0

    @property
    def key(self) -> EventKey:
        """Which event of its instance it is."""
        return EventKey(self.kind, self.topic)

    def ask_about(self, sent_to: int) -> VimRequest:
        """The request that asks whether the VIM has processed this alarm."""
        return self._replace(method="GET", body={}, asks=True, sent_to=sent_to)


def make_event(key: EventKey, report: Report, order: int) -> VimRequest:
    """The request that delivers an event."""
    path = vim_http.EVENT_PATH + "instances/" + report.uuid
    return VimRequest(key.kind, report.uuid, key.topic, order, "PATCH", path, report.body, report.origin)


def make_query(effect: AskVim, order: int) -> VimRequest:
    """The request that asks for a host's state, or for its instances."""
    topic, path = HOST_INSTANCES, "instances/?host_uuid=" + effect.uuid
    body: Mapping[str, object] = {}
    if not effect.instances:
        topic, path = HOST_STATE, "hosts/" + effect.uuid
        # A GET with a body: the VIM takes the host's name from there
        # (docs/protocol/3-vim-http.md#questions-to-the-vim).
        body = {"hostname": effect.hostname, "uuid": effect.uuid}
    path = vim_http.EVENT_PATH + path
    return VimRequest(VIM_QUERY, effect.hostname, topic, order, "GET", path, body, None, effect.serial)
