"""Hosts and instances as guestAgent knows them: values, no behaviour but what reads them.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events
docs/protocol/3-vim-http.md#where-instances-are
"""

from __future__ import annotations

from typing import Dict, Final, Literal, NamedTuple, Optional, Tuple

from guestmtce.wire import datagram, guest_channel

FAILED: Final = "failed"
UNHEALTHY: Final = "unhealthy"
FailureState = Literal["failed", "unhealthy"]  # as an alarm names it (docs/protocol/3-vim-http.md#events)

# What a datagram can show about an instance (`inventory_order` has the rules).
START: Final = "start"
BEAT: Final = "beat"
STATE: Final = "state"
ANYTHING: Final = "anything"
Aspect = Literal["failed", "unhealthy", "start", "beat", "state", "anything"]

LONG_AGO = float("-inf")  # s, monotonic


class Origin(NamedTuple):
    """The datagram in which a guestServer told us something, and waits for our confirmation.

    `sender` and `sequence` identify it, 1 … 2³²−1 each; a repetition may come from another `ip`.
    """

    ip: str
    sender: int
    sequence: int


class Host:
    """A compute host. `reporting` is None until the VIM has said."""

    __slots__ = (
        "answered", "commanded", "instances", "ip", "list_wait", "list_wanted", "listed", "name",
        "query_misses", "reporting", "spelled", "state_serial", "unlisted_audits", "uuid",
    )  # fmt: skip

    def __init__(self, name: str, uuid: str, ip: str) -> None:
        self.name = name  # as mtcAgent spells it
        self.spelled = name  # as its guestServer spells it; a seal covers that spelling
        self.uuid = uuid
        self.ip = ip
        self.instances: Dict[str, Instance] = {}
        self.reporting: Optional[bool] = None
        self.commanded = False  # `reporting` is a command of the VIM, not its answer of a moment
        self.state_serial = 0  # of the answer that `reporting` is
        self.listed = False  # a list of its instances has arrived from the VIM
        self.list_wanted = True  # a list, or a newer one, is wanted
        self.list_wait = 0  # audits until the VIM may be asked for another list
        self.unlisted_audits = 0  # audits that asked for a list which has not arrived yet
        self.answered = True  # since the last audit
        self.query_misses = 0  # audits it did not answer, since this agent knows it

    @property
    def enabled(self) -> bool:
        """Whether faults of this host are reported: as the VIM said, else as its instances suggest."""
        if self.reporting is not None:
            return self.reporting
        # Today's VIM commands no host. Without its answer, an enabled instance shows that it wants to hear
        # (docs/protocol/3-vim-http.md#hosts).
        return any(instance.reporting for instance in self.instances.values())


class Instance:
    """An instance and what its guestServer last said of it. Timeouts in s."""

    __slots__ = (
        "adopted", "heartbeating", "host", "hostname", "info_known", "listed_at", "loss_origin", "loss_waits",
        "missing_since", "newest", "outcome_until", "repair_action", "reported", "reporting", "restart_secs",
        "resume_notice_secs", "shutdown_notice_secs", "suspend_notice_secs", "unanswered", "uuid",
        "vote_secs",
    )  # fmt: skip

    def __init__(self, uuid: str, host: Host, hostname: str, reporting: bool, adopted: bool = False) -> None:
        self.uuid = uuid  # in lower case
        self.host = host
        self.hostname = hostname  # of `host`, as the VIM spells it
        self.reporting = reporting
        self.adopted = adopted
        self.missing_since: Optional[int] = None  # serial of when it was found that the VIM's list lacks it
        self.listed_at = LONG_AGO  # s, monotonic: only a list of the VIM's has named it since
        self.reported = False  # its state was handed over to be delivered to the VIM once
        self.heartbeating = False
        self.unanswered = 0  # audits since its server spoke of it
        self.info_known = False  # its server has told what follows
        self.loss_waits = False  # a loss waits until that is known
        self.loss_origin: Optional[Origin] = None
        # Type and event of a vote or notice → when the VIM waits for its outcome no more, s, monotonic.
        self.outcome_until: Dict[Tuple[str, str], float] = {}
        self.newest: Dict[Aspect, Origin] = {}  # the newest datagram that showed this (`inventory_order`)
        # As a guest's that has sent no init (docs/protocol/1-guest-channel.md#init-and-acknowledgement): the
        # outcome of another agent's question may come before any word of the guest.
        defaults = guest_channel.DEFAULT_INIT
        self.repair_action = defaults.corrective_action
        self.restart_secs = defaults.restart_secs
        self.shutdown_notice_secs = defaults.shutdown_notice_secs
        self.suspend_notice_secs = defaults.suspend_notice_secs
        self.resume_notice_secs = defaults.resume_notice_secs
        self.vote_secs = defaults.vote_secs

    @property
    def wants_failures(self) -> bool:
        """Whether the VIM is to hear of its failures: both its own reporting and its host's are enabled."""
        return self.reporting and self.host.enabled

    def believe_server(self, info: datagram.InstanceInfo) -> None:
        """Take the guestServer's word for all but `reporting`, which is the VIM's."""
        self.info_known = True
        self.heartbeating = info.heartbeating
        self.repair_action = info.repair_action
        self.restart_secs = info.restart_to
        self.shutdown_notice_secs = info.shutdown_to
        self.suspend_notice_secs = info.suspend_to
        self.resume_notice_secs = info.resume_to
        self.vote_secs = info.vote_to
