"""A user of its own for every child, from a range: children of one user could reach each other.

The range is that of the user `guestmtce` in /etc/subuid, which the packages reserve there so that no
container gets it, or one that is configured. A range that others have, too, is refused by their name.

A uid is leased from before its child is forked until after that child has been reaped. Where that is never
heard, because the spawner died in between, the uid rests first. No uid is leased that any process has,
whoever that is: another program may have been given the range, or a part of it, too.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from typing import Dict, Iterator, List, NamedTuple, Optional

log = logging.getLogger(__name__)

AUTO = "auto"  # the range of OWNER, if it has one
NONE = "none"  # all children have the child user
OWNER = "guestmtce"
SUBUID = "/etc/subuid"
PASSWD = "/etc/passwd"
FILE_MAX = 2**20  # bytes read of either
REMEDY = "run /usr/share/guestmtce/child-uids reserve, or set client.child_uids"

UID_MAX = 2**32 - 2  # 2³²−1 means "unchanged" to setresuid(2)
RANGE = re.compile("([0-9]{1,10})-([0-9]{1,10})")
# A child that nobody heard of has become its user by then, or has given up waiting for its parent.
REST = 10.0  # s


class UidPool:
    """The uids from `first` to `last`, both included, leased in turn: one that was just freed comes last."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.text = "%d-%d" % (first, last)
        self._size = last - first + 1
        self._turn = itertools.cycle(range(first, last + 1))
        self._taken: Dict[int, Optional[float]] = {}  # uid → until when it rests, None: it has a child

    def lease(self) -> int:
        """A uid that nobody has. Raises OSError when there is none."""
        now = time.monotonic()
        for uid in itertools.islice(self._turn, self._size):
            rests_until = self._taken.get(uid, now)
            # Looked at now and not at the start: a container that was given the range may have begun since.
            if rests_until is not None and rests_until <= now and not is_in_use(uid):
                self._taken[uid] = None
                return uid
        raise OSError("client.child_uids %s: each of these %d is in use" % (self.text, self._size))

    def give_back(self, uid: int) -> None:
        """Its child has been reaped."""
        del self._taken[uid]

    def give_back_later(self, uid: int) -> None:
        """Its child may still be alive, or be forked soon."""
        self._taken[uid] = time.monotonic() + REST


def is_in_use(uid: int) -> bool:
    """Whether any process that we can see has this real uid; a zombie counts."""
    try:
        # One system call in place of a walk through /proc: ESRCH says that no process has this uid.
        os.getpriority(os.PRIO_USER, uid)
        return True
    except ProcessLookupError:
        return False


class Claim(NamedTuple):
    """Uids from `first` to `last`, both included, that are somebody's."""

    owner: str
    first: int
    last: int


def choose_uids(text: str, subuid: str = SUBUID, passwd: str = PASSWD) -> Optional[UidPool]:
    """The children's uids by the setting: AUTO, NONE (or nothing), or `A-B`.

    Where AUTO finds no range that is its own alone it says so in the log, and there is none. Raises OSError
    for a bad `A-B`, and for one that others have, too.
    """
    if text != AUTO:
        return _check_owners(parse_range(text), subuid, passwd)
    own = [claim for claim in read_subuids(subuid) if claim.owner == OWNER]
    if not own:
        log.warning("%s has no uids in %s: children share one user: %s", OWNER, subuid, REMEDY)
        return None
    try:
        return _check_owners(UidPool(own[0].first, own[0].last), subuid, passwd)
    except OSError as error:
        log.error("%s: children share one user: change %s", error, subuid)
        return None


def _check_owners(uids: Optional[UidPool], subuid: str, passwd: str) -> Optional[UidPool]:
    if uids is None:
        return None
    for claim in itertools.chain(read_subuids(subuid), read_users(passwd)):
        if claim.owner != OWNER and claim.first <= uids.last and uids.first <= claim.last:
            where = "%d-%d" % claim[1:] if claim.first < claim.last else str(claim.first)
            raise OSError("client.child_uids %s: %s has uid %s" % (uids.text, claim.owner, where))
    return uids


def parse_range(text: str) -> Optional[UidPool]:
    """The range `A-B`, or nothing for nothing and NONE. Raises OSError with what to write instead."""
    if text in ("", NONE):
        return None
    found = RANGE.fullmatch(text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= UID_MAX:
        why = "two uids A-B expected, 1 <= A <= B <= %d" % UID_MAX
        raise OSError("client.child_uids %s: %s" % (text, why))
    return UidPool(first, last)


def read_subuids(path: str) -> Iterator[Claim]:
    """The usable lines `owner:first:count` of /etc/subuid; none if it cannot be read."""
    for fields in _read_fields(path):
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal() and int(fields[2]) > 0:
            yield Claim(fields[0], int(fields[1]), min(int(fields[1]) + int(fields[2]) - 1, UID_MAX))


def read_users(path: str) -> Iterator[Claim]:
    """The users of /etc/passwd; those of a directory service are not asked for: that might wait."""
    for fields in _read_fields(path):
        if len(fields) >= 3 and fields[2].isdecimal():
            yield Claim(fields[0], int(fields[2]), int(fields[2]))


def _read_fields(path: str) -> List[List[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.strip().split(":") for line in file.read(FILE_MAX).split("\n")]
    except OSError:
        return []
