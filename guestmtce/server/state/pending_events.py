"""What the guests' table wants done: its effects in order, and the rows that have changed.

docs/protocol/2-datagrams.md#confirmed-and-repeated

What guestAgent must hear is kept in the guest's row (`untold`) until it has been confirmed, and dropped when
it stops being true. Rows are remembered before anything of them is told: a daemon that dies in between tells
again what it remembers under the number that it had, and guestAgent knows it by that.
"""

from __future__ import annotations

import itertools
import logging
from typing import Callable, Dict, List, Optional, Set

from guestmtce.server.state.guest import (
    FAILURE,
    ILLNESS,
    NEVER,
    Effect,
    Forget,
    Guest,
    Key,
    Save,
    Tell,
    Untell,
    Untold,
)
from guestmtce.wire import datagram

log = logging.getLogger(__name__)


class Outbox:
    """See the module's text. `number` names what is told."""

    def __init__(self) -> None:
        self.number: Callable[[], int] = itertools.count(1).__next__
        self._effects: List[Effect] = []
        self._changed: Dict[str, Optional[Guest]] = {}  # None: to be forgotten
        self._delivered: Set[Key] = set()  # failures that are told and still true

    def take(self) -> List[Effect]:
        """What is to be done now, in order."""
        remember: List[Effect] = [
            Forget(uuid) if guest is None else Save(guest.memory()) for uuid, guest in self._changed.items()
        ]
        effects, self._effects, self._changed = self._effects, [], {}
        return remember + effects

    def add(self, effect: Effect) -> None:
        """This is to be done."""
        self._effects.append(effect)

    def save(self, guest: Guest) -> None:
        """The row is to be remembered as it will be when the effects are taken."""
        self._changed[guest.uuid] = guest

    def forget(self, guest: Guest) -> None:
        """Nothing of the row is to be remembered or told."""
        for kind in guest.untold:
            self._effects.append(Untell((guest.uuid, kind)))
        for kind in (FAILURE, ILLNESS):
            self._withdraw_delivered((guest.uuid, kind))
        self._changed[guest.uuid] = None

    def tell(
        self,
        guest: Guest,
        kind: str,
        cmd: int,
        event: datagram.Event,
        number: Optional[int] = None,
        until: float = NEVER,
    ) -> None:
        """guestAgent is to hear this, until it has it or nobody wants it any more, at `until` (s, monotonic).

        A newer one of the same kind takes its place.
        """
        guest.untold[kind] = Untold(number or self.number(), cmd, event, until=until)
        self._delivered.discard((guest.uuid, kind))
        self.tell_again(guest, kind)
        self.save(guest)

    def tell_again(self, guest: Guest, kind: str) -> None:
        """guestAgent is to hear this of the row, under the number that it has."""
        one = guest.untold[kind]
        still_ill = one.cmd == datagram.RUNNING and ILLNESS in guest.untold
        self._effects.append(Tell(one.cmd, one.event, one.number, (guest.uuid, kind), one.until, still_ill))

    def tell_once(self, cmd: int, event: datagram.Event, key: Key, until: float) -> None:
        """guestAgent is to hear this of an instance that we do not know."""
        self._effects.append(Tell(cmd, event, self.number(), key, until))

    def untell(self, guest: Guest, kind: str, why: str) -> None:
        """This is no longer true."""
        if guest.untold.pop(kind, None) is None:
            self._withdraw_delivered((guest.uuid, kind))
            return
        self._effects.append(Untell((guest.uuid, kind)))
        if kind == ILLNESS:
            guest.ill_told_at = -NEVER  # nobody knows of it: whoever finds it ill anew tells that
        if kind in (FAILURE, ILLNESS):
            guest.withdrawn += 1
            log.warning("%s: an untold %s is over: %s", guest.uuid, kind, why)
        self.save(guest)

    def note_delivered(self, key: Key) -> None:
        """guestAgent has it. If it is an old one, the next one is to hear of it while it is true."""
        if key[1] in (FAILURE, ILLNESS):
            self._delivered.add(key)

    def _withdraw_delivered(self, key: Key) -> None:
        if key in self._delivered:
            self._delivered.discard(key)
            self._effects.append(Untell(key))
