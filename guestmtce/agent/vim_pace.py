"""How many requests to the VIM are under way at once, and when another one may be begun.

docs/protocol/3-vim-http.md#how-events-are-delivered

Pure; `now` in s, monotonic. The VIM serves one request at a time and takes about 1 ms for it, so a second one
is begun only beside one that was not answered within BESIDE_AFTER. A VIM that cannot be reached is left alone
for a while, which doubles; one that does not even listen is tried more often, because that costs nobody
anything.
"""

from __future__ import annotations

from typing import Dict

from guestmtce.agent.effects import NEVER
from guestmtce.agent.vim_request import ALARM
from guestmtce.common.back_off import BackOff

CONNECTIONS = 4  # requests under way at once
OTHERS_MAX = 1  # of these, requests that are no alarm's; the rest is for alarms
BESIDE_AFTER = 0.02  # s without an answer after which another request is begun
DOWN_RETRY_MAX = 4.0  # s between two attempts at a VIM that does not listen


class VimPace:
    """See the module's text. A request is known by its order; `place` is the kind whose place it takes."""

    def __init__(self, retry_first: float, retry_max: float) -> None:
        self.alarms_out = self.others_out = 0  # requests under way
        self._begun: Dict[int, float] = {}  # order of what is under way → since when
        self._back_off = BackOff(retry_first, retry_max)
        self._not_before = -NEVER

    def has_room(self, place: int) -> bool:
        """Whether one more request may take such a place."""
        if self.alarms_out + self.others_out >= CONNECTIONS:
            return False
        return place == ALARM or self.others_out < OTHERS_MAX

    def allowed_at(self) -> float:
        """When something may be begun, if there is room for it."""
        # Since the latest one: four at once would reach a serial VIM no sooner, and share our interpreter's
        # lock.
        return max(self._not_before, max(self._begun.values(), default=-NEVER) + BESIDE_AFTER)

    def begin_request(self, order: int, place: int, now: float) -> None:
        """A request is under way."""
        self._count_out(place, 1)
        self._begun[order] = now

    def end_request(self, order: int, place: int) -> None:
        """It is no longer."""
        self._count_out(place, -1)
        del self._begun[order]

    def note_reached(self) -> None:
        """Somebody has answered."""
        self._back_off.reset()

    def note_unreached(self, now: float, down: bool) -> None:
        """The VIM has not the request; `down`: nobody listens there."""
        if now < self._not_before:
            return  # another request has just found it out
        self._not_before = now + self._back_off.next_delay(DOWN_RETRY_MAX if down else NEVER)

    def _count_out(self, place: int, change: int) -> None:
        # An older outcome that goes before its instance's alarm has an alarm's place: it holds that alarm up.
        if place == ALARM:
            self.alarms_out += change
        else:
            self.others_out += change
