"""What goes into a session and comes out of it: its settings, and what it reports.

docs/protocol/1-guest-channel.md#expected-silence
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple, Union

from guestmtce.wire.guest_channel import NOTICE, VOTE, Init

# One object for all: a child's page with another would be one more that it owns.
NEVER = float("inf")

# The answer to a question that nobody answers.
SILENT_AGREEMENT = {VOTE: "accept", NOTICE: "complete"}

# --- which notices silence a guest (docs/protocol/1-guest-channel.md#expected-silence) ---------------

SILENCING = (
    "stop", "reboot", "suspend", "pause", "resize_begin", "live_migrate_begin", "cold_migrate_begin",
)  # fmt: skip
RETURNING = ("resume", "unpause", "resize_end", "live_migrate_end", "cold_migrate_end")
AGREEMENTS = ("accept", "complete", "timeout")


def is_silencing(notification_type: str, event_type: str) -> bool:
    """Whether a guest may be silent from the moment that this is put to it."""
    return notification_type == NOTICE and event_type in SILENCING


def agrees_to_silence(notification_type: str, event_type: str, vote: str) -> bool:
    """Whether this answer has the expected silence go on, for `expected_silence` s."""
    return is_silencing(notification_type, event_type) and vote in AGREEMENTS


def ends_silence(notification_type: str, event_type: str, vote: str) -> bool:
    """Whether this answer ends the expected silence: a refusal, or any word about the guest's return."""
    refused = is_silencing(notification_type, event_type) and vote not in AGREEMENTS
    return refused or (notification_type == NOTICE and event_type in RETURNING)


def resuming_patience(interval: float, guest_patience: float, failure_threshold: int) -> float:
    """How long, in s, a guest known from before has to answer on a new connection, or to say `init`."""
    return max(max(2 * interval, guest_patience) + interval, interval * (failure_threshold + 1))


# --- the settings ------------------------------------------------------------------------------------


class SessionSettings:
    """What may be configured. Times in s unless the name says ms.

    docs/protocol/1-guest-channel.md names each where it counts.

    `guest_patience`: an acknowledged guest waits max(2 × interval, this) for a challenge. `wake_slack`: a
    wake-up later than this is our own lateness. `phase_spread`: the rest after each RUNNING is cut by a
    chance part of up to this, so that phases differ. `ack_period`: between two init_acks to one guest. A
    plain class: a child owns what it reads a named tuple's fields by.
    """

    def __init__(
        self,
        interval_floor_ms: int = 400,
        failure_threshold: int = 1,
        guest_patience: float = 5.0,
        idle_reconnect: float = 120.0,
        expected_silence: float = 15.0,
        ill_repeat: float = 55.0,
        nack_period: float = 1.0,
        ack_period: float = 0.1,
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
        self.ack_period = ack_period
        self.init_report_period = init_report_period
        self.note_period = note_period
        self.wake_slack = wake_slack
        self.phase_spread = phase_spread


# --- what a session reports ------------------------------------------------------------------------


class Acknowledged(NamedTuple):
    """The guest introduced itself; `init` with the interval raised to the floor."""

    init: Init


class Running(NamedTuple):
    """The guest heartbeats: its first answer since its `init`, or since this connection was made, since a
    notice that may silence it, or since reporting was enabled.
    """


class Stopped(NamedTuple):
    """The guest does not heartbeat, and that is no loss: it said goodbye, or a notice announced it, or it has
    not been heard since its last absence. `gone`: it owes no answer any more.
    """

    gone: int = 0


class Lost(NamedTuple):
    """The guest owed an answer and gives none."""

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


class ReportingEnabled(NamedTuple):
    """The child knows that reporting has become enabled: what it reports from here on is judged by that."""


class Answered(NamedTuple):
    """The question has its answer: the guest's own, or silent agreement."""

    question_id: int
    vote: str
    reason: str


class Late(NamedTuple):
    """Our own wake-up came `seconds` late; the guest was not charged for it."""

    seconds: float


class Reconnect(NamedTuple):
    """This connection is of no more use."""

    why: str


class Note(NamedTuple):
    """One line for the log; `held_back` of its subject were left out before it."""

    text: str
    held_back: int


Report = Union[
    Acknowledged, Running, Stopped, Lost, Missed, Ill, Well, ReportingEnabled, Answered, Late, Reconnect, Note
]


class SessionQuestion(NamedTuple):
    """A vote or notice that the guest has not answered yet."""

    question_id: int
    notification_type: str
    event_type: str
    deadline: float


class Resume(NamedTuple):
    """What is known of the guest from before this connection. Times in s.

    `silence` is how long silence is still expected, `answered_since_notice` whether the guest has answered
    since the notice that announced it was put to it. `patience` is how long it has to answer or to introduce
    itself at the least. `ill`: its illness was reported, and nothing has ended it.
    """

    init: Init
    was_heartbeating: bool
    silence: float
    answered_since_notice: bool = False
    patience: float = 0.0
    ill: bool = False


# What to write to the guest, and what to report. A plain tuple: there is one for everything that happens.
Output = Tuple[bytes, Sequence[Report]]

# --- why a child ended ---------------------------------------------------------------------------------

# Here, because the room that supervises children and the one of the guests' table do not know each other.
PEER_CLOSED = "the guest's side closed the channel"
GAVE_UP = "the child asked for a new connection"
DIED = "the child died"
FORK_FAILED = "no child could be made"
