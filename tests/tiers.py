"""What runs in which tier (scripts/test): the quick one always, what is marked `ci` or `full` in its own."""

import os

TIER = os.environ.get("GUESTMTCE_TIER", "quick")
MARKS = {"quick": (), "ci": ("ci",), "all": ("ci", "full")}[TIER]


def examples(count):
    """How many examples hypothesis is to try: `count`, in the quick tier a third of them."""
    return count // 3 if TIER == "quick" else count
