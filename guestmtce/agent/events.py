"""What the VIM must be told: per instance, in order, once, until it has it (`DESIGN`: level, not edge).

Pure; the caller holds the lock. Kept is not a queue of old news but what is still true: the latest service
state, failures that are not over, outcomes of votes and notices. `next` gives what to deliver now, and
`delivered`, `refused` or `unreached` says how that went.

Across all instances alarms go before outcomes and those before service states, the oldest first; but an
outcome that an instance has to tell from before its alarm goes first (spec 3). Questions to the VIM come
last. With an item goes the datagram that brought it: its guestServer waits for a confirmation (`Origin`).
"""

from __future__ import annotations

import collections
import itertools
import logging
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Tuple, Union

from guestmtce.agent import rows
from guestmtce.wire import vim

log = logging.getLogger(__name__)

ALARM, ACTION, SERVICE, QUESTION = range(4)
# How often an alarm is offered to a VIM that refuses it (spec 3: it does not know the instance, or not yet).
# With the default retry_max that is ten minutes: longer than a VIM takes to start.
REFUSALS_MAX = 64
DOWN_RETRY_MAX = 4.0  # s between two attempts at a VIM that does not listen
ACTIONS_MAX = 16  # outcomes kept per instance

Tells = Union[rows.TellService, rows.TellAlarm, rows.TellAction]
Key = Tuple[int, str, str]  # kind, uuid, and what tells one of its kind and uuid from another


class Item(NamedTuple):
    """One request to the VIM. `body` is what it carries; `order` is its place among all.

    `serial` is that of a question (`rows.AskVim`): its answer is told with it.
    """

    kind: int
    uuid: str
    what: str
    order: int
    method: str
    path: str
    body: Dict[str, Any]
    origin: Optional[rows.Origin] = None
    serial: int = 0

    @property
    def key(self) -> Key:
        return self.kind, self.uuid, self.what


class Outbox:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, retry_first: float, retry_max: float) -> None:
        self.told = self.withdrawn = self.given_up = 0
        self._retry_first = retry_first
        self._retry_max = retry_max
        self._items: Dict[Key, Item] = {}
        self._refusals: Dict[Key, Tuple[int, float]] = {}  # how many, and not to be offered again before
        self._questions: Deque[Item] = collections.deque()
        self._held: Dict[Tuple[int, ...], int] = {}  # sender and number, whatever the address
        self._settled: List[rows.Origin] = []
        self._order = itertools.count()
        self._delay = 0.0  # present back-off from a VIM that cannot be reached
        self._not_before = -float("inf")

    def __len__(self) -> int:
        return len(self._items)

    # --- what is to be told ------------------------------------------------------------------------

    def take(self, effect: rows.Effect) -> None:
        """An effect of the inventory that concerns the VIM."""
        if isinstance(effect, rows.TellService):
            self._keep(SERVICE, effect.uuid, "", effect)
        elif isinstance(effect, rows.TellAlarm):
            self._keep(ALARM, effect.uuid, effect.state, effect)
        elif isinstance(effect, rows.TellAction):
            self._keep(ACTION, effect.uuid, str(next(self._order)), effect)
            self._limit_actions(effect.uuid)
        elif isinstance(effect, rows.Withdraw):
            for key in [(ALARM, effect.uuid, state) for state in effect.states]:
                if self._remove(key):
                    self.withdrawn += 1
                    log.warning("%s: an untold failure (%s) is over: %s", effect.uuid, key[2], effect.why)
        elif isinstance(effect, rows.Drop):
            for key in [key for key in self._items if key[1] == effect.uuid]:
                self._remove(key)
        elif isinstance(effect, rows.AskVim):
            self._question(effect)

    def _keep(self, kind: int, uuid: str, what: str, effect: Tells) -> None:
        path = vim.EVENT_PATH + "instances/" + uuid
        item = Item(kind, uuid, what, next(self._order), "PATCH", path, effect.body, effect.origin)
        if item.origin is not None:
            self._held[item.origin[1:]] = self._held.get(item.origin[1:], 0) + 1
        self._remove(item.key)  # the newer one takes a new place, and is offered as often
        self._items[item.key] = item

    def _limit_actions(self, uuid: str) -> None:
        keys = [key for key in self._items if key[:2] == (ACTION, uuid)]
        for key in keys[:-ACTIONS_MAX]:
            log.error("%s: too many untold outcomes, the oldest is dropped", uuid)
            self._remove(key)

    def _question(self, effect: rows.AskVim) -> None:
        if effect.instances:
            path, body = vim.EVENT_PATH + "instances/?host_uuid=" + effect.uuid, {}
        else:
            path = vim.EVENT_PATH + "hosts/" + effect.uuid
            body = {"hostname": effect.hostname, "uuid": effect.uuid}
        what = "instances" if effect.instances else "state"
        order, serial = next(self._order), effect.serial
        item = Item(QUESTION, effect.hostname, what, order, "GET", path, body, None, serial)
        for place, waiting in enumerate(self._questions):
            if waiting.key == item.key:
                if place:  # the first one may be on its way, and is answered as it was put
                    self._questions[place] = item._replace(order=waiting.order)
                return
        self._questions.append(item)

    def _remove(self, key: Key) -> bool:
        self._refusals.pop(key, None)
        item = self._items.pop(key, None)
        if item is not None:
            self._settle(item)
        return item is not None

    # --- what guestServers wait for ----------------------------------------------------------------

    def take_settled(self) -> List[rows.Origin]:
        """The origins of what the VIM has now, or is not to hear any more."""
        settled, self._settled = self._settled, []
        return settled

    def holds(self, origin: rows.Origin) -> bool:
        """Whether what came from there still waits."""
        return origin[1:] in self._held

    def _settle(self, item: Item) -> None:
        if item.origin is not None:
            named = item.origin[1:]
            self._held[named] -= 1
            if not self._held[named]:
                del self._held[named]
                self._settled.append(item.origin)

    # --- its delivery ------------------------------------------------------------------------------

    def next(self, now: float) -> Optional[Item]:
        """What to deliver now, if anything."""
        if now < self._not_before:
            return None
        ready = [item for item in self._items.values() if self._refusals.get(item.key, (0, now))[1] <= now]
        if ready:
            first = min(ready, key=lambda item: (item.kind, item.order))
            return min(
                (item for item in ready if item.uuid == first.uuid and (item.kind < SERVICE or first.kind)),
                key=lambda item: item.order,
            )
        return self._questions[0] if self._questions else None

    def next_at(self) -> float:
        """When `next` may have something that it has not now; infinity when nothing waits."""
        waits: List[float] = [until for _, until in self._refusals.values()]
        if self._questions or len(self._items) > len(self._refusals):
            waits.append(self._not_before)
        return max(self._not_before, min(waits)) if waits else float("inf")

    def delivered(self, item: Item) -> None:
        """The VIM has it."""
        self._delay = 0.0
        self._done(item)
        if item.kind != QUESTION:
            self.told += 1

    def refused(self, item: Item, now: float) -> None:
        """The VIM closed without a word or said no. That is success for all but an alarm (spec 3)."""
        self._delay = 0.0
        if item.kind != ALARM:
            self.delivered(item)
            return
        if self._items.get(item.key) is not item:
            return
        times = self._refusals.get(item.key, (0, now))[0] + 1
        if times >= REFUSALS_MAX:
            log.error("%s: the VIM refused the alarm (%s) %d times: given up", item.uuid, item.what, times)
            self.given_up += 1
            self._done(item)
        else:
            delay = min(self._retry_first * 2.0 ** (times - 1), self._retry_max)
            self._refusals[item.key] = (times, now + delay)

    def unreached(self, item: Item, now: float, down: bool = False) -> None:
        """The VIM does not have it: try again, everything, after a while.

        `down`: nobody listens there. To find that out costs nobody anything, so it is tried more often.
        """
        longest = min(self._retry_max, DOWN_RETRY_MAX) if down else self._retry_max
        self._delay = min(max(self._retry_first, 2 * self._delay), longest)
        self._not_before = now + self._delay
        if item.kind == QUESTION:
            self._done(item)  # the next audit asks again

    def _done(self, item: Item) -> None:
        if item.kind == QUESTION:
            if self._questions and self._questions[0] is item:
                self._questions.popleft()
        elif self._items.get(item.key) is item:
            self._remove(item.key)
