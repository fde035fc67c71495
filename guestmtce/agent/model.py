"""Hosts and instances as guestAgent knows them, and what the inventory may want done.

docs/protocol/2-datagrams.md#late-and-out-of-order
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from guestmtce.wire import datagram, datagram_ext, guest_channel

FAILED = "failed"
UNHEALTHY = "unhealthy"
LONG_AGO = float("-inf")  # s, monotonic

# What a datagram may show, beside FAILED and UNHEALTHY; a newer one that shows the same may make an older
# one void: a start voids an illness, a beat a loss, anything an answer.
START, BEAT, STATE, ANYTHING = "start", "beat", "state", "anything"


# --- effects ---------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send this command to the guestServer at `ip`. A question is of no use after `seconds`.

    `anew`: it enables reporting, and the server may have missed that it was disabled before.
    """

    hostname: str
    ip: str
    cmd: int
    command: datagram.Command
    seconds: float = 0.0
    anew: bool = False


class Origin(NamedTuple):
    """The datagram in which a guestServer told us something, and waits for our confirmation."""

    ip: str
    sender: int
    number: int


class TellService(NamedTuple):
    """The VIM must hear the state of this instance; it replaces what was not told yet."""

    uuid: str
    body: Dict[str, Any]
    origin: Optional[Origin] = None


class TellAlarm(NamedTuple):
    """The VIM must hear of this failure; `state` is `failed` or `unhealthy`."""

    uuid: str
    state: str
    body: Dict[str, Any]
    origin: Optional[Origin] = None


class TellAction(NamedTuple):
    """The VIM must hear the outcome of this vote or notice; after `until` (s, monotonic) it waits no more."""

    uuid: str
    body: Dict[str, Any]
    origin: Optional[Origin] = None
    until: float = float("inf")


class Withdraw(NamedTuple):
    """Failures of this instance that were not told yet are no longer true, because of `why`.

    `unwanted`: the VIM itself has said that it wants to hear of none; it knows what it has read by then.
    """

    uuid: str
    why: str
    states: Tuple[str, ...] = (FAILED, UNHEALTHY)
    unwanted: bool = False


class Drop(NamedTuple):
    """Nothing about this instance is to be told any more."""

    uuid: str


class DropHost(NamedTuple):
    """Nothing more is to be said to the guestServer at `ip`; what was said before is said once."""

    ip: str


class AskMtc(NamedTuple):
    """Ask mtcAgent for the hosts."""


class AskVim(NamedTuple):
    """Ask the VIM for this host's state (`instances` false) or its instances.

    The answer comes back with `serial`, which shows what has happened since the question was put.
    """

    uuid: str
    hostname: str
    instances: bool
    serial: int = 0


Effect = Union[Send, TellService, TellAlarm, TellAction, Withdraw, Drop, DropHost, AskMtc, AskVim]


class Host:
    """A compute host. `reporting` is None until the VIM has said."""

    __slots__ = (
        "answered", "commanded", "instances", "ip", "listed", "misses", "name", "reporting", "spoken",
        "state_serial", "unlisted", "uuid", "wait", "wanted",
    )  # fmt: skip

    def __init__(self, name: str, uuid: str, ip: str) -> None:
        self.name = name  # as mtcAgent spells it
        self.spoken = name  # as its guestServer spells it; a seal covers that spelling
        self.uuid = uuid
        self.ip = ip
        self.instances: Dict[str, Instance] = {}
        self.reporting: Optional[bool] = None
        self.commanded = False  # `reporting` is a command of the VIM, not its answer of a moment
        self.state_serial = 0  # of the answer that `reporting` is
        self.listed = False  # a list of its instances has arrived from the VIM
        self.wanted = True  # a list, or a newer one, is wanted
        self.wait = 0  # audits until the VIM may be asked for another list
        self.unlisted = 0  # audits that asked for a list which has not arrived yet
        self.answered = True  # since the last audit
        self.misses = 0  # audits it did not answer

    @property
    def enabled(self) -> bool:
        """Whether faults of this host are reported: as the VIM said, else as its instances suggest."""
        if self.reporting is not None:
            return self.reporting
        return any(instance.reporting for instance in self.instances.values())


class Instance:
    """An instance and what its guestServer last said of it. Timeouts in s."""

    __slots__ = (
        "adopted", "heard", "heartbeating", "host", "hostname", "known", "listed_at", "lost", "lost_in",
        "missed", "outcome_until", "repair_action", "reporting", "restart_secs", "resume_notice_secs",
        "shutdown_notice_secs", "suspend_notice_secs", "told", "unanswered", "uuid", "vote_secs",
    )  # fmt: skip

    def __init__(self, uuid: str, host: Host, hostname: str, reporting: bool, adopted: bool = False) -> None:
        self.uuid = uuid  # in lower case
        self.host = host
        self.hostname = hostname  # of `host`, as the VIM spells it
        self.reporting = reporting
        self.adopted = adopted
        self.missed: Optional[int] = None  # serial of when it was found that the VIM's list lacks it
        self.listed_at = LONG_AGO  # s, monotonic: only a list of the VIM's has named it since
        self.told = False  # the VIM has been told its state once
        self.heartbeating = False
        self.unanswered = 0  # audits since its server spoke of it
        self.known = False  # its server has told what follows
        self.lost = False  # a loss waits until that is known
        self.lost_in: Optional[Origin] = None
        # Type and event of a question of the VIM → when it waits for its outcome no more, s, monotonic.
        self.outcome_until: Dict[Tuple[str, str], float] = {}
        self.heard: Dict[str, Origin] = {}  # the newest datagram that showed a start, a beat, …
        defaults = guest_channel.DEFAULT_INIT
        self.repair_action = defaults.corrective_action
        self.restart_secs = defaults.restart_secs
        self.shutdown_notice_secs = defaults.shutdown_notice_secs
        self.suspend_notice_secs = defaults.suspend_notice_secs
        self.resume_notice_secs = defaults.resume_notice_secs
        self.vote_secs = defaults.vote_secs

    def take(self, info: datagram.InstanceInfo) -> None:
        """Believe the guestServer, but for `reporting`, which is the VIM's."""
        self.known = True
        self.heartbeating = info.heartbeating
        self.repair_action = info.repair_action
        self.restart_secs = info.restart_to
        self.shutdown_notice_secs = info.shutdown_to
        self.suspend_notice_secs = info.suspend_to
        self.resume_notice_secs = info.resume_to
        self.vote_secs = info.vote_to

    def overtaken(self, about: str, origin: Optional[Origin]) -> bool:
        """Whether this datagram of the same sender, or a newer one about the same, has come already."""
        newest = self.heard.get(about)
        return (
            origin is not None
            and newest is not None
            and newest.sender == origin.sender
            and not datagram_ext.is_newer(origin.number, newest.number)
        )

    def hear(self, origin: Optional[Origin], *about: str) -> None:
        """Note the newest datagram."""
        if origin is not None:
            self.heard.update((one, origin) for one in about if not self.overtaken(one, origin))
