"""The parts of the bench: each does something with a stage and returns its figures (`bench` says which).

Times are s, monotonic, if a name does not say otherwise; memory is kB.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any, Dict, List, NamedTuple, Sequence

from guestmtce.lab import measure
from guestmtce.lab.cluster import Cluster, Daemon, GuestsProcess, wait_for
from guestmtce.lab.measure import cpu_of, memories, spent_ns, spread_ms
from guestmtce.server.settings import ServerSettings

Figures = Dict[str, Any]
Rows = Dict[str, Dict[str, str]]

COUNTERS = ("misses", "losses", "late", "crashes", "connections")
START_WAIT = 180.0
LOSS_WAIT = 5.0  # beyond the time that a loss takes
RECOVERY_WAIT = 30.0
SETTLE = 0.5  # what counting and reading /proc stirred up is over
POLL = 0.1
HANG_PACE = 0.05  # between two guests that hang: the VIM takes one alarm after the other
CYCLE_PACE = 0.02
LEAK_READINGS = 5
NEWEST = 50  # children whose memory is looked at
MEMORY_ALL_UP_TO = 500
MEMORY_SAMPLE = 200
PERCENT = 100
NS = 1e9  # per s
NS_PER_US = 1000
NOT_ROOT = "not root: the memory of the daemons cannot be read"


class Plan(NamedTuple):
    """What to do. `kill`, `fail` and `cycles` are how many; 0 leaves that part out."""

    guests: int
    interval_ms: int
    seconds: float
    kill: int
    fail: int
    cycles: int

    @property
    def interval(self) -> float:
        """The guests' interval."""
        return self.interval_ms / measure.MS

    @property
    def loss(self) -> float:
        """From a guest's first unanswered challenge to its loss."""
        return (ServerSettings.failure_threshold + 1) * self.interval


class Stage(Cluster):
    """One host whose guests are there before its guestServer, and what the bench asks of them."""

    def __init__(self, plan: Plan) -> None:
        floor = min(plan.interval_ms, ServerSettings.pulse_period_ms)
        # Processes are killed by the dozen: they are not to rest.
        settings = ["client.hbs_pulse_period=%d" % floor, "supervision.child_deaths_max=1000"]
        super().__init__(plan.guests, 1, plan.interval_ms, server_settings=settings)
        self.plan = plan

    def start(self) -> None:
        """Only what is there before guestServer."""
        self.start_neighbours()
        self.start_guests(self.hosts[0])

    @property
    def crowd(self) -> GuestsProcess:
        """The guests' process."""
        return self.hosts[0].guests

    @property
    def server(self) -> Daemon:
        """The guestServer."""
        return self.hosts[0].server

    def rows(self) -> Rows:
        """guestServer's line about every guest."""
        return self.server.dump("guest")

    def facts(self, uuid: str) -> Figures:
        """One guest's own view."""
        return dict(self.crowd.say(uuid, "status")[0])

    def settle(self, seconds: float = RECOVERY_WAIT) -> None:
        """Until all guests heartbeat, and then a while."""
        self.await_all(seconds)
        time.sleep(SETTLE + self.plan.interval)

    def await_all(self, seconds: float = RECOVERY_WAIT) -> None:
        """Until all guests heartbeat, as they see it and as guestServer does."""
        count = self.plan.guests
        wanted = "guests %d heartbeating %d" % (count, count)
        wait_for(lambda: self.crowd.say("stats")["beating"] == count, "all are challenged", seconds, POLL)
        wait_for(lambda: self.server.health()["guests"] == wanted, "all heartbeat", seconds, POLL)


def totals(rows: Rows) -> Dict[str, int]:
    """The sums of guestServer's counters."""
    return {name: sum(int(row[name]) for row in rows.values()) for name in COUNTERS}


def gained(before: Rows, after: Rows) -> Dict[str, int]:
    """What the counters rose by; a connection that was made is one that was lost before."""
    first, last = totals(before), totals(after)
    rise = {name: last[name] - first[name] for name in COUNTERS}
    rise["reconnects"] = rise.pop("connections")
    return rise


def choose(count: int, names: Sequence[str]) -> List[str]:
    """So many of them, at random, or all."""
    return random.sample(list(names), min(count, len(names)))


# --- the parts -------------------------------------------------------------------------------------


def start_up(stage: Stage) -> Figures:
    """guestServer starts with all sockets there."""
    began = time.monotonic()
    stage.start_server(stage.hosts[0])
    serving = time.monotonic()
    stage.settle(START_WAIT)
    facts = stage.crowd.say("status")
    if not facts:
        return {"serving_s": serving - began}
    return {
        "serving_s": serving - began,
        "first_challenge_all_s": max(one["first_challenge"] for one in facts) - began,
        "heartbeating_all_s": max(one["first_beat"] for one in facts) - began,
        "init_to_heartbeat_ms": spread_ms(one["first_beat"] - one["first_init"] for one in facts),
    }


def heartbeats(stage: Stage) -> Figures:
    """The measured time: nobody disturbs anybody."""
    before = stage.rows()
    time.sleep(SETTLE)
    pids = [int(row["pid"]) for row in before.values()]
    figures = measured_time(stage, pids)
    time.sleep(SETTLE)
    after = stage.rows()
    return {**gained(before, after), **figures}


def measured_time(stage: Stage, pids: List[int]) -> Figures:
    """Lateness and processor time over `seconds`."""
    groups = [[stage.server.popen.pid], [stage.crowd.popen.pid], pids]
    wakes = wake_ups(stage)
    stage.crowd.say("stats", "reset")
    began, before = time.monotonic(), [cpu_of(group) for group in groups]
    delays = probe(stage, began + stage.plan.seconds)
    took, stats = time.monotonic() - began, stage.crowd.say("stats")
    after = [cpu_of(group) for group in groups]
    master, guests, children = (spent_ns(*pair) for pair in zip(before, after))
    return {
        "seconds": took,
        "heartbeats": stats["answers"],
        "lateness_ms": measure.Histogram.of(stats["late"], stats["max"]).spread_ms(),
        "guests_delay_ms": spread_ms(delays),
        "cpu_us_per_heartbeat": per_beat(stats["answers"], children=children, master=master, guests=guests),
        "master_percent_of_a_core": PERCENT * master / NS / took,
        "master_wake_ups_per_s": (wake_ups(stage) - wakes) / took,
    }


def per_beat(beats: int, **spent: int) -> Figures:
    """µs a heartbeat, None when there was none."""
    return {name: spent_ns / NS_PER_US / beats if beats else None for name, spent_ns in spent.items()}


def probe(stage: Stage, until: float) -> List[float]:
    """Wait, and see meanwhile how long the guests' process takes to hear a word."""
    delays: List[float] = []
    while time.monotonic() < until:
        said = time.monotonic()
        delays.append(stage.crowd.say("clock") - said)
        time.sleep(max(0.0, min(POLL, until - time.monotonic())))
    return delays


def wake_ups(stage: Stage) -> int:
    """How often guestServer's loop has turned."""
    words = stage.server.health()["loop"].split()
    return int(words[words.index("wake-ups") + 1])


def occupied(stage: Stage) -> Figures:
    """Memory, kB; root is needed to see it."""
    if os.geteuid() != 0:
        return {"left_out": NOT_ROOT}
    words = stage.server.health()["spawner"].split()
    spawner = int(words[words.index("pid") + 1])
    alone = {"master": measure.memory(stage.server.popen.pid), "spawner": measure.memory(spawner)}
    figures: Figures = {name + "_kb": {"uss": one.uss, "pss": one.pss} for name, one in alone.items()}
    pids = [int(row["pid"]) for row in stage.rows().values()]
    if pids:
        figures["child_kb"] = child_memory(pids)
        children = figures["child_kb"]["pss_mean"] * len(pids)
        figures["total_pss_kb"] = children + sum(one.pss for one in alone.values())
    return figures


def child_memory(pids: List[int]) -> Figures:
    """Mean and largest of all, or of some that stand for all."""
    sample = pids if len(pids) < MEMORY_ALL_UP_TO else random.sample(pids, MEMORY_SAMPLE)
    found = memories(sample)
    figures: Figures = {"sampled": len(found)}
    for name, sizes in (("uss", [one.uss for one in found]), ("pss", [one.pss for one in found])):
        figures[name + "_mean"], figures[name + "_max"] = sum(sizes) / len(sizes), max(sizes)
    return figures


def detection(stage: Stage) -> Figures:
    """Guests hang, one after the other, and the VIM hears of it."""
    hung = choose(stage.plan.fail, stage.uuids)
    for uuid in hung:
        stage.crowd.say(uuid, "mute")
        time.sleep(HANG_PACE)
    told = await_alarms(stage, len(hung))
    due = {uuid: stage.facts(uuid)["unanswered_since"] + stage.plan.loss for uuid in hung}
    for uuid in hung:
        stage.crowd.say(uuid, "healthy")
        stage.crowd.say(uuid, "reset")
    return {
        "hung": len(hung),
        "told": sum(uuid in told for uuid in hung),
        "told_of_others": len(told.keys() - set(hung)),
        "overhead_ms": spread_ms(told[uuid] - due[uuid] for uuid in hung if uuid in told),
    }


def await_alarms(stage: Stage, count: int) -> Dict[str, float]:
    """When the VIM heard of whom, as soon as it heard of so many, or has had the time to."""
    until = time.monotonic() + stage.plan.interval + stage.plan.loss + LOSS_WAIT
    while len(alarms(stage)) < count and time.monotonic() < until:
        time.sleep(POLL)
    return alarms(stage)


def alarms(stage: Stage) -> Dict[str, float]:
    """When the VIM heard the first alarm of each guest."""
    told: Dict[str, float] = {}
    for event in stage.vim.events("alarm"):
        told.setdefault(event["body"]["uuid"], event["at"])
    return told


def kills(stage: Stage) -> Figures:
    """Processes of guests are killed, one right after the other."""
    stage.settle()
    stage.vim.record.clear()
    before = stage.rows()
    killed = kill_some(choose(stage.plan.kill, stage.uuids), before)
    facts = {uuid: await_beat(stage, uuid, at) for uuid, at in killed.items()}
    stage.settle()
    after = stage.rows()
    others = before.keys() - killed.keys()
    rise = gained({uuid: before[uuid] for uuid in others}, {uuid: after[uuid] for uuid in others})
    return {
        "killed": len(killed),
        "within_s": max(killed.values()) - min(killed.values()),
        "challenge_ms": spread_ms(facts[uuid]["first_challenge"] - at for uuid, at in killed.items()),
        "heartbeat_ms": spread_ms(facts[uuid]["first_beat"] - at for uuid, at in killed.items()),
        "others_touched": rise["misses"] + rise["reconnects"],
        "alarms": len(alarms(stage)),
    }


def kill_some(uuids: List[str], rows: Rows) -> Dict[str, float]:
    """Kill the guests' processes; returns when each was killed."""
    killed: Dict[str, float] = {}
    for uuid in uuids:
        killed[uuid] = time.monotonic()
        kill(int(rows[uuid]["pid"]))
    return killed


def await_beat(stage: Stage, uuid: str, since: float) -> Any:
    """The guest's view, once it has answered on a connection made after `since`."""

    def answered() -> Any:
        facts = stage.facts(uuid)
        return facts if facts["linked_at"] > since and facts["first_beat"] else None

    return wait_for(answered, uuid + " heartbeats again", RECOVERY_WAIT, POLL)


def leaks(stage: Stage) -> Figures:
    """Sockets go and come, processes die, and what guestServer holds stays as it was."""
    if os.geteuid() != 0:
        return {"left_out": NOT_ROOT}
    stage.settle()
    readings = [_holdings(stage, 0)]
    for part in range(1, LEAK_READINGS):
        done = stage.plan.cycles * part // (LEAK_READINGS - 1)
        churn(stage, done - readings[-1]["cycles"])
        stage.settle()
        readings.append(_holdings(stage, done))
    return {"readings": readings}


def _holdings(stage: Stage, cycles: int) -> Figures:
    """What guestServer holds, and the private memory of the children that it had forked last."""
    pids = sorted(int(row["pid"]) for row in stage.rows().values())[-NEWEST:]
    uss = [measure.memory(pid).uss for pid in pids]
    held = measure.holdings(stage.server.popen.pid)
    return {"cycles": cycles, **held, "child_uss_kb": sum(uss) // max(1, len(uss))}


def churn(stage: Stage, cycles: int) -> None:
    """In a cycle one guest's socket goes and comes, and another's process is killed."""
    while cycles > 0:
        rows, count = stage.rows(), min(cycles, max(1, len(stage.uuids) // 2))
        names = choose(len(rows), list(rows))
        for restarted, killed in zip(names[:count], names[::-1]):
            stage.crowd.say(restarted, "off")
            stage.crowd.say(restarted, "on")
            kill(int(rows[killed]["pid"]))
            time.sleep(CYCLE_PACE)
        stage.await_all()
        cycles -= count


def kill(pid: int) -> None:
    """SIGKILL; a process that is gone is fine, and so is one that there never was."""
    try:
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
