"""One row of the master's table, in parts: its connection, its crashes, its liveness, what is pending of it.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#connection-upkeep

The state of the liveness changes by `Liveness.note` alone, and what is pending by `PendingEvents` alone; the
plain facts beside them are set where they are learnt. There are thousands of rows: each part has slots, and
nothing is in a row that is the same for all guests.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

from guestmtce.common.back_off import BackOff
from guestmtce.common.rate_limit import Bucket
from guestmtce.server.child import session_types
from guestmtce.server.state import liveness
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import datagram, guest_channel

NEVER = float("inf")

# States of a connection.
ABSENT = "absent"  # there is no socket
RETRYING = "retrying"  # it is to be connected at `retry_at`
CONNECTING = "connecting"  # a child is being forked
CONNECTED = "connected"  # a child serves it

# What is wrong with a guest.
LOST = "lost"  # its heartbeat
ILL = "ill"

# Kinds of pending events.
STATE = "state"  # RUNNING or STOPPED
LOSS = "loss"
ILLNESS = "illness"
OUTCOME = "outcome"  # of a question: there is one for each question_id
FAILURES = (LOSS, ILLNESS)

STATE_CHANGES = 2  # told per `state_period`: one coming and one going
LINES_PER_SECOND = 1  # in the log, about what one guest's child says, and
LINES_BURST = 30  # as many at once

SocketIdentity = Optional[Tuple[int, ...]]  # tells a socket from one that was made anew; None: not known


class PendingKey(NamedTuple):
    """Which event of which guest; `question_id` only of an OUTCOME. A newer event replaces an older one."""

    uuid: str
    kind: str
    question_id: int = 0

    def __str__(self) -> str:
        """For people: the kind, and the question's id."""
        return "%s-%d" % (self.kind, self.question_id) if self.question_id else self.kind


class PendingEvent(NamedTuple):
    """What guestAgent has not confirmed yet; `sequence` names it for ever, over restarts too.

    `held`: it is from before a restart, and a guest that lives has the time to show it first. `until`: nobody
    wants it after that (s, monotonic). `still_ill`: it is a RUNNING, and the illness in the same row went on
    when it was said first.
    """

    sequence: int
    cmd: int
    event: datagram.Event
    held: bool = False
    until: float = NEVER
    still_ill: bool = False


class OpenQuestion(NamedTuple):
    """A vote or notice without an outcome; `deadline` is the guest's. `given`: the present child has it."""

    notification_type: str
    event_type: str
    deadline: float
    given: bool


class GuestMemory(NamedTuple):
    """What is remembered of a guest over a restart. Times in s on the machine's monotonic clock."""

    uuid: str
    provisioned: bool
    reporting: bool
    init: Optional[guest_channel.Init]
    heartbeating: bool
    owes_answer: bool
    silence_until: float
    socket_identity: SocketIdentity = None
    pending: Tuple[Tuple[PendingKey, PendingEvent], ...] = ()
    questions: Tuple[Tuple[int, str, str, float], ...] = ()  # id, notification type, event, deadline
    answered_since_notice: bool = False
    patience_until: float = -NEVER
    ill_reported_at: float = -NEVER


class Connection:
    """The guest's socket, and the child that is connected to it."""

    __slots__ = (
        "back_off", "connected_at", "connections_made", "path", "refused_for", "retry_at", "socket_identity",
        "state",
    )  # fmt: skip

    def __init__(self, back_off: BackOff) -> None:
        self.state = ABSENT
        self.path: Optional[str] = None
        self.socket_identity: SocketIdentity = None
        self.retry_at = NEVER
        self.back_off = back_off
        self.connected_at = -NEVER
        self.connections_made = 0  # for the dump
        self.refused_for = 0.0  # s; for how long every connection has been refused


class Crashes:
    """Children of the guest that died."""

    __slots__ = ("count", "crash_looping", "recent")

    def __init__(self) -> None:
        self.count = 0  # for the dump
        self.recent: Tuple[float, ...] = ()  # when, within the last minute
        self.crash_looping = False  # too many of them: there is no child for a while


class Liveness:
    """Whether the guest lives: its state as in `liveness`, and what its silence is judged by."""

    __slots__ = (
        "answered_since_notice", "enablings", "ill", "late", "losses", "missed_at", "misses",
        "patience_until", "previous_miss_at", "silence_until", "state",
    )  # fmt: skip

    def __init__(self) -> None:
        self.state = liveness.SILENT
        self.ill = False  # reported or not
        self.enablings = 0  # of reporting, which the present child has been told of and has not taken note of
        self.silence_until = -NEVER
        self.answered_since_notice = False  # since the last notice that may silence it was put to it
        self.patience_until = -NEVER  # after a long absence of ours it may be booting until then
        self.missed_at = self.previous_miss_at = -NEVER
        self.misses = self.losses = self.late = 0  # for the dump

    def note(self, happening: str) -> None:
        """Something that `liveness` names has happened."""
        self.state = liveness.TRANSITIONS[happening].get(self.state, self.state)

    @property
    def running(self) -> bool:
        """Whether its present child says that it answers."""
        return self.state in liveness.RUNNING_STATES

    @property
    def heartbeating(self) -> bool:
        """Whether the world is told that it heartbeats."""
        return self.state in liveness.HEARTBEATING_STATES

    @property
    def owes_answer(self) -> bool:
        """Whether it may be lost."""
        return self.state in liveness.OWING_STATES

    @property
    def failure(self) -> str:
        """LOST or ILL, reported or not; empty: nothing is wrong."""
        if self.state == liveness.LOST:
            return LOST
        return ILL if self.ill else ""


class Pending:
    """What guestAgent has not confirmed of the guest, and what it is to hear later."""

    __slots__ = (
        "events", "ill_reported_at", "illnesses", "last_reported", "late_illness", "late_illness_due",
        "report_failures_after", "state_changes", "state_due", "stopped_due", "withdrawn",
    )  # fmt: skip

    def __init__(self, state_period: float) -> None:
        self.events: Dict[PendingKey, PendingEvent] = {}
        self.last_reported: Optional[datagram.InstanceInfo] = None  # as RUNNING; None: as STOPPED
        self.stopped_due = NEVER
        self.state_changes = Bucket(STATE_CHANGES / state_period, STATE_CHANGES, 0.0)
        self.state_due = NEVER  # a change of state is to be told then, if there still is one
        self.report_failures_after = NEVER  # held failures are told then, if still true
        self.ill_reported_at = -NEVER
        self.illnesses = Bucket(1 / state_period, 1, 0.0)
        self.late_illness: Optional[session_types.Ill] = None  # told at `late_illness_due`, if it goes on
        self.late_illness_due = NEVER
        self.withdrawn = 0  # failures that were over before they were confirmed, for the dump


class Guest:
    """One row: what was provisioned, the guest's init, its open questions, and four parts."""

    __slots__ = (
        "connection", "crashes", "init", "lines", "lines_left_out", "liveness", "pending", "provisioned",
        "questions", "reporting", "uuid",
    )  # fmt: skip

    def __init__(self, uuid: str, settings: TableSettings) -> None:
        self.uuid = uuid
        self.provisioned = False
        self.reporting = False
        self.init: Optional[guest_channel.Init] = None
        self.questions: Dict[int, OpenQuestion] = {}  # by question_id
        self.connection = Connection(BackOff(settings.reconnect_first, settings.reconnect_max))
        self.crashes = Crashes()
        self.liveness = Liveness()
        self.pending = Pending(settings.state_period)
        self.lines = Bucket(LINES_PER_SECOND, LINES_BURST, 0.0)  # in the log, about what its child says
        self.lines_left_out = 0

    @property
    def known_init(self) -> guest_channel.Init:
        """The guest's init, or what holds before any."""
        return self.init or guest_channel.DEFAULT_INIT

    @property
    def interval(self) -> float:
        """Of its challenges, in s."""
        return self.known_init.heartbeat_interval_ms / 1000

    def memory(self) -> GuestMemory:
        """What of it is to be remembered."""
        return GuestMemory(
            uuid=self.uuid,
            provisioned=self.provisioned,
            reporting=self.reporting,
            init=self.init,
            heartbeating=self.liveness.heartbeating,
            owes_answer=self.liveness.owes_answer,
            silence_until=self.liveness.silence_until,
            socket_identity=self.connection.socket_identity,
            pending=tuple(
                # Both are decided anew by the next guestServer, by what it knows then.
                (key, event._replace(held=False, still_ill=False))
                for key, event in self.pending.events.items()
            ),
            questions=tuple(
                (question_id, one.notification_type, one.event_type, one.deadline)
                for question_id, one in self.questions.items()
            ),
            answered_since_notice=self.liveness.answered_since_notice,
            patience_until=self.liveness.patience_until,
            ill_reported_at=self.pending.ill_reported_at,
        )


def instance_info(guest: Guest, hostname: str) -> datagram.InstanceInfo:
    """The guest's state as guestAgent is told (docs/protocol/2-datagrams.md#events)."""
    init = guest.known_init
    return datagram.InstanceInfo(
        hostname=hostname,
        uuid=guest.uuid,
        reporting=guest.reporting,
        heartbeating=guest.liveness.heartbeating,
        repair_action=init.corrective_action,
        restart_to=init.restart_secs,
        shutdown_to=init.shutdown_notice_secs,
        suspend_to=init.suspend_notice_secs,
        resume_to=init.resume_notice_secs,
        vote_to=init.vote_secs,
    )


def answer_patience(guest: Guest, guest_patience: float) -> float:
    """How long, in s, a guest has to answer on a new connection; `guest_patience` at the least."""
    return max(2 * guest.interval, guest_patience)
