"""Messages that are repeated until they are confirmed or no longer true. Pure; `now` in s, monotonic.

docs/protocol/2-datagrams.md#confirmed-and-repeated

A message is known by a `key`: a newer one of the same key takes the place of the older, because a
message is state, not news. Each has a sequence number that is never used again.
"""

from __future__ import annotations

import heapq
from typing import Any, Callable, Dict, Hashable, Iterable, List, NamedTuple, Optional, Tuple

from guestmtce.common import NEVER
from guestmtce.common.back_off import BackOff
from guestmtce.wire.datagram_ext import SEQUENCES

REPEAT_FIRST = 0.2  # s, doubling
REPEAT_MAX = 5.0
BLOCK = 100_000  # sequence numbers reserved at once
SEEN_MAX = 4096  # messages remembered per peer
# s for which a message is remembered after it last came. One that is not confirmed comes every REPEAT_MAX.
SEEN_FOR = 600.0
STALE_MAX = 64  # entries that a queue of times may hold beyond twice what is in it


class Sequences:
    """Sequence numbers that grow, over restarts of the process too.

    `reserve(count)` gives the first of a block that is never given again; it is asked when that is used up.
    """

    def __init__(self, reserve: Callable[[int], int]) -> None:
        self._reserve = reserve
        self._next = self._left = 0

    def next_sequence(self) -> int:
        """The next one, 1 … 2³²−1."""
        if not self._left:
            # Asked once per block, because it writes a file: what is left of one at a restart is never used.
            self._next, self._left = self._reserve(BLOCK), BLOCK
        sequence = self._next % SEQUENCES
        self._next += 1
        self._left -= 1
        # 0 stands for none (docs/protocol/2-datagrams.md#the-added-fields).
        return sequence or self.next_sequence()


class Deadlines:
    """One time per sequence, the earliest first. Its size follows what is in it, whatever went through it."""

    def __init__(self) -> None:
        self._when: Dict[int, float] = {}
        self._queue: List[Tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def set(self, sequence: int, when: float) -> None:
        """The sequence is due at `when`, and at no other time."""
        self._when[sequence] = when
        # The sequence's entry of before stays in the heap: it is void, because its time is not the one in
        # `_when`.
        heapq.heappush(self._queue, (when, sequence))
        self._shrink()

    def set_all(self, sequences: Iterable[int], when: float) -> None:
        """These are due at `when`, and nothing else is due at all."""
        self._when = dict.fromkeys(sequences, when)
        self._fill_queue()

    def drop(self, sequence: int) -> None:
        """The sequence is never due."""
        if self._when.pop(sequence, None) is not None:
            self._shrink()

    def pop_due(self, now: float) -> List[int]:
        """The sequence numbers that are due by `now`; they are dropped."""
        due = []
        while self.next <= now:
            due.append(heapq.heappop(self._queue)[1])
            del self._when[due[-1]]
        return due

    @property
    def next(self) -> float:
        """When the first one is due."""
        while self._queue and self._when.get(self._queue[0][1]) != self._queue[0][0]:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else NEVER

    def _shrink(self) -> None:
        # While nobody listens nothing is ever due and popped; the state of one guest may change for days.
        if len(self._queue) > 2 * len(self._when) + STALE_MAX:
            self._fill_queue()

    def _fill_queue(self) -> None:
        self._queue = [(when, sequence) for sequence, when in self._when.items()]
        heapq.heapify(self._queue)


class Message(NamedTuple):
    """One that is not confirmed yet, first sent at `since`; it expires at `until` (s, monotonic).

    `sequence`: 1 … 2³²−1.
    """

    key: Hashable
    sequence: int
    content: Any
    until: float
    since: float


class Outgoing:
    """What has been sent to one peer and is not confirmed."""

    def __init__(self) -> None:
        self._by_key: Dict[Hashable, Message] = {}  # the oldest first
        self._by_sequence: Dict[int, Message] = {}
        self._back_offs: Dict[int, BackOff] = {}
        self._repeats = Deadlines()
        self._ends = Deadlines()

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: Hashable, sequence: int, content: Any, now: float, until: float = NEVER) -> None:
        """A message that was just sent for the first time."""
        # State, not news: the older message of the key would say what is no longer so.
        self.drop(key)
        message = Message(key, sequence, content, until, now)
        self._by_key[key] = self._by_sequence[sequence] = message
        self._back_offs[sequence] = back_off = BackOff(REPEAT_FIRST, REPEAT_MAX)
        self._repeats.set(sequence, now + back_off.next_delay())
        if until != NEVER:
            self._ends.set(sequence, until)

    def drop(self, key: Hashable) -> Optional[Message]:
        """The message of this key is no longer true; it is returned, if there was one."""
        message = self._by_key.pop(key, None)
        if message is not None:
            del self._by_sequence[message.sequence], self._back_offs[message.sequence]
            self._repeats.drop(message.sequence)
            self._ends.drop(message.sequence)
        return message

    def pending(self, key: Hashable) -> Optional[Message]:
        """The message of this key, if it is not confirmed yet."""
        return self._by_key.get(key)

    def find(self, sequence: int) -> Optional[Message]:
        """The message of this sequence, if it is not confirmed yet."""
        return self._by_sequence.get(sequence)

    def confirm(self, sequence: int) -> Optional[Message]:
        """The peer has confirmed this sequence: its message, which is dropped; None if there is none."""
        message = self._by_sequence.get(sequence)
        return self.drop(message.key) if message is not None else None

    def expire(self, now: float) -> List[Message]:
        """The messages that have expired; they are dropped."""
        over = [self._by_sequence[sequence] for sequence in self._ends.pop_due(now)]
        for message in over:
            self.drop(message.key)
        return over

    def due(self, now: float) -> List[Message]:
        """The messages to send again now; what has expired is dropped."""
        # First: what nobody wants any more must not go out again.
        self.expire(now)
        ready = [self._by_sequence[sequence] for sequence in self._repeats.pop_due(now)]
        for message in ready:
            self._repeats.set(message.sequence, now + self._back_offs[message.sequence].next_delay())
        return ready

    def messages(self) -> List[Message]:
        """All messages, the oldest first."""
        return list(self._by_key.values())

    def drain(self) -> List[Message]:
        """All messages, the oldest first; they are dropped."""
        messages = self.messages()
        for message in messages:
            self.drop(message.key)
        return messages

    def again(self, now: float) -> None:
        """Another process listens: everything is due at once, and repeated as if it were new."""
        for back_off in self._back_offs.values():
            back_off.reset()
        # In one go: pushed one by one, each would leave a void entry behind.
        self._repeats.set_all(self._by_sequence, now)

    @property
    def next_due(self) -> float:
        """When `due` or `expire` has something next."""
        return min(self._repeats.next, self._ends.next)

    @property
    def next_end(self) -> float:
        """When `expire` has something next."""
        return self._ends.next

    @property
    def since(self) -> float:
        """When the oldest message was first sent; NEVER if there is none."""
        return next(iter(self._by_key.values())).since if self._by_key else NEVER


class Seen:
    """Which messages of a peer have come already: the last SEEN_MAX."""

    def __init__(self) -> None:
        self._sequences: Dict[Tuple[int, int], None] = {}

    def __contains__(self, message: Tuple[int, int]) -> bool:
        return message in self._sequences

    def add(self, sender: int, sequence: int) -> bool:
        """Note that it came; whether it is the first time."""
        if (sender, sequence) in self._sequences:
            return False
        if len(self._sequences) >= SEEN_MAX:
            # The one that came first: a dict keeps the order in which they came.
            del self._sequences[next(iter(self._sequences))]
        self._sequences[sender, sequence] = None
        return True


class SeenByPeer:
    """Which messages of many peers have come already: of each the last SEEN_MAX.

    What came last more than SEEN_FOR ago is forgotten as later messages come. A crowd on one peer pushes
    nothing of another's out.
    """

    def __init__(self) -> None:
        self._peers: Dict[str, Dict[Tuple[int, int], float]] = {}  # the one that came longest ago first
        self._swept = -NEVER

    def __len__(self) -> int:
        return sum(map(len, self._peers.values()))

    def came_before(self, peer: str, sender: int, sequence: int, now: float) -> bool:
        """Whether it is known; who repeats it keeps it in memory."""
        sequences = self._peers.get(peer, {})
        if sequences.pop((sender, sequence), None) is None:
            return False
        # To the end again, so that the first is always the one that came longest ago.
        sequences[sender, sequence] = now
        return True

    def add(self, peer: str, sender: int, sequence: int, now: float) -> None:
        """It has come."""
        sequences = self._peers.setdefault(peer, {})
        sequences.pop((sender, sequence), None)
        if len(sequences) >= SEEN_MAX:
            del sequences[next(iter(sequences))]
        sequences[sender, sequence] = now
        # Not each time: a sweep looks at every peer.
        if now - self._swept > SEEN_FOR / 2:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._swept = now
        for peer, sequences in list(self._peers.items()):
            while sequences and now - next(iter(sequences.values())) > SEEN_FOR:
                del sequences[next(iter(sequences))]
            if not sequences:
                del self._peers[peer]
