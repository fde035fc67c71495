"""`guestmtce files`: lays out what pip does not put in place."""

from __future__ import annotations

import argparse

NAMES = ("files",)


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word and its option."""
    parser = words.add_parser(
        "files", help="lay out scripts, units, configuration and documents, to install from"
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="a folder that is not there yet")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    # Here, as in the other words: what a word needs is imported when it runs.
    from guestmtce.cli import product_files

    return product_files.run(arguments.to)
