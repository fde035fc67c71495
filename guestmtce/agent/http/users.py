"""The users that `[agent] vim_users` names."""

from __future__ import annotations

import pwd
from typing import FrozenSet, List, Tuple


def look_up_users(vim_users: str) -> Tuple[FrozenSet[int], List[str]]:
    """The uids that `vim_users` (names or uids, separated by commas) means, and the names that nobody has."""
    uids, unknown = set(), []
    for name in filter(None, (word.strip() for word in vim_users.split(","))):
        try:
            uids.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            unknown.append(name)
    return frozenset(uids), unknown
