"""The command `guestmtce`: the demo, the bench, the lab, and the files that pip does not put in place.

What a word needs is imported when it is given: --help needs nothing that is not here.
"""

from __future__ import annotations

import argparse
import sys
from typing import Callable, Dict, Optional, Sequence

from guestmtce import __version__
from guestmtce.wire.datagram import HostRecord


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guestmtce", description="guest heartbeat: demo, bench and laboratory"
    )
    parser.add_argument("--version", action="version", version="guestmtce " + __version__)
    words = parser.add_subparsers(dest="word", required=True)
    words.add_parser("demo", help="a whole cloud on this machine, for under a minute")
    _add_bench(words.add_parser("bench", help="how much, how fast and how lasting, with real daemons"))
    one = words.add_parser(
        "files", help="lay out scripts, units, configuration and documents, to install from"
    )
    one.add_argument("--to", metavar="DIR", required=True, help="a folder that is not there yet")
    lab = words.add_parser("lab", help="a stand-in for a neighbour of the daemons")
    stand_ins = lab.add_subparsers(dest="word", required=True)
    _add_guests(stand_ins.add_parser("guests", help="simulated guests; stdin takes `WHO WORD …` lines"))
    one = stand_ins.add_parser("vim", help="a VIM that records what it is told")
    one.add_argument("--port", type=int, required=True)
    one.add_argument("--record", metavar="FILE", default="", help="append every request as a JSON line")
    one = stand_ins.add_parser("mtcagent", help="an mtcAgent that knows some hosts")
    one.add_argument("--address", default="127.0.0.1", help="its own and guestAgent's address")
    one.add_argument("--event-port", type=int, default=2107)
    one.add_argument("--command-port", type=int, default=2108, help="guestAgent's")
    one.add_argument("--host", metavar="NAME,UUID,IP", action="append", default=[], type=_host)
    return parser


def _add_bench(one: argparse.ArgumentParser) -> None:
    one.add_argument("--guests", type=int, default=200, help="how many (default: %(default)s)")
    one.add_argument("--interval-ms", type=int, default=1000, help="of heartbeats (default: %(default)s)")
    one.add_argument("--seconds", type=float, default=10.0, help="measured (default: %(default)s)")
    one.add_argument("--kill", type=int, metavar="N", help="kill N guests' processes (default: all, or 100)")
    one.add_argument("--fail", type=int, metavar="N", help="hang N guests (default: a tenth, or 100)")
    one.add_argument("--cycles", type=int, default=0, help="make sockets anew and kill so often: leaks show")
    one.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_guests(one: argparse.ArgumentParser) -> None:
    one.add_argument("--dir", required=True, help="folder for their sockets")
    one.add_argument("--count", type=int, required=True)
    one.add_argument("--first", type=int, default=1, help="number of the first guest")
    one.add_argument("--interval-ms", type=int, default=1000)
    one.add_argument("--action", default="reboot", help="corrective action")
    one.add_argument("--secs", type=int, default=10, help="every timeout of the guests, s")
    one.add_argument("--scale", type=float, default=1.0, help="of the guests' own 5 s timers")


def _host(text: str) -> HostRecord:
    name, uuid, ip = text.split(",")
    return HostRecord(name, uuid, ip)


def _bench(given: argparse.Namespace) -> int:
    from guestmtce.bench import bench

    try:
        amounts = (given.guests, given.interval_ms, given.seconds, given.kill, given.fail, given.cycles)
        plan = bench.make_plan(*amounts)
    except ValueError as error:
        print("guestmtce bench: %s" % error, file=sys.stderr)
        return bench.UNUSABLE
    return bench.run(plan, given.json)


def _guests(given: argparse.Namespace) -> int:
    from guestmtce.lab import crowd, guest_options

    options = guest_options.GuestOptions(given.dir, given.interval_ms, given.action, given.secs, given.scale)
    return crowd.run(options, given.count, given.first)


def _vim(given: argparse.Namespace) -> int:
    from guestmtce.lab import vim

    return vim.run(given.port, given.record)


def _mtcagent(given: argparse.Namespace) -> int:
    from guestmtce.lab import mtc_agent

    return mtc_agent.run(given.host, given.address, given.event_port, given.command_port)


def _files(given: argparse.Namespace) -> int:
    from guestmtce.cli import product_files

    return product_files.run(given.to)


def _demo(_given: argparse.Namespace) -> int:
    from guestmtce.lab import demo

    return demo.run()


_RUN: Dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "bench": _bench,
    "files": _files,
    "guests": _guests,
    "vim": _vim,
    "mtcagent": _mtcagent,
}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    given = _parser().parse_args(arguments)
    return _RUN[given.word](given)


if __name__ == "__main__":
    sys.exit(main())
