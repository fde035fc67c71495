"""A machine that starves keeps its heartbeat: of its processor, of its memory, of its disk.

What is to be shown is that the client is the last to suffer, so the machine's memory and processor are really
used up, and the judge is guestServer.
"""

from __future__ import annotations

import base64
import time

import pytest
from cloud import VmCluster, undisturbed
from initramfs import HEALTH_SCRIPT

from guestmtce.lab.cluster import wait_for

CONF = "/etc/guest-client/heartbeat/guest_heartbeat.conf"
MINUTE = 60.0  # s
MEMORY = 256  # MB
BUSY = 400  # loops
# All begin at once when the pipe is opened: whoever starts them has no processor left after the first few.
RACE = """import os, signal, sys, time
os.setpriority(os.PRIO_PROCESS, 0, -20)
open("/run/begin", "w").close()
time.sleep(float(sys.argv[1]))
for pid in open("/run/loops"): os.kill(int(pid), signal.SIGKILL)
os.unlink("/run/begin")
"""
LOOP = "read go </run/begin; while :; do :; done"
# Small steps: what does not fit any more is killed, and the next begins.
EATER = "while :; do tail /dev/zero; done"
FULL = "/full"  # a small disk, with the log and the pid file on it
LENGTHS = [pytest.param(8.0, marks=pytest.mark.ci), pytest.param(60.0, marks=pytest.mark.full)]
RESTART = 'OPTIONS="--log %s" PIDFILE=%s /etc/init.d/heartbeat_init restart 3>&-'
USUAL = RESTART % ("/dev/console", "/run/guestClient.pid")
ON_FULL_DISK = RESTART % (FULL + "/log", FULL + "/pid")


class Roomy(VmCluster):
    """Its machine holds all the loops."""

    def machine(self, uuid, host, folder):
        vm = super().machine(uuid, host, folder)
        vm.memory = MEMORY
        return vm


@pytest.fixture(scope="module")
def starving(qemu):
    """A cluster of one machine whose health script runs as seldom as by default."""
    with Roomy(1) as cloud:
        cloud.ready()
        vm = cloud.vms[0]
        # Until it has run once more it might be asked in the middle of what follows.
        vm.do("sed -i s/^HEALTH_CHECK_INTERVAL=.*/HEALTH_CHECK_INTERVAL=30/ " + CONF)
        vm.do(USUAL)
        cloud.beats(vm)
        yield cloud


def misses(cloud):
    return int(cloud.hosts[0].server.dump("guest")[cloud.uuids[0]]["misses"])


def endures(cloud, seconds):
    """No heartbeat is lost for so long; the most misses in a row that were seen."""
    seen, before, began = [0], len(cloud.alarms()), time.monotonic()

    def trouble():
        seen.append(misses(cloud))
        return cloud.alarms()[before:]

    try:
        undisturbed(seconds, trouble)
    except AssertionError as error:
        told = (error, time.monotonic() - began, words_of(cloud.vms[0]))
        raise AssertionError("%s after %.1f s; the guest says: %s" % told) from None
    assert cloud.status(cloud.uuids[0]) == "enabled"
    return max(seen)


def words_of(vm):
    """The last of what its client has logged."""
    with open(vm.path("console"), encoding="utf-8", errors="replace") as console:
        return "\n".join(console.read().splitlines()[-20:])


def pid_of_client(vm):
    """By its name, not by what its pid file says."""
    return vm.do("pidof guestClient").strip()


def client(vm, name):
    """What the kernel says of guestClient, by the name of a line in its status."""
    return vm.do("grep ^%s: /proc/$(cat /run/guestClient.pid)/status" % name).split()[1]


@pytest.mark.ci
def test_it_has_what_makes_it_the_last_to_starve_and_its_script_has_not(starving):
    vm = starving.vms[0]
    pid = vm.do("cat /run/guestClient.pid").strip()
    assert vm.do("cat /proc/%s/oom_score_adj" % pid).strip() == "-900"
    assert vm.do("cut -d ' ' -f 19 /proc/%s/stat" % pid).strip() == "-10"
    locked, resident = int(client(vm, "VmLck")), int(client(vm, "VmRSS"))
    assert locked > 5000
    found = "cut -d ' ' -f 19 /proc/self/stat >/run/found; cat /proc/self/oom_score_adj >>/run/found"
    vm.script(HEALTH_SCRIPT, found)
    vm.do("rm -f /run/found; " + USUAL)
    wait_for(lambda: vm.do("cat /run/found; true").split()[-2:] == ["0", "0"], "the script has run", 10, 0.5)
    print("\nlocked: %d kB, resident: %d kB" % (locked, resident))


@pytest.mark.parametrize("seconds", LENGTHS)
def test_four_hundred_busy_loops(starving, seconds):
    vm = starving.vms[0]
    vm.do("mkfifo /run/begin; rm -f /run/loops")
    vm.do("for i in $(seq %d); do (%s) & echo $! >>/run/loops; done" % (BUSY, LOOP))
    vm.do("echo %s | base64 -d >/run/race" % base64.b64encode(RACE.encode()).decode())
    vm.do("python3 /run/race %g >/dev/null 2>&1 &" % seconds)
    most = endures(starving, seconds)
    load = vm.do("while [ -e /run/begin ]; do sleep 0.1; done; cut -d ' ' -f 1 /proc/loadavg")
    assert float(load) > BUSY * seconds / MINUTE / 2
    shown = (BUSY, seconds, load.strip(), most)
    print("\n%d busy loops for %g s: load %s, at most %d misses in a row" % shown)


@pytest.mark.parametrize("seconds", LENGTHS)
def test_its_memory_is_exhausted(starving, seconds):
    vm = starving.vms[0]
    killed = "dmesg | grep -c 'Out of memory: Killed process'; true"
    before = int(vm.do(killed))
    vm.do("(%s) >/dev/null 2>&1 & echo $! >/run/eater" % EATER)
    try:
        most = endures(starving, seconds)
    finally:
        vm.do("kill -9 $(cat /run/eater); killall -9 tail; true")
    kills = int(vm.do(killed)) - before
    assert kills > 0
    assert vm.do("cat /run/guestClient.pid").strip() == pid_of_client(vm)
    print(
        "\nmemory exhausted for %g s: %d processes killed, at most %d misses in a row"
        % (seconds, kills, most)
    )


@pytest.mark.parametrize("seconds", LENGTHS)
def test_its_disk_is_full(starving, seconds):
    """The disk holds its log and its pid file. It is full when the client starts, too."""
    vm = starving.vms[0]
    vm.do("mkdir -p {0} && mount -t tmpfs -o size=64k full {0}".format(FULL))
    vm.do("/etc/init.d/heartbeat_init stop 3>&-")
    try:
        vm.do(ON_FULL_DISK)
        vm.do("cat /dev/zero >%s/rest 2>/dev/null; true" % FULL)
        starving.beats(vm)
        most = endures(starving, seconds / 2)
        vm.do(ON_FULL_DISK)
        starving.beats(vm)
        most = max(most, endures(starving, seconds / 2))
    finally:
        vm.do("PIDFILE=%s/pid /etc/init.d/heartbeat_init stop 3>&-; umount %s; %s" % (FULL, FULL, USUAL))
        starving.beats(vm)
    print("\ndisk full for %g s and at a start: at most %d misses in a row" % (seconds, most))
