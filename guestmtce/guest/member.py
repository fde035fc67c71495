"""A local process as the registry knows it: who it is, its connection, and what its messages hold.

Pure, as the registry is. What a message holds is read, or refused with the reason (`RuleBroken`).
"""

import json
from typing import Any, Dict, NamedTuple, Optional

from guestmtce.common import NEVER
from guestmtce.common.rate_limit import Bucket
from guestmtce.guest.ballot import PROCESS
from guestmtce.guest.health import GRAVITY, Illness
from guestmtce.wire import json_lines

NAME_MAX = 31  # bytes
RATE = 20.0  # lines a second that one process may send
BURST = 40.0  # lines at once


class RuleBroken(ValueError):
    """A process broke the rules; the text says how."""


class Peer(NamedTuple):
    """The process at the other end, as the kernel names it (SO_PEERCRED)."""

    pid: int = 0
    uid: int = 0

    def __str__(self) -> str:
        return "pid %d, uid %d" % self


ROOT = Peer()


class Member:
    """A registered process."""

    def __init__(
        self, name: str, interval: float, action: str, votes: bool, now: float, peer: Peer = ROOT
    ) -> None:
        self.name = name
        self.peer = peer
        self.forgotten_at = NEVER  # s; it is gone, and has failed
        self.interval = interval  # s; 0: no heartbeat
        self.action = action
        self.votes = votes
        self.illness: Optional[Illness] = None
        self.failure: Optional[Illness] = None
        # Asked at once: a process that cannot answer is found out with its first heartbeats.
        self.due = now if interval else NEVER
        self.sequence = 0  # of the latest heartbeat
        self.answered = True
        self.misses = 0
        self.open_question_id = 0  # of the question that it has not answered; 0: none

    def name_illness(self, why: str) -> Illness:
        """Its illness, named."""
        return Illness(self.action, json_lines.clean_text("%s: %s" % (self.name, why)))

    @property
    def voter(self) -> str:
        """Its name on a ballot."""
        return PROCESS + self.name


class Connection:
    """A connection: what it may still send, and who is at its other end."""

    def __init__(self, now: float, register_by: float, peer: Peer) -> None:
        self.peer = peer
        self.lines = json_lines.LineBuffer()
        self.member: Optional[Member] = None
        self.register_by = register_by
        self._allowed = Bucket(RATE, BURST, now)

    def count_lines(self, lines: int, now: float) -> None:
        """So many lines came. Raises RuleBroken."""
        if not self._allowed.spend(now, lines):
            raise RuleBroken("more than %d lines a second" % RATE)


# --- what a message holds ---------------------------------------------------------------------------
# Each gives a field's value, or raises RuleBroken.


def parse_object(line: bytes) -> Dict[str, Any]:
    try:
        # A deep nest of brackets is a RecursionError, and no end of the client.
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RuleBroken("a JSON object expected")
    return value


def read_word(message: Dict[str, Any], name: str) -> str:
    value = read_text(message, name)
    # A name stands in logs, on ballots and in what the host is told.
    if not value or not value.isprintable() or len(value.encode("utf-8")) > NAME_MAX:
        raise RuleBroken("%s: up to %d printable bytes expected" % (name, NAME_MAX))
    return value


def read_text(message: Dict[str, Any], name: str) -> str:
    value = message.get(name, "")
    if not isinstance(value, str):
        raise RuleBroken("%s: a string expected" % name)
    return json_lines.clean_text(value)


def read_action(message: Dict[str, Any]) -> str:
    value = message.get("corrective_action", "log")
    if value not in GRAVITY:
        raise RuleBroken("corrective_action: one of %s expected" % ", ".join(GRAVITY))
    return str(value)
