"""What is to be done: effects now, in order, and which guest is to be looked at again, and when.

docs/protocol/2-datagrams.md#confirmed-and-repeated

Rows are remembered before anything of them is told: a daemon that dies in between tells again what it
remembers, under the sequence number that it had, and guestAgent knows it by that.
"""

from __future__ import annotations

import heapq
from typing import Dict, List, Optional, Tuple

from guestmtce.common.log_line import LogLine
from guestmtce.server.state.effects import Effect, ForgetGuest, SaveGuest
from guestmtce.server.state.guest import NEVER, Guest


class Agenda:
    """See the module's text. Times in s, monotonic."""

    def __init__(self) -> None:
        self._effects: List[Effect] = []
        self._changed: Dict[str, Optional[Guest]] = {}  # None: to be forgotten
        self._wake_ups: List[Tuple[float, str]] = []  # a heap

    # --- now ---------------------------------------------------------------------------------------

    def drain_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        remember: List[Effect] = [
            ForgetGuest(uuid) if guest is None else SaveGuest(guest.memory())
            for uuid, guest in self._changed.items()
        ]
        effects, self._effects, self._changed = self._effects, [], {}
        # What is told is written first: a daemon that dies in between tells it again under the same number.
        return remember + effects

    def add_effect(self, effect: Effect) -> None:
        """This is to be done, after all that was added before."""
        self._effects.append(effect)

    def save_guest(self, guest: Guest) -> None:
        """The row is to be remembered as it will be when the effects are drained."""
        self._changed[guest.uuid] = guest

    def forget_guest(self, uuid: str) -> None:
        """Nothing of the row is to be remembered."""
        self._changed[uuid] = None

    def log_line(self, level: int, text: str, *values: object, subject: str = "") -> None:
        """A line for the log; of lines with the same `subject` not all are written."""
        self._effects.append(LogLine(level, text, values, subject))

    def log_report(self, guest: Guest, now: float, level: int, text: str, *values: object) -> None:
        """A line about what the guest's child says. One that says too much is not to fill the disk."""
        if not guest.lines.spend(now):
            guest.lines_left_out += 1
            return
        more = " (%d lines were left out)" % guest.lines_left_out if guest.lines_left_out else ""
        guest.lines_left_out = 0
        self.log_line(level, "%s: " + text + more, guest.uuid, *values)

    # --- later -------------------------------------------------------------------------------------

    @property
    def next_due(self) -> float:
        """When `pop_due` has something next."""
        return self._wake_ups[0][0] if self._wake_ups else NEVER

    def wake_guest(self, guest: Guest, when: float) -> None:
        """The guest is to be looked at then, beside all other times."""
        # A wake-up is never taken back: a guest that is looked at too early, or is gone, costs one look.
        heapq.heappush(self._wake_ups, (when, guest.uuid))

    def pop_due(self, now: float) -> Optional[str]:
        """The uuid of a guest that is to be looked at now; None: there is none."""
        if self.next_due > now:
            return None
        return heapq.heappop(self._wake_ups)[1]
