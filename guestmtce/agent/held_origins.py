"""Which datagrams of guestServers still wait here, and which may be confirmed.

docs/protocol/2-datagrams.md#confirmed-and-repeated

Pure. One datagram may bring several events (an answer brings an alarm that waited for it, and a state); it
may be confirmed once the last of them is delivered, or is not to be delivered any more.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from guestmtce.agent.model import Origin


class HeldOrigins:
    """See the module's text. A datagram is known by sender and sequence, whatever address it came from."""

    def __init__(self) -> None:
        self._held: Dict[Tuple[int, int], int] = {}  # sender and sequence → events that wait
        self._confirmable: List[Origin] = []

    def hold_origin(self, origin: Optional[Origin]) -> None:
        """One more event of this datagram waits."""
        if origin is not None:
            key = (origin.sender, origin.sequence)
            self._held[key] = self._held.get(key, 0) + 1

    def release_origin(self, origin: Optional[Origin]) -> None:
        """One event of it is done."""
        if origin is None:
            return
        key = (origin.sender, origin.sequence)
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self._confirmable.append(origin)

    def holds(self, origin: Origin) -> bool:
        """Whether an event of it still waits."""
        return (origin.sender, origin.sequence) in self._held

    def take_confirmable(self) -> List[Origin]:
        """The datagrams of which nothing waits any more, once each."""
        confirmable, self._confirmable = self._confirmable, []
        return confirmable


def is_same_datagram(one: Optional[Origin], other: Optional[Origin]) -> bool:
    """Whether both are the same datagram, whatever the address. None is the same as nothing."""
    # Without `ip`: with a key a repetition may come from another address.
    return one is not None and other is not None and one[1:] == other[1:]
