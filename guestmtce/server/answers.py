"""The answers to queries, one datagram per instance, at a pace that the far side's buffer bears."""

from __future__ import annotations

import collections
from typing import Callable, Deque, Dict, List

from guestmtce.daemon.loop import Loop

# An old agent's buffer holds about 92 full datagrams.
ANSWERS_A_TURN = 16
ASKERS_MAX = 4  # agents that are answered at once; there should be one


class Answers:
    """`send_info(uuid, address)` is called for each; `pace` is in s."""

    def __init__(self, loop: Loop, pace: float, send_info: Callable[[str, str], None]) -> None:
        self._loop = loop
        self._pace = pace
        self._send_info = send_info
        self._waiting: Dict[str, Deque[str]] = {}  # by address
        self._pacing = False

    def answer_query(self, uuids: List[str], address: str) -> None:
        """Answer about these. A new query of the same asker takes the place of its former one."""
        # Who is over the bound hears nothing now; its audit asks again.
        if address in self._waiting or len(self._waiting) < ASKERS_MAX:
            self._waiting[address] = collections.deque(uuids)
        if not self._pacing:
            self._send_some()

    def _send_some(self) -> None:
        for address, uuids in list(self._waiting.items()):
            for _ in range(min(ANSWERS_A_TURN, len(uuids))):
                self._send_info(uuids.popleft(), address)
            if not uuids:
                del self._waiting[address]
        self._pacing = bool(self._waiting)
        if self._pacing:
            self._loop.after(self._pace, self._send_some)
