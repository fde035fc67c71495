"""How much time a guest gets beyond its interval: for our own delays, and while it may not be there.

docs/protocol/1-guest-channel.md#time-is-judged-fairly
docs/protocol/1-guest-channel.md#resuming-a-guest
"""

from __future__ import annotations

from guestmtce.server.child.session_types import NEVER


def extra_time(late: float, interval: float, granted: float) -> float:
    """How much more time, in s, an open challenge gets because our own wake-up came `late` s too late.

    A delay shorter than the interval is given to the guest once over, and at most one interval for a
    challenge in all. A longer one says that nobody could have been judged in that time: the guest gets
    a fresh interval, and at most two for a challenge in all. `granted` is what this challenge has got before.
    So a slow machine cannot put a loss off for ever. 0 or less: the guest is judged now.
    """
    limit = interval if late < interval else 2 * interval
    return min(late, interval, limit - granted)


class Patience:
    """Two ends (s, monotonic) of the state RESUMING, in which a guest may or may not be there.

    At `until` a guest that has neither answered nor said `init` is gone. At `stopped_due`, which may come
    before it, the guest is reported as stopped: the VIM is not to read "enabled" of a guest that is silent,
    only because its loss has to wait.
    """

    __slots__ = ("stopped_due", "until")

    def __init__(self) -> None:
        self.until = self.stopped_due = NEVER

    def delay_stop(self, late: float, interval: float, now: float) -> None:
        """Our own wake-up came `late` s too late: the guest gets as much more, at most one interval."""
        self.stopped_due = max(self.stopped_due, now + min(late, interval))

    def next_look(self, interval: float, now: float) -> float:
        """When the challenge is repeated or the guest judged, whichever comes first."""
        return min(now + interval, *[end for end in (self.until, self.stopped_due) if end > now])
