"""`guestmtce lab`: a stand-in for a neighbour of the daemons."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from guestmtce.wire.datagram import HostRecord

# argparse's class takes a parameter for type checkers alone: at run time this would fail.
if TYPE_CHECKING:
    Words = argparse._SubParsersAction[argparse.ArgumentParser]

NAMES = ("lab guests", "lab vim", "lab mtcagent")

INTERVAL_MS = 1000
SECS = 10
ADDRESS = "127.0.0.1"
# The same as guestAgent's defaults (guestmtce/agent/settings.py).
MTC_EVENT_PORT = 2107
MTC_COMMAND_PORT = 2108


def add_parser(words: Words) -> None:
    """Add the word, and a word of its own for each stand-in."""
    stand_ins = words.add_parser("lab", help="a stand-in for a neighbour of the daemons").add_subparsers(
        dest="word", required=True
    )
    _add_guests(stand_ins)
    _add_vim(stand_ins)
    _add_mtcagent(stand_ins)


def run(arguments: argparse.Namespace) -> int:
    """Run the stand-in that the arguments name. Returns the exit status."""
    return int(arguments.stand_in(arguments))


def _add_guests(stand_ins: Words) -> None:
    parser = stand_ins.add_parser("guests", help="simulated guests; stdin takes `WHO WORD …` lines")
    parser.add_argument("--dir", required=True, help="folder for their sockets")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=1, help="number of the first guest")
    parser.add_argument("--interval-ms", type=int, default=INTERVAL_MS)
    parser.add_argument("--action", default="reboot", help="corrective action")
    parser.add_argument("--secs", type=int, default=SECS, help="every timeout of the guests, s")
    parser.add_argument("--scale", type=float, default=1.0, help="of the guests' own 5 s timers")
    # The parser of the inner word sets `run`, which the outer one reads.
    parser.set_defaults(run=run, stand_in=_run_guests)


def _add_vim(stand_ins: Words) -> None:
    parser = stand_ins.add_parser("vim", help="a VIM that records what it is told")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", metavar="FILE", default="", help="append every request as a JSON line")
    parser.set_defaults(run=run, stand_in=_run_vim)


def _add_mtcagent(stand_ins: Words) -> None:
    parser = stand_ins.add_parser("mtcagent", help="an mtcAgent that knows some hosts")
    parser.add_argument("--address", default=ADDRESS, help="its own and guestAgent's address")
    parser.add_argument("--event-port", type=int, default=MTC_EVENT_PORT)
    parser.add_argument("--command-port", type=int, default=MTC_COMMAND_PORT, help="guestAgent's")
    parser.add_argument("--host", metavar="NAME,UUID,IP", action="append", default=[], type=parse_host_record)
    parser.set_defaults(run=run, stand_in=_run_mtcagent)


def parse_host_record(text: str) -> HostRecord:
    """The host in `NAME,UUID,IP`. Raises argparse.ArgumentTypeError."""
    parts = text.split(",")
    if len(parts) != len(HostRecord._fields):
        # argparse prints its text; of a ValueError it would only say that the value is invalid.
        raise argparse.ArgumentTypeError("%r: write NAME,UUID,IP" % text)
    return HostRecord(*parts)


def _run_guests(arguments: argparse.Namespace) -> int:
    # Here, and in the two below, for --help, which needs the standard library only.
    from guestmtce.lab import crowd, guest_options

    options = guest_options.GuestOptions(
        arguments.dir, arguments.interval_ms, arguments.action, arguments.secs, arguments.scale
    )
    return crowd.run(options, arguments.count, arguments.first)


def _run_vim(arguments: argparse.Namespace) -> int:
    from guestmtce.lab import vim

    return vim.run(arguments.port, arguments.record)


def _run_mtcagent(arguments: argparse.Namespace) -> int:
    from guestmtce.lab import mtc_agent

    return mtc_agent.run(arguments.host, arguments.address, arguments.event_port, arguments.command_port)
