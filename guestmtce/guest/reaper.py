"""The process between the client and a script: it runs the script, and ends all that the script has started.

It is the script's parent and a subreaper (PR_SET_CHILD_SUBREAPER): a process of the script's that loses its
parent becomes a child of the reaper, whatever session it has moved to. So nothing that a script started
escapes the order to kill it, and the kernel says when the last is gone. A reaper whose children cannot be
killed, as they wait for a disk, stays, and the client counts it.

It reads what the script writes: the first line counts, and the rest is thrown away. When the script ends by
itself the reaper reports and ends; what the script has left in the background goes on. The order to kill is
a signal that nobody sends by mistake. The kernel sends it, too, when the client dies, unless the script
outlives the client.
"""

import errno
import fcntl
import os
import signal
from typing import Callable, Iterable, List, NamedTuple, Optional, Set

from guestmtce.common import NEVER
from guestmtce.common.back_off import BackOff
from guestmtce.common.background import STANDARD, discard_standard_descriptors
from guestmtce.guest import process
from guestmtce.guest.endurance import become_ordinary
from guestmtce.guest.loop import Loop

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
NAME = "guestClient-run"
KILL_ORDER = signal.SIGRTMIN
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>
KEPT = 1024  # bytes of a script's output that are kept; a report with them fits a pipe in one piece
CHUNK = 65536  # bytes read at once
FLOOD = 2**20  # bytes; who writes more is read by an ordinary process
LAST_CHUNKS = 16  # read from a script that has ended; more is what it left behind in the background
REST_FIRST, REST_MAX = 0.001, 0.25  # s between two looks at children that do not die; doubles


class Report(NamedTuple):
    """What a reaper says when its script has ended by itself, or never was one.

    `status`: the exit status, negative: the signal. `error`: the errno for which it could not be executed, or
    0. `adopts`: whether the reaper is a subreaper. `output`: the beginning of what the script wrote.
    """

    status: int
    error: int
    adopts: bool
    output: bytes = b""

    def pack(self) -> bytes:
        """The report as bytes."""
        return b"%d %d %d\n%s" % (self.status, self.error, self.adopts, self.output)


def unpack(data: bytes) -> Optional[Report]:
    """The report in `data`; None: there is none."""
    head, newline, output = data.partition(b"\n")
    if not newline:
        return None
    status, error, adopts = (int(word) for word in head.split())
    return Report(status, error, bool(adopts), output)


def become_reaper(arguments: List[str], report: int, client: int) -> None:
    """This process becomes the reaper of a new script, and writes one Report to the descriptor `report`.

    `client`: the pid of the client, with which the script ends; 0: it goes on without.
    """
    process.rename(NAME)
    process.ignore_unwanted_signals()
    try:
        os.setsid()
        os.chdir("/")
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 3)  # a client without stdin may have it as 0
        _leave_descriptors(report)
        _Reaper(report).run(arguments, client)
    except OSError as error:
        os.write(report, Report(0, error.errno or errno.EIO, True).pack())
    except MemoryError:
        # A reaper without memory is a guest that is not well. Any other defect of ours ends it without a
        # report.
        os.write(report, Report(0, errno.ENOMEM, True).pack())
    os._exit(0)


def _leave_descriptors(kept: int) -> None:
    """Nothing of the client's stays open. The standard ones are taken: a pipe must not become one of them."""
    discard_standard_descriptors()
    process.close_others({*STANDARD, kept})


class _Reaper:
    """A part of its loop: `tick` is one attempt to kill all that is left."""

    def __init__(self, report: int) -> None:
        self.deadline = NEVER
        self._report = report
        self._loop = Loop()
        self._loop.parts = [self]
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._adopts = False
        self._script = 0
        self._killed: Set[int] = set()
        self._rest = 0.0  # s; the latest
        self._back_off = BackOff(REST_FIRST, REST_MAX)
        self._kept = b""
        self._size = 0  # of the output, in bytes
        self._output, self._inlet = os.pipe()
        # A pipe of its own for the errno: the script's output may hold anything.
        self._trouble, self._trouble_inlet = os.pipe()
        for reader in (self._output, self._trouble):
            os.set_blocking(reader, False)

    def run(self, arguments: List[str], client: int) -> None:
        """Serve until the script has ended. Raises OSError, and ends this process else."""
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._loop.on_signal(KILL_ORDER, self._obey)
        # Before the script is forked: a process that lost its parent earlier would be init's.
        self._adopts = _control_process(PR_SET_CHILD_SUBREAPER, 1)
        if client:
            _control_process(PR_SET_PDEATHSIG, KILL_ORDER)
            # The signal is sent for deaths from here on; an earlier one shows in the parent alone.
            if os.getppid() != client:
                return  # the client has ended before that was known
        self._script = process.fork(lambda: _become_script(arguments, self._inlet, self._trouble_inlet))
        # The script's copies are the only ones then, and the pipe ends with the last process that has it.
        os.close(self._inlet)
        os.close(self._trouble_inlet)
        self._loop.watch(self._output, self._read)
        self._loop.run()

    def _read(self) -> None:
        if not self._read_chunk():
            self._loop.unwatch(self._output)

    def _read_chunk(self) -> bool:
        """Whether there was anything."""
        try:
            data = os.read(self._output, CHUNK)
        except BlockingIOError:
            return False
        # The rest is read and thrown away: a script must not stand still over a full pipe.
        self._kept += data[: KEPT - len(self._kept)]
        self._count(len(data))
        return bool(data)

    def _count(self, size: int) -> None:
        """The client's priority is for a script's start and its result, and not for a flood of output."""
        self._size += size
        if self._size > FLOOD:
            self._set_priority(max(self._nice, 0))

    def _reap(self) -> None:
        """Children have ended, the script's or those that were adopted."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(0)  # all are killed: the script itself would have been reported
            if pid == 0:
                break
            # Any other pid is an adopted process: waited for, so that it leaves no zombie, and not reported.
            if pid == self._script:
                # Once there is the order to kill, nobody waits for a report.
                if self.deadline == NEVER:
                    self._tell(process.exit_status(status))
                self._script = 0
        if self.deadline != NEVER:
            self.tick(self._loop.now)

    def _tell(self, status: int) -> None:
        # SIGCHLD may be served before the output that the script wrote last.
        for _ in range(LAST_CHUNKS):
            if not self._read_chunk():
                break
        try:
            error = int(os.read(self._trouble, 16) or b"0")
        except BlockingIOError:
            error = 0
        os.write(self._report, Report(status, error, self._adopts, self._kept).pack())
        os._exit(0)

    def _obey(self) -> None:
        """The order to kill. Beside a storm of processes an ordinary one does not get far."""
        # `_count` may have lowered it.
        self._set_priority(self._nice)
        self.deadline = self._loop.now
        self._reap()

    def tick(self, now: float) -> None:
        """Kill all that is there. Who is new this time has perhaps started others meanwhile: no rest then.

        Where the kernel names no children, as without /proc, only the script and its process group are known.
        """
        found = set(process.descendants(os.getpid()))
        if self._script:
            found.add(self._script)
        # waitpid still knows children, and look after look none of them could be named, as without /proc.
        elif not found and self._rest == REST_MAX:
            os._exit(0)
        _kill_all(found)
        # Only those that were killed before are left: they are dying, or wait for a disk.
        if found <= self._killed:
            self._rest = self._back_off.next_delay()
        else:
            self._rest = 0.0
            self._back_off.reset()
        self.deadline = now + self._rest
        self._killed = found

    def _set_priority(self, nice: int) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except OSError:
            pass  # as in a container


def _kill_all(pids: Iterable[int]) -> None:
    """Each with its process group, which the kernel kills at once, however fast it forks."""
    # All groups are read before anything is killed: of a process that has ended no group is known.
    own, groups = os.getpgid(0), set()
    for pid in pids:
        try:
            groups.add(os.getpgid(pid))
        except OSError:
            pass  # it has ended
    # Not the reaper's own: that would end it before its work is done. A script that has not left the group
    # yet is killed by its pid.
    for group in groups - {own}:
        _try(os.killpg, group)
    for pid in pids:
        _try(os.kill, pid)


def _try(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended


def _control_process(option: int, value: int) -> bool:
    """prctl(2) for this process; whether that worked. Small builds of Python lack ctypes."""
    try:
        import ctypes  # a megabyte, which the client does without where it locks no memory

        rest = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
        return int(ctypes.CDLL(None).prctl(option, *rest)) == 0
    except (ImportError, OSError, AttributeError):
        return False


def _become_script(arguments: List[str], output: int, trouble: int) -> None:
    """The new process becomes the script, or says why not."""
    # Closed by a successful exec: then the reaper reads nothing from it, and else the errno.
    trouble = fcntl.fcntl(trouble, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        process.reset_signals()
        os.setsid()
        output = _open_for_good(output)
        for standard in (1, 2):
            os.dup2(output, standard)
        process.close_others({*STANDARD, trouble})
        become_ordinary()  # last: in a guest without a processor to spare all before would take its time
        os.execve(arguments[0], arguments, ENVIRONMENT)
    except OSError as error:
        os.write(trouble, b"%d" % (error.errno or errno.EIO))


def _open_for_good(output: int) -> int:
    """The pipe in a way that what the script leaves in the background can write to."""
    try:
        # With a reading end of its own the pipe never breaks: SIGPIPE would kill what is left in the
        # background.
        return os.open("/proc/self/fd/%d" % output, os.O_RDWR)
    except OSError:
        return output
