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
DATAGRAM_MAX = 2048  # bytes; the daemons' have datagram.FULL_SIZE at most
RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes: what is lost is lost by the seed, and not by a full buffer
POLL = 0.05  # s at most between two looks whether it is to stop


class LossyProxy:
    """Carries datagrams between pairs of addresses, in a thread from `start` to `stop`.

    `routes`: (address to listen on, address to send from, destination). A datagram is sent from another
    address than the one that listened, so that its receiver sees a direct line. `loss` and `twice` are
    probabilities, `delay_max` is in s. `quiet` lets everything pass unharmed. `passed` and `lost` count
    datagrams.
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
        """Carry datagrams from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Carry nothing any more, and close the sockets."""
        self._stopping = True
        self._thread.join()
        for bound in self._sockets.values():
            bound.close()

    def _socket(self, address: Address) -> socket.socket:
        # An address may listen in one route and send in another: a socket serves both.
        if address not in self._sockets:
            self._sockets[address] = bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            bound.bind(address)
        return self._sockets[address]

    def _run(self) -> None:
        listeners = {self._sockets[listen]: listen for listen in self._routes}
        while not self._stopping:
            wait = self._waiting[0][0] - time.monotonic() if self._waiting else POLL
            # Until the next datagram is due, and POLL at most, as `stop` wakes nobody.
            ready, _, _ = select.select(list(listeners), [], [], min(POLL, max(0.0, wait)))
            for listener in ready:
                try:
                    data = listener.recv(DATAGRAM_MAX)
                except OSError:
                    continue  # a port that nobody listened on said so
                self._carry_datagram(data, *self._routes[listeners[listener]])
            self._deliver_due()

    def _carry_datagram(self, data: bytes, source: socket.socket, target: Address) -> None:
        copies = 1 if self.quiet else self._choose_copies()
        self.lost += copies == 0
        for _ in range(copies):
            delay = 0.0 if self.quiet else self._random.random() * self.delay_max
            # Each copy has a delay of its own: that is what changes the order.
            entry = (time.monotonic() + delay, next(self._order), source, data, target)
            heapq.heappush(self._waiting, entry)

    def _choose_copies(self) -> int:
        if self._random.random() < self.loss:
            return 0
        return 2 if self._random.random() < self.twice else 1

    def _deliver_due(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, _, source, data, target = heapq.heappop(self._waiting)
            try:
                source.sendto(data, target)
                self.passed += 1
            except OSError:
                pass
