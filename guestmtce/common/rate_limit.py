"""How much of something somebody may have: so much at once, and so much a second."""


class Bucket:
    """Holds at most `burst`, at first as much, and gains `rate` a second. Times in s, monotonic."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, now

    def spend(self, now: float, count: int = 1) -> bool:
        """Whether `count` more may be had now; they are taken then. More than the burst never may."""
        if self.wait(now, count) > 0:
            return False
        self._left -= count
        return True

    def wait(self, now: float, count: int = 1) -> float:
        """In how many s `count` more may be had."""
        # No time passes backwards: a `now` of an earlier turn takes nothing away.
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        return max(0.0, count - self._left) / self._rate
