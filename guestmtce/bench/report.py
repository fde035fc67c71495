"""The figures of the bench, judged and put into words. Units are in the names of the figures."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

Figures = Dict[str, Any]

LABEL_WIDTH = 24  # columns
SPARE_DESCRIPTORS = 2  # that are on their way at any moment
LEAK_FACTOR = 1.25  # memory beyond so many times what it was is a leak


# --- judging ---------------------------------------------------------------------------------------


def find_troubles(figures: Figures) -> List[str]:
    """What should not have happened, in words; nothing for a good run."""
    counts = {
        "misses": figures["heartbeats"]["misses"],
        "losses": figures["heartbeats"]["losses"],
        "reconnects": figures["heartbeats"]["reconnects"],
    }
    hung, killed = figures.get("detection"), figures.get("reconnect")
    if hung:
        counts["hung guests that the VIM was not told of"] = hung["hung"] - hung["reported"]
        counts["alarms about guests that did not hang"] = hung["reported_others"]
    if killed:
        counts["misses and reconnects of guests whose process was not killed"] = killed["others_touched"]
        counts["alarms about guests whose process was killed"] = killed["alarms"]
    # Without root the part was left out, and has a reason in their place.
    if "readings" in figures.get("leaks", ()):
        counts.update(_find_leaks(figures["leaks"]["readings"]))
    # Below 0 is a process that has shrunk: no trouble.
    return ["%d %s" % (count, trouble) for trouble, count in counts.items() if count > 0]


def _find_leaks(readings: List[Figures]) -> Dict[str, int]:
    """What guestServer holds at the end that it did not hold once it was warm: after the first part."""
    # The first reading has no cycle behind it: caches and tables have not grown to their size yet.
    warm, last = readings[1], readings[-1]
    master_kb = _count_excess_kb(warm["uss_kb"], last["uss_kb"])
    child_kb = _count_excess_kb(warm["child_uss_kb"], last["child_uss_kb"])
    return {
        "dead processes that nobody reaped": last["zombies"],
        "descriptors more than before": last["descriptors"] - warm["descriptors"] - SPARE_DESCRIPTORS,
        "kB more in the master than a quarter beyond before": master_kb,
        "kB more in a child than a quarter beyond before": child_kb,
    }


def _count_excess_kb(warm_kb: int, last_kb: int) -> int:
    """By how many kB the last reading is beyond what a warm process may grow to."""
    return last_kb - int(warm_kb * LEAK_FACTOR)


# --- words -----------------------------------------------------------------------------------------


def make_table(figures: Figures) -> str:
    """Everything that was measured, for a reader."""
    lines = _describe_plan(figures)
    for name, words in _PARTS:
        # A part that the plan left out has no figures.
        if name in figures:
            part = figures[name]
            lines += [(name, part["left_out"])] if "left_out" in part else words(part)
    lines += [("TROUBLE", trouble) for trouble in figures["troubles"]]
    lines += [] if figures["troubles"] else [("judgement", "nothing was missed")]
    return "\n".join("%-*s%s" % (LABEL_WIDTH, *line) for line in lines)


Lines = List[Tuple[str, str]]


def _describe_plan(figures: Figures) -> Lines:
    plan, machine = figures["plan"], figures["machine"]
    return [
        ("guests", "%(guests)d, every %(interval_ms)d ms, measured for %(seconds)g s" % plan),
        ("machine", "%(cores)d cores, Linux %(kernel)s, Python %(python)s" % machine),
    ]


def _describe_start(part: Figures) -> Lines:
    lines = [("start-up", "guestServer serves after %.2f s" % part["serving_s"])]
    if "heartbeating_all_s" in part:
        lines.append(("", "all challenged after %(first_challenge_all_s).2f s" % part))
        lines.append(("", "all heartbeat after %(heartbeating_all_s).2f s" % part))
        lines.append(
            ("", "from a guest's init to its heartbeat: " + _format_spread(part["init_to_heartbeat_ms"]))
        )
    return lines


def _describe_heartbeats(part: Figures) -> Lines:
    counts = (
        "%(misses)d misses, %(reconnects)d reconnects, %(losses)d losses, %(late_wake_ups)d late wake-ups"
    )
    cpu = part["cpu_us_per_heartbeat"]
    shares = [cpu["children"], cpu["master"], cpu["guests"]]
    master = "%(master_percent_of_a_core).2f %% of a core, %(master_wake_ups_per_s).1f wake-ups a second"
    return [
        ("heartbeats", "%(heartbeats)d in %(seconds).1f s" % part),
        ("", counts % part),
        ("lateness of challenges", _format_spread(part["lateness_ms"])),
        ("", "too small by what the guests were late to read: " + _format_spread(part["guests_delay_ms"])),
        ("CPU per heartbeat", "children %s, master %s, the lab's guests %s" % tuple(map(_format_us, shares))),
        ("CPU of the master", master % part),
    ]


def _describe_memory(part: Figures) -> Lines:
    lines: Lines = []
    if "child_kb" in part:
        child = part["child_kb"]
        text = "USS %(uss_mean).0f kB mean, %(uss_max)d max; PSS %(pss_mean).0f mean, %(pss_max)d max"
        lines.append(("memory of a child", (text + " (%(sampled)d looked at)") % child))
    for name in ("master", "spawner"):
        lines.append(("memory of the " + name, "USS %(uss)d kB, PSS %(pss)d" % part[name + "_kb"]))
    if "total_pss_kb" in part:
        lines.append(("memory in all", "%.0f kB (PSS)" % part["total_pss_kb"]))
    return lines


def _describe_detection(part: Figures) -> Lines:
    return [
        ("detection", "the VIM was told of %(reported)d of %(hung)d hung guests" % part),
        ("", "later than due: " + _format_spread(part["overhead_ms"])),
    ]


def _describe_reconnects(part: Figures) -> Lines:
    untouched = "%(others_touched)d misses and reconnects of others, %(alarms)d alarms"
    return [
        ("reconnect", "%(killed)d processes killed within %(within_s).3f s" % part),
        ("", "next challenge after " + _format_spread(part["challenge_ms"])),
        ("", "next heartbeat after " + _format_spread(part["heartbeat_ms"])),
        ("", untouched % part),
    ]


def _describe_leaks(part: Figures) -> Lines:
    text = "%(descriptors)d descriptors, %(zombies)d zombies, USS %(uss_kb)d kB, RSS %(rss_kb)d kB"
    text += "; newest children %(child_uss_kb)d kB"
    return [("after %(cycles)d cycles" % reading, text % reading) for reading in part["readings"]]


def _format_spread(spread: Figures) -> str:
    if spread["max"] is None:
        return "nothing to measure"
    return "p50 %(p50).2f ms, p99 %(p99).2f ms, max %(max).2f ms" % spread


def _format_us(value: Any) -> str:
    return "-" if value is None else "%.1f µs" % value


_PARTS: Tuple[Tuple[str, Callable[[Figures], Lines]], ...] = (
    ("start", _describe_start),
    ("heartbeats", _describe_heartbeats),
    ("memory", _describe_memory),
    ("detection", _describe_detection),
    ("reconnect", _describe_reconnects),
    ("leaks", _describe_leaks),
)
