"""A guest that has taken its child over: what it tries fails or ends that child, and no other guest notices.

With real daemons, and guests that heartbeat all the while. Once on this kernel, and once on one that has
neither filters, nor Landlock, nor getrandom, where limits and users must do.
"""

from __future__ import annotations

import os
import re
import socket
import time

import psutil
import pytest
from children_driver import HAS_FILTER, ROOT
from hostile_master import OLD_KERNEL
from hostile_spawner import MARK
from places import SUPPORT
from tiers import PACE

from guestmtce.lab.cluster import Cluster, wait_for
from guestmtce.lab.guest import uuid_of

GUESTS = 6
INTERVAL_MS = 400
BACK_OFF = 0.05  # s, at most
SETTINGS = [
    "timers.reconnect_max=%g" % BACK_OFF,
    "timers.stable_after=0.05",
    "supervision.child_deaths_max=1000",
]
EVIL = uuid_of(666)
DIES = "its child died"
FIRST_UID = 61300
NUMBERS = {  # of system calls that Python has no word for: x86_64, aarch64
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "prlimit64": (302, 261), "clone": (56, 220),
    "tgkill": (234, 131), "seccomp": (317, 277),
}  # fmt: skip
MACHINE = ["x86_64", "aarch64"].index(os.uname().machine) if HAS_FILTER else 0
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206

REFUSED = re.compile(r"(PermissionError|OSError|BlockingIOError|RuntimeError|MemoryError):|-\d+$")
# What → the expression, and whether it is refused or ends the child, on a kernel of today.
SPIN = "spin in short naps"
ATTACKS = {
    "read a file": ("open('/etc/passwd').read()", REFUSED),
    "write a file": ("os.open({file!r}, os.O_WRONLY | os.O_CREAT)", REFUSED),
    "remove a file": ("os.unlink({file!r})", REFUSED),
    "list a folder": ("os.listdir('/')", REFUSED),
    "look at a file": ("os.stat('/etc/shadow')", REFUSED),
    "read a sibling's memory": ("open('/proc/{sibling}/mem', 'rb').read(1)", REFUSED),
    "write to its own memory's file": ("open('/proc/self/mem', 'r+b')", REFUSED),
    "copy a descriptor": ("os.dup(0)", REFUSED),
    "open a socket": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", DIES),
    "open a pair of sockets": ("socket.socketpair()", DIES),
    "pass a descriptor on": ("socket.send_fds(guest, [b'x'], [0])", REFUSED),
    "fork": ("os.fork()", DIES),
    "start a thread": ("__import__('_thread').start_new_thread(print, ())", DIES),
    "kill a sibling": ("os.kill({sibling}, 9)", DIES),
    "kill the master": ("os.kill({master}, 9)", DIES),
    "kill the spawner": ("os.kill({spawner}, 9)", DIES),
    "kill all it can": ("os.kill(-1, 9)", DIES),
    "signal a sibling's thread": ("syscall({tgkill}, {sibling}, {sibling}, 9)", REFUSED),
    "trace a sibling": ("syscall({ptrace}, %d, {sibling}, 0, 0)" % PTRACE_ATTACH, DIES),
    "trace the master": ("syscall({ptrace}, %d, {master}, 0, 0)" % PTRACE_SEIZE, DIES),
    "read a sibling's memory at once": ("peek({process_vm_readv}, {sibling})", DIES),
    "limit a sibling": ("syscall({prlimit64}, {sibling}, 7, b'\\0' * 16, 0)", REFUSED),
    "raise its own limits": ("syscall({prlimit64}, 0, 9, b'\\xff' * 16, 0)", REFUSED),
    "become root": ("os.setuid(0)", REFUSED),
    "execute a program": ("os.execv('/bin/true', ['true'])", DIES),
    "make memory executable": ("executable('mprotect')", REFUSED),
    "have executable memory": ("executable('mmap')", REFUSED),
    "take 1 GB": ("len(bytearray(1 << 30))", REFUSED),
    "take 1 GB in small pieces": ("len([bytearray(1 << 12) for _ in range(1 << 18)])", REFUSED),
    "write 100 MB of nonsense to the pipe": ("repeat(lambda: os.write(1, b'x' * 4096), 25600)", DIES),
    "write 100 MB of reports to the pipe": ("repeat(lambda: os.write(1, b'[\"Missed\",1]'), 8000000)", DIES),
    "write a packet of 1 MB to the pipe": ("os.write(1, b'x' * (1 << 20))", REFUSED),
    "write packets of 100 kB to the pipe": ("repeat(lambda: os.write(1, b'x' * 100000), 1000)", DIES),
    "close the way to its master": ("os.close(1), time.sleep(10)", REFUSED),
    "call as another ABI": ("syscall(0x40000000 + 39)", DIES),
    "crash": ("__import__('ctypes').string_at(0)", DIES),
    SPIN: ("repeat(lambda: (sum(range(30000)), time.sleep(1e-4)), 10**9)", DIES),
    "change the filter": ("syscall({seccomp}, 1, 0, 0)", REFUSED),
}
# Where there is no filter, no limit and no user stands against these.
NEEDS_FILTER = [
    "remove a file", "look at a file", "make memory executable", "have executable memory",
    "call as another ABI", "change the filter", "pass a descriptor on",
]  # fmt: skip
# Refused for every process, and yet it returns as if it had worked: kill(2) with -1.
NO_MATTER = ["kill all it can"]


class Hostile(Cluster):
    """A cluster whose guestServer has the hostile spawner."""

    server_module = "hostile_master"


class Old(Hostile):
    """On a kernel of old, with a uid for each child."""

    server_words = (OLD_KERNEL, "--child-uids", "%d-%d" % (FIRST_UID, FIRST_UID + 99))


class Evil:
    """The guest: its end of the channel, and what it wants done."""

    def __init__(self, cluster):
        folder = cluster.hosts[0].guests.folder
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.path.join(folder, "cgcs.heartbeat.%s.sock" % EVIL))
        self.listener.listen(1)
        self.listener.settimeout(60)
        self.channel = None

    def call(self, text):
        """What the child answers, or that it died."""
        try:
            if self.channel is None:
                self.channel, _ = self.listener.accept()
                self.channel.settimeout(60)
                self.channel.send(MARK)
                answers = self.channel.makefile("rb")
                while answers.readline() != MARK + b"\n":
                    pass
            self.channel.sendall(b"%d\n%s" % (len(text), text.encode()))
            answer = self.channel.makefile("rb").readline().strip()
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
        if not answer:
            self.channel.close()
            self.channel = None
        return answer.decode() or DIES

    def close(self):
        self.listener.close()
        if self.channel is not None:
            self.channel.close()


def start(kind, monkeypatch):
    folders = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    return kind(GUESTS, 1, INTERVAL_MS, SETTINGS, None, ["--secs", "1"])


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=[Hostile, Old], ids=["this kernel", "an old kernel"])
def cluster(request, module_patch):
    if request.param is Old and not (ROOT and HAS_FILTER):
        pytest.skip("an old kernel is made with a filter, and users by root")
    if request.param is Hostile and not HAS_FILTER:
        pytest.skip("this kernel has no filter")
    with start(request.param, module_patch) as started:
        started.provision()
        started.await_heartbeats()
        started.began, started.answers = time.monotonic(), beats(started)
        yield started


@pytest.fixture(scope="module")
def evil(cluster):
    one = Evil(cluster)
    yield one
    one.close()


@pytest.fixture
def others(cluster):
    """The other guests go on: no miss, no new connection, no new child."""
    before = lives(cluster)
    yield
    assert lives(cluster) == before


def lives(cluster):
    rows = cluster.hosts[0].server.dump("guest")
    names = ("pid", "connections", "crashes", "misses", "losses", "heartbeating")
    return {uuid: [rows[uuid][name] for name in names] for uuid in cluster.uuids}


def beats(cluster):
    status = cluster.hosts[0].guests.status()
    return [status[uuid]["answers"] for uuid in cluster.uuids]


def broken_rules(cluster):
    return int(cluster.hosts[0].server.health()["broken-rules"].split()[1])


@pytest.mark.parametrize("name", ATTACKS)
def test_what_it_tries_fails_or_ends_its_child_and_concerns_nobody_else(cluster, evil, others, name):
    if type(cluster) is Old and name in NEEDS_FILTER:
        pytest.skip("only a filter stands against it")
    if name == SPIN and PACE > 1:
        pytest.skip("on a busy machine it gets no more than its share")
    expression, wanted = ATTACKS[name]
    victim = os.path.join(cluster.folder, "victim")
    with open(victim, "w") as file:
        file.write("unharmed")
    os.chmod(victim, 0o666)
    numbers = {call: pair[MACHINE] for call, pair in NUMBERS.items()}
    spawner = int(cluster.hosts[0].server.health()["spawner"].split()[2])
    pids = {"sibling": cluster.children()[cluster.uuids[0]].pid, "spawner": spawner}
    master = cluster.hosts[0].server.popen.pid
    before = psutil.Process(master).memory_info().rss
    got = evil.call(expression.format(file=victim, master=master, **pids, **numbers))
    if "pipe" in name or type(cluster) is not Old:
        assert got == DIES if wanted is DIES else wanted.match(got), got
    elif name not in NO_MATTER:
        assert got == DIES or REFUSED.match(got), got
    with open(victim) as file:
        assert file.read() == "unharmed"
    assert psutil.Process(master).memory_info().rss < before + 4 * 2**20


def test_who_calls_what_no_honest_child_calls_is_counted(cluster, evil, others):
    if type(cluster) is Old:
        pytest.skip("only a filter tells")
    before = broken_rules(cluster)
    assert evil.call("os.fork()") == DIES
    wait_for(lambda: broken_rules(cluster) == before + 1, "it is counted")
    assert "it made a system call that no honest child makes" in cluster.hosts[0].server.log()


def test_a_child_that_is_taken_over_again_and_again_is_no_storm(cluster, evil, others):
    deaths = int(cluster.hosts[0].server.dump("guest")[EVIL]["crashes"])
    until = time.monotonic() + 1
    while time.monotonic() < until:
        evil.call("os._exit(1)")
    died = int(cluster.hosts[0].server.dump("guest")[EVIL]["crashes"]) - deaths
    assert 3 <= died <= 1 / BACK_OFF + 4  # the first few come faster


def test_the_health_report_says_what_there_is(cluster):
    line = cluster.hosts[0].server.health()["confinement"]
    if type(cluster) is Old:
        uids = "%d-%d" % (FIRST_UID, FIRST_UID + 99)
        missing = "landlock no (not in this kernel) seccomp no (not in this kernel)"
        assert line == "confinement user %s %s rlimits yes oom yes" % (uids, missing)
        log = cluster.hosts[0].server.log()
        assert log.count("confined without: landlock no (not in this kernel)") == 1
    else:
        assert line.startswith("confinement user %s landlock " % ("nobody" if ROOT else "no (not root)"))
        assert line.endswith("seccomp yes rlimits yes oom yes")


def test_where_the_kernel_gives_no_random_bytes_a_child_keeps_their_file(cluster):
    if type(cluster) is not Old:
        pytest.skip("this kernel gives them")
    folder = "/proc/%d/fd" % cluster.children()[cluster.uuids[0]].pid
    left = [os.readlink(os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
    assert [link.partition(":")[0] for link in left] == ["socket", "socket", "/dev/urandom"]


def test_nothing_went_wrong_elsewhere(cluster, no_tracebacks):
    """Nobody has missed a beat, all the time."""
    due = (time.monotonic() - cluster.began) * 1000 / INTERVAL_MS
    for now, then in zip(beats(cluster), cluster.answers):
        assert now - then > 0.8 * due - 2
    no_tracebacks(cluster)
    assert cluster.hosts[0].server.health()["spawner"].endswith("started 1")
    assert cluster.vim.events("alarm", "") == []
