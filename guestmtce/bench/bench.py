"""The bench: real daemons and a process full of guests, undisturbed at first, then hung, killed and churned.

What the figures mean:

- misses, reconnects, late wake-ups: guestServer's own counters, after the measured time less before it.
- lateness of challenges, ms: how late after the moment it was due a guest saw its challenge. guestServer
  makes a challenge due one interval after it sent the one before, so nothing adds up over many of them. A
  guest cannot know when a challenge was sent, only when it read it; taken is therefore the time between two
  readings less the interval, which is too small by the time the earlier challenge was on its way. That
  time is about `guests_delay_ms`: how long the guests' process took to hear a word of the bench, ten
  times a second.
- CPU, µs per heartbeat: processor time (kernel included, waiting excluded) by the scheduler's own count,
  over the answers that the guests gave in the same time.
- memory, kB: USS is what a process has for itself, PSS with its share of what it has together with others.
  From 500 guests on, 200 of them stand for all.
- start-up, s: from the start of guestServer's process, the guests and their sockets being there before.
  A guest says `init` when its socket is connected, so its way to the heartbeat holds the making of its
  process.
- detection overhead, ms: a guest stops answering; its loss is due as many intervals after its first
  unanswered challenge as misses in a row make a loss; the overhead is from there to the alarm's arrival at
  the VIM, the lateness of the second challenge included.
- reconnect, ms: from SIGKILL at the process of a guest to the guest's next challenge, and to its answer.
- leaks: what guestServer holds before, during and after cycles of a socket made anew and a process killed.

All clocks are the machine's monotonic one, which its processes have in common. Times are s if a name does
not say otherwise.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import signal
import sys
from typing import Any, Callable, Optional, Tuple

from guestmtce.bench import parts, report
from guestmtce.bench.parts import Figures, Plan, Stage
from guestmtce.lab.cluster import TimedOut

KILL_MAX = 100  # processes, where --kill is not given
FAIL_MAX = 100  # guests, where --fail is not given
FAIL_SHARE = 10  # one guest in so many hangs
GUEST_DESCRIPTORS = 2  # of the guests' process: a listener and a connection
SPARE_DESCRIPTORS = 100
DECIMALS = 3
# Exit statuses.
UNUSABLE = 2  # as argparse's, for a command line that is wrong
INTERRUPTED = 130  # as a shell's: 128 and SIGINT


def make_plan(
    guests: int,
    interval_ms: int,
    seconds: float,
    kill: Optional[int] = None,
    fail: Optional[int] = None,
    cycles: int = 0,
) -> Plan:
    """The plan, with `kill` and `fail` chosen where they are None. Raises ValueError for what cannot be."""
    if guests < 0 or interval_ms < 1 or seconds <= 0 or min(kill or 0, fail or 0, cycles) < 0:
        raise ValueError("--interval-ms and --seconds must be above 0, the others 0 or more")
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = (descriptors - SPARE_DESCRIPTORS) // GUEST_DESCRIPTORS
    # All guests are in one process, which would fail in the middle of its start.
    if descriptors != resource.RLIM_INFINITY and guests > allowed:
        raise ValueError(
            "--guests %d: the hard limit of open files allows %d (ulimit -Hn)" % (guests, allowed)
        )
    kill = min(KILL_MAX, guests) if kill is None else min(kill, guests)
    fail = min(FAIL_MAX, math.ceil(guests / FAIL_SHARE)) if fail is None else min(fail, guests)
    return Plan(guests, interval_ms, seconds, kill, fail, cycles if guests else 0)


def measure_all(stage: Stage, say: Callable[[str], None]) -> Figures:
    """Every part that the plan asks for, the undisturbed ones first."""
    plan = stage.plan
    say("%d guests are there; guestServer starts" % plan.guests)
    figures: Figures = {
        "plan": plan._asdict(),
        "machine": describe_machine(),
        "start": parts.measure_start_up(stage),
    }
    # Alarms and reconnects need an agent and instances; the start-up was measured without them.
    if plan.fail or plan.kill:
        say("the VIM makes %d instances" % plan.guests)
        stage.start_agent()
        stage.provision()
        stage.await_calm()
    wanted_parts: Tuple[Tuple[str, Any, str, Callable[[Stage], Figures]], ...] = (
        ("heartbeats", True, "%g s of heartbeats" % plan.seconds, parts.measure_heartbeats),
        ("memory", True, "memory", parts.measure_memory),
        ("detection", plan.fail, "%d guests hang" % plan.fail, parts.measure_detection),
        ("reconnect", plan.kill, "%d processes are killed" % plan.kill, parts.measure_reconnects),
        ("leaks", plan.cycles, "%d cycles of sockets and processes" % plan.cycles, parts.measure_leaks),
    )
    for name, wanted, announcement, measure in wanted_parts:
        if wanted:
            say(announcement)
            figures[name] = measure(stage)
    return figures


def describe_machine() -> Figures:
    """Cores, kernel and Python of this machine."""
    return {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def round_figures(value: Any) -> Any:
    """The figures without digits that mean nothing, in any depth."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {name: round_figures(figure) for name, figure in value.items()}
    return [round_figures(figure) for figure in value] if isinstance(value, list) else value


def run(plan: Plan, as_json: bool) -> int:
    """The command `guestmtce bench`: 0, or 1 when something was missed or could not be measured."""
    # TERM raises KeyboardInterrupt as INT does: nothing of the stage stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stage = Stage(plan)
    try:
        stage.start()
        figures = round_figures(measure_all(stage, _say))
    except KeyboardInterrupt:
        _say("interrupted: stopping everything")
        return INTERRUPTED
    except (TimedOut, RuntimeError) as error:
        _say("NOT MEASURED: %s" % error)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the clean-up must be whole
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stage.stop()
    figures["troubles"] = report.find_troubles(figures)
    print(json.dumps(figures) if as_json else report.make_table(figures))
    return 1 if figures["troubles"] else 0


def _say(text: str) -> None:
    """What is under way goes to stderr: stdout is for the figures."""
    print("bench: " + text, file=sys.stderr, flush=True)
