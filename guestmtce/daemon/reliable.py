"""Messages that are repeated until they are acknowledged or no longer true. Pure; `now` in s, monotonic.

A message is known by a `key`: a newer one of the same key takes the place of the older, because what is told
is state, not news. Each has a number that is never used again.
"""

from __future__ import annotations

import heapq
from typing import Any, Callable, Dict, Hashable, List, NamedTuple, Optional, Tuple

from guestmtce.wire.extension import NUMBERS

REPEAT_FIRST = 0.2  # s, doubling
REPEAT_MAX = 5.0
BLOCK = 100_000  # numbers reserved at once
SEEN_MAX = 4096  # numbers remembered per sender

NEVER = float("inf")


class Numbers:
    """Numbers that grow, over restarts of the process too: `reserve(count)` gives the first of a block that
    nobody gets again, and is asked anew when the block is used up.
    """

    def __init__(self, reserve: Callable[[int], int]) -> None:
        self._reserve = reserve
        self._next = self._left = 0

    def take(self) -> int:
        """The next one, 1 … 2³²−1."""
        if not self._left:
            self._next, self._left = self._reserve(BLOCK), BLOCK
        number = self._next % NUMBERS
        self._next += 1
        self._left -= 1
        return number or self.take()


class Message(NamedTuple):
    """One that waits for its acknowledgement. `until`: nobody wants it after that."""

    key: Hashable
    number: int
    content: Any
    until: float


class Outgoing:
    """What has been sent to one peer and not been acknowledged."""

    def __init__(self) -> None:
        self._by_key: Dict[Hashable, Message] = {}
        self._by_number: Dict[int, Message] = {}
        self._delays: Dict[int, float] = {}
        self._due: List[Tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: Hashable, number: int, content: Any, now: float, until: float = NEVER) -> None:
        """A message that was just sent for the first time."""
        self.drop(key)
        message = Message(key, number, content, until)
        self._by_key[key] = self._by_number[number] = message
        self._delays[number] = REPEAT_FIRST
        heapq.heappush(self._due, (now + REPEAT_FIRST, number))

    def drop(self, key: Hashable) -> None:
        """The message of this key is no longer true."""
        message = self._by_key.pop(key, None)
        if message is not None:
            del self._by_number[message.number], self._delays[message.number]

    def find(self, number: int) -> Optional[Message]:
        """The message of this number, if it is still waited for."""
        return self._by_number.get(number)

    def acked(self, number: int) -> Optional[Message]:
        """The peer has the message of this number, which is returned; None if nobody waits for that."""
        message = self._by_number.get(number)
        if message is not None:
            self.drop(message.key)
        return message

    def due(self, now: float) -> List[Message]:
        """The messages to send again now."""
        ready = []
        while self._due and self._due[0][0] <= now:
            number = heapq.heappop(self._due)[1]
            message = self._by_number.get(number)
            if message is None:
                continue
            if message.until <= now:
                self.drop(message.key)
                continue
            ready.append(message)
            self._delays[number] = delay = min(2 * self._delays[number], REPEAT_MAX)
            heapq.heappush(self._due, (now + delay, number))
        return ready

    def drain(self) -> List[Message]:
        """All messages; none is waited for any more."""
        messages = list(self._by_key.values())
        for message in messages:
            self.drop(message.key)
        return messages

    def again(self, now: float) -> None:
        """Somebody new listens: everything is due at once."""
        self._due = [(now, number) for number in self._by_number]
        self._delays = dict.fromkeys(self._by_number, REPEAT_FIRST / 2)
        heapq.heapify(self._due)

    @property
    def next_due(self) -> float:
        """When `due` has something next."""
        while self._due and self._due[0][1] not in self._by_number:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else NEVER


class Seen:
    """Which messages of a peer have come already."""

    def __init__(self) -> None:
        self._numbers: Dict[Tuple[int, int], None] = {}

    def __contains__(self, message: Tuple[int, int]) -> bool:
        return message in self._numbers

    def add(self, sender: int, number: int) -> bool:
        """Note that it came; whether it is the first time."""
        if (sender, number) in self._numbers:
            return False
        if len(self._numbers) >= SEEN_MAX:
            del self._numbers[next(iter(self._numbers))]
        self._numbers[sender, number] = None
        return True
