"""A line for the log as an effect: pure rooms return it, and whoever carries effects out writes it."""

from typing import NamedTuple, Tuple

# As `logging` has them, which pure rooms do not import.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


TEXT_MAX = 200  # characters of foreign text in a line


def printable(text: object, limit: int = TEXT_MAX) -> str:
    """Foreign text made harmless for a log: ASCII, no control characters, at most `limit` characters."""
    words = str(text)
    # Cut before it is escaped, so that a megabyte costs no more than a line, and after: escapes are longer.
    cut = words[:limit].encode("unicode_escape").decode("ascii")
    return cut[:limit] + ("..." if len(words) > limit or len(cut) > limit else "")


class LogLine(NamedTuple):
    """`text` with its `values`, as `logging` takes them.

    Of lines with the same `subject` one per period is written.
    """

    level: int
    text: str
    values: Tuple[object, ...] = ()
    subject: str = ""  # empty: each line is written
