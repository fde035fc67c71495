"""`guestmtce demo`: a whole cloud on this machine."""

from __future__ import annotations

import argparse

NAMES = ("demo",)


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word; it has no options."""
    parser = words.add_parser("demo", help="a whole cloud on this machine, for under a minute")
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    # Here, and not above: --help needs the standard library only.
    from guestmtce.lab import demo

    return demo.run()
