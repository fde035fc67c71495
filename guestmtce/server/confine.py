"""What a child gives up before it reads its guest's first byte.

Every step either works or raises Unconfined, which ends that child. The C library is resolved when
this module is imported, in the spawner, so that a child only calls.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Iterable, NamedTuple, Optional

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

REPARENT_WAIT = 2.0  # s; measured 0.1–0.7 ms
REPARENT_POLL = 0.0002  # s

_libc = ctypes.CDLL(None, use_errno=True)


class Unconfined(OSError):
    """A step of the confinement failed."""


class Identity(NamedTuple):
    """The user a child becomes."""

    uid: int
    gid: int


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises Unconfined."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise Unconfined(number, "prctl(%d, %d): %s" % (option, value, os.strerror(number)))


def become_subreaper() -> None:
    """Orphaned descendants of this process become its children (the master, for what the spawner forks)."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """This process is killed when `parent`, its parent from now on, ends. Raises Unconfined.

    Set before the kernel has reparented us, or before a change of user, it would be lost.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise Unconfined("the parent has gone")


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 except `keep`.

    Only what is open: the limit may be a million, and not every Python closes a range in one call.
    """
    keep = {0, 1, 2, *keep}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the listing's own


def await_parent(parent: int, before: int) -> None:
    """Wait until `parent`, and not `before`, is our parent. Raises Unconfined after REPARENT_WAIT s.

    A master that dies meanwhile must not be waited for: we hold the guest's only connection.
    """
    until = time.monotonic() + REPARENT_WAIT
    while os.getppid() == before and time.monotonic() < until:
        time.sleep(REPARENT_POLL)
    if os.getppid() != parent:
        raise Unconfined("not reparented to the master")


def confine(master: int, middle: int, identity: Optional[Identity], keep: Iterable[int]) -> None:
    """Keep only what one session needs. `middle` forked us and goes, then `master` is our parent.

    `identity` is None where the process is not root.
    """
    close_all_but(keep)
    await_parent(master, middle)
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    die_with(master)
