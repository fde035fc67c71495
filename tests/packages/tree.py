"""A Debian tree that runs with its own systemd, network and processes, and what a test does in it.

Whatever happens on the way, `close` leaves no process, no control group and no file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from typing import Any, Iterator, List

import psutil

from guestmtce.lab.cluster import wait_for

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BOOT_WAIT = 60.0  # s
STOP_WAIT = 30.0  # s
RUN_WAIT = 240.0  # s for one command, of which apt's are the longest
POLL = 0.05  # s
GROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
CLONE_NEWNET = 0x40000000
# Else nspawn forbids them; what it forbids by itself no unit can allow.
CONFINING = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
# What a system is that has started; degraded: some unit of the tree's has failed.
UP = ("running", "degraded")

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(AssertionError):
    """A command in the tree ended with another status than expected."""


class Tree:
    """A copy of the tree in `base`. Paths of files in it are told by `path`."""

    def __init__(self, base: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="tree-")
        self.root = os.path.join(self.folder, "root")
        self._groups: List[str] = []
        self.nspawn: Any = None
        self.leader = 0
        subprocess.run(["cp", "-a", "--reflink=auto", base, self.root], check=True)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # --- life --------------------------------------------------------------------------------------

    def boot(self) -> float:
        """Start it; returns when its systemd is up, with the seconds that it took."""
        began = time.monotonic()
        self._make_groups()
        words = ["systemd-nspawn", "--quiet", "-D", self.root, "--boot", "--register=no", "--keep-unit"]
        words += ["--console=pipe", "--private-network", "--system-call-filter=" + CONFINING]
        with open(os.path.join(self.folder, "console"), "ab") as console:
            self.nspawn = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env={**os.environ, "UNIFIED_CGROUP_HIERARCHY": "1"},
                preexec_fn=self._join_groups,
            )
        self.leader = wait_for(self._find_leader, "the tree has a first process", BOOT_WAIT, POLL)
        wait_for(self._is_up, "the tree is up: " + self.folder, BOOT_WAIT, POLL)
        return time.monotonic() - began

    def _make_groups(self) -> None:
        """Trees that shared a control group would end each other's processes."""
        name = "guestmtce-%d-%s" % (os.getpid(), os.path.basename(self.folder))
        for parent in GROUPS:
            if os.path.exists(os.path.join(parent, "cgroup.procs")):
                self._groups.append(os.path.join(parent, name))
                os.makedirs(self._groups[-1], exist_ok=True)

    def _join_groups(self) -> None:
        for group in self._groups:
            with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write("0")

    def _find_leader(self) -> int:
        if self.nspawn.poll() is not None:
            with open(os.path.join(self.folder, "console"), encoding="utf-8", errors="replace") as console:
                raise Failed("systemd-nspawn ended: " + console.read()[-2000:])
        for child in psutil.Process(self.nspawn.pid).children():
            with contextlib.suppress(OSError, psutil.Error), open("/proc/%d/status" % child.pid) as status:
                if any(line.split()[0] == "NSpid:" and line.split()[-1] == "1" for line in status):
                    return child.pid
        return 0

    def _is_up(self) -> bool:
        return self.run("systemctl is-system-running", status=None).strip() in UP

    def shut_down(self) -> None:
        """Power it off, as an administrator does."""
        self.run("systemctl poweroff", status=None)
        self._await_end()

    def reboot(self) -> float:
        """Restart it; the seconds until it is up again."""
        self.run("systemctl reboot", status=None)
        self._await_end()
        return self.boot()

    def _await_end(self) -> None:
        try:
            self.nspawn.wait(STOP_WAIT)
        except subprocess.TimeoutExpired:
            self._kill()
        self.nspawn = None

    def _kill(self) -> None:
        """The end of its first process is the end of all."""
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.leader).kill()
        self.nspawn.kill()
        self.nspawn.wait()

    def close(self) -> None:
        """Remove it, running or not."""
        if self.nspawn is not None:
            self._kill()
        for group in self._groups:
            with contextlib.suppress(OSError):
                wait_for(lambda one=group: _removed(one), "its control group is empty", STOP_WAIT, POLL)
        shutil.rmtree(self.folder)

    # --- looking and doing -------------------------------------------------------------------------

    def path(self, path: str) -> str:
        """Where a file of the tree is for us; its /run is in its own memory while it runs.

        /var/run is a link, which would lead us to our own.
        """
        path = path[len("/var") :] if path.startswith("/var/run/") else path
        root = "/proc/%d/root" % self.leader if self.nspawn is not None else self.root
        return root + path

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(self.path(path))

    def read(self, path: str) -> str:
        """A file's text."""
        with open(self.path(path), encoding="utf-8", errors="replace") as file:
            return file.read()

    def write(self, path: str, text: str) -> None:
        """Make a file, or replace it."""
        with open(self.path(path), "w", encoding="utf-8") as file:
            file.write(text)

    def run(self, command: str, status: Any = 0, seconds: float = RUN_WAIT) -> str:
        """What a shell in the running tree says to `command`, which must end with `status` (None: any)."""
        enter = ["nsenter", "-t", str(self.leader), "-a", "env", "-i", "HOME=/root", "LC_ALL=C.UTF-8"]
        enter += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        enter += ["DEBIAN_FRONTEND=noninteractive", "sh", "-c", command]
        done = subprocess.run(
            enter,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            start_new_session=True,
        )
        said = done.stdout.decode("utf-8", "replace")
        if status is not None and done.returncode != status:
            raise Failed("%s: status %d, not %d: %s" % (command, done.returncode, status, said))
        return said

    def status(self, command: str) -> int:
        """A command's exit status."""
        return int(self.run("{ %s; } >/dev/null 2>&1; echo $?" % command))

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread makes meanwhile are in the tree's network."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        other = os.open("/proc/%d/ns/net" % self.leader, os.O_RDONLY)
        try:
            _setns(other)
            try:
                yield
            finally:
                _setns(own)
        finally:
            os.close(own)
            os.close(other)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _removed(group: str) -> bool:
    """A group goes with its last process, and after the groups in it."""
    for folder, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            return False
    return True
