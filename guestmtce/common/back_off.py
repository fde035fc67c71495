"""How long to wait before something that failed is tried again."""


class BackOff:
    """`first` s after the first failure, then double, up to `most` s. A success forgets all failures."""

    __slots__ = ("_first", "_most", "delay")

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self.delay = first  # s, of the next failure

    def next_delay(self, most: float = float("inf")) -> float:
        """It failed: how long to wait now, in s; this time no longer than `most`."""
        # The doubling goes on from what is really waited.
        delay = min(self.delay, most)
        self.delay = min(max(self._first, 2 * delay), self._most)
        return delay

    def reset(self) -> None:
        """It worked."""
        self.delay = self._first
