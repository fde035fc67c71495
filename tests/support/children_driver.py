"""A master's loop and children without the rest of the master; the tests are the guests."""

from __future__ import annotations

import json
import os
import pwd
import socket
import time

import psutil
import pytest
from tiers import PACE

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.server.child import confine, sandbox, session_types
from guestmtce.server.supervise import seccomp
from guestmtce.server.supervise.children import ChildHandle, Children, ChildrenHandlers
from guestmtce.server.supervise.spawner_client import SpawnerSettings
from guestmtce.wire import guest_channel

ONE, TWO = uuid_of(1), uuid_of(2)
ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
IDENTITY = confine.Identity(NOBODY.pw_uid, NOBODY.pw_gid) if ROOT else None
FILTER = seccomp.choose_filter(forbidden=False, required=False)
try:
    HAS_FILTER = bool(FILTER.program and sandbox.install_step(FILTER))
except sandbox.Missing:
    HAS_FILTER = False
MEANS = confine.Means(IDENTITY, FILTER)
GUEST = guest_channel.DEFAULT_INIT._replace(invocation_id=1804289383, name="guest", heartbeat_interval_ms=400)


def gone(pid):
    """Ended; a zombie that pid 1 has not reaped yet counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def status(pid):
    """/proc/<pid>/status, name → text."""
    with open("/proc/%d/status" % pid) as file:
        return {name: text.strip() for name, text in (line.split(":", 1) for line in file)}


def filters(pid):
    """How many filters of system calls it is under; a container may have one of its own for all of us."""
    facts = status(pid)
    return int(facts.get("Seccomp_filters", facts["Seccomp"] == "2"))


def confined(pid):
    """Whether it has taken the last step that this kernel knows."""
    ours = filters(os.getpid())
    return status(pid)["NoNewPrivs"] == "1" and (not HAS_FILTER or filters(pid) > ours)


class Bench:
    """A master's loop and children; the far ends of the guests' sockets; what the handlers heard."""

    def __init__(self, settings=None, identity=IDENTITY, spawn_timeout=5.0, uids=None, page_layout=True):
        self.loop = Loop()
        self.started, self.reports, self.ends = [], [], []
        self.far = {}
        self.spawn_timeout = spawn_timeout * PACE
        self.children = Children(
            self.loop,
            SpawnerSettings(
                settings or session_types.SessionSettings(),
                confine.Means(identity, FILTER),
                self.spawn_timeout,
                page_layout,
            ),
            ChildrenHandlers(self.started.append, self._reported, self._ended, lambda: None),
            uids,
        )
        self.children.open()

    def _reported(self, uuid, report):
        self.reports.append(report)

    def _ended(self, uuid, why, detail):
        self.ends.append((uuid, why, detail))

    def start(self, uuid=ONE, resume=None):
        near, self.far[uuid] = socket.socketpair()
        self.far[uuid].settimeout(60)
        self.children.start_child(uuid, near, resume)

    def born(self, uuid=ONE, resume=None):
        self.start(uuid, resume)
        self.until(lambda: uuid in self.children.list_pids())
        wait_for(lambda: confined(self.children.list_pids()[uuid]), "it is confined")
        return self.children.list_pids()[uuid]

    def until(self, condition, what="it happens", seconds=5.0):
        """Run the loop until `condition()`."""

        def turn():
            self.loop.after(0.005, lambda: None)
            self.loop.run_once()
            return condition()

        return wait_for(turn, what, seconds, step=0)

    def serve_for(self, seconds):
        until = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= until, seconds=seconds + 5)

    def beat(self, uuid=ONE):
        """The guest introduces itself and answers its first challenge."""
        heard = len(self.reports)
        self.far[uuid].send(guest_channel.build(GUEST, 1))
        self.answer(uuid)
        self.until(lambda: session_types.Running() in self.reports[heard:])

    def answer(self, uuid=ONE):
        data = b""
        while b'"challenge"' not in data or not data.endswith(b"\n"):
            data += self.far[uuid].recv(65536)
        line = [line for line in data.split(b"\n") if b'"challenge"' in line][-1]
        number = json.loads(line)["heartbeat_challenge"]
        self.far[uuid].send(
            guest_channel.build(guest_channel.ChallengeResponse(number, "healthy", "none", ""), 2)
        )

    def close(self):
        self.children.close()
        self.loop.close()
        for end in self.far.values():
            end.close()


NEVER_ASKED = 10**9  # the number of a request; a test makes thousands


class Impostor:
    """A child of whom only the pipe is real: what it says is the test's."""

    def __init__(self, bench, pid_known=True, uuid=ONE):
        near, self.pipe = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self.pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        self.child = ChildHandle(uuid, NEVER_ASKED, None, near)
        bench.children._by_uuid[uuid] = self.child
        if pid_known:
            self.child.pid = self.pid
            bench.children._by_pid[self.pid] = self.child
        else:
            bench.children._awaited[NEVER_ASKED] = self.child
            bench.children.spawner._asked.add(NEVER_ASKED)
        bench.loop.watch(near, lambda: bench.children._read_reports(self.child))

    def say(self, *packets):
        for packet in packets:
            self.pipe.send(packet)


@pytest.fixture
def make_bench():
    benches = []

    def make(**options):
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for one in benches:
        one.close()
    wait_for(lambda: psutil.Process().children() == [], "no process is left", step=0.05)


@pytest.fixture
def bench(make_bench, request):
    """With the session's settings as the test's parameter, where it has one."""
    return make_bench(settings=getattr(request, "param", None))
