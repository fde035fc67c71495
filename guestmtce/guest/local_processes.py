"""The local processes that are watched, or asked, with this guest: bytes and time in, effects out.

Pure: no socket, no clock. `docs/guest-client.md` has the messages. A *member* is a process that registered;
it is known by its name, and by its connection (`key`) while that lasts. MEMBERS_MAX have a place; root's
processes have as many of their own, so nobody can take them.

A member with a heartbeat is asked every interval. One that has not answered by the end of the second interval
in a row, or whose connection ends without `bye`, or that breaks the rules, has failed: it makes the guest ill
with its own corrective action until it answers again, or a process of its name registers anew. One without a
heartbeat leaves without a trace.

A failed member whose connection is gone has no place any more. Its name is remembered, and the guest ill, for
`remember_failed` s, or until somebody who may has it forgotten. Of more than REMEMBERED_MAX, root's and the
others' counted apart, the oldest of the user with the most goes: nobody has another's failure forgotten. Nor
keeps anybody root from a name: root's process takes it over.

The rules: a line of at most LINE_MAX bytes, an object that we understand, a number of lines a second
(`member`), and registering within `register_within`. Who breaks one is told why and loses its connection.
"""

import json
from typing import Any, Dict, FrozenSet, List, NamedTuple, Union

from guestmtce.common import NEVER
from guestmtce.common.log_line import INFO, LogLine
from guestmtce.guest.ballot import ACCEPT, REJECT
from guestmtce.guest.health import Illness
from guestmtce.guest.member import (
    NAME_MAX,
    ROOT,
    Connection,
    Member,
    Peer,
    RuleBroken,
    parse_object,
    read_action,
    read_text,
    read_word,
)
from guestmtce.guest.settings import Settings
from guestmtce.wire import guest_channel, json_lines

MEMBERS_MAX = 8
REMEMBERED_MAX = 32  # failed ones that are gone
INTERVAL_MAX_MS = 3600000
MISSES_MAX = 2  # unanswered heartbeats in a row that are a failure


class SendLine(NamedTuple):
    """Write this line to the connection `key`."""

    key: int
    line: bytes


class CloseConnection(NamedTuple):
    """Close the connection `key`; whatever was said to it before is to be written first."""

    key: int


class CountVote(NamedTuple):
    """A member answered the question."""

    question_id: int
    voter: str
    result: str
    reason: str


class RemoveVoter(NamedTuple):
    """A voter is gone."""

    voter: str


Effect = Union[SendLine, CloseConnection, CountVote, RemoveVoter, LogLine]


class Registry:
    """See the module's text. `drain_effects` gives what is to be done."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connections: Dict[int, Connection] = {}
        self._members: Dict[str, Member] = {}
        self._effects: List[Effect] = []

    # --- the ways in -------------------------------------------------------------------------------

    def note_opened(self, key: int, now: float, peer: Peer = ROOT) -> None:
        """A process connected."""
        self._connections[key] = Connection(now, now + self._settings.register_within, peer)

    def receive(self, key: int, data: bytes, now: float) -> None:
        """The process at `key` sent `data`."""
        connection = self._connections.get(key)
        if connection is None:
            return
        overflows = connection.lines.overflows
        lines = connection.lines.feed(data)
        try:
            if connection.lines.overflows != overflows:
                raise RuleBroken("a line of more than %d bytes" % json_lines.LINE_MAX)
            connection.count_lines(len(lines), now)
            # A line may end the connection (`bye`): those behind it in the same data are nobody's.
            for line in lines:
                if key in self._connections:
                    self._handle_message(key, connection, parse_object(line), now)
        except RuleBroken as broken:
            self._send(key, type="refused", reason=str(broken))
            # As when it hangs up: a process with a heartbeat that breaks the rules has failed.
            self.note_closed(key, str(broken), now)
            self._effects.append(CloseConnection(key))

    def note_closed(self, key: int, why: str, now: float) -> None:
        """The connection is gone."""
        connection = self._connections.pop(key, None)
        member = connection.member if connection is not None else None
        if member is None:
            return
        # Without a heartbeat nobody has promised to stay: the end of its connection is no failure.
        if member.interval:
            self._note_failure(member, why)
            # The guest stays ill for so long: without it a crash would be forgotten together with the
            # connection.
            member.forgotten_at = now + self._settings.remember_failed
            self._limit_remembered(member.peer.uid == 0)
        else:
            del self._members[member.name]
        self._remove_voter(member)

    def tick(self, now: float) -> None:
        """Time has passed; to be called at `deadline`, after every connection was drained."""
        # A copy: closing a connection takes it out of the table.
        for key, connection in list(self._connections.items()):
            if connection.member is None and now >= connection.register_by:
                self._send(key, type="refused", reason="not registered in time")
                self.note_closed(key, "not registered in time", now)
                self._effects.append(CloseConnection(key))
            elif connection.member is not None and now >= connection.member.due:
                self._send_heartbeat(key, connection.member, now)
        for member in list(self._members.values()):
            if now < member.forgotten_at:
                continue
            self._forget_member(
                member, "it failed %g s ago and did not come back" % self._settings.remember_failed
            )

    def ask_members(self, question_id: int, notification_type: str, event_type: str, seconds: float) -> None:
        """Put the question to every member that votes."""
        for key, member in self._voting_members().items():
            member.open_question_id = question_id
            question = {"number": question_id, "kind": notification_type, "event": event_type}
            self._send(key, type="question", timeout_ms=int(seconds * 1000), **question)

    def withdraw_question(self, question_id: int) -> None:
        """The answers to this question do not count any more."""
        for key, member in self._voting_members().items():
            if member.open_question_id == question_id:
                member.open_question_id = 0
                self._send(key, type="withdrawn", number=question_id)

    # --- looking -----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next."""
        connections = self._connections.values()
        due = [
            connection.member.due if connection.member else connection.register_by
            for connection in connections
        ]
        return min([*due, *(member.forgotten_at for member in self._members.values())], default=NEVER)

    @property
    def voters(self) -> FrozenSet[str]:
        """Who is to be asked."""
        return frozenset(member.voter for member in self._voting_members().values())

    @property
    def described(self) -> List[Dict[str, Any]]:
        """Every member: its name, who it is, and how it is."""
        return [
            {
                "name": member.name,
                "pid": member.peer.pid,
                "uid": member.peer.uid,
                "connected": member.forgotten_at == NEVER,
                "corrective_action": member.action,
                "illness": (member.failure or member.illness or Illness("", "")).reason,
            }
            for member in self._members.values()
        ]

    @property
    def illnesses(self) -> List[Illness]:
        """Of the members that are ill, and of those that failed."""
        found = [member.failure or member.illness for member in self._members.values()]
        return [illness for illness in found if illness is not None]

    def drain_effects(self) -> List[Effect]:
        """What is to be done since this was called last."""
        effects, self._effects = self._effects, []
        return effects

    def _voting_members(self) -> Dict[int, Member]:
        pairs = [(key, connection.member) for key, connection in self._connections.items()]
        return {key: member for key, member in pairs if member is not None and member.votes}

    # --- a message ---------------------------------------------------------------------------------

    def _handle_message(self, key: int, connection: Connection, message: Dict[str, Any], now: float) -> None:
        kind = message.get("type")
        member = connection.member
        # Before anything else, as whoever asks is no member: `guestClient --members`.
        if kind == "members":
            self._send_members(key)
        elif kind == "forget":
            self._forget_on_demand(connection.peer, read_word(message, "name"))
            self._send_members(key)
        # One process a connection: its end is the process's.
        elif kind == "register" and member is None:
            connection.member = self._register_member(message, now, connection.peer)
            self._send(key, type="registered", name=connection.member.name)
        elif member is None:
            raise RuleBroken("register first")
        elif kind == "alive":
            self._note_alive(member, message)
        elif kind == "health":
            self._set_health(member, message)
        elif kind == "answer":
            self._count_answer(member, message)
        elif kind == "bye":
            self._note_bye(key, member)
        else:
            raise RuleBroken("unknown type " + repr(kind)[:NAME_MAX])

    def _register_member(self, message: Dict[str, Any], now: float, peer: Peer) -> Member:
        """Raises RuleBroken."""
        name = read_word(message, "name")
        known = self._members.get(name)
        # `forgotten_at` is NEVER while the member is connected. Only root takes the name of one that is, and
        # only of another user's: two processes of root's would oust each other without end.
        if known is not None and known.forgotten_at == NEVER and not (peer.uid == 0 != known.peer.uid):
            raise RuleBroken("a process of this name is registered")
        # A failed one that is gone: another user must not cure it by registering under its name.
        if known is not None and peer.uid not in (0, known.peer.uid):
            raise RuleBroken("this name is of uid %d" % known.peer.uid)
        # Of connections, not of names: a failed one that is gone has no place.
        seated = [
            connection.member for connection in self._connections.values() if connection.member is not None
        ]
        if sum((member.peer.uid == 0) == (peer.uid == 0) for member in seated) >= MEMBERS_MAX:
            raise RuleBroken("%d processes are registered: no more" % MEMBERS_MAX)
        # Whatever may be refused is refused before the member of this name is ousted.
        interval, action = self._read_interval(message), read_action(message)
        if known is not None and known.forgotten_at == NEVER:
            self._oust_member(known)
        votes = message.get("votes") is True
        member = Member(name, interval, action, votes, now, peer)
        self._members[name] = member
        self._log(peer, "the local process %s (%s) is registered", name, peer)
        return member

    def _oust_member(self, member: Member) -> None:
        """Root's process takes the name."""
        key = next(key for key, connection in self._connections.items() if connection.member is member)
        self._send(key, type="refused", reason="a process of root's has this name now")
        del self._connections[key]
        self._remove_voter(member)
        self._effects.append(CloseConnection(key))
        self._log(member.peer, "the local process %s (%s) loses its name to root", member.name, member.peer)

    def _send_members(self, key: int) -> None:
        self._send(key, type="members", members=self.described)

    def _forget_on_demand(self, peer: Peer, name: str) -> None:
        """Raises RuleBroken."""
        member = self._members.get(name)
        if member is None:
            raise RuleBroken("no process of this name is known")
        if peer.uid not in (0, member.peer.uid):
            raise RuleBroken("it is of uid %d: root and that user may have it forgotten" % member.peer.uid)
        if member.forgotten_at == NEVER:
            raise RuleBroken("it is connected")
        self._forget_member(member, "uid %d wanted that" % peer.uid)

    def _forget_member(self, member: Member, why: str) -> None:
        del self._members[member.name]
        text = "the failed local process %s (%s) is forgotten: %s"
        self._log(member.peer, text, member.name, member.peer, why)

    def _limit_remembered(self, of_root: bool) -> None:
        known = self._members.values()
        gone = [each for each in known if each.forgotten_at != NEVER and (each.peer.uid == 0) == of_root]
        if len(gone) > REMEMBERED_MAX:
            uids = [member.peer.uid for member in gone]
            # The oldest of all would let one user flood the table until another's failure is forgotten.
            owner = max(uids, key=uids.count)  # of the most
            oldest = min(
                (each for each in gone if each.peer.uid == owner), key=lambda each: each.forgotten_at
            )
            self._forget_member(oldest, "uid %d has %d failed ones" % (owner, uids.count(owner)))

    def _read_interval(self, message: Dict[str, Any]) -> float:
        """The interval of its heartbeat in s; 0: none. Raises RuleBroken."""
        value = message.get("interval_ms", 0)
        # `type`, not isinstance: true is an int in Python, and none in JSON.
        if type(value) is not int or not 0 <= value <= INTERVAL_MAX_MS:
            raise RuleBroken("interval_ms: 0 to %d expected" % INTERVAL_MAX_MS)
        # A shorter interval is raised, as the host raises the guest's.
        return max(value, self._settings.member_floor_ms) / 1000 if value else 0.0

    def _note_alive(self, member: Member, message: Dict[str, Any]) -> None:
        # Only the latest heartbeat counts: a process that is always one behind does not keep up.
        if message.get("number") != member.sequence:
            return  # late
        member.answered, member.misses = True, 0
        if member.failure is not None:
            member.failure = None
            self._log(member.peer, "the local process %s (%s) answers again", member.name, member.peer)
        if "health" in message:
            self._set_health(member, message)

    def _set_health(self, member: Member, message: Dict[str, Any]) -> None:
        if message.get("health") not in (guest_channel.HEALTHY, guest_channel.UNHEALTHY):
            raise RuleBroken("health: healthy or unhealthy expected")
        ill = message["health"] == guest_channel.UNHEALTHY
        member.illness = (
            member.name_illness(read_text(message, "reason") or guest_channel.UNHEALTHY) if ill else None
        )

    def _count_answer(self, member: Member, message: Dict[str, Any]) -> None:
        result = message.get("vote")
        if result not in (ACCEPT, REJECT):
            raise RuleBroken("vote: accept or reject expected")
        reason = read_text(message, "reason")
        # A late answer breaks no rule: it may have crossed with `withdrawn`.
        if member.open_question_id and message.get("number") == member.open_question_id:
            self._effects.append(CountVote(member.open_question_id, member.voter, result, reason))
            member.open_question_id = 0

    def _note_bye(self, key: int, member: Member) -> None:
        del self._connections[key]
        del self._members[member.name]
        self._remove_voter(member)
        self._effects.append(CloseConnection(key))
        self._log(member.peer, "the local process %s (%s) left", member.name, member.peer)

    # --- heartbeats --------------------------------------------------------------------------------

    def _send_heartbeat(self, key: int, member: Member, now: float) -> None:
        if not member.answered:
            member.misses += 1
            # The connection stays: a process that was only late makes the guest well again with its next
            # answer.
            if member.misses >= MISSES_MAX:
                self._note_failure(member, "no answer for %d heartbeats" % MISSES_MAX)
        # From 1: 0 is the sequence of a member that was not asked yet.
        member.sequence = member.sequence % guest_channel.INT32_MAX + 1
        member.answered = False
        member.due = now + member.interval
        self._send(key, type="heartbeat", number=member.sequence)

    def _note_failure(self, member: Member, why: str) -> None:
        if member.failure is None:
            member.failure = member.name_illness(why)
            text, values = "the local process %s (%s) failed: %s", (member.name, member.peer, why)
            # A subject of its own: chatter of the same user's processes does not hold this line back.
            self._effects.append(LogLine(INFO, text, values, "failed process of uid %d" % member.peer.uid))

    def _remove_voter(self, member: Member) -> None:
        if member.votes:
            self._effects.append(RemoveVoter(member.voter))

    # --- what is to be done -------------------------------------------------------------------------

    def _send(self, key: int, **message: Any) -> None:
        self._effects.append(
            SendLine(key, json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")
        )

    def _log(self, peer: Peer, text: str, *values: object) -> None:
        """Counted by user: what one user's processes do hides nothing of another's, and no failure."""
        self._effects.append(LogLine(INFO, text, values, "process of uid %d" % peer.uid))
