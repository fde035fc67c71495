"""What the VIM must be told: per instance, in order, once, until it has it (level, not edge).

Pure; the caller holds the lock. Kept is not a queue of old news but what is still true: the latest service
state, failures that are not over, outcomes of votes and notices that the VIM still waits for. `next_request`
gives what to deliver now; one method per possible end (`note_delivered`, `note_refused`, `note_unreached`,
`note_put_off`, `note_unanswered`, `note_unsent`) says how that went.

Across all instances alarms go before outcomes and those before service states, the oldest first; but an
instance's older outcome is delivered before its alarm, to keep its order. Queries to the VIM come last
(docs/protocol/3-vim-http.md#how-events-are-delivered). `vim_lanes` has whose turn it is, `vim_pace` when
another request may be begun: up to CONNECTIONS at once, never two of one instance, and all but one place is
for alarms. An answer that does not come holds up no other instance's alarm.

An alarm that the VIM has in full and did not answer may still be processed, and must not be repeated: it
would restart a repair. The VIM is *asked about* it: it serves its connections in the order in which they
were made, so any answer to a later GET proves that the alarm was processed
(docs/protocol/3-vim-http.md#alarms-that-were-not-answered). That holds for one whose failure is over, too:
a new one in the same words waits for what becomes of it, and is delivered by it if the VIM processes it now.

With an event goes the datagram that brought it: its guestServer waits for a confirmation (`held_origins`).
"""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

from guestmtce.agent.effects import (
    NEVER,
    AskVim,
    Effect,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Withdraw,
)
from guestmtce.agent.held_origins import HeldOrigins, is_same_datagram
from guestmtce.agent.model import Origin
from guestmtce.agent.vim_lanes import Lanes, PendingEvent
from guestmtce.agent.vim_pace import VimPace
from guestmtce.agent.vim_request import (
    ACTION,
    ALARM,
    SERVICE,
    VIM_QUERY,
    EventKey,
    Report,
    VimRequest,
    make_event,
    make_query,
)
from guestmtce.common.log_line import ERROR, INFO, WARNING, LogLine

# How often an alarm is offered to a VIM that refuses it: it does not know the instance, or not yet
# (docs/protocol/3-vim-http.md#how-events-are-delivered).
# With the default retry_max that is ten minutes: longer than a VIM takes to start.
REFUSALS_MAX = 64
ACTIONS_MAX = 16  # outcomes kept per instance


class VimQueue:
    """See the module's text. Times in s, monotonic; those of the constructor are `[timers] vim_retry_…`."""

    def __init__(self, retry_first: float, retry_max: float) -> None:
        self.delivered = self.withdrawn = self.given_up = self.expired = 0
        self._retry = (min(retry_first, retry_max), retry_max)
        self._lanes = Lanes()
        self._pace = VimPace(*self._retry)
        self._queries: Dict[Tuple[str, str], VimRequest] = {}  # by host's name and topic
        self._asking: Optional[VimRequest] = None  # the query that is under way
        self._origins = HeldOrigins()
        self._order = itertools.count()
        self._lines: List[LogLine] = []

    def __len__(self) -> int:
        """How many events wait."""
        return len(self._lanes)

    # --- what is to be delivered -------------------------------------------------------------------

    def accept_effect(self, effect: Effect) -> None:
        """Take an effect of the inventory; one that does not concern the VIM changes nothing."""
        accept = _ACCEPT.get(type(effect))
        if accept is not None:
            accept(self, effect)

    def add_alarm(self, effect: ReportAlarm, sent_to: Optional[int] = None) -> None:
        """Take a failure.

        `sent_to`: an agent before this one was sending it to that VIM, which is asked about it first.
        """
        key = EventKey(ALARM, effect.state)
        before = self._lanes.find_event(effect.uuid, key)
        if before is not None and is_same_datagram(before.request.origin, effect.origin):
            return  # it may be on its way
        event = self._make_event(key, effect, NEVER)
        # An old guestServer, which gives no origin, says a loss once: each is another one.
        if before is not None and effect.origin is not None and before.request.body == effect.body:
            self._inherit_fate(event, before)
        if sent_to is not None:
            event.asks, event.sent_to = True, sent_to
        self._put_event(event)

    def _add_service(self, effect: ReportService) -> None:
        self._replace_event(EventKey(SERVICE, ""), effect)

    def _add_action(self, effect: ReportAction) -> None:
        self._replace_event(EventKey(ACTION, str(next(self._order))), effect, effect.until)
        self._limit_actions(effect.uuid)

    def _inherit_fate(self, event: PendingEvent, before: PendingEvent) -> None:
        """What an alarm in the same words as one that the VIM may have takes over from that.

        One that is under way delivers both. One that is asked about has both wait for the answer.
        """
        lane = self._lanes.find_lane(event.request.uuid)
        if lane is not None and lane.out is not None and lane.is_reporting(before):
            event.delivered_by = lane.out.order
        if before.asks:
            event.asks, event.sent_to = True, before.sent_to
            # The wait goes on: whoever fails again and again must not have the VIM asked without a pause.
            event.failures, event.not_before = before.failures, before.not_before

    def _replace_event(self, key: EventKey, report: Report, until: float = NEVER) -> None:
        self._put_event(self._make_event(key, report, until))

    def _make_event(self, key: EventKey, report: Report, until: float) -> PendingEvent:
        return PendingEvent(make_event(key, report, next(self._order)), until, *self._retry)

    def _put_event(self, event: PendingEvent) -> None:
        """In place of the one with the same key: the newer one takes a new place, and is offered as often."""
        # Held before the old one is released: both may come from one datagram, which must not be confirmed.
        self._origins.hold_origin(event.request.origin)
        self._remove_event(event.request)
        self._lanes.add_event(event)

    def _limit_actions(self, uuid: str) -> None:
        # list_keys gives the oldest first: the newest stay.
        keys = [key for key in self._lanes.list_keys(uuid) if key.kind == ACTION]
        for key in keys[:-ACTIONS_MAX]:
            text = "%s: more than %d outcomes wait for the VIM: the oldest is dropped"
            self._log(ERROR, text, uuid, ACTIONS_MAX)
            self._drop_event(uuid, key)

    def _withdraw_failures(self, effect: Withdraw) -> None:
        for state in effect.states:
            if self._withdraw_event(effect.uuid, EventKey(ALARM, state), effect.unwanted):
                self.withdrawn += 1
                text = "%s: failure (%s) cleared before the VIM was told: %s"
                self._log(WARNING, text, effect.uuid, state, effect.why)

    def _withdraw_event(self, uuid: str, key: EventKey, unwanted: bool) -> bool:
        """The failure is over. What the VIM may have of it is asked about until that is known."""
        lane, event = self._lanes.find_lane(uuid), self._lanes.find_event(uuid, key)
        if lane is None or event is None:
            return False
        # A VIM that has disabled reporting has read what there was; nothing of it is to be asked about.
        was_withdrawn = event.withdrawn
        if unwanted or not (event.asks or lane.is_reporting(event)):
            self._drop_event(uuid, key)
        else:
            # It stays for the answer alone. Its server is confirmed now: the failure is over, whatever the
            # VIM has of it.
            event.withdrawn = True
            self._origins.release_origin(event.request.origin)
            event.request = event.request._replace(origin=None)
        return not was_withdrawn

    def _forget_instance(self, effect: ForgetVimEvents) -> None:
        for key in self._lanes.list_keys(effect.uuid):
            self._drop_event(effect.uuid, key)

    def _add_query(self, effect: AskVim) -> None:
        query = make_query(effect, next(self._order))
        # One under way is answered as it was put; with its end this one is done, too.
        self._queries[query.uuid, query.topic] = query

    def _remove_event(self, request: VimRequest) -> None:
        """Its event, or a newer one with its key, waits no more."""
        self._drop_event(request.uuid, request.key)

    def _drop_event(self, uuid: str, key: EventKey) -> bool:
        event = self._lanes.remove_event(uuid, key)
        if event is not None:
            self._origins.release_origin(event.request.origin)
        return event is not None

    # --- what comes of it --------------------------------------------------------------------------

    def take_confirmable(self) -> List[Origin]:
        """The datagrams of which the VIM has all now, or is not to hear any more."""
        return self._origins.take_confirmable()

    def take_log_lines(self) -> List[LogLine]:
        """What is to be logged."""
        lines, self._lines = self._lines, []
        return lines

    def holds_origin(self, origin: Origin) -> bool:
        """Whether something of this datagram still waits."""
        return self._origins.holds(origin)

    def _log(self, level: int, text: str, *values: object) -> None:
        self._lines.append(LogLine(level, text, values))

    # --- what is next ------------------------------------------------------------------------------

    def next_request(self, now: float) -> Optional[VimRequest]:
        """What to deliver now, if anything. It is under way until one of the methods below is called."""
        # Before the pause is looked at: outcomes end, and are confirmed, while the VIM is away, too.
        self._drop_expired(now)
        if now < self._pace.allowed_at():
            return None
        first = self._lanes.find_first(self._pace.has_room)
        if first is not None:
            return self._begin_event(*first, now)
        if self._queries and self._pace.has_room(VIM_QUERY):
            self._asking = next(iter(self._queries.values()))
            self._pace.begin_request(self._asking.order, VIM_QUERY, now)
            return self._asking
        return None

    def next_due(self) -> float:
        """When `next_request` may have what it has not now; infinity when nothing waits for a time."""
        due = self._lanes.next_due
        if self._lanes.find_first(self._pace.has_room) is not None or (
            self._queries and self._pace.has_room(VIM_QUERY)
        ):
            due = min(due, self._pace.allowed_at())
        return due

    def is_wanted(self, request: VimRequest, now: float) -> bool:
        """Whether it is still to be sent: while its connection was made it may have been withdrawn."""
        if request.kind == VIM_QUERY:
            return True
        lane = self._lanes.find_lane(request.uuid)
        event = self._lanes.find_event(request.uuid, request.key)
        if lane is None or event is None or now >= event.until:
            return False
        # An alarm that is over is asked about all the same: what the VIM has of it decides what a new one may
        # do.
        if request.asks:
            return lane.is_reporting(event) and lane.out is not None and lane.out.order == request.order
        # Another order: a newer event has taken its place, and goes by itself.
        return event.request.order == request.order and not event.withdrawn

    def _begin_event(self, uuid: str, place: int, now: float) -> VimRequest:
        event = self._lanes.begin_event(uuid, place)
        self._pace.begin_request(event.request.order, place, now)
        return event.request.ask_about(event.sent_to) if event.asks else event.request

    def _drop_expired(self, now: float) -> None:
        for event in self._lanes.look_again(now):
            if self._drop_event(event.request.uuid, event.request.key):
                self.expired += 1
                text = "%s: the outcome of a vote or notice was dropped: the VIM no longer waits for it"
                self._log(INFO, text, event.request.uuid)

    # --- how a delivery ended ----------------------------------------------------------------------

    def note_delivered(self, request: VimRequest) -> None:
        """The VIM has it: it answered, or it answered the query about it."""
        self._pace.note_reached()
        # None: something newer of the same key has come meanwhile, which the VIM does not have.
        if self._end_request(request) is not None:
            self._remove_event(request)
        if request.kind != VIM_QUERY:
            self.delivered += 1

    def note_refused(self, request: VimRequest, now: float) -> None:
        """The VIM closed without a byte or said no for good.

        That is success for a state and an outcome. An alarm is offered again: the VIM may not know the
        instance yet. Asked about an alarm it means nothing, and it is asked again
        (docs/protocol/3-vim-http.md#alarms-that-were-not-answered).
        """
        if request.kind != ALARM:
            self.note_delivered(request)
            return
        self._pace.note_reached()
        # Of a query about an alarm a withdrawn one stays: a close without a byte says nothing of what the VIM
        # has.
        event = self._end_request(request) if request.asks else self._end_undelivered(request)
        if event is None:
            return
        event.refused += 1
        if event.refused >= REFUSALS_MAX:
            text = "%s: the VIM refused the alarm (%s) %d times: given up; see whether it has this instance"
            self._log(ERROR, text, request.uuid, request.topic, event.refused)
            self.given_up += 1
            self._remove_event(request)
        else:
            self._lanes.delay_event(event, now + event.refusals.next_delay())

    def note_put_off(self, request: VimRequest, now: float) -> None:
        """The VIM does not have it, but somebody is there: this one again after a while; no other waits."""
        self._pace.note_reached()
        event = self._end_request(request) if request.asks else self._end_undelivered(request)
        if event is not None:
            self._lanes.delay_event(event, now + event.failures.next_delay())

    def note_unanswered(self, request: VimRequest, now: float, sent_to: int = 0) -> None:
        """The VIM has the whole request and did not answer in time; it may still process it.

        An alarm is asked about. An outcome is in the VIM's hands: a second one would meet another action. A
        state is told again. `sent_to` is the VIM that has it.
        """
        if request.kind == ACTION:
            self.note_delivered(request)
            return
        event = self._end_request(request)
        if event is None:
            return
        if request.kind == ALARM and not request.asks:
            event.asks, event.sent_to = True, sent_to
            # From here on the waits are those between two queries about it.
            event.failures.reset()
        self._lanes.delay_event(event, now + event.failures.next_delay())

    def note_unreached(self, request: VimRequest, now: float, down: bool = False) -> None:
        """The VIM does not have it: try again, everything, after a while. An alarm asked about is sent again.

        `down`: nobody listens there.
        """
        self._pace.note_unreached(now, down)
        self.note_unsent(request)

    def note_unsent(self, request: VimRequest) -> None:
        """It was not sent, or to a VIM that is gone: an alarm is to be sent, not asked about."""
        event = self._end_undelivered(request)
        if event is not None:
            # Where it was asked about, the VIM that had it is gone
            # (docs/protocol/3-vim-http.md#alarms-that-were-not-answered).
            event.asks = False
            self._lanes.update_place(request.uuid)

    def _end_request(self, request: VimRequest) -> Optional[PendingEvent]:
        """The request is no longer under way. Returns what waits for its end: None if it is void meanwhile.

        A query is done in any case: the next audit asks again.
        """
        if request.kind == VIM_QUERY:
            if self._asking is request:
                self._pace.end_request(request.order, VIM_QUERY)
                self._asking = None
                # Also a newer one of the same key, which nobody asks: the audit makes another (see
                # _add_query).
                del self._queries[request.uuid, request.topic]
            return None
        out = self._lanes.end_event(request.uuid, request.order)
        if out is None:
            return None  # it has ended before
        self._pace.end_request(out.order, out.place)
        event = self._lanes.find_event(request.uuid, request.key)
        if event is not None and request.order in (event.request.order, event.delivered_by):
            return event
        return None

    def _end_undelivered(self, request: VimRequest) -> Optional[PendingEvent]:
        """The same, where the VIM does not have an alarm: one whose failure is over is done with that."""
        event = self._end_request(request)
        if event is not None and event.withdrawn:
            self._remove_event(request)
            return None
        return event


_ACCEPT: Dict[Type[Any], Callable[[VimQueue, Any], None]] = {
    ReportAlarm: VimQueue.add_alarm,
    ReportService: VimQueue._add_service,
    ReportAction: VimQueue._add_action,
    Withdraw: VimQueue._withdraw_failures,
    ForgetVimEvents: VimQueue._forget_instance,
    AskVim: VimQueue._add_query,
}
