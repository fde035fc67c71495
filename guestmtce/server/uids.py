"""A user of its own for every child, from a range: children of one user could reach each other.

A uid is taken from before its child is forked until after that child has been reaped. Where that is never
heard, because the spawner died in between, the uid rests first. And none is given that any process
has, whoever that is: another program may have been given the range, or a part of it, too.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import Dict, Optional

UID_MAX = 2**32 - 2  # 2³²−1 means "unchanged" to setresuid(2)
RANGE = re.compile("([0-9]{1,10})-([0-9]{1,10})")
# A child that nobody heard of has become its user by then, or has given up waiting for its parent.
REST = 10.0  # s


class Uids:
    """Those from `first` to `last`, both included, in turn."""

    def __init__(self, first: int, last: int) -> None:
        self.text = "%d-%d" % (first, last)
        self._size = last - first + 1
        self._turn = itertools.cycle(range(first, last + 1))
        self._taken: Dict[int, Optional[float]] = {}  # uid → until when it rests, None: it has a child

    def take(self) -> int:
        """One that nobody has. Raises OSError when there is none."""
        now = time.monotonic()
        for uid in itertools.islice(self._turn, self._size):
            rests_until = self._taken.get(uid, now)
            if rests_until is not None and rests_until <= now and not in_use(uid):
                self._taken[uid] = None
                return uid
        raise OSError("--child-uids %s: each of these %d is in use" % (self.text, self._size))

    def give_back(self, uid: int) -> None:
        """Its child has been reaped."""
        del self._taken[uid]

    def give_back_later(self, uid: int) -> None:
        """Its child may still be alive, or be forked soon."""
        self._taken[uid] = time.monotonic() + REST


def in_use(uid: int) -> bool:
    """Whether any process that we can see has this real uid; a zombie counts."""
    try:
        os.getpriority(os.PRIO_USER, uid)
        return True
    except ProcessLookupError:
        return False


def parse(text: str) -> Optional[Uids]:
    """The range `A-B`, or nothing for nothing. Raises OSError with what to write instead."""
    if not text:
        return None
    found = RANGE.fullmatch(text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= UID_MAX:
        raise OSError("--child-uids %s: two uids A-B expected, 1 <= A <= B <= %d" % (text, UID_MAX))
    return Uids(first, last)
