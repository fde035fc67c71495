"""The local processes that are watched, or asked, with this guest: bytes and time in, lines and reports out.

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
from typing import Any, Dict, FrozenSet, List, NamedTuple

from guestmtce.common import NEVER
from guestmtce.guest.ballot import ACCEPT, REJECT
from guestmtce.guest.health import Illness
from guestmtce.guest.member import (
    NAME_MAX,
    ROOT,
    Broken,
    Link,
    Member,
    Peer,
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


class Say(NamedTuple):
    """Write this line to the connection `key`."""

    key: int
    line: bytes


class Close(NamedTuple):
    """Close the connection `key`; whatever was said to it before is to be written first."""

    key: int


class Voted(NamedTuple):
    """A member answered question `number`."""

    number: int
    voter: str
    result: str
    reason: str


class Left(NamedTuple):
    """A voter is gone."""

    voter: str


class Note(NamedTuple):
    """A line for the log."""

    about: str
    text: str


class Registry:
    """See the module's text. `reports` holds what is to be done since it was last taken."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._links: Dict[int, Link] = {}
        self._members: Dict[str, Member] = {}
        self._reports: List[Any] = []

    # --- the ways in -------------------------------------------------------------------------------

    def opened(self, key: int, now: float, peer: Peer = ROOT) -> None:
        """A process connected."""
        self._links[key] = Link(now, now + self._settings.register_within, peer)

    def received(self, key: int, data: bytes, now: float) -> None:
        """The process at `key` sent `data`."""
        link = self._links.get(key)
        if link is None:
            return
        overflows = link.lines.overflows
        lines = link.lines.feed(data)
        try:
            if link.lines.overflows != overflows:
                raise Broken("a line of more than %d bytes" % json_lines.LINE_MAX)
            link.count(len(lines), now)
            for line in lines:
                if key in self._links:
                    self._take(key, link, parse_object(line), now)
        except Broken as broken:
            self._say(key, type="refused", reason=str(broken))
            self.closed(key, str(broken), now)
            self._reports.append(Close(key))

    def closed(self, key: int, why: str, now: float) -> None:
        """The connection is gone."""
        link = self._links.pop(key, None)
        member = link.member if link is not None else None
        if member is None:
            return
        if member.interval:
            self._fail(member, why)
            member.forgotten_at = now + self._settings.remember_failed
            self._limit_remembered(member.peer.uid == 0)
        else:
            del self._members[member.name]
        self._leave(member)

    def tick(self, now: float) -> None:
        """Time has passed; to be called at `deadline`, after every connection was drained."""
        for key, link in list(self._links.items()):
            if link.member is None and now >= link.register_by:
                self._say(key, type="refused", reason="not registered in time")
                self.closed(key, "not registered in time", now)
                self._reports.append(Close(key))
            elif link.member is not None and now >= link.member.due:
                self._beat(key, link.member, now)
        for member in [one for one in self._members.values() if now >= one.forgotten_at]:
            self._forget(member, "it failed %g s ago and did not come back" % self._settings.remember_failed)

    def ask(self, number: int, notification_type: str, event_type: str, seconds: float) -> None:
        """Put question `number` to every member that votes."""
        for key, member in self._voting().items():
            member.asked = number
            what = {"number": number, "kind": notification_type, "event": event_type}
            self._say(key, type="question", timeout_ms=int(seconds * 1000), **what)

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer to question `number` any more."""
        for key, member in self._voting().items():
            if member.asked == number:
                member.asked = 0
                self._say(key, type="withdrawn", number=number)

    # --- looking -----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next."""
        links = self._links.values()
        due = [link.member.due if link.member else link.register_by for link in links]
        return min([*due, *(member.forgotten_at for member in self._members.values())], default=NEVER)

    @property
    def voters(self) -> FrozenSet[str]:
        """Who is to be asked."""
        return frozenset(member.voter for member in self._voting().values())

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
        """What the members feel, and those that failed."""
        found = [member.failure or member.illness for member in self._members.values()]
        return [illness for illness in found if illness is not None]

    def take(self) -> List[Any]:
        """What is to be done, once."""
        reports, self._reports = self._reports, []
        return reports

    def _voting(self) -> Dict[int, Member]:
        pairs = [(key, link.member) for key, link in self._links.items()]
        return {key: member for key, member in pairs if member is not None and member.votes}

    # --- a message ---------------------------------------------------------------------------------

    def _take(self, key: int, link: Link, message: Dict[str, Any], now: float) -> None:
        kind = message.get("type")
        member = link.member
        if kind == "members":
            self._say_members(key)
        elif kind == "forget":
            self._forget_on_demand(link.peer, read_word(message, "name"))
            self._say_members(key)
        elif kind == "register" and member is None:
            link.member = self._register(message, now, link.peer)
            self._say(key, type="registered", name=link.member.name)
        elif member is None:
            raise Broken("register first")
        elif kind == "alive":
            self._alive(member, message)
        elif kind == "health":
            self._feel(member, message)
        elif kind == "answer":
            self._answer(member, message)
        elif kind == "bye":
            self._bye(key, member)
        else:
            raise Broken("unknown type " + repr(kind)[:NAME_MAX])

    def _register(self, message: Dict[str, Any], now: float, peer: Peer) -> Member:
        """Raises Broken."""
        name = read_word(message, "name")
        known = self._members.get(name)
        if known is not None and known.forgotten_at == NEVER and not (peer.uid == 0 != known.peer.uid):
            raise Broken("a process of this name is registered")
        if known is not None and peer.uid not in (0, known.peer.uid):
            raise Broken("this name is of uid %d" % known.peer.uid)
        seated = [link.member for link in self._links.values() if link.member is not None]
        if sum((one.peer.uid == 0) == (peer.uid == 0) for one in seated) >= MEMBERS_MAX:
            raise Broken("%d processes are registered: no more" % MEMBERS_MAX)
        interval, action = self._interval(message), read_action(message)
        if known is not None and known.forgotten_at == NEVER:
            self._oust(known)
        votes = message.get("votes") is True
        member = Member(name, interval, action, votes, now, peer)
        self._members[name] = member
        self._note("the local process %s (%s) is registered" % (name, peer), peer)
        return member

    def _oust(self, member: Member) -> None:
        """Root's process takes the name."""
        key = next(key for key, link in self._links.items() if link.member is member)
        self._say(key, type="refused", reason="a process of root's has this name now")
        del self._links[key]
        self._leave(member)
        self._reports.append(Close(key))
        self._note(
            "the local process %s (%s) loses its name to root" % (member.name, member.peer), member.peer
        )

    def _say_members(self, key: int) -> None:
        self._say(key, type="members", members=self.described)

    def _forget_on_demand(self, peer: Peer, name: str) -> None:
        """Raises Broken."""
        member = self._members.get(name)
        if member is None:
            raise Broken("no process of this name is known")
        if peer.uid not in (0, member.peer.uid):
            raise Broken("it is of uid %d: root and that user may have it forgotten" % member.peer.uid)
        if member.forgotten_at == NEVER:
            raise Broken("it is connected")
        self._forget(member, "uid %d wanted that" % peer.uid)

    def _forget(self, member: Member, why: str) -> None:
        del self._members[member.name]
        text = "the failed local process %s (%s) is forgotten: %s"
        self._note(text % (member.name, member.peer, why), member.peer)

    def _limit_remembered(self, of_root: bool) -> None:
        known = self._members.values()
        gone = [one for one in known if one.forgotten_at != NEVER and (one.peer.uid == 0) == of_root]
        if len(gone) > REMEMBERED_MAX:
            uids = [member.peer.uid for member in gone]
            most = max(uids, key=uids.count)
            oldest = min((one for one in gone if one.peer.uid == most), key=lambda one: one.forgotten_at)
            self._forget(oldest, "uid %d has %d failed ones" % (most, uids.count(most)))

    def _interval(self, message: Dict[str, Any]) -> float:
        """The interval of its heartbeat in s; 0: none. Raises Broken."""
        value = message.get("interval_ms", 0)
        if type(value) is not int or not 0 <= value <= INTERVAL_MAX_MS:
            raise Broken("interval_ms: 0 to %d expected" % INTERVAL_MAX_MS)
        return max(value, self._settings.member_floor_ms) / 1000 if value else 0.0

    def _alive(self, member: Member, message: Dict[str, Any]) -> None:
        if message.get("number") != member.number:
            return  # late
        member.answered, member.misses = True, 0
        if member.failure is not None:
            member.failure = None
            self._note("the local process %s (%s) answers again" % (member.name, member.peer), member.peer)
        if "health" in message:
            self._feel(member, message)

    def _feel(self, member: Member, message: Dict[str, Any]) -> None:
        if message.get("health") not in (guest_channel.HEALTHY, guest_channel.UNHEALTHY):
            raise Broken("health: healthy or unhealthy expected")
        ill = message["health"] == guest_channel.UNHEALTHY
        member.illness = member.ill(read_text(message, "reason") or guest_channel.UNHEALTHY) if ill else None

    def _answer(self, member: Member, message: Dict[str, Any]) -> None:
        result = message.get("vote")
        if result not in (ACCEPT, REJECT):
            raise Broken("vote: accept or reject expected")
        reason = read_text(message, "reason")
        if member.asked and message.get("number") == member.asked:
            self._reports.append(Voted(member.asked, member.voter, result, reason))
            member.asked = 0

    def _bye(self, key: int, member: Member) -> None:
        del self._links[key]
        del self._members[member.name]
        self._leave(member)
        self._reports.append(Close(key))
        self._note("the local process %s (%s) left" % (member.name, member.peer), member.peer)

    # --- heartbeats --------------------------------------------------------------------------------

    def _beat(self, key: int, member: Member, now: float) -> None:
        if not member.answered:
            member.misses += 1
            if member.misses >= MISSES_MAX:
                self._fail(member, "no answer for %d heartbeats" % MISSES_MAX)
        member.number = member.number % guest_channel.INT32_MAX + 1
        member.answered = False
        member.due = now + member.interval
        self._say(key, type="heartbeat", number=member.number)

    def _fail(self, member: Member, why: str) -> None:
        if member.failure is None:
            member.failure = member.ill(why)
            text = "the local process %s (%s) failed: %s" % (member.name, member.peer, why)
            self._reports.append(Note("failed process of uid %d" % member.peer.uid, text))

    def _leave(self, member: Member) -> None:
        if member.votes:
            self._reports.append(Left(member.voter))

    # --- words -------------------------------------------------------------------------------------

    def _say(self, key: int, **message: Any) -> None:
        self._reports.append(Say(key, json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"))

    def _note(self, text: str, peer: Peer) -> None:
        """Counted by user: what one user's processes do hides nothing of another's, and no failure."""
        self._reports.append(Note("process of uid %d" % peer.uid, text))
