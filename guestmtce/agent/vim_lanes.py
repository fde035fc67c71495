"""What each instance has to report to the VIM, and which instance's turn it is.

docs/protocol/3-vim-http.md#how-events-are-delivered

Pure; `now` in s, monotonic. Each instance has a lane with its events, of which one at a time is under way.
Among lanes the one with the gravest event goes first, and among those of one kind the oldest. Lanes stand in
a heap, so the next one is looked up and not searched: 100,000 that wait cost no more than their delivery. An
entry of the heap becomes void when its lane's place changes, and is thrown away when it is met; the heap is
made anew when more than half of it is void.
"""

from __future__ import annotations

import heapq
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from guestmtce.agent.effects import NEVER
from guestmtce.agent.vim_request import ALARM, SERVICE, EventKey, VimRequest
from guestmtce.common.back_off import BackOff

STALE_MAX = 64  # places in the heap that are void, beyond two per instance, before it is made anew


class PendingEvent:
    """An event that waits. `not_before` is 0.0 when it may go, `until` the end of its use (s, monotonic).

    `delivered_by`: the order of an older alarm's request that is under way and delivers this one, too; -1:
    none. `withdrawn`: its failure is over, and the VIM may have it all the same.
    """

    __slots__ = (
        "asks", "delivered_by", "failures", "not_before", "refusals", "refused", "request", "sent_to",
        "until", "withdrawn",
    )  # fmt: skip

    def __init__(self, request: VimRequest, until: float, retry_first: float, retry_max: float) -> None:
        self.request = request
        self.until = until
        self.not_before = 0.0
        self.refused = 0  # times in a row
        self.refusals = BackOff(retry_first, retry_max)
        self.failures = BackOff(retry_first, retry_max)  # of any other kind
        self.asks = self.withdrawn = False
        self.sent_to = 0
        self.delivered_by = -1


class UnderWay(NamedTuple):
    """The request of a lane that is under way: the kind whose place it takes, and its order."""

    place: int
    order: int


class Lane:
    """What one instance has to report. `place` is its valid entry in the heap of those that may go."""

    __slots__ = ("out", "pending", "place")

    def __init__(self) -> None:
        self.pending: Dict[EventKey, PendingEvent] = {}
        self.out: Optional[UnderWay] = None
        self.place: Optional[Tuple[int, int]] = None  # kind and order

    def is_reporting(self, event: PendingEvent) -> bool:
        """Whether the request under way delivers this event, or asks about it."""
        return self.out is not None and self.out.order in (event.request.order, event.delivered_by)


class Lanes:
    """See the module's text. A lane lives as long as something waits in it or is under way."""

    def __init__(self) -> None:
        self._lanes: Dict[str, Lane] = {}  # by the instance's uuid
        self._count = 0  # events
        # Heap of kind, order, uuid; an entry is valid if it is the lane's place.
        self._ready: List[Tuple[int, int, str]] = []
        self._timed: List[Tuple[float, str]] = []  # heap: when a lane is to be looked at again

    def __len__(self) -> int:
        return self._count

    def find_lane(self, uuid: str) -> Optional[Lane]:
        """The instance's lane, if it has one."""
        return self._lanes.get(uuid)

    def find_event(self, uuid: str, key: EventKey) -> Optional[PendingEvent]:
        """What waits under this key."""
        lane = self._lanes.get(uuid)
        return lane.pending.get(key) if lane is not None else None

    def list_keys(self, uuid: str) -> List[EventKey]:
        """What the instance has to report, the oldest first."""
        lane = self._lanes.get(uuid)
        return list(lane.pending) if lane is not None else []

    def add_event(self, event: PendingEvent) -> None:
        """It waits from now on; nothing may wait under its key."""
        uuid = event.request.uuid
        lane = self._lanes.get(uuid)
        if lane is None:
            lane = self._lanes[uuid] = Lane()
        lane.pending[event.request.key] = event
        self._count += 1
        # Most events have no end: a heap entry for each would cost memory for nothing.
        if event.until < NEVER:
            heapq.heappush(self._timed, (event.until, uuid))
        self.update_place(uuid)

    def remove_event(self, uuid: str, key: EventKey) -> Optional[PendingEvent]:
        """It waits no more; returned, if it did."""
        lane = self._lanes.get(uuid)
        event = lane.pending.pop(key, None) if lane is not None else None
        if event is not None:
            self._count -= 1
            self.update_place(uuid)
        return event

    def delay_event(self, event: PendingEvent, until: float) -> None:
        """It may go again at `until`."""
        event.not_before = until
        # Never taken out early: an entry whose lane is gone is thrown away at its time.
        heapq.heappush(self._timed, (until, event.request.uuid))
        self.update_place(event.request.uuid)

    # --- whose turn it is --------------------------------------------------------------------------

    def find_first(self, has_room: Callable[[int], bool]) -> Optional[Tuple[str, int]]:
        """The instance that is next, and the kind of place it takes, if `has_room` for that."""
        while self._ready:
            kind, order, uuid = self._ready[0]
            lane = self._lanes.get(uuid)
            if lane is None or lane.place != (kind, order):
                heapq.heappop(self._ready)  # void: each entry is pushed once and popped once
                continue
            # Behind it stand only kinds as grave or less grave: where it has no room they have none.
            return (uuid, kind) if has_room(kind) else None
        return None

    def begin_event(self, uuid: str, place: int) -> PendingEvent:
        """The instance's event that is next is under way, in a place of that kind."""
        lane = self._lanes[uuid]
        # Before an alarm go older outcomes, but no older state.
        event = min(
            (
                one
                for one in lane.pending.values()
                if not one.not_before and (one.request.kind < SERVICE or place != ALARM)
            ),
            key=lambda one: one.request.order,
        )
        lane.out = UnderWay(place, event.request.order)
        lane.place = None
        return event

    def end_event(self, uuid: str, order: int) -> Optional[UnderWay]:
        """The request with this order has ended; None: it had ended before."""
        lane = self._lanes.get(uuid)
        # It may have ended before, and a newer one be under way by now.
        if lane is None or lane.out is None or lane.out.order != order:
            return None
        out, lane.out = lane.out, None
        self.update_place(uuid)
        return out

    @property
    def next_due(self) -> float:
        """When `look_again` has something to do."""
        return self._timed[0][0] if self._timed else NEVER

    def look_again(self, now: float) -> List[PendingEvent]:
        """Let go what has waited long enough. Returns what nobody wants any more; it is still there."""
        over = []
        while self.next_due <= now:
            uuid = heapq.heappop(self._timed)[1]
            lane = self._lanes.get(uuid)
            if lane is None:
                continue
            for event in lane.pending.values():
                if event.not_before <= now:
                    # 0.0 says that it may go, so that nobody who looks for a place needs a clock.
                    event.not_before = 0.0
                if event.until <= now:
                    over.append(event)
            self.update_place(uuid)
        return over

    def update_place(self, uuid: str) -> None:
        """Find the instance's place among those that may go, after something has changed."""
        lane = self._lanes.get(uuid)
        if lane is None:
            return
        if not lane.pending and lane.out is None:
            del self._lanes[uuid]
            lane.place = None
            return
        ready = [
            (event.request.kind, event.request.order)
            for event in lane.pending.values()
            if not event.not_before
        ]
        # The gravest kind decides when the lane's turn comes, even where an older outcome then goes first.
        place = min(ready) if ready and lane.out is None else None
        # The entry of the place before stays in the heap and is void by this change (see find_first).
        if place is not None and place != lane.place:
            heapq.heappush(self._ready, (*place, uuid))
        lane.place = place
        if len(self._ready) > 2 * len(self._lanes) + STALE_MAX:
            self._drop_void()

    def _drop_void(self) -> None:
        lanes = self._lanes.items()
        self._ready = [(*lane.place, uuid) for uuid, lane in lanes if lane.place is not None]
        heapq.heapify(self._ready)
