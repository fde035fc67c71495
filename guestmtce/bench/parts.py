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
from guestmtce.lab.cluster import Cluster, Daemon, wait_for
from guestmtce.lab.measure import read_cpu_times, read_memories, spent_ns, spread_ms
from guestmtce.lab.process import GuestsProcess
from guestmtce.server.settings import ServerSettings

Figures = Dict[str, Any]
Rows = Dict[str, Dict[str, str]]

# A key of guestServer's dump (docs/reports.md) → the figure. A connection more is one that was lost before.
COUNTERS = {
    "misses": "misses",
    "losses": "losses",
    "late": "late_wake_ups",
    "crashes": "deaths",
    "connections": "reconnects",
}
START_WAIT = 180.0  # s
LOSS_WAIT = 5.0  # s beyond the time that a loss takes
RECOVERY_WAIT = 30.0  # s
SETTLE = 0.5  # s until what counting and reading /proc stirred up is over
POLL = 0.1  # s
HANG_PACE = 0.05  # s between two guests that hang: the VIM takes one alarm after the other
CYCLE_PACE = 0.02  # s between two cycles
DEATHS_MAX = 1000  # children of a guest that may die before guestServer rests: they are killed by the dozen
LEAK_READINGS = 5  # the first one before any cycle
NEWEST = 50  # children whose memory is read in a leak reading
MEMORY_ALL_UP_TO = 500  # guests; of more, a sample stands for all
MEMORY_SAMPLE = 200  # children
PERCENT = 100
NS_PER_S = 1e9
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
        # An interval below guestServer's floor would be raised to it, and the bench would measure another
        # one.
        floor = min(plan.interval_ms, ServerSettings.pulse_period_ms)
        settings = ["client.hbs_pulse_period=%d" % floor]
        settings.append("supervision.child_deaths_max=%d" % DEATHS_MAX)
        super().__init__(plan.guests, 1, plan.interval_ms, server_settings=settings)
        self.plan = plan

    def start(self) -> None:
        """Start only what is there before guestServer."""
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

    def read_rows(self) -> Rows:
        """guestServer's row about every guest: uuid → key → value."""
        return self.server.dump("guest")

    def read_facts(self, uuid: str) -> Figures:
        """One guest's own view."""
        return dict(self.crowd.say(uuid, "status")[0])

    def await_calm(self, seconds: float = RECOVERY_WAIT) -> None:
        """Wait until all guests heartbeat, and then a while."""
        self.await_all(seconds)
        time.sleep(SETTLE + self.plan.interval)

    def await_all(self, seconds: float = RECOVERY_WAIT) -> None:
        """Wait until all guests heartbeat, as they see it and as guestServer does."""
        count = self.plan.guests
        wanted = "guests %d heartbeating %d" % (count, count)
        wait_for(lambda: self.crowd.say("stats")["beating"] == count, "all are challenged", seconds, POLL)
        wait_for(lambda: self.server.health()["guests"] == wanted, "all heartbeat", seconds, POLL)


def sum_counters(rows: Rows) -> Dict[str, int]:
    """guestServer's COUNTERS, summed over its guests."""
    return {name: sum(int(row[name]) for row in rows.values()) for name in COUNTERS}


def count_rise(before: Rows, after: Rows) -> Dict[str, int]:
    """What the counters rose by, under the names of the figures."""
    first, last = sum_counters(before), sum_counters(after)
    return {figure: last[name] - first[name] for name, figure in COUNTERS.items()}


def choose_some(count: int, names: Sequence[str]) -> List[str]:
    """So many of the names, at random, or all."""
    return random.sample(list(names), min(count, len(names)))


# --- the parts -------------------------------------------------------------------------------------


def measure_start_up(stage: Stage) -> Figures:
    """Start guestServer with all sockets there."""
    began = time.monotonic()
    stage.start_server(stage.hosts[0])
    serving = time.monotonic()
    stage.await_calm(START_WAIT)
    facts = stage.crowd.say("status")
    if not facts:
        return {"serving_s": serving - began}
    return {
        "serving_s": serving - began,
        "first_challenge_all_s": max(guest["first_challenge"] for guest in facts) - began,
        "heartbeating_all_s": max(guest["first_beat"] for guest in facts) - began,
        "init_to_heartbeat_ms": spread_ms(guest["first_beat"] - guest["first_init"] for guest in facts),
    }


def measure_heartbeats(stage: Stage) -> Figures:
    """The measured time, in which nothing is disturbed, and guestServer's counters around it."""
    before = stage.read_rows()
    time.sleep(SETTLE)
    pids = [int(row["pid"]) for row in before.values()]
    figures = measure_undisturbed(stage, pids)
    time.sleep(SETTLE)
    after = stage.read_rows()
    return {**count_rise(before, after), **figures}


def measure_undisturbed(stage: Stage, pids: List[int]) -> Figures:
    """Lateness and processor time over the plan's `seconds`; `pids` are the children's."""
    groups = [[stage.server.popen.pid], [stage.crowd.popen.pid], pids]
    wakes = count_wake_ups(stage)
    # Counting wakes the daemons up; it comes first, and the guests' own figures begin after it.
    stage.crowd.say("stats", "reset")
    began, before = time.monotonic(), [read_cpu_times(group) for group in groups]
    delays = measure_delays(stage, began + stage.plan.seconds)
    took, stats = time.monotonic() - began, stage.crowd.say("stats")
    after = [read_cpu_times(group) for group in groups]
    master, guests, children = (spent_ns(*pair) for pair in zip(before, after))
    return {
        "seconds": took,
        "heartbeats": stats["answers"],
        "lateness_ms": measure.Histogram.of(stats["late"], stats["max"]).spread_ms(),
        "guests_delay_ms": spread_ms(delays),
        "cpu_us_per_heartbeat": divide_by_heartbeats(
            stats["answers"], children=children, master=master, guests=guests
        ),
        "master_percent_of_a_core": PERCENT * master / NS_PER_S / took,
        "master_wake_ups_per_s": (count_wake_ups(stage) - wakes) / took,
    }


def divide_by_heartbeats(beats: int, **spent: int) -> Figures:
    """Processor times (ns) in µs per heartbeat, None when there was none."""
    return {name: time_ns / NS_PER_US / beats if beats else None for name, time_ns in spent.items()}


def measure_delays(stage: Stage, until: float) -> List[float]:
    """Wait until a moment, and see how long (s) the guests' process takes to hear a word meanwhile."""
    delays: List[float] = []
    while time.monotonic() < until:
        said = time.monotonic()
        delays.append(stage.crowd.say("clock") - said)
        time.sleep(max(0.0, min(POLL, until - time.monotonic())))
    return delays


def count_wake_ups(stage: Stage) -> int:
    """How often guestServer's loop has woken up."""
    words = stage.server.health()["loop"].split()
    return int(words[words.index("wake-ups") + 1])


def measure_memory(stage: Stage) -> Figures:
    """The memory of guestServer's processes; root is needed to see it."""
    if os.geteuid() != 0:
        return {"left_out": NOT_ROOT}
    words = stage.server.health()["spawner"].split()
    spawner = int(words[words.index("pid") + 1])
    daemons = {"master": measure.read_memory(stage.server.popen.pid), "spawner": measure.read_memory(spawner)}
    figures: Figures = {
        name + "_kb": {"uss": memory.uss, "pss": memory.pss} for name, memory in daemons.items()
    }
    pids = [int(row["pid"]) for row in stage.read_rows().values()]
    if pids:
        figures["child_kb"] = measure_children(pids)
        children = figures["child_kb"]["pss_mean"] * len(pids)
        figures["total_pss_kb"] = children + sum(memory.pss for memory in daemons.values())
    return figures


def measure_children(pids: List[int]) -> Figures:
    """Mean and largest memory of all children, or of a sample of them."""
    # The kernel walks all pages of a process for each look, and the guests go on heartbeating meanwhile.
    sample = pids if len(pids) < MEMORY_ALL_UP_TO else random.sample(pids, MEMORY_SAMPLE)
    memories = read_memories(sample)
    figures: Figures = {"sampled": len(memories)}
    for name in ("uss", "pss"):
        sizes = [getattr(memory, name) for memory in memories]
        figures[name + "_mean"], figures[name + "_max"] = sum(sizes) / len(sizes), max(sizes)
    return figures


def measure_detection(stage: Stage) -> Figures:
    """Have guests hang, one after the other, and see when the VIM hears of it."""
    hung = choose_some(stage.plan.fail, stage.uuids)
    for uuid in hung:
        stage.crowd.say(uuid, "mute")
        time.sleep(HANG_PACE)
    alarmed = await_alarms(stage, len(hung))
    due = {uuid: stage.read_facts(uuid)["unanswered_since"] + stage.plan.loss for uuid in hung}
    for uuid in hung:
        stage.crowd.say(uuid, "healthy")
        stage.crowd.say(uuid, "reset")
    return {
        "hung": len(hung),
        "reported": sum(uuid in alarmed for uuid in hung),
        "reported_others": len(alarmed.keys() - set(hung)),
        "overhead_ms": spread_ms(alarmed[uuid] - due[uuid] for uuid in hung if uuid in alarmed),
    }


def await_alarms(stage: Stage, count: int) -> Dict[str, float]:
    """`first_alarms`, as soon as there are `count` of them or the time for them is over."""
    until = time.monotonic() + stage.plan.interval + stage.plan.loss + LOSS_WAIT
    while len(first_alarms(stage)) < count and time.monotonic() < until:
        time.sleep(POLL)
    return first_alarms(stage)


def first_alarms(stage: Stage) -> Dict[str, float]:
    """When the VIM heard the first alarm of each guest, by its uuid."""
    alarms: Dict[str, float] = {}
    for event in stage.vim.events("alarm"):
        # Events are in the order of their arrival: the first one counts.
        alarms.setdefault(event["body"]["uuid"], event["at"])
    return alarms


def measure_reconnects(stage: Stage) -> Figures:
    """Kill children, one right after the other, and see when their guests are challenged again."""
    stage.await_calm()
    # Alarms of the parts before are not this one's.
    stage.vim.record.clear()
    before = stage.read_rows()
    # All pids were read before: between two kills nothing is asked, so they come close together.
    killed = kill_children(choose_some(stage.plan.kill, stage.uuids), before)
    facts = {uuid: await_beat(stage, uuid, at) for uuid, at in killed.items()}
    stage.await_calm()
    after = stage.read_rows()
    others = before.keys() - killed.keys()
    rise = count_rise({uuid: before[uuid] for uuid in others}, {uuid: after[uuid] for uuid in others})
    return {
        "killed": len(killed),
        "within_s": max(killed.values()) - min(killed.values()),
        "challenge_ms": spread_ms(facts[uuid]["first_challenge"] - at for uuid, at in killed.items()),
        "heartbeat_ms": spread_ms(facts[uuid]["first_beat"] - at for uuid, at in killed.items()),
        "others_touched": rise["misses"] + rise["reconnects"],
        "alarms": len(first_alarms(stage)),
    }


def kill_children(uuids: List[str], rows: Rows) -> Dict[str, float]:
    """Kill the children of these guests; returns when each was killed."""
    killed: Dict[str, float] = {}
    for uuid in uuids:
        # Before the kill: the time is no shorter than what a guest would see.
        killed[uuid] = time.monotonic()
        kill_process(int(rows[uuid]["pid"]))
    return killed


def await_beat(stage: Stage, uuid: str, since: float) -> Any:
    """The guest's view, once it has answered on a connection made after `since`."""

    def has_answered() -> Any:
        facts = stage.read_facts(uuid)
        return facts if facts["linked_at"] > since and facts["first_beat"] else None

    return wait_for(has_answered, uuid + " heartbeats again", RECOVERY_WAIT, POLL)


def measure_leaks(stage: Stage) -> Figures:
    """Read what guestServer holds, before, during and after many cycles of sockets and children."""
    if os.geteuid() != 0:
        return {"left_out": NOT_ROOT}
    stage.await_calm()
    readings = [_read_holdings(stage, 0)]
    for part in range(1, LEAK_READINGS):
        done = stage.plan.cycles * part // (LEAK_READINGS - 1)
        make_and_kill(stage, done - readings[-1]["cycles"])
        stage.await_calm()
        readings.append(_read_holdings(stage, done))
    return {"readings": readings}


def _read_holdings(stage: Stage, cycles: int) -> Figures:
    """What guestServer holds, and the private memory of the children that it had forked last."""
    pids = sorted(int(row["pid"]) for row in stage.read_rows().values())[-NEWEST:]
    uss = [measure.read_memory(pid).uss for pid in pids]
    held = measure.read_holdings(stage.server.popen.pid)
    return {"cycles": cycles, **held, "child_uss_kb": sum(uss) // max(1, len(uss))}


def make_and_kill(stage: Stage, cycles: int) -> None:
    """A cycle makes the socket of one guest anew and kills the child of another."""
    while cycles > 0:
        rows, count = stage.read_rows(), min(cycles, max(1, len(stage.uuids) // 2))
        names = choose_some(len(rows), list(rows))
        # From both ends: of two guests or more none is both restarted and killed.
        for restarted, killed in zip(names[:count], names[::-1]):
            stage.crowd.say(restarted, "off")
            stage.crowd.say(restarted, "on")
            kill_process(int(rows[killed]["pid"]))
            time.sleep(CYCLE_PACE)
        stage.await_all()
        cycles -= count


def kill_process(pid: int) -> None:
    """SIGKILL; a process that is gone is fine, and so is one that there never was."""
    try:
        # kill(0) would go to the bench's own process group; a guest without a child has pid 0 in the dump.
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
