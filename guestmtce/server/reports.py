"""What guestServer says of its guests and its guestAgent, for people (docs/reports.md).

The dump has a line for each guest, the health report sums, and systemd's status what matters most.
"""

from __future__ import annotations

import collections
from typing import Any, Collection, Dict, List

from guestmtce.server.agent_link import AgentLink
from guestmtce.server.state.guest import ILL, LOST, Guest
from guestmtce.wire import datagram

# States of guests in `systemctl status`, in its order.
OK, CRASH_LOOPING, SILENT = "ok", "without process", "not heartbeating"
STATES = (OK, LOST, ILL, CRASH_LOOPING, SILENT)


def status_line(rows: Collection[Guest]) -> str:
    """How many guests there are, and how they are."""
    states = collections.Counter(map(_shown_state, rows))
    text = ", ".join("%d %s" % (states[state], state) for state in STATES if states[state])
    return "%d guests" % len(rows) + (": " + text if text else "")


def guests_line(rows: Collection[Guest]) -> str:
    """How many there are, and how many heartbeat."""
    return "guests %d heartbeating %d" % (len(rows), sum(row.liveness.heartbeating for row in rows))


def counts_line(rows: Collection[Guest]) -> str:
    """The sums of the guests' counters."""
    counts = {
        "misses": sum(row.liveness.misses for row in rows),
        "losses": sum(row.liveness.losses for row in rows),
        "crashes": sum(row.crashes.count for row in rows),
        "late": sum(row.liveness.late for row in rows),
    }
    return "counts " + " ".join("%s %d" % count for count in counts.items())


def failing_line(rows: Collection[Guest]) -> str:
    """How many are lost or ill or without a child because too many died, and how many are that last."""
    looping = sum(row.crashes.crash_looping for row in rows)
    return "failing %d crash-looping %d" % (sum(map(_is_failing, rows)), looping)


def agent_lines(link: AgentLink) -> List[str]:
    """How we are with guestAgent."""
    counts = (link.port.received, link.port.sent, link.refused, link.waiting)
    return [
        "agent %s" % (link.agent or "unknown"),
        "other-agents %d" % link.not_followed,
        "events %s" % (link.complaint() or "taken"),
        "datagrams received %d sent %d refused %d unconfirmed %d" % counts,
    ]


def guest_line(row: Guest, pid: int) -> str:
    """A line of the dump."""
    init = row.init
    values: Dict[str, Any] = {
        "connection": row.connection.state,
        "pid": pid,
        "reporting": datagram.state_word(row.reporting),
        "heartbeating": datagram.state_word(row.liveness.heartbeating),
        "owes_answer": _yes_or_no(row.liveness.owes_answer),
        "interval_ms": init.heartbeat_interval_ms if init else 0,
        "action": init.corrective_action if init else "unknown",
        "connections": row.connection.connections_made,
        "crashes": row.crashes.count,
        "misses": row.liveness.misses,
        "losses": row.liveness.losses,
        "late": row.liveness.late,
        "withdrawn": row.pending.withdrawn,
        "failing": _yes_or_no(_is_failing(row)),
        "failure": row.liveness.failure or "none",
        "crash_looping": _yes_or_no(row.crashes.crash_looping),
        "pending": ",".join(map(str, row.pending.events)) or "nothing",
    }
    return "guest %s %s" % (row.uuid, " ".join("%s=%s" % pair for pair in values.items()))


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _is_failing(row: Guest) -> bool:
    """Whether it is lost or ill, or its children die too often."""
    return bool(row.liveness.failure or row.crashes.crash_looping)


def _shown_state(row: Guest) -> str:
    """One of STATES: what matters most of a guest to who looks at this host."""
    if row.liveness.failure:
        return row.liveness.failure
    if row.crashes.crash_looping:
        return CRASH_LOOPING
    return OK if row.liveness.heartbeating else SILENT
