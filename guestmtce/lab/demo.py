"""The demo: a whole cloud on this machine, and four things that happen to its guests.

It says what it does and what it saw, and succeeds only if it saw everything.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Set, Tuple

import psutil

from guestmtce.lab import pace
from guestmtce.lab.cluster import Cluster, TimedOut, wait_for

GUESTS = 20
INTERVAL = 1.0  # s
LOSS = 2 * INTERVAL  # s from the first unanswered challenge: the second miss is a loss
LOSS_WAIT = 2 * LOSS  # s
LOSS_TOLERANCE = 0.05  # s
BUSY_TOLERANCE = 1.0  # s, where the machine has other work
HUNG, KILLED, VOTER, ILL = 5, 7, 1, 9  # numbers of guests
REASON = "a backup is running"
VOTE_DELAY = 0.2  # s
RUN_TOGETHER = 1.5  # s of undisturbed life shown before and after what happens
REDRAW = 0.25  # s
MS_PER_S = 1000
INTERRUPTED = 130  # exit status, as a shell's: 128 and SIGINT
ERASE_LINES = "\x1b[%dA\x1b[J"  # ECMA-48: cursor up so many lines, erase what is below


class Screen:
    """A table that is redrawn in place on a terminal; elsewhere it is printed when asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._terminal = sys.stdout.isatty()
        self._drawn = 0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._erase_table()
        print(text, flush=True)

    def draw_table(self) -> None:
        """Draw the guests as they are now."""
        lines = self._make_rows()
        self._erase_table()
        print("\n".join(lines), flush=True)
        # What stands on paper or in a file cannot be erased.
        self._drawn = len(lines) if self._terminal else 0

    def watch(self, seconds: float) -> None:
        """Show the table for a while; where there is no terminal, once."""
        until = time.monotonic() + seconds
        self.draw_table()
        while time.monotonic() < until:
            time.sleep(REDRAW)
            if self._terminal:
                self.draw_table()

    def _make_rows(self) -> List[str]:
        host = self._cluster.hosts[0]
        seen, known = host.guests.status(), host.server.dump("guest")
        now = time.monotonic()
        lines = ["  %-8s %-15s %-12s %s" % ("guest", "state", "last beat", "misses")]
        for number, uuid in enumerate(self._cluster.uuids, 1):
            facts, row = seen[uuid], known.get(uuid, {})
            beating = row.get("heartbeating") == "enabled"
            state = ("ill" if facts["mode"] == "ill" else "heartbeating") if beating else "LOST"
            ago = "%5.2f s ago" % (now - facts["last_beat"])
            lines.append("  lab-%-4d %-15s %-12s %s" % (number, state, ago, row.get("misses", "?")))
        return lines

    def _erase_table(self) -> None:
        if self._drawn:
            sys.stdout.write(ERASE_LINES % self._drawn)
            self._drawn = 0


def _uuid_of(cluster: Cluster, number: int) -> str:
    return cluster.uuids[number - 1]


def _count_connections(cluster: Cluster) -> Dict[str, int]:
    """How often each guest was connected to, by its uuid."""
    return {uuid: facts["links"] for uuid, facts in cluster.hosts[0].guests.status().items()}


# --- the steps: each returns what it saw, or raises AssertionError ----------------------------------


def hang_guest(cluster: Cluster) -> str:
    """A guest hangs."""
    guests, uuid = cluster.hosts[0].guests, _uuid_of(cluster, HUNG)
    guests.say(HUNG, "mute")
    alarms = wait_for(lambda: cluster.vim.events("alarm", uuid), "the VIM hears the alarm", LOSS_WAIT)
    # Both moments are of the machine's monotonic clock, which its processes have in common.
    took = alarms[0]["at"] - guests.status()[uuid]["unanswered_since"]
    service = alarms[0]["body"]["event-data"]["services"][0]
    busy, late = pace.remark(), took - LOSS
    # Too early is a false alarm, so it is no excuse for it that the machine is busy.
    _check(late >= -LOSS_TOLERANCE, "alarm already after %.3f s" % took)
    _check(late <= (BUSY_TOLERANCE if busy else LOSS_TOLERANCE), "alarm only after %.3f s" % took)
    _check((service["state"], service["repair-action"]) == ("failed", "reboot"), "alarm says %r" % service)
    return (
        "lab-%d hung: the VIM had the alarm (failed, repair action reboot) %.3f s after the first\n"
        "   unanswered challenge; two intervals are %.3f s%s"
        % (HUNG, took, LOSS, busy and "\n   (%s)" % busy)
    )


def kill_child(cluster: Cluster) -> str:
    """The process of one guest is killed."""
    guests, uuid = cluster.hosts[0].guests, _uuid_of(cluster, KILLED)
    before, alarms = _count_connections(cluster), len(cluster.vim.events("alarm"))
    cluster.children()[uuid].kill()
    killed = time.monotonic()
    # One connection more, and an answer on it: a new process has taken the guest over.
    again = wait_for(
        lambda: (
            [f for f in guests.status().values() if f["uuid"] == uuid and f["last_beat"] > killed]
            and _count_connections(cluster)[uuid] == before[uuid] + 1
        ),
        "lab-%d heartbeats again" % KILLED,
    )
    took = guests.status()[uuid]["last_beat"] - killed
    others = {other: count for other, count in _count_connections(cluster).items() if other != uuid}
    _check(bool(again), "no new beat")
    # A child is one guest's: its death must touch no other.
    _check(all(before[other] == count for other, count in others.items()), "other guests were reconnected")
    # A process of the host's that dies is no failure of the guest.
    _check(len(cluster.vim.events("alarm")) == alarms, "the VIM heard an alarm")
    return (
        "the process of lab-%d was killed (SIGKILL): it heartbeats again after %.0f ms, the other %d\n"
        "   connections were not touched, the VIM heard nothing" % (KILLED, took * MS_PER_S, len(others))
    )


def reject_reboot(cluster: Cluster) -> str:
    """A guest rejects a reboot."""
    uuid = _uuid_of(cluster, VOTER)
    cluster.hosts[0].guests.say(VOTER, "vote", "reject", VOTE_DELAY, REASON)
    status, reply = cluster.client.ask("vote", uuid, cluster.hosts[0].name, "reboot")
    _check(status == 200 and int(reply["timeout"]) > 0, "the vote was answered %d %r" % (status, reply))
    actions = wait_for(lambda: cluster.vim.events("action", uuid), "the VIM hears the outcome")
    data = actions[-1]["body"]["event-data"]
    _check(data == {"action": "reboot", "guest-response": "reject", "reason": REASON}, repr(data))
    return "lab-%d was asked about a reboot: the VIM was told `reject`, reason `%s`" % (VOTER, REASON)


def fall_ill(cluster: Cluster) -> str:
    """A guest is ill."""
    uuid = _uuid_of(cluster, ILL)
    cluster.hosts[0].guests.say(ILL, "ill", "stop", 'disk "sda" is failing')
    alarms = wait_for(lambda: cluster.vim.events("alarm", uuid), "the VIM hears of the illness")
    service = alarms[0]["body"]["event-data"]["services"][0]
    _check((service["state"], service["repair-action"]) == ("unhealthy", "stop"), repr(service))
    return "lab-%d is ill: the VIM had the alarm (unhealthy, repair action stop); heartbeats go on" % ILL


STEPS: Tuple[Callable[[Cluster], str], ...] = (hang_guest, kill_child, reject_reboot, fall_ill)


def _check(condition: bool, failure: str) -> None:
    """Raises AssertionError with `failure` unless the condition holds."""
    if not condition:
        raise AssertionError(failure)


# --- around them -----------------------------------------------------------------------------------


def run() -> int:
    """Returns 0 when every step was seen, 1 when not, 130 when it was interrupted."""
    # TERM raises KeyboardInterrupt as INT does: both go through the clean-up below.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    print("guestmtce demo: %d guests, one guestServer, one guestAgent, a VIM, all on loopback" % GUESTS)
    cluster = Cluster(GUESTS, interval_ms=int(INTERVAL * MS_PER_S))
    shown: List[str] = []
    try:
        cluster.start()
        cluster.provision()
        cluster.await_heartbeats()
        shown = _show_steps(cluster)
    except KeyboardInterrupt:
        print("\ninterrupted: stopping everything")
        return INTERRUPTED
    except (TimedOut, AssertionError, RuntimeError) as error:
        print("\nNOT SEEN: %s" % error)
        busy = pace.remark()
        if busy:
            print("%s; try again when it is not" % busy)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the clean-up is short and must be whole
        left = _stop_cluster(cluster)
    if left:
        print("LEFT BEHIND: " + ", ".join(sorted(left)))
    if len(shown) < len(STEPS) or left:
        return 1
    print("\nShown in %.0f s:" % (time.monotonic() - started))
    for number, text in enumerate(shown, 1):
        print("%d. %s" % (number, text))
    print("%d. everything is stopped; no process and no file is left" % (len(shown) + 1))
    return 0


def _show_steps(cluster: Cluster) -> List[str]:
    """What each step saw."""
    screen = Screen(cluster)
    screen.say("all %d guests heartbeat" % GUESTS)
    screen.watch(RUN_TOGETHER)
    shown = []
    for step in STEPS:
        screen.say("-- " + str(step.__doc__))
        shown.append(step(cluster))
        screen.say("   " + shown[-1])
        if sys.stdout.isatty():
            screen.watch(RUN_TOGETHER)
    screen.draw_table()
    return shown


def _stop_cluster(cluster: Cluster) -> Set[str]:
    """Stop everything; returns what is left behind, which should be nothing."""
    # Read before the stop: afterwards nobody knows which pids there were.
    processes: List[Any] = [process.popen.pid for process in cluster._processes]
    processes += [child.pid for host in cluster.hosts[:1] for child in _find_children(cluster, host)]
    cluster.stop()
    left = {"process %d" % pid for pid in processes if _is_alive(pid)}
    return left | ({cluster.folder} if os.path.exists(cluster.folder) else set())


def _find_children(cluster: Cluster, host: Any) -> List[Any]:
    try:
        return list(cluster.children(host).values())
    except Exception:  # noqa: BLE001 - the server may never have started
        return []


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        # A child's parent was the spawner: once that has ended init reaps it, at its own pace.
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
