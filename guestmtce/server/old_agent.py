"""What a guestAgent of old is told, and in which order (docs/protocol/2-datagrams.md#an-old-guestagent).

It confirms nothing and acts on every repetition, so everything is said once. What it was told of failures is
kept while it is true: nobody knows that it was heard, and the next agent is to hear of it.

It drops what it hears of an instance that it does not know, takes an instance's repair action from its state
alone, and names each instance that it learns of by ADD_INST.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional

from guestmtce.server.state.guest import FAILURE, ILLNESS, STATE, Key, Tell
from guestmtce.wire import datagram


def is_failure(tell: Tell) -> bool:
    """Whether it tells of a loss or an illness."""
    return tell.key[1] in (FAILURE, ILLNESS)


class OldAgent:
    """See the module's text. `say` sends, `number` makes numbers, `info` gives an instance's state."""

    def __init__(
        self,
        say: Callable[[Tell], None],
        number: Callable[[], int],
        info: Callable[[str], Optional[datagram.InstanceInfo]],
    ) -> None:
        self._say = say
        self._number = number
        self._info = info
        self._failures: Dict[Key, Tell] = {}  # that were said, and are still true
        self._stop_said: Optional[datagram.Event] = None  # with a loss; the table tells it after the loss

    def tell(self, tell: Tell) -> None:
        """Say this; the state goes before a loss, or the VIM would not hear what is to be done."""
        stop = self._stop_said
        if tell.key[1] == STATE:
            self._stop_said = None
        if tell.cmd == datagram.LOSS:
            self._tell_stop(tell)
        if tell.cmd != datagram.STOPPED or tell.event != stop:
            self._say(tell)
        self.note_said(tell)

    def note_said(self, tell: Tell) -> None:
        """This was said to it."""
        if is_failure(tell):
            self._failures[tell.key] = tell

    def introduce(self, uuid: str) -> None:
        """It names an instance, maybe for the first time: say how that is, and the failures that it has."""
        info = self._info(uuid)
        if info is None:
            return
        cmd = datagram.RUNNING if info.heartbeating else datagram.STOPPED
        self._say(Tell(cmd, info, self._number(), (uuid, STATE)))
        self._stop_said = info
        for kind in (FAILURE, ILLNESS):
            if (uuid, kind) in self._failures:
                self._say(self._failures[uuid, kind])

    def untell(self, key: Key) -> None:
        """It is no longer true."""
        self._failures.pop(key, None)

    def pop_failures(self) -> List[Tell]:
        """What was said of failures and is still true; it is forgotten here."""
        failures, self._failures = list(self._failures.values()), {}
        return failures

    def _tell_stop(self, loss: Tell) -> None:
        """What the loss means for the instance's state."""
        event = loss.event
        info = event if isinstance(event, datagram.InstanceInfo) else self._info(loss.key[0])
        stop = info._replace(heartbeating=False) if info is not None else None
        if stop is not None and stop != self._stop_said:
            self._stop_said = stop
            self._say(Tell(datagram.STOPPED, stop, self._number(), (loss.key[0], STATE)))
