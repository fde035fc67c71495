"""What really happened to the guests of one life, and what the VIM may therefore have been told.

LOST      a failure that went on and was never told
FALSE     an alarm without a failure, or before one
TWICE     a failure that was told more than once, whatever the VIM or the agent went through meanwhile
SECOND    an alarm while the VIM's repair of the same guest was running
STALE     an outcome later than its question's timeout and the second that the VIM waits for it
ACTION    an alarm with another repair action than the guest's own
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

Period = Tuple[float, Optional[float]]  # begin and end, s, monotonic; None: for good

# A failure that was over may be told no later than this after its end: what was on its way when it ended.
ON_ITS_WAY = 0.6  # s
# A guest needs its time to be seen again: one that fails anew within it has had one failure, not two.
RECOVERY = 1.5  # s
# An outcome is of use for its question's timeout, 1 s here, and the second that a VIM waits longer, which is
# not scaled; the rest is the machine's load.
OUTCOME_WITHIN = 1.0 + 1.0 + 0.5  # s
# A client whose guest was lost says init when it has waited for a challenge for so long, and the load.
UNSEEN = 1.0  # s
# A VIM that dies so soon after it has processed an alarm did not repair: its successor is to be told.
DIED_AFTER = 0.1  # s
ACTION = "reboot"  # the lab's guests'


class Asked(NamedTuple):
    """A question that the VIM put, and when."""

    at: float
    uuid: str
    event: str


class Truth:
    """The record. Times in s, monotonic."""

    def __init__(self) -> None:
        self.hung: Dict[str, List[Period]] = {}
        self.ill: Dict[str, List[Period]] = {}
        self.back: Dict[str, List[float]] = {}  # when each was switched on, restarted, or reported again
        self.gone: Set[str] = set()
        self.made: Dict[str, float] = {}  # when the VIM had deleted it, to make it anew
        self.repairs: Dict[str, List[Period]] = {}
        self.stalls: List[Period] = []  # of the VIM
        self.unwatched: Dict[str, List[Period]] = {}  # by uuid: there was no guestServer
        self.deaths: List[float] = []  # of the VIM
        self.stood_still: Dict[str, List[Period]] = {}  # by uuid: its whole machine, for want of CPU
        self.asked: List[Asked] = []
        self.log: List[str] = []
        # Arrival of an alarm → when the VIM has processed it, which may stand still between.
        self._processed: Dict[float, float] = {}

    def note(self, text: str) -> None:
        """A line of the story."""
        self.log.append("%.3f %s" % (time.monotonic(), text))

    def begin(self, periods: Dict[str, List[Period]], uuid: str) -> None:
        """It hangs, or is ill, or is repaired, from now on."""
        periods.setdefault(uuid, []).append((time.monotonic(), None))

    def end(self, periods: Dict[str, List[Period]], uuid: str) -> None:
        """That is over, if it was so."""
        if lasts(periods, uuid):
            periods[uuid][-1] = (periods[uuid][-1][0], time.monotonic())

    def is_back(self, uuid: str) -> None:
        """It starts, or is reported again."""
        self.back.setdefault(uuid, []).append(time.monotonic())

    def ends(self, uuid: str) -> None:
        """Its machine ends. Where it was lost, nobody has seen that it was well again for a moment."""
        self.gone.add(uuid)
        begin, end = self.hung.get(uuid, [(0.0, 0.0)])[-1]
        if end is not None and time.monotonic() < end + UNSEEN:
            self.hung[uuid][-1] = (begin, None)

    def _told_until(self, uuid: str, end: float) -> float:
        """When the VIM may read at the latest what was on its way at `end`: it may have stood still.

        Nor can anybody know of an end that came just before guestServer's.
        """
        for begin, over in self.unwatched.get(uuid, []):
            if end <= begin <= end + UNSEEN and over is not None:
                end = over + UNSEEN
        for begin, over in sorted(self.stalls, key=lambda period: period[0]):
            if begin <= end + ON_ITS_WAY and over is not None:
                end = max(end, over)
        return end + ON_ITS_WAY

    def complaints(self, uuid: str, events: List[Dict[str, Any]], ended: float) -> List[str]:
        """What is wrong with what the VIM was told of this instance (its alarms and outcomes)."""
        alarms = [event for event in events if event["body"]["event-type"] == "alarm"]
        outcomes = [event for event in events if event["body"]["event-type"] == "action"]
        services = [(event["at"], event["body"]["event-data"]["services"][0]) for event in alarms]
        failed = [at for at, service in services if service["state"] == "failed"]
        unhealthy = [at for at, service in services if service["state"] == "unhealthy"]
        self._processed = {event["at"]: event.get("processed", event["at"]) for event in alarms}
        found = self._judge("hung", self.hung, uuid, failed, ended)
        found += self._judge("ill", self.ill, uuid, unhealthy, ended)
        found += self._seconds(uuid, [at for at, _ in services])
        found += [
            "ACTION: %s told with %s at %.3f" % (uuid[-2:], service["repair-action"], at)
            for at, service in services
            if service["repair-action"] != ACTION
        ]
        return found + self._stale(uuid, outcomes)

    def _judge(
        self, what: str, periods: Dict[str, List[Period]], uuid: str, alarms: List[float], ended: float
    ) -> List[str]:
        found, name = [], uuid[-2:]
        perhaps = self._stood_still(what, uuid)
        may_be_of: Dict[float, List[int]] = {}
        all_of_it = sorted([*periods.get(uuid, []), *perhaps], key=lambda one: one[0])
        told: List[List[float]] = [[] for _ in all_of_it]
        for at in alarms:
            of = [
                n
                for n, one in enumerate(all_of_it)
                if one[0] < self._processed[at] and at <= self._told_until(uuid, one[1] or ended)
            ]
            wanted = [n for n in of if all_of_it[n] not in perhaps]
            # The last one that was wanted first.
            may_be_of[at] = sorted(wanted, reverse=True) + sorted(set(of) - set(wanted), reverse=True)
            if not of:
                found.append("FALSE: %s told at %.3f, %s %r" % (name, at, what, all_of_it))
            elif not _find_place(at, told, may_be_of, set()):
                told[may_be_of[at][0]].append(at)
        seen_from = self.back.get(uuid, [])
        for (begin, end), mine in zip(all_of_it, told):
            was_seen = not any(0 <= begin - since < RECOVERY for since in seen_from)
            if end is None and not mine and was_seen and uuid not in self.gone:
                found.append("LOST: %s %s at %.3f and was never told" % (name, what, begin))
            seen_from = [*seen_from, end or ended]
            if len([at for at in mine if not self._died_after(at)]) > 1:
                found.append("TWICE: %s %s at %.3f, told at %r" % (name, what, begin, mine))
        return found

    def _stood_still(self, what: str, uuid: str) -> List[Period]:
        """Times in which the guest did nothing though nobody wanted that; they may be told as a hang."""
        return self.stood_still.get(uuid, []) if what == "hung" else []

    def _died_after(self, at: float) -> bool:
        """Whether the VIM that processed something then had no time to answer, nor to do more about it."""
        return any(at <= death < at + DIED_AFTER for death in self.deaths)

    def _seconds(self, uuid: str, alarms: List[float]) -> List[str]:
        return [
            "SECOND: %s told at %.3f, repaired since %.3f" % (uuid[-2:], at, begin)
            for begin, end in self.repairs.get(uuid, [])
            for at in alarms
            if begin < at and (end is None or at < end) and not self._died_after(begin)
        ]

    def _stale(self, uuid: str, outcomes: List[Dict[str, Any]]) -> List[str]:
        found = []
        for event in outcomes:
            at, action = event["at"], event["body"]["event-data"]["action"]
            asked = [one.at for one in self.asked if one.uuid == uuid and one.event == action and one.at < at]
            late = at - max(asked, default=0.0)
            stood_still = any(
                begin < at and (over is None or at - late < over) for begin, over in self.stalls
            )
            if late > OUTCOME_WITHIN and not stood_still:
                found.append("STALE: %s of %s, %.3f s after its question" % (action, uuid[-2:], late))
        return found


def _find_place(
    at: float, told: List[List[float]], may_be_of: Dict[float, List[int]], seen: Set[int]
) -> bool:
    """Give the alarm a period of its own; one before it moves to another where that is the only way.

    An alarm that a VIM reads late is of the failure of then, and not of the one that has begun since.
    """
    for n in may_be_of[at]:
        if n not in seen:
            seen.add(n)
            if not told[n] or _find_place(told[n][0], told, may_be_of, seen):
                told[n][:1] = [at]
                return True
    return False


def lasts(periods: Dict[str, List[Period]], uuid: str) -> bool:
    """It hangs, or is ill, or is repaired now; or was when it was switched off."""
    return bool(periods.get(uuid)) and periods[uuid][-1][1] is None
