"""What goes into a session and comes out of it: its settings, and what it reports."""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple, Union

from guestmtce.wire.channel import NOTICE, VOTE, Init

# What a question that nobody answers is settled with.
SILENT_AGREEMENT = {VOTE: "accept", NOTICE: "complete"}


class Settings:
    """What may be configured. Times in s unless the name says ms; spec 1 gives the defaults.

    `guest_patience`: an acknowledged guest waits max(2 × interval, this) for a challenge. `wake_slack`: a
    wake-up later than this is our own lateness. `phase_spread`: the first rest is cut by a chance part of up
    to this, so that phases differ. A plain class: a child owns what it reads a named tuple's fields by.
    """

    def __init__(
        self,
        interval_floor_ms: int = 400,
        failure_threshold: int = 1,
        guest_patience: float = 5.0,
        idle_reconnect: float = 120.0,
        expected_silence: float = 60.0,
        ill_repeat: float = 55.0,
        nack_period: float = 1.0,
        init_report_period: float = 1.0,
        note_period: float = 10.0,
        wake_slack: float = 0.02,
        phase_spread: float = 0.0,
    ) -> None:
        self.interval_floor_ms = interval_floor_ms
        self.failure_threshold = failure_threshold
        self.guest_patience = guest_patience
        self.idle_reconnect = idle_reconnect
        self.expected_silence = expected_silence
        self.ill_repeat = ill_repeat
        self.nack_period = nack_period
        self.init_report_period = init_report_period
        self.note_period = note_period
        self.wake_slack = wake_slack
        self.phase_spread = phase_spread


# --- what a session reports ------------------------------------------------------------------------


class Acknowledged(NamedTuple):
    """The guest introduced itself; `init` with the interval raised to the floor."""

    init: Init


class Running(NamedTuple):
    """The guest heartbeats: its first answer since its `init`, or since this connection was made."""


class Stopped(NamedTuple):
    """The guest said goodbye; it does not heartbeat any more, and that is no loss."""


class Quiet(NamedTuple):
    """The guest does not heartbeat any more, as a notice announced."""


class Lost(NamedTuple):
    """The guest was heartbeating and has stopped answering."""

    misses: int


class Missed(NamedTuple):
    """A challenge was not answered in its interval; `in_a_row` counts with it."""

    in_a_row: int


class Ill(NamedTuple):
    """The guest says that it is unhealthy and what it wants done."""

    action: str
    log_msg: str


class Well(NamedTuple):
    """The guest that was reported ill is healthy again."""


class Silence(NamedTuple):
    """Silence is expected for `seconds` from now on; 0: no longer."""

    seconds: float


class Answered(NamedTuple):
    """The question `number` is settled."""

    number: int
    vote: str
    reason: str


class Late(NamedTuple):
    """Our own wake-up came `seconds` late; the guest was not charged for it."""

    seconds: float


class Reconnect(NamedTuple):
    """This connection is of no more use."""

    why: str


class Note(NamedTuple):
    """One line for the log; `more` of the kind were left out before it."""

    text: str
    more: int


Report = Union[
    Acknowledged, Running, Stopped, Quiet, Lost, Missed, Ill, Well, Silence, Answered, Late, Reconnect, Note
]


class Question(NamedTuple):
    """A vote or notice that the guest has not answered yet."""

    number: int
    notification_type: str
    event_type: str
    deadline: float


class Resume(NamedTuple):
    """What is known of the guest from before this connection. `silence` is s of silence still expected."""

    init: Init
    heartbeating: bool
    silence: float


# What to write to the guest, and what to report. A plain tuple: there is one for everything that happens.
Output = Tuple[bytes, Sequence[Report]]
