"""A UDP proxy between guestServers and guestAgent that drops, repeats, delays and reorders, as a seed says.

One socket per host towards the agent's side and one towards each server keep the addresses apart: for every
host the proxy stands on an address of its own, so that the agent sees each host where mtcAgent said it is.
"""

from __future__ import annotations

import heapq
import itertools
import random
import select
import socket
import threading
import time
from typing import Dict, List, Tuple

Address = Tuple[str, int]


class LossyProxy:
    """Carries datagrams between pairs of addresses. `loss`, `twice`: probabilities; `delay_max` in s.

    `routes`: (address to listen on, address to send from, destination). Sending from another address than the
    one that listened keeps up the appearance of a direct line. `quiet` lets everything pass unharmed.
    """

    def __init__(
        self,
        seed: int,
        routes: List[Tuple[Address, Address, Address]],
        loss: float,
        twice: float,
        delay_max: float,
    ) -> None:
        self.loss, self.twice, self.delay_max = loss, twice, delay_max
        self.quiet = False
        self.passed = self.lost = 0
        self._random = random.Random(seed)
        self._sockets: Dict[Address, socket.socket] = {}
        self._routes = {listen: (self._socket(source), target) for listen, source, target in routes}
        for listen, _, _ in routes:
            self._socket(listen)
        self._waiting: List[Tuple[float, int, socket.socket, bytes, Address]] = []
        self._order = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Carry from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Carry no more."""
        self._stopping = True
        self._thread.join()
        for one in self._sockets.values():
            one.close()

    def _socket(self, address: Address) -> socket.socket:
        if address not in self._sockets:
            self._sockets[address] = bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            bound.bind(address)
        return self._sockets[address]

    def _run(self) -> None:
        listeners = {self._sockets[listen]: listen for listen in self._routes}
        while not self._stopping:
            wait = self._waiting[0][0] - time.monotonic() if self._waiting else 0.05
            ready, _, _ = select.select(list(listeners), [], [], min(0.05, max(0.0, wait)))
            for one in ready:
                try:
                    data = one.recv(2048)
                except OSError:
                    continue  # a port that nobody listened on said so
                self._carry(data, *self._routes[listeners[one]])
            self._deliver()

    def _carry(self, data: bytes, source: socket.socket, target: Address) -> None:
        chance = self._random
        copies = 1
        if not self.quiet:
            copies = 0 if chance.random() < self.loss else 2 if chance.random() < self.twice else 1
        self.lost += copies == 0
        for _ in range(copies):
            delay = 0.0 if self.quiet else chance.random() * self.delay_max
            entry = (time.monotonic() + delay, next(self._order), source, data, target)
            heapq.heappush(self._waiting, entry)

    def _deliver(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, _, source, data, target = heapq.heappop(self._waiting)
            try:
                source.sendto(data, target)
                self.passed += 1
            except OSError:
                pass
