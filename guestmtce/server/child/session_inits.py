"""The guest's introductions: how often they are acknowledged and reported, and how long they are believed.

docs/protocol/1-guest-channel.md#init-and-acknowledgement

A guest may answer each init_ack with another `init`. So `init`s are acknowledged at most once per
`ack_period` (the last one that came meanwhile has its turn then), are reported to the master at most once per
`init_report_period`, and do not put off the loss of a guest that answers no challenge.
"""

from __future__ import annotations

from typing import Optional

from guestmtce.server.child.session_types import NEVER, SessionSettings
from guestmtce.wire.guest_channel import Init


class InitState:
    """Beside the present `init`, which the session has: what is still to be done about it.

    `waiting` came too soon after the last one; its turn is at `turn_at` (s, monotonic). `reported`: the
    master knows the present one. `unanswered_since` is the time of the first `init` since the last right
    answer, None if there is none.
    """

    __slots__ = ("_report_period", "_reported_at", "reported", "turn_at", "unanswered_since", "waiting")

    def __init__(self, settings: SessionSettings) -> None:
        self.waiting: Optional[Init] = None
        # True at first: there is no init that the master does not know.
        self.reported = True
        self.turn_at = -NEVER
        self.unanswered_since: Optional[float] = None
        self._report_period = settings.init_report_period
        self._reported_at = -NEVER

    def admit_report(self, now: float) -> bool:
        """Whether the present `init` is to be reported now; it counts as reported then."""
        if self.reported or now - self._reported_at < self._report_period:
            return False
        self.reported, self._reported_at = True, now
        return True

    def report_without_delay(self) -> None:
        """The order matters to the master: the next report of an `init` does not wait for its period."""
        self._reported_at = -NEVER

    def begs_too_long(self, loss_time: float, now: float) -> bool:
        """Whether it has said `init` again and again, and answered nothing, for `loss_time` s."""
        return self.unanswered_since is not None and now >= self.unanswered_since + loss_time
