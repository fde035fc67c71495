"""`guestmtce bench`: what guestServer costs, and how late everything is."""

from __future__ import annotations

import argparse
import sys

NAMES = ("bench",)

GUESTS = 200
INTERVAL_MS = 1000
SECONDS = 10.0


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word and its options."""
    parser = words.add_parser("bench", help="how much, how fast and how lasting, with real daemons")
    parser.add_argument("--guests", type=int, default=GUESTS, help="how many (default: %(default)s)")
    parser.add_argument(
        "--interval-ms", type=int, default=INTERVAL_MS, help="of heartbeats (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured (default: %(default)s)")
    parser.add_argument(
        "--kill", type=int, metavar="N", help="kill N guests' processes (default: all, or 100)"
    )
    parser.add_argument("--fail", type=int, metavar="N", help="hang N guests (default: a tenth, or 100)")
    parser.add_argument(
        "--cycles", type=int, default=0, help="make sockets anew and kill so often: leaks show"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    # Here, and not above: --help needs the standard library only.
    from guestmtce.bench import bench

    try:
        plan = bench.make_plan(
            arguments.guests,
            arguments.interval_ms,
            arguments.seconds,
            arguments.kill,
            arguments.fail,
            arguments.cycles,
        )
    # As argparse does for a command line that is wrong: one line, and its exit status.
    except ValueError as error:
        print("guestmtce bench: %s" % error, file=sys.stderr)
        return bench.UNUSABLE
    return bench.run(plan, arguments.json)
