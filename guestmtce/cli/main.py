"""The command `guestmtce`: its table of words."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from guestmtce import __version__
from guestmtce.cli import bench, demo, files, lab

# In the order in which --help lists them; the package's text says what a module of a word has.
WORDS = (demo, bench, files, lab)
NAMES = tuple(name for word in WORDS for name in word.NAMES)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command with all its words; the arguments that it returns have `run`."""
    parser = argparse.ArgumentParser(
        prog="guestmtce", description="guest heartbeat: demo, bench and laboratory"
    )
    parser.add_argument("--version", action="version", version="guestmtce " + __version__)
    words = parser.add_subparsers(dest="word", required=True)
    for word in WORDS:
        word.add_parser(words)
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; `arguments` without its name, or those of this process. Returns the exit status."""
    given = make_parser().parse_args(arguments)
    return int(given.run(given))


if __name__ == "__main__":
    sys.exit(main())
