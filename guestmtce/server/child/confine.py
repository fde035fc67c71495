"""What a child gives up before it reads its guest's first byte, in this order, and against what.

A guest that finds a defect in the parser has the child. What it has then is this process, and each step takes
a way out of it.

 1. Descriptors: all but its guest's socket and its pipe, which become 0 and 1. Against reaching other
    guests' sockets, the spawner's control socket, or a file that somebody left open.
 2. User and groups: `child_user`, or a uid of its own (`child_uids`). Against files of root, and against
    signals to, and ptrace of, whatever has another uid; with a uid of its own that is every sibling, too.
 3. No new privileges: no set-uid program gives any back. The next step and the filter demand it.
 4. Landlock: every file, to bind and connect TCP, abstract sockets and signals to others, as far as this
    kernel knows the right. Against opening what its user could open.
 5. Its life beyond its master's: the kernel kills it with its parent. Against a child that serves a guest, or
    holds its socket, while nobody supervises it. The parent may have gone just before: that is looked at.
 6. Not dumpable: siblings of the same user cannot read its memory by /proc or ptrace.
 7. Limits: no more open files, no processes, no core dumps, no bytes written to files, and not much memory.
    Against using up what the host has for all. They hold where a kernel has neither Landlock nor seccomp.
 8. System calls (seccomp): all but a dozen. Against the rest of the kernel. It comes last because the steps
    before it make calls that it forbids.

Every step either works or raises OSError, which ends that child. What this kernel does not have at all is
left out, and told to the master.

What Python has no call for, the C library has: all of that is made ready in the spawner as `Step`s, so that a
child only calls. Anything a child resolves or allocates becomes a page of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
from os import closerange, dup2, setgroups, setresgid, setresuid
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from guestmtce.server.child import sandbox
from guestmtce.server.child.libc import libc
from guestmtce.server.child.sandbox import Step

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

# asm-generic/resource.h, which x86_64 and arm64 use; the module `resource` would be one more library
RLIMIT_FSIZE = 1
RLIMIT_CORE = 4
RLIMIT_NPROC = 6
RLIMIT_NOFILE = 7
RLIMIT_AS = 9

# What a child may need beyond what it shares with the spawner. Measured up to 0.4 MB, with all that a guest
# can say at once and a master that does not listen; the interpreter's allocator grows by 1 MB at a time.
MEMORY_HEADROOM = 16 * 2**20  # bytes

# The kernel kills children before the master: more than its memory may be on a host of 4 GB, and less than
# what a guest's QEMU has on any, for a dead child gives nothing back.
OOM_ABOVE_MASTER = 50  # thousandths of the host's memory
OOM_MOST = 1000

UNCHANGED = 2**32 - 1  # what setresuid(2) takes for "as it is"

RANDOM_AT = 2  # descriptor of /dev/urandom in a child, where the kernel has no getrandom(2)

WARM_UP_ROUNDS = 20  # more than the interpreter waits for before it rewrites code for its arguments


class Unconfined(OSError):
    """A step of the confinement failed."""


class Identity(NamedTuple):
    """The user a child becomes."""

    uid: int
    gid: int


class Means(NamedTuple):
    """What the master confines its children with. `identity` is None where it is not root."""

    identity: Optional[Identity]
    filter: sandbox.Filter


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises Unconfined."""
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise Unconfined(code, "prctl(%d, %d): %s" % (option, value, os.strerror(code)))


def die_with(parent: int) -> None:
    """This process is killed when `parent`, its parent from now on, ends. Raises Unconfined.

    The kernel forgets it when this process changes its user, and does nothing if the parent has ended before:
    so it is set after the first, and the second is looked at.
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


class _Limit(ctypes.Structure):
    """struct rlimit."""

    _fields_ = (("soft", ctypes.c_ulong), ("hard", ctypes.c_ulong))


def limit_step(name: str, resource: int, value: int) -> Step:
    """Set a limit, soft and hard: it cannot be raised again."""
    return Step(name, libc.setrlimit, (ctypes.c_int(resource), ctypes.byref(_Limit(value, value))))


def prctl_step(name: str, option: int, value: int) -> Step:
    """prctl(2) with one argument."""
    rest = [ctypes.c_ulong(argument) for argument in (value, 0, 0, 0)]
    return Step(name, libc.prctl, (ctypes.c_int(option), *rest))


def run_steps(steps: Sequence[Step]) -> None:
    """Make the calls. Raises Unconfined at the first that fails."""
    for name, call, arguments, success in steps:
        if call(*arguments) != success and success is not None:
            code = ctypes.get_errno()
            raise Unconfined(code, "%s: %s" % (name, os.strerror(code)))


class Confinement:
    """All that can be made ready before there is a child, in the spawner, of whom `master` is the parent.

    `means` says, for the master, what can be had: a name → "yes", or "no (why)".
    """

    def __init__(self, master: int, means: Means) -> None:
        self.means: Dict[str, str] = {}
        random = _open_random()
        self._kept = [] if random is None else [random]  # at RANDOM_AT
        self.random_bytes = os.urandom if random is None else _read_random
        self._identity = means.identity
        limits = _limit_steps(2 + len(self._kept))
        self._steps = [
            prctl_step("no new privileges", PR_SET_NO_NEW_PRIVS, 1),
            *self._landlock(),
            # After the change of user, at which the kernel forgets it.
            prctl_step("end with the master", PR_SET_PDEATHSIG, signal.SIGKILL),
            # A parent that ended before the call above sends no signal: then getppid(2) is another's.
            Step("the parent has gone", libc.getppid, (), master),
            prctl_step("not dumpable", PR_SET_DUMPABLE, 0),
            *limits,
            *self._seccomp(means.filter),
        ]
        self.means["rlimits"] = "yes"
        # The spawner opens no more of its own, so a child closes this range without listing /proc.
        self._highest = max(map(int, os.listdir("/proc/self/fd")))

    def _landlock(self) -> List[Step]:
        try:
            ruleset = sandbox.landlock_ruleset()
        except sandbox.Missing as why:
            self.means["landlock"] = "no (%s)" % why
            return []
        self._kept.append(ruleset)
        at = 1 + len(self._kept)
        self.means["landlock"] = "yes"
        return [sandbox.landlock_step(at), Step("close the ruleset", libc.close, (ctypes.c_int(at),))]

    def _seccomp(self, wanted: sandbox.Filter) -> List[Step]:
        if not wanted.program:
            self.means["seccomp"] = wanted.absence
            return []
        try:
            steps = [sandbox.install_step(wanted)]
        except sandbox.Missing as why:
            self.means["seccomp"] = "no (%s)" % why
            return []
        self.means["seccomp"] = "yes"
        return steps

    def keep_only(self, received: Sequence[int]) -> None:
        """Of all descriptors: the two `received`, on 0 the socket, on 1 the pipe, and what `apply` needs.

        The spawner holds 0 to 2 and few more, all known, so what is received is above them. Raises OSError.
        """
        place = 0
        for descriptor in (*received, *self._kept):
            dup2(descriptor, place)
            place += 1
        closerange(place, max(self._highest, *received) + 1)

    def apply(self, uid: Optional[int]) -> None:
        """All the rest of the module's list; `uid` is the child's own, if it has one. Raises OSError."""
        if self._identity is not None:
            user, group = self._identity
            become(user if uid is None else uid, group)
        run_steps(self._steps)


def become(user: int, group: int) -> None:
    """Be `user` and of `group`, and of no other. Raises OSError."""
    if not 0 <= user < UNCHANGED:
        raise Unconfined("user %d: no such user can be" % user)
    try:
        # Groups first: a process that has left uid 0 may not change them any more.
        setgroups([])
        setresgid(group, group, group)
        setresuid(user, user, user)
    except OSError as error:
        raise Unconfined(error.errno, "user %d: %s" % (user, error.strerror)) from None


def _limit_steps(descriptors: int) -> List[Step]:
    """As many open files as it has: poll(2) takes no more than the limit, and no other can be opened."""
    return [
        limit_step("open files", RLIMIT_NOFILE, descriptors),
        limit_step("processes", RLIMIT_NPROC, 0),
        limit_step("core dumps", RLIMIT_CORE, 0),
        limit_step("size of files", RLIMIT_FSIZE, 0),
        limit_step("memory", RLIMIT_AS, memory_size() + MEMORY_HEADROOM),
    ]


def _open_random() -> Optional[int]:
    """A descriptor of /dev/urandom where it will be needed: a child can open nothing."""
    try:
        os.getrandom(1)
        return None
    except (AttributeError, OSError):
        return os.open("/dev/urandom", os.O_RDONLY)


def _read_random(count: int) -> bytes:
    return os.read(RANDOM_AT, count)


def memory_size() -> int:
    """The address space that this process has, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def prefer_as_oom_victim() -> str:
    """What this process forks is killed for want of memory before its parent. Returns "yes", or why not."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(str(min(score + OOM_ABOVE_MASTER, OOM_MOST)))
        return "yes"
    except OSError as error:
        return "no (%s)" % error.strerror


def redirect_standard() -> None:
    """Descriptor 0 leads to nothing, and 1 and 2 where they are closed: nothing else takes their place."""
    while True:
        descriptor = os.open("/dev/null", os.O_RDWR)
        if descriptor > 2:
            break
    os.dup2(descriptor, 0, inheritable=False)
    os.closerange(descriptor, descriptor + 1)


def warm_up() -> None:
    """Make the calls that a child will make, as far as they change nothing here.

    What is done for the first time costs time and memory of its own: better once, in the spawner. It needs
    no new privileges either.
    """
    gone = ctypes.c_int(-1)
    steps = [prctl_step("warm-up", PR_SET_NO_NEW_PRIVS, 1), Step("warm-up", libc.close, (gone,), None)]
    for _ in range(WARM_UP_ROUNDS):
        run_steps(steps)
