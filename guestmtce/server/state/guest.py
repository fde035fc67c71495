"""One row of the master's table, and what the table may want done about it."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from guestmtce.common.rate_limit import Bucket
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state_store import Memory
from guestmtce.wire import datagram, guest_channel

ABSENT = "absent"
RETRYING = "retrying"
CONNECTING = "connecting"
CONNECTED = "connected"

# What is wrong with a guest.
LOST = "lost"  # its heartbeat
ILL = "ill"

# Why a guest has no child any more.
DIED = pipe_protocol.DIED
FORK_FAILED = pipe_protocol.FORK_FAILED
GAVE_UP = pipe_protocol.GAVE_UP
PEER_CLOSED = pipe_protocol.PEER_CLOSED

# What of a guest guestAgent may still have to hear; beside them `vote N` for each settled question.
STATE = "state"
FAILURE = "failure"
ILLNESS = "illness"

NEVER = float("inf")

STATE_CHANGES = 2  # told per `state_period`: one coming and one going

LINES_PER_SECOND = 1  # in the log, about what one guest's child says, and
LINES_BURST = 30  # as many at once

Key = Tuple[str, str]  # uuid, kind


# --- effects ---------------------------------------------------------------------------------------


class Connect(NamedTuple):
    """Connect the socket at `path` and start a child; `connected` or `connect_failed` answers."""

    uuid: str
    path: str
    resume: Optional[session_types.Resume]


class Drop(NamedTuple):
    """End the child of this guest, without a word about it afterwards."""

    uuid: str


class Put(NamedTuple):
    """Give the child this command."""

    uuid: str
    command: pipe_protocol.Command


class Look(NamedTuple):
    """See whether the guest's socket exists."""

    uuid: str


class Tell(NamedTuple):
    """Tell guestAgent until it has it (`told` answers). A newer one of the same key takes its place.

    Nobody wants it after `until` (s, monotonic): `told` is called then, too. `still_ill`: it is a RUNNING,
    and the illness in the same row goes on.
    """

    cmd: int
    event: datagram.Event
    number: int
    key: Key
    until: float = NEVER
    still_ill: bool = False


class Untell(NamedTuple):
    """It is no longer true: tell it no more."""

    key: Key


class Save(NamedTuple):
    """Remember this over a restart."""

    memory: Memory


class SaveHost(NamedTuple):
    """Remember over a restart whether this host's failures are to be reported."""

    reporting: bool


class Forget(NamedTuple):
    """Remember nothing of this guest."""

    uuid: str


Effect = Union[Connect, Drop, Put, Look, Tell, Untell, Save, SaveHost, Forget]


# --- the row ---------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A vote or notice that is not settled; `deadline` is the guest's. `given`: the present child has it."""

    notification_type: str
    event_type: str
    deadline: float
    given: bool


class Untold(NamedTuple):
    """What guestAgent has not confirmed yet; `number` names it for ever, over restarts too.

    `held`: it is from before a restart, and a guest that lives has the time to show it first. `until`: nobody
    wants it after that.
    """

    number: int
    cmd: int
    event: datagram.Event
    held: bool = False
    until: float = NEVER


class Guest:
    """One row. Counters are for the health report."""

    __slots__ = (
        "answered_since_notice", "backoff", "deaths", "deaths_at", "enablings", "failure",
        "heartbeating", "hold_until", "ident", "ill_told_at", "illnesses", "init", "late",
        "late_illness", "late_illness_due", "left_out", "lines", "link", "linked_at", "links", "losses",
        "missed_at", "missed_before", "misses", "owes_answer", "path", "patience_until", "provisioned",
        "questions", "reporting", "resting", "retry_at", "running", "silence_until", "state_changes",
        "state_due", "stopped_due", "told", "turned_away", "untold", "uuid", "withdrawn",
    )  # fmt: skip

    def __init__(self, uuid: str, backoff: float, state_period: float) -> None:
        self.uuid = uuid
        self.path: Optional[str] = None
        self.ident: Any = None
        self.provisioned = False
        self.reporting = False
        self.link = ABSENT
        self.retry_at = NEVER
        self.backoff = backoff
        self.linked_at = -NEVER
        self.deaths_at: List[float] = []  # of its children, within the last minute
        self.resting = False  # too many of them: there is none for a while
        self.failure = ""  # LOST or ILL: what is wrong with the guest now, reported or not
        self.turned_away = 0.0  # s; for how long it has refused every connection
        self.init: Optional[guest_channel.Init] = None
        self.heartbeating = False
        self.running = False  # the present child says so; only such a child is given questions
        self.owes_answer = False
        self.enablings = 0  # of reporting, which the present child has been told of and has not taken note of
        self.silence_until = -NEVER
        self.answered_since_notice = False  # since the last notice that may silence it was put to it
        self.patience_until = -NEVER  # after a long absence of ours it may be booting until then
        self.missed_at = self.missed_before = -NEVER  # the last miss, and the one before it
        self.stopped_due = NEVER
        self.state_changes = Bucket(STATE_CHANGES / state_period, STATE_CHANGES, 0.0)
        self.state_due = NEVER  # a change of state is to be told then, if there still is one
        self.hold_until = NEVER  # failures remembered from before a restart are told then, if still true
        self.ill_told_at = -NEVER
        self.illnesses = Bucket(1 / state_period, 1, 0.0)
        self.late_illness: Optional[session_types.Ill] = (
            None  # to be told at `late_illness_due`, if it goes on
        )
        self.late_illness_due = NEVER
        self.told: Optional[datagram.InstanceInfo] = None
        self.untold: Dict[str, Untold] = {}
        self.questions: Dict[int, Question] = {}
        self.links = self.deaths = self.misses = self.losses = self.late = self.withdrawn = 0
        self.lines = Bucket(LINES_PER_SECOND, LINES_BURST, 0.0)  # in the log, about what its child says
        self.left_out = 0

    def memory(self) -> Memory:
        """What of it is to be remembered."""
        return Memory(
            uuid=self.uuid,
            provisioned=self.provisioned,
            reporting=self.reporting,
            init=self.init,
            heartbeating=self.heartbeating,
            owes_answer=self.owes_answer,
            silence_until=self.silence_until,
            answered_since_notice=self.answered_since_notice,
            patience_until=self.patience_until,
            ill_told_at=self.ill_told_at,
            ident=self.ident,
            untold=tuple(
                (kind, one.number, one.cmd, datagram.event_body(one.event))
                for kind, one in self.untold.items()
            ),
            outcomes_until={kind: one.until for kind, one in self.untold.items() if one.until != NEVER},
            questions=tuple(
                (number, one.notification_type, one.event_type, one.deadline)
                for number, one in self.questions.items()
            ),
        )
