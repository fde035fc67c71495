"""Which guestAgent this guestServer obeys, and which of its commands. Pure; `now` in s, monotonic.

Two agents that both believe to be the active one would turn every guest's reporting on and off in turn. So
one is followed, and stays so until it says goodbye or has been silent for a while. A new process at the
address of the followed one is its successor and is followed at once; the process before it is not any more.
Our own restart changes nothing of that: whom we followed before it is waited for as long.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

from guestmtce.peer.retransmit import SEEN_MAX, Seen
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Tag

PREDECESSORS_MAX = 64  # processes remembered that were replaced by another


class Identity(NamedTuple):
    """Who speaks; `nonce` is the process, 0 for an old agent, whose processes cannot be told apart."""

    address: str
    nonce: int


class ReceivedDatagram(NamedTuple):
    """A datagram that may be believed. `command` is None for a confirmation, `tag` for an old agent's."""

    cmd: int
    command: Optional[datagram.Command]
    tag: Optional[Tag]
    address: str

    @property
    def identity(self) -> Identity:
        """Who has sent it."""
        return Identity(self.address, self.tag.nonce if self.tag is not None else 0)


class Following:
    """See the module's text. `silence`: s after which the followed agent is given up.

    `before` is the address of the one that was followed before our restart, if any; `now` that of our start.
    """

    def __init__(self, silence: float, before: str = "", now: float = 0.0) -> None:
        self.current: Optional[Identity] = None
        self.said_goodbye = False
        self._before = before
        self._silence = silence
        self._heard_at = now
        self._predecessors: Dict[int, None] = {}

    def is_current(self, speaker: Identity) -> bool:
        """Whether this is the process that is followed. One of ours may change its address."""
        if self.current is None:
            return False
        # Old agents all have the nonce 0: only their address tells them apart.
        return speaker.nonce == self.current.nonce and (speaker.nonce > 0 or speaker == self.current)

    def admit_speaker(self, speaker: Identity, now: float) -> bool:
        """This one has spoken, and is believed; whether it is followed from now on."""
        if not self._may_follow(speaker, now):
            return False
        if self.current is not None and not self.is_current(speaker):
            self._note_predecessor(self.current.nonce)
        # One that was replaced, and is followed again after a silence, is nobody's predecessor any more.
        self._predecessors.pop(speaker.nonce, None)
        self.current, self._heard_at, self.said_goodbye = speaker, now, False
        return True

    def excuse_silence(self, seconds: float) -> None:
        """We heard nobody for so long, because this host stood still: that is no silence of the agent's.

        No more is excused: a host that stands still again and again must leave an agent that is dead.
        """
        self._heard_at += seconds

    def note_goodbye(self) -> None:
        """The followed agent stops: whoever speaks next is followed."""
        assert self.current is not None
        self.said_goodbye = True
        self._note_predecessor(self.current.nonce)

    def _may_follow(self, speaker: Identity, now: float) -> bool:
        # Silence beats everything else, a predecessor included: somebody must be followed.
        if now - self._heard_at >= self._silence:
            return True
        if self.current is None:
            return self._before in ("", speaker.address)
        if speaker.nonce in self._predecessors:
            return False  # of a process that is gone, late; or it is not gone
        same_place = speaker.address == self.current.address
        return self.said_goodbye or same_place or self.is_current(speaker)

    def _note_predecessor(self, nonce: int) -> None:
        if nonce:
            # To the end of the dictionary: the first in it is the one that goes.
            self._predecessors.pop(nonce, None)
            if len(self._predecessors) >= PREDECESSORS_MAX:
                del self._predecessors[next(iter(self._predecessors))]
            self._predecessors[nonce] = None


class CommandOrder:
    """None is obeyed twice, and none that a newer one has overtaken. What is remembered has a bound."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._latest: Dict[str, Tuple[int, int]] = {}  # what is commanded → by whom, sequence

    def admit_command(self, command: datagram.Command, tag: Optional[Tag]) -> bool:
        """Whether the command is to be obeyed; it is noted. An old agent's always is."""
        # Without a number nothing tells a repetition from a new command.
        if tag is None or not tag.wants_ack:
            return True
        if not self._seen.add(tag.sender, tag.number):
            return False
        # Votes and notices have no order among them: each is a question of its own.
        if isinstance(command, (datagram.SetInstance, datagram.DeleteInstance, datagram.SetHost)):
            return self._is_newest(command.uuid, tag)
        return True

    def _is_newest(self, subject: str, tag: Tag) -> bool:
        sender, sequence = self._latest.get(subject, (0, 0))
        # Numbers of two senders do not compare: another agent's command is always the newer one.
        if sender == tag.sender and not datagram_ext.is_newer(tag.number, sequence):
            return False
        self._latest.pop(subject, None)
        if len(self._latest) >= SEEN_MAX:
            del self._latest[next(iter(self._latest))]
        self._latest[subject] = (tag.sender, tag.number)
        return True
