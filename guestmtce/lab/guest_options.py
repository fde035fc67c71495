"""What the guests of a process share: what they are started with, and what they saw together."""

from __future__ import annotations

from guestmtce.lab.measure import Histogram


class GuestOptions:
    """What all guests of a process are started with.

    `folder` has their sockets; `action` is a corrective action, `secs` each of their timeouts, s; `scale`
    multiplies the guest's own timers of 5 s, to run faster than life.
    """

    def __init__(self, folder: str, interval_ms: int, action: str, secs: int, scale: float = 1.0) -> None:
        self.folder = folder
        self.interval_ms = interval_ms
        self.action = action
        self.secs = secs
        self.scale = scale


class CrowdRecord:
    """What the guests of a process saw together since `reset`.

    `late` is how much more than the interval lay between the reading of a challenge and of the one before
    it on the same connection. guestServer makes a challenge due one interval after it *sent* the last one,
    whenever that was, so nothing adds up: this is how late the guest saw its challenge, less the time that
    the challenge before was on its way.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from nothing."""
        self.answers = 0
        self.late = Histogram()
