"""What runs in which tier (scripts/test): the quick one always, what is marked `ci` or `full` in its own."""

import os

from guestmtce.lab.pace import BUSY, slowness

TIER = os.environ.get("GUESTMTCE_TIER", "quick")
MARKS = {"quick": (), "ci": ("ci",), "all": ("ci", "full")}[TIER]

# By how much slower the machine was when the tests began, which make it busy themselves. Scaled time that is
# configured is multiplied by it. The workers inherit it.
_AT_START = float(os.environ.setdefault("GUESTMTCE_SLOWNESS", "%.1f" % slowness()))
PACE = _AT_START if _AT_START > BUSY else 1.0


def examples(count):
    """How many examples hypothesis is to try: `count`, in the quick tier a third of them."""
    return count // 3 if TIER == "quick" else count
