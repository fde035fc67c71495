"""The world of one life: its cluster, its record, and what goes on in it beside each other.

What takes longer than a moment is a *course*: a generator that yields how many seconds it waits, so that many
courses go on beside each other and beside the next fault. A guest that a course is at work on is `busy`, and
left alone by other faults.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Generator, List, Optional, Sequence, Set, Tuple

from old_agent import OldAgent
from truth import Truth, lasts

from guestmtce.lab.cluster import Cluster, LabHost
from guestmtce.lab.lossy_udp import LossyProxy

Course = Generator[float, None, Any]

OURS, OLD, TWO = "ours", "old", "two"  # the agents
AWAY = ("down", "hang", "stall")  # troubles in which the VIM does nothing


class World:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, seed: int, cluster: Cluster, proxy: LossyProxy, own_mounts: bool) -> None:
        self.random = random.Random(seed)
        self.cluster, self.proxy = cluster, proxy
        self.own_mounts = own_mounts  # run folders are small file systems that can be filled
        self.truth = Truth()
        self.busy: Set[str] = set()
        self.commanding = 0  # courses that give the agent commands
        self.vim_trouble = ""
        self.agents = OURS
        self.old_agent: Optional[OldAgent] = None
        self.each_turn: List[Callable[[], None]] = []
        self._courses: List[Tuple[float, int, Course]] = []
        self._order = itertools.count()
        self._beside = ThreadPoolExecutor(1)  # for good: a process that a thread has started ends with it

    def host_of(self, uuid: str) -> LabHost:
        """Where the guest lives."""
        return self.cluster.hosts[self.cluster.uuids.index(uuid) // self.cluster.guest_count]

    def beats(self, uuid: str) -> bool:
        """It would, if it were let."""
        return not lasts(self.truth.hung, uuid) and uuid not in self.truth.gone

    def say(self, uuid: str, *words: Any) -> None:
        """Switch the guest."""
        self.truth.note("%s %s" % (uuid[-2:], " ".join(map(str, words))))
        self.host_of(uuid).guests.say(uuid, *words)

    def start(self, course: Course) -> None:
        """Take its next step now, and have it go on."""
        try:
            wait = next(course)
        except StopIteration:
            return
        heapq.heappush(self._courses, (time.monotonic() + wait, next(self._order), course))

    def _turn(self) -> None:
        for act in self.each_turn:
            act()
        while self._courses and self._courses[0][0] <= time.monotonic():
            self.start(heapq.heappop(self._courses)[2])

    def go_on(self, seconds: float, faults: Sequence[Callable[[], None]] = ()) -> None:
        """All courses for so long, and faults at random."""
        until, next_fault = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < until:
            self._turn()
            if faults and time.monotonic() >= next_fault:
                self.random.choice(faults)()
                next_fault = time.monotonic() + self.random.random() * 0.15
            time.sleep(0.005)

    def go_on_while(self, act: Callable[[], Any]) -> None:
        """All courses until `act` has ended, which takes its time: the VIM does not wait for it."""
        ended = self._beside.submit(act)
        while not ended.done():
            self.go_on(0.01)
        ended.result()

    def end_commands(self, seconds: float) -> None:
        """Until nobody commands the agent, but no longer than this."""
        ends = time.monotonic() + seconds
        while self.commanding and time.monotonic() < ends:
            self.go_on(0.05)

    def end_courses(self, seconds: float) -> None:
        """Until each course has come to its end, but no longer than this."""
        ends = time.monotonic() + seconds
        while self._courses and time.monotonic() < ends:
            self.go_on(0.05)
