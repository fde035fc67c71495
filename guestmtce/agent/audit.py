"""The audit: every 10 s compare what we know with what the guestServers and the VIM say.

docs/protocol/2-datagrams.md#audit
"""

from __future__ import annotations

from typing import Any, Callable

from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.loop import Loop


class Audit:
    """Calls `apply(inventory.audit)` on time. What comes back repairs the inventory where it arrives."""

    def __init__(
        self, loop: Loop, settings: AgentSettings, apply: Callable[[Callable[[Any], Any]], Any]
    ) -> None:
        self.rounds = 0
        self._loop = loop
        self._settings = settings
        self._apply = apply

    def start(self) -> None:
        """The first one comes soon."""
        self._loop.after(self._settings.audit_first, self._round)

    def _round(self) -> None:
        self._loop.after(self._settings.audit_period, self._round)
        self.rounds += 1
        self._apply(lambda inventory: inventory.audit())
