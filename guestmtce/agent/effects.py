"""What the inventory wants done: values that `main` carries out, in their order.

The inventory opens no socket and writes no log. It appends effects, and whoever has put a fact into it takes
them out and sends, reports and logs. So a test sees all that a fact entails, and no lock is held for I/O.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional, Tuple, Union

from guestmtce.agent.model import FAILED, UNHEALTHY, FailureState, Origin
from guestmtce.common.log_line import LogLine
from guestmtce.wire import datagram

NEVER = float("inf")  # s, monotonic

EventBody = Mapping[str, object]  # the JSON object of an event (docs/protocol/3-vim-http.md#events)

# --- to the guestServers -----------------------------------------------------------------------------


class Send(NamedTuple):
    """Send this command to the guestServer at `ip`. A question is of no use after `seconds`.

    `hostname` is spelled as that server spells it: a seal covers the spelling. `anew`: the command enables
    reporting, and the server may have missed that it was disabled before.
    """

    hostname: str
    ip: str
    cmd: int
    command: datagram.Command
    seconds: float = 0.0
    anew: bool = False


class DropHost(NamedTuple):
    """Nothing more is to be said to the guestServer at `ip`; what was said before is not repeated."""

    ip: str


# --- to mtcAgent -------------------------------------------------------------------------------------


class AskMtc(NamedTuple):
    """Ask mtcAgent for the hosts."""


# --- to the VIM --------------------------------------------------------------------------------------


class ReportService(NamedTuple):
    """The VIM must hear the state of this instance; it replaces a state that was not delivered yet."""

    uuid: str
    body: EventBody
    origin: Optional[Origin] = None


class ReportAlarm(NamedTuple):
    """The VIM must hear of this failure."""

    uuid: str
    state: FailureState
    body: EventBody
    origin: Optional[Origin] = None


class ReportAction(NamedTuple):
    """The VIM must hear the outcome of this vote or notice; after `until` (s, monotonic) it waits no more."""

    uuid: str
    body: EventBody
    origin: Optional[Origin] = None
    until: float = NEVER


class Withdraw(NamedTuple):
    """Failures of this instance that were not delivered yet are no longer true, because of `why`.

    `unwanted`: the VIM itself has said that it wants to hear of none; it knows what it has read by then.
    """

    uuid: str
    why: str
    states: Tuple[FailureState, ...] = (FAILED, UNHEALTHY)
    unwanted: bool = False


class ForgetVimEvents(NamedTuple):
    """The VIM is to hear nothing more about this instance: it was deleted, or has moved."""

    uuid: str


class AskVim(NamedTuple):
    """Ask the VIM for this host's state (`instances` false) or its instances.

    The answer comes back with `serial`, which shows what has happened since the query was made.
    """

    uuid: str
    hostname: str
    instances: bool
    serial: int = 0


# What `vim_queue` takes; `main` carries out the others itself.
VimEffect = Union[ReportService, ReportAlarm, ReportAction, Withdraw, ForgetVimEvents, AskVim]
Effect = Union[Send, DropHost, AskMtc, LogLine, VimEffect]
