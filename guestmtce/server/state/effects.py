"""What the guests' table wants done, as values; the master carries each out with one method.

docs/protocol/2-datagrams.md#confirmed-and-repeated
docs/protocol/1-guest-channel.md#connection-upkeep
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from guestmtce.common.log_line import LogLine
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state.guest import NEVER, GuestMemory, PendingKey
from guestmtce.wire import datagram


class Connect(NamedTuple):
    """Connect the socket at `path` and start a child.

    `GuestTable.child_started`, `connect_failed` or `child_ended` answers.
    """

    uuid: str
    path: str
    resume: Optional[session_types.Resume]


class DropChild(NamedTuple):
    """End the child of this guest, without a word about it afterwards."""

    uuid: str


class PutCommand(NamedTuple):
    """Give the guest's child this command."""

    uuid: str
    command: pipe_protocol.Command


class LookForSocket(NamedTuple):
    """See whether the guest's socket exists."""

    uuid: str


class ReportEvent(NamedTuple):
    """Send guestAgent this until it has confirmed it. A newer event of the same key takes its place.

    `GuestTable.confirm_event` answers, also when `until` (s, monotonic) has passed and nobody wants it any
    more. What is to be repeated is asked for with `GuestTable.find_report`: the table alone keeps it.
    `still_ill`: the event is a RUNNING, and the illness in the same row goes on.
    """

    cmd: int
    event: datagram.Event
    sequence: int
    key: PendingKey
    until: float = NEVER
    still_ill: bool = False


class WithdrawEvent(NamedTuple):
    """The event is no longer true: it is not to be sent any more."""

    key: PendingKey


class SaveGuest(NamedTuple):
    """Remember this over a restart."""

    memory: GuestMemory


class SaveHost(NamedTuple):
    """Remember over a restart whether this host's failures are to be reported."""

    reporting: bool


class ForgetGuest(NamedTuple):
    """Remember nothing of this guest."""

    uuid: str


Effect = Union[
    Connect, DropChild, PutCommand, LookForSocket, ReportEvent, WithdrawEvent, SaveGuest, SaveHost,
    ForgetGuest, LogLine,
]  # fmt: skip
