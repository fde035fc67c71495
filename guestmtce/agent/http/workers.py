"""Threads that do pieces of work, each woken for one piece alone.

Threads that wait at one SimpleQueue wake each other, one after the other, for what only one of them gets.
"""

from __future__ import annotations

import collections
import queue
import threading
from typing import Callable, Deque, Generic, List, Optional, TypeVar

Work = TypeVar("Work")


class Workers(Generic[Work]):
    """`do(work)` is called by one of `count` threads; it must not raise."""

    def __init__(self, name: str, count: int, do: Callable[[Work], None]) -> None:
        self._do = do
        self._lock = threading.Lock()
        self._idle: List[queue.SimpleQueue[Optional[Work]]] = []
        self._waiting: Deque[Work] = collections.deque()
        self._ended = False
        # Daemon threads: one that hangs in a handler must not keep the process from its end.
        self._threads = [
            threading.Thread(target=self._run, name="%s-%d" % (name, number), daemon=True)
            for number in range(count)
        ]

    @property
    def backlog(self) -> int:
        """Pieces of work for which no thread is idle."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def hand_over(self, work: Work) -> None:
        """Have it done, by the thread that was idle last, or by the first that will be."""
        with self._lock:
            if self._idle:
                self._idle.pop().put(work)
            else:
                self._waiting.append(work)

    def end(self) -> None:
        """No thread begins anything more; what one is doing it finishes."""
        with self._lock:
            self._ended = True
            self._waiting.clear()
            for inbox in self._idle:
                inbox.put(None)

    def _run(self) -> None:
        inbox: queue.SimpleQueue[Optional[Work]] = queue.SimpleQueue()  # None: the end
        while True:
            work = self._next(inbox)
            if work is None:
                return
            self._do(work)

    def _next(self, inbox: queue.SimpleQueue[Optional[Work]]) -> Optional[Work]:
        with self._lock:
            if self._ended:
                return None
            if self._waiting:
                return self._waiting.popleft()
            # Under the lock: between the look at what waits and this, work could come that nobody takes.
            self._idle.append(inbox)
        return inbox.get()
