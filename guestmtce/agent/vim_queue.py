"""What the VIM must be told: per instance, in order, once, until it has it (level, not edge).

Pure; the caller holds the lock. Kept is not a queue of old news but what is still true: the latest service
state, failures that are not over, outcomes of votes and notices that the VIM still waits for. `next` gives
what to deliver now; one method per possible end (`delivered`, `refused`, `unreached`, `put_off`,
`unanswered`) says how that went.

Across all instances alarms go before outcomes and those before service states, the oldest first; but an
outcome that an instance has to tell from before its alarm goes first. Questions to the VIM come last
(docs/protocol/3-vim-http.md#how-events-are-delivered). The VIM serves one request at a time, so a second
one is begun only beside one that was not answered within BESIDE_AFTER: up to CONNECTIONS at once, never two
of one instance, and all but one place is for alarms. An answer that does not come holds up no other
instance's alarm.

An alarm that the VIM has in full and did not answer may still be processed, and must not be repeated: it
would restart a repair. The VIM is *asked about* it: it serves its connections in the order in which they
were made, so any answer to a later GET proves that the alarm was processed
(docs/protocol/3-vim-http.md#alarms-that-were-not-answered). That holds for one whose failure is over, too:
a new one that would be told in the same words waits for what becomes of it, and is told by it if the VIM
processes it now.

With an item goes the datagram that brought it: its guestServer waits for a confirmation (`Origin`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from guestmtce.agent import model
from guestmtce.wire import vim_http

log = logging.getLogger(__name__)

ALARM, ACTION, SERVICE, QUESTION = range(4)
# How often an alarm is offered to a VIM that refuses it: it does not know the instance, or not yet
# (docs/protocol/3-vim-http.md#how-events-are-delivered).
# With the default retry_max that is ten minutes: longer than a VIM takes to start.
REFUSALS_MAX = 64
DOWN_RETRY_MAX = 4.0  # s between two attempts at a VIM that does not listen
ACTIONS_MAX = 16  # outcomes kept per instance
CONNECTIONS = 4  # requests under way at once
BESIDE_AFTER = 0.02  # s without an answer after which another request is begun; the VIM takes about 1 ms
OTHERS_MAX = 1  # of these, requests that are no alarm's; the rest is for alarms
STALE_MAX = 64  # places in the heap that are void, beyond two per instance, before it is made anew
NEVER = float("inf")

Tells = Union[model.TellService, model.TellAlarm, model.TellAction]
Key = Tuple[int, str]  # kind, and what tells one of its kind from another of the same instance


class Item(NamedTuple):
    """One request to the VIM. `body` is what it carries; `order` is its place among all.

    `serial` is that of a question (`rows.AskVim`): its answer is told with it.

    `asks`: an alarm that the VIM may have already; the request only asks about it. `sent_to` is then the VIM
    (`vimcall.listener`) that may have it, 0 if that is not known.
    """

    kind: int
    uuid: str
    what: str
    order: int
    method: str
    path: str
    body: Dict[str, Any]
    origin: Optional[model.Origin] = None
    serial: int = 0
    asks: bool = False
    sent_to: int = 0


class _Pending:
    """An item that waits. `not_before` is 0.0 when it may go, `until` the end of its use (s, monotonic).

    `told_by`: the order of an older alarm's request that is under way and tells this one, too. `withdrawn`:
    its failure is over, and the VIM may have it all the same.
    """

    __slots__ = (
        "asks",
        "failures",
        "item",
        "not_before",
        "refusals",
        "sent_to",
        "told_by",
        "until",
        "withdrawn",
    )

    def __init__(self, item: Item, until: float) -> None:
        self.item = item
        self.until = until
        self.not_before = 0.0
        self.failures = self.refusals = 0  # in a row
        self.asks = self.withdrawn = False
        self.sent_to = 0
        self.told_by = -1


class _Lane:
    """What one instance has to tell. `place` is its valid entry in the heap of those that may go."""

    __slots__ = ("out", "pending", "place")

    def __init__(self) -> None:
        self.pending: Dict[Key, _Pending] = {}
        self.out: Optional[Tuple[int, int]] = None  # the request under way: kind of its place, its order
        self.place: Optional[Tuple[int, int]] = None  # kind and order


class Outbox:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, retry_first: float, retry_max: float) -> None:
        self.told = self.withdrawn = self.given_up = self.expired = 0
        self._retry_first = retry_first
        self._retry_max = retry_max
        self._lanes: Dict[str, _Lane] = {}
        self._waiting = 0  # items
        # Heap of kind, order, uuid; an entry is valid if it is the lane's place.
        self._ready: List[Tuple[int, int, str]] = []
        self._timed: List[Tuple[float, str]] = []  # heap: when a lane is to be looked at again
        self._questions: Dict[Tuple[str, str], Item] = {}
        self._asking: Optional[Item] = None  # the question that is under way
        self._alarms_out = self._others_out = 0
        self._begun: Dict[int, float] = {}  # order of what is under way → since when
        self._held: Dict[Tuple[int, ...], int] = {}  # sender and number, whatever the address
        self._settled: List[model.Origin] = []
        self._order = itertools.count()
        self._delay = 0.0  # present back-off from a VIM that cannot be reached
        self._not_before = -NEVER

    def __len__(self) -> int:
        return self._waiting

    # --- what is to be told ------------------------------------------------------------------------

    def take(self, effect: model.Effect, sent_to: Optional[int] = None) -> None:
        """An effect of the inventory that concerns the VIM.

        `sent_to`: an agent before this one was sending the alarm to that VIM, which is asked about it first.
        """
        if isinstance(effect, model.TellService):
            self._keep(SERVICE, "", effect)
        elif isinstance(effect, model.TellAlarm):
            self._keep(ALARM, effect.state, effect, sent_to=sent_to)
        elif isinstance(effect, model.TellAction):
            self._keep(ACTION, str(next(self._order)), effect, effect.until)
            self._limit_actions(effect.uuid)
        elif isinstance(effect, model.Withdraw):
            for state in effect.states:
                if self._withdraw(effect.uuid, (ALARM, state), effect.unwanted):
                    self.withdrawn += 1
                    log.warning("%s: an untold failure (%s) is over: %s", effect.uuid, state, effect.why)
        elif isinstance(effect, model.Drop):
            lane = self._lanes.get(effect.uuid)
            for key in list(lane.pending) if lane is not None else ():
                self._remove(effect.uuid, key)
        elif isinstance(effect, model.AskVim):
            self._question(effect)

    def _keep(
        self, kind: int, what: str, effect: Tells, until: float = NEVER, sent_to: Optional[int] = None
    ) -> None:
        lane = self._lanes.setdefault(effect.uuid, _Lane())
        before = lane.pending.get((kind, what))
        if kind == ALARM and before is not None and _is_same(before.item.origin, effect.origin):
            return  # it may be on its way
        path = vim_http.EVENT_PATH + "instances/" + effect.uuid
        item = Item(kind, effect.uuid, what, next(self._order), "PATCH", path, effect.body, effect.origin)
        if item.origin is not None:
            self._held[item.origin[1:]] = self._held.get(item.origin[1:], 0) + 1
        # An old guestServer, which gives no origin, says a loss once: each is another one.
        same = (
            kind == ALARM and before is not None and before.item.body == item.body and item.origin is not None
        )
        told_by = self._told_by(lane, before) if same else -1
        self._remove(effect.uuid, (kind, what))  # the newer one takes a new place, and is offered as often
        lane = self._lanes.setdefault(effect.uuid, lane)  # it goes with its last item
        pending = lane.pending[kind, what] = _Pending(item, until)
        self._waiting += 1
        pending.told_by = told_by
        if same and before is not None and before.asks:
            pending.asks, pending.sent_to = True, before.sent_to
            pending.failures, pending.not_before = before.failures, before.not_before
        if sent_to is not None:
            pending.asks, pending.sent_to = True, sent_to
        if until < NEVER:
            heapq.heappush(self._timed, (until, item.uuid))
        self._place(item.uuid, lane)

    def _told_by(self, lane: _Lane, before: Optional[_Pending]) -> int:
        """The request under way that tells, or asks about, an alarm: its order; -1: there is none."""
        mine = () if before is None else (before.item.order, before.told_by)
        return lane.out[1] if lane.out is not None and lane.out[1] in mine else -1

    def _withdraw(self, uuid: str, key: Key, unwanted: bool) -> bool:
        """The failure is over. What the VIM may have of it is asked about until that is known."""
        lane = self._lanes.get(uuid)
        pending = lane.pending.get(key) if lane is not None else None
        if lane is None or pending is None:
            return False
        if unwanted or not (pending.asks or self._told_by(lane, pending) >= 0):
            return self._remove(uuid, key) and not pending.withdrawn
        was_told, pending.withdrawn = pending.withdrawn, True
        self._settle(pending.item)
        pending.item = pending.item._replace(origin=None)
        return not was_told

    def _limit_actions(self, uuid: str) -> None:
        keys = [key for key in self._lanes[uuid].pending if key[0] == ACTION]
        for key in keys[:-ACTIONS_MAX]:
            log.error("%s: too many untold outcomes, the oldest is dropped", uuid)
            self._remove(uuid, key)

    def _question(self, effect: model.AskVim) -> None:
        what, path, body = "instances", "instances/?host_uuid=" + effect.uuid, {}
        if not effect.instances:
            what, path = "state", "hosts/" + effect.uuid
            body = {"hostname": effect.hostname, "uuid": effect.uuid}
        key, path = (effect.hostname, what), vim_http.EVENT_PATH + path
        # One under way is answered as it was put; with its end this one is done, too.
        self._questions[key] = Item(QUESTION, *key, next(self._order), "GET", path, body, None, effect.serial)

    def _remove(self, uuid: str, key: Key) -> bool:
        lane = self._lanes.get(uuid)
        pending = lane.pending.pop(key, None) if lane is not None else None
        if lane is None or pending is None:
            return False
        self._waiting -= 1
        self._settle(pending.item)
        self._place(uuid, lane)
        return True

    # --- what guestServers wait for ----------------------------------------------------------------

    def take_settled(self) -> List[model.Origin]:
        """The origins of what the VIM has now, or is not to hear any more."""
        settled, self._settled = self._settled, []
        return settled

    def holds(self, origin: model.Origin) -> bool:
        """Whether what came from there still waits."""
        return origin[1:] in self._held

    def _settle(self, item: Item) -> None:
        if item.origin is not None:
            named = item.origin[1:]
            self._held[named] -= 1
            if not self._held[named]:
                del self._held[named]
                self._settled.append(item.origin)

    # --- who is next -------------------------------------------------------------------------------

    def next(self, now: float) -> Optional[Item]:
        """What to deliver now, if anything. It is under way until one of the methods below is called."""
        self._look_again(now)
        if now < self._allowed_at():
            return None
        first = self._first()
        if first is not None:
            item = self._start(*first)
        elif self._questions and self._has_room(QUESTION):
            item = self._asking = next(iter(self._questions.values()))
            self._count_out(QUESTION, 1)
        else:
            return None
        self._begun[item.order] = now
        return item

    def next_at(self) -> float:
        """When `next` may have something that it has not now; infinity when nothing waits for a time."""
        when = self._timed[0][0] if self._timed else NEVER
        if self._first() is not None or (self._questions and self._has_room(QUESTION)):
            when = min(when, self._allowed_at())
        return when

    def _allowed_at(self) -> float:
        """When something may be begun, if there is room for it."""
        return max(self._not_before, max(self._begun.values(), default=-NEVER) + BESIDE_AFTER)

    def _has_room(self, kind: int) -> bool:
        if self._alarms_out + self._others_out >= CONNECTIONS:
            return False
        return kind == ALARM or self._others_out < OTHERS_MAX

    def _first(self) -> Optional[Tuple[str, int]]:
        """The instance that is next, and the kind of place it takes, if there is room for that."""
        while self._ready:
            kind, order, uuid = self._ready[0]
            lane = self._lanes.get(uuid)
            if lane is None or lane.place != (kind, order):
                heapq.heappop(self._ready)  # void
                continue
            return (uuid, kind) if self._has_room(kind) else None
        return None

    def _start(self, uuid: str, kind: int) -> Item:
        lane = self._lanes[uuid]
        ready = [one for one in lane.pending.values() if not one.not_before]
        # Before an alarm go older outcomes, but no older state.
        pending = min(
            (one for one in ready if one.item.kind < SERVICE or kind != ALARM), key=lambda one: one.item.order
        )
        lane.out = (kind, pending.item.order)
        lane.place = None
        self._count_out(kind, 1)
        if pending.asks:
            return pending.item._replace(method="GET", body={}, asks=True, sent_to=pending.sent_to)
        return pending.item

    def _count_out(self, kind: int, change: int) -> None:
        if kind == ALARM:
            self._alarms_out += change
        else:
            self._others_out += change

    def _place(self, uuid: str, lane: _Lane) -> None:
        """The instance's place among those that may go, after something has changed."""
        if not lane.pending and lane.out is None:
            self._lanes.pop(uuid, None)
            lane.place = None
            return
        ready = [(one.item.kind, one.item.order) for one in lane.pending.values() if not one.not_before]
        place = min(ready) if ready and lane.out is None else None
        if place is not None and place != lane.place:
            heapq.heappush(self._ready, (*place, uuid))
        lane.place = place
        if len(self._ready) > 2 * len(self._lanes) + STALE_MAX:
            lanes = self._lanes.items()
            self._ready = [(*known.place, name) for name, known in lanes if known.place is not None]
            heapq.heapify(self._ready)

    def _look_again(self, now: float) -> None:
        """What has waited long enough may go; what nobody wants any more is dropped."""
        while self._timed and self._timed[0][0] <= now:
            uuid = heapq.heappop(self._timed)[1]
            lane = self._lanes.get(uuid)
            if lane is None:
                continue
            for key, pending in list(lane.pending.items()):
                if pending.not_before <= now:
                    pending.not_before = 0.0
                if pending.until <= now and self._remove(uuid, key):
                    self.expired += 1
                    log.info("%s: an outcome came too late for the VIM: dropped", uuid)
            self._place(uuid, lane)

    def wants(self, item: Item, now: float) -> bool:
        """Whether it is still to be told: while its connection was made it may have been withdrawn."""
        if item.kind == QUESTION:
            return True
        lane = self._lanes.get(item.uuid)
        pending = lane.pending.get((item.kind, item.what)) if lane is not None else None
        if lane is None or pending is None or now >= pending.until:
            return False
        if item.asks:
            return self._told_by(lane, pending) == item.order
        return pending.item.order == item.order and not pending.withdrawn

    # --- how a delivery ended ----------------------------------------------------------------------

    def delivered(self, item: Item) -> None:
        """The VIM has it: it answered, or it answered the question about it."""
        self._delay = 0.0
        if self._end(item) is not None:
            self._remove(item.uuid, (item.kind, item.what))
        if item.kind != QUESTION:
            self.told += 1

    def refused(self, item: Item, now: float) -> None:
        """The VIM closed without a byte or said no for good.

        That is success for a state and an outcome. An alarm is offered again: the VIM may not know the
        instance yet. Asked about an alarm it means nothing, and it is asked again
        (docs/protocol/3-vim-http.md#alarms-that-were-not-answered).
        """
        if item.kind != ALARM:
            self.delivered(item)
            return
        self._delay = 0.0
        pending = self._end(item) if item.asks else self._end_over(item)
        if pending is None:
            return
        pending.refusals += 1
        if pending.refusals >= REFUSALS_MAX:
            text = "%s: the VIM refused the alarm (%s) %d times: given up"
            log.error(text, item.uuid, item.what, pending.refusals)
            self.given_up += 1
            self._remove(item.uuid, (item.kind, item.what))
        else:
            self._retry(pending, pending.refusals, now)

    def put_off(self, item: Item, now: float) -> None:
        """The VIM does not have it, but somebody is there: this one again after a while; no other waits."""
        self._delay = 0.0
        pending = self._end(item) if item.asks else self._end_over(item)
        if pending is not None:
            pending.failures += 1
            self._retry(pending, pending.failures, now)

    def unanswered(self, item: Item, now: float, sent_to: int = 0) -> None:
        """The VIM has the whole request and did not answer in time; it may still process it.

        An alarm is asked about. An outcome is in the VIM's hands: a second one would meet another action. A
        state is told again. `sent_to` is the VIM that has it.
        """
        if item.kind == ACTION:
            self.delivered(item)
            return
        pending = self._end(item)
        if pending is None:
            return
        if item.kind == ALARM and not item.asks:
            pending.asks, pending.sent_to = True, sent_to
            pending.failures = 0
        pending.failures += 1
        self._retry(pending, pending.failures, now)

    def unreached(self, item: Item, now: float, down: bool = False) -> None:
        """The VIM does not have it: try again, everything, after a while. An alarm asked about is sent again.

        `down`: nobody listens there. To find that out costs nobody anything, so it is tried more often.
        """
        if now >= self._not_before:  # else another one has just found it out
            longest = min(self._retry_max, DOWN_RETRY_MAX) if down else self._retry_max
            self._delay = min(max(self._retry_first, 2 * self._delay), longest)
            self._not_before = now + self._delay
        self.unsent(item)

    def unsent(self, item: Item) -> None:
        """It was not sent, or to a VIM that is gone: an alarm is to be sent, not asked about."""
        pending = self._end_over(item)
        if pending is not None:
            pending.asks = False
            self._place(item.uuid, self._lanes[item.uuid])

    def _end(self, item: Item) -> Optional[_Pending]:
        """The request is no longer under way. Returns what waits for its end: None if it is void meanwhile.

        A question is done in any case: the next audit asks again.
        """
        if item.kind == QUESTION:
            if self._asking is item:
                del self._begun[item.order]
                self._asking = None
                self._count_out(QUESTION, -1)
                del self._questions[item.uuid, item.what]
            return None
        lane = self._lanes.get(item.uuid)
        if lane is None or lane.out is None or lane.out[1] != item.order:
            return None  # it has ended before
        self._count_out(lane.out[0], -1)
        del self._begun[item.order]
        lane.out = None
        self._place(item.uuid, lane)
        pending = lane.pending.get((item.kind, item.what))
        return (
            pending if pending is not None and item.order in (pending.item.order, pending.told_by) else None
        )

    def _end_over(self, item: Item) -> Optional[_Pending]:
        """The same, where the VIM does not have an alarm: one whose failure is over is done with that."""
        pending = self._end(item)
        if pending is not None and pending.withdrawn:
            self._remove(item.uuid, (item.kind, item.what))
            return None
        return pending

    def _retry(self, pending: _Pending, times: int, now: float) -> None:
        delay = min(self._retry_first * 2.0 ** min(times - 1, REFUSALS_MAX), self._retry_max)
        pending.not_before = now + delay
        uuid = pending.item.uuid
        heapq.heappush(self._timed, (pending.not_before, uuid))
        self._place(uuid, self._lanes[uuid])


def _is_same(one: Optional[model.Origin], other: Optional[model.Origin]) -> bool:
    """Whether both are the same datagram, whatever the address."""
    return one is not None and other is not None and one[1:] == other[1:]
