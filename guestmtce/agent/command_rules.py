"""What a command to a guestServer is about, how long it is repeated, and what it tells of reporting. Pure.

docs/protocol/2-datagrams.md#confirmed-and-repeated
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from guestmtce.agent.effects import Send
from guestmtce.common import NEVER
from guestmtce.peer.retransmit import Message
from guestmtce.wire import datagram, datagram_ext

QUERY_FOR = 10.0  # s; the next audit asks anew


class CommandKey(NamedTuple):
    """What a command is about: a newer one about the same takes its place. A question has its own number.

    `subject` is a uuid; of a query it is the server's address.
    """

    topic: str
    subject: str
    sequence: int = 0


class RepeatedCommand(NamedTuple):
    """One that waits for its confirmation, and the flags that it bears each time."""

    send: Send
    flags: int


def enables_reporting(command: datagram.Command) -> bool:
    """Whether failures of the instance or host are wanted from then on."""
    return isinstance(command, (datagram.SetInstance, datagram.SetHost)) and command.reporting


def tells_disabling(command: datagram.Command, flags: int) -> bool:
    """Whether it ends reporting, or has the server do so before it enables."""
    return not enables_reporting(command) or bool(flags & datagram_ext.ANEW)


def hides_disabling(replaced: Optional[Message]) -> bool:
    """Whether what is replaced before it was confirmed has disabled reporting, or hides that itself.

    A server that never hears that reporting was off would take the silence of a guest that restarted in that
    time for a loss.
    """
    return replaced is not None and tells_disabling(replaced.content.send.command, replaced.content.flags)


def key_command(send: Send, sequence: int) -> Optional[CommandKey]:
    """None: the command is not repeated."""
    command = send.command
    if isinstance(command, (datagram.SetInstance, datagram.DeleteInstance)):
        return CommandKey("instance", command.uuid)
    if isinstance(command, datagram.SetHost):
        return CommandKey("host", command.uuid)
    if isinstance(command, datagram.Query):
        return key_query(send.ip)
    return CommandKey("question", command.uuid, sequence) if isinstance(command, datagram.Ask) else None


def key_query(ip: str) -> CommandKey:
    """A query is about all of the server at this address."""
    return CommandKey("query", ip)


def choose_expiry(send: Send, now: float) -> float:
    """When the command is repeated no more though nobody has confirmed it."""
    if isinstance(send.command, datagram.Query):
        return now + QUERY_FOR
    # A question expires with its timeout: nobody waits for its answer then.
    return now + send.seconds if isinstance(send.command, datagram.Ask) else NEVER
