"""Which commands of guestAgent are obeyed: none twice, and none that a newer one has overtaken. Pure."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from guestmtce.daemon.reliable import SEEN_MAX, Seen
from guestmtce.wire import datagram, extension
from guestmtce.wire.extension import Tag


class CommandOrder:
    """See the module's text. What is remembered has a bound."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._latest: Dict[str, Tuple[int, int]] = {}  # what is commanded → by whom, number

    def admit(self, command: datagram.Command, tag: Optional[Tag]) -> bool:
        """Whether the command is to be obeyed; it is noted. An old agent's always is."""
        if tag is None or not tag.wants_ack:
            return True
        if not self._seen.add(tag.sender, tag.number):
            return False
        if isinstance(command, (datagram.SetInstance, datagram.DeleteInstance, datagram.SetHost)):
            return self._is_newest(command.uuid, tag)
        return True

    def _is_newest(self, subject: str, tag: Tag) -> bool:
        sender, number = self._latest.get(subject, (0, 0))
        if sender == tag.sender and not extension.newer(tag.number, number):
            return False
        self._latest.pop(subject, None)
        if len(self._latest) >= SEEN_MAX:
            del self._latest[next(iter(self._latest))]
        self._latest[subject] = (tag.sender, tag.number)
        return True
