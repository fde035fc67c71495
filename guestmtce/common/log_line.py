"""A line for the log as an effect: pure rooms return it, and whoever carries effects out writes it."""

from typing import NamedTuple, Tuple

# As `logging` has them, which pure rooms do not import.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class LogLine(NamedTuple):
    """`text` with its `values`, as `logging` takes them.

    Of lines with the same `subject` one per period is written.
    """

    level: int
    text: str
    values: Tuple[object, ...] = ()
    subject: str = ""  # empty: each line is written
