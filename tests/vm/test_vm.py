"""The product with real virtual machines and the real guestClient in them, at the speed of life."""

from __future__ import annotations

import os
import time

import pytest
from cloud import BACK_WAIT, POLL, VmCluster, undisturbed
from initramfs import EVENT_SCRIPT, HEALTH_SCRIPT

from guestmtce.lab.cluster import wait_for

INTERVAL = 1.0  # s, of the guest's configuration
LOSS = 3 * INTERVAL  # the last answer came up to one interval before, then two misses
SLACK = 1.0  # s, for QEMU, two daemons and a busy machine
GRACE = 2.0  # s that a closed channel may take to come back
PATIENCE = 5.0  # s without a challenge until a guest introduces itself again
REASON = "a backup is running"

ONE_AND_THREE = [pytest.param(1, marks=pytest.mark.ci), pytest.param(3, marks=pytest.mark.full)]


@pytest.mark.parametrize("count", ONE_AND_THREE)
def test_a_machine_is_stopped_goes_on_is_reset_is_killed_and_made_anew(qemu, no_tracebacks, count):
    with VmCluster(count) as cloud:
        cloud.ready()
        vm, uuid = cloud.vms[0], cloud.uuids[0]
        booted = max(one.boot_seconds for one in cloud.vms)

        vm.pause()
        began = time.monotonic()
        wait_for(lambda: cloud.alarms(uuid), "the alarm", LOSS + SLACK, POLL)
        lost = cloud.told_since(began, "alarm", uuid)
        assert cloud.alarms() == [("failed", "reboot")]
        assert lost > 2 * INTERVAL - SLACK
        cloud.await_status(uuid, "disabled")
        vm.resume()
        resumed = cloud.await_status(uuid, "enabled")

        vm.reset()  # it is lost unless it boots within two intervals
        rebooted = vm.await_boot()
        reset = rebooted + cloud.beats(vm)
        cloud.await_status(uuid, "enabled")
        alarms = cloud.alarms()
        assert set(alarms) == {("failed", "reboot")}

        vm.kill()
        gone = cloud.await_status(uuid, "disabled")
        assert gone > GRACE - SLACK
        vm.start()
        cloud.await_status(uuid, "enabled")
        anew = cloud.told_since(vm.started, "service", uuid)
        assert cloud.alarms() == alarms
        assert {cloud.status(one) for one in cloud.uuids} == {"enabled"}
        assert all(cloud.alarms(one) == [] for one in cloud.uuids[1:])
        no_tracebacks(cloud)
        print(
            "\n%d VMs: booted in %.1f s; stop: alarm after %.2f s; cont: back after %.2f s; reset: "
            "booted in %.1f s, back %.1f s after the reset, %d alarms; kill -9: STOPPED after %.2f s, "
            "no alarm; new QEMU: back %.1f s after its start"
            % (count, booted, lost, resumed, rebooted, reset, len(alarms) - 1, gone, anew)
        )


@pytest.mark.full
def test_votes_and_notices_of_a_machine_and_a_pause(qemu, no_tracebacks):
    with VmCluster(1) as cloud:
        cloud.ready()
        vm, uuid = cloud.vms[0], cloud.uuids[0]

        vm.script(EVENT_SCRIPT, 'echo "$1 $2" >/run/asked', "echo %s" % REASON, "exit 1")
        rejected = cloud.ask("vote", uuid, "reboot")
        assert (rejected["guest-response"], rejected["reason"]) == ("reject", REASON)
        assert vm.do("cat /run/asked").strip() == "revocable reboot"

        vm.script(EVENT_SCRIPT, "sleep 4")
        slow = cloud.ask("notify", uuid, "resize_begin")
        assert (slow["guest-response"], slow["reason"]) == ("proceed", "")
        assert 4 <= slow["seconds"] < 4 + SLACK
        vm.script(EVENT_SCRIPT, "sleep 60")
        endless = cloud.ask("notify", uuid, "resize_begin")
        assert endless["guest-response"] == "proceed"
        assert 8 - SLACK < endless["seconds"] < 9 + SLACK
        cloud.beats(vm)
        assert cloud.hosts[0].server.dump("guest")[uuid]["misses"] == "0"

        vm.script(EVENT_SCRIPT, "exit 0")
        assert cloud.ask("notify", uuid, "pause")["guest-response"] == "proceed"
        vm.pause()
        undisturbed(3 * LOSS, lambda: cloud.alarms())
        vm.resume()
        began = time.monotonic()
        cloud.beats(vm, 3, BACK_WAIT)
        back = time.monotonic() - began
        undisturbed(LOSS, lambda: cloud.alarms())
        assert cloud.ask("vote", uuid, "reboot")["guest-response"] == "allow"
        no_tracebacks(cloud)
        print(
            "\nvote rejected after %.2f s; notice with a script of 4 s told after %.2f s, with an "
            "endless one after %.2f s; paused for %.0f s after its notice: no alarm; heartbeats %.1f s "
            "after it went on" % (rejected["seconds"], slow["seconds"], endless["seconds"], 3 * LOSS, back)
        )


@pytest.mark.full
def test_an_unhealthy_machine(qemu, no_tracebacks):
    with VmCluster(1) as cloud:
        cloud.ready()
        vm, uuid = cloud.vms[0], cloud.uuids[0]
        took = []
        for number in (1, 2):  # it is told again at once only if it was healthy in between
            vm.script(HEALTH_SCRIPT, 'echo "the disk \\"sda\\" is failing"', "exit 1")
            began = time.monotonic()
            wait_for(lambda: len(cloud.alarms()) == number, "the alarm", BACK_WAIT, POLL)  # noqa: B023
            took.append(cloud.told_since(began, "alarm", uuid))
            cloud.beats(vm)
            vm.script(HEALTH_SCRIPT, "exit 0")
            cloud.beats(vm, 4)
        assert cloud.alarms() == [("unhealthy", "reboot")] * 2
        assert cloud.status(uuid) == "enabled"
        no_tracebacks(cloud)
        print("\nill: the VIM was told after %.1f and %.1f s (its script runs every 2 s)" % tuple(took))


@pytest.mark.full
def test_a_killed_guest_server_while_machines_run(qemu, no_tracebacks):
    with VmCluster(3) as cloud:
        cloud.ready()
        host = cloud.hosts[0]
        before = len(cloud.vim.events("service"))
        host.server.kill()
        counts = {vm: vm.sent() for vm in cloud.vms}
        began = time.monotonic()
        cloud.start_server(host)
        wait_for(lambda: all(vm.sent() > counts[vm] for vm in cloud.vms), "all heartbeat", 2 * INTERVAL, POLL)
        took = time.monotonic() - began
        assert took < 2 * INTERVAL
        for vm in cloud.vms:
            cloud.beats(vm, 3)
        undisturbed(2 * PATIENCE, lambda: cloud.alarms())
        rows = host.server.dump("guest")
        assert {rows[uuid]["heartbeating"] for uuid in cloud.uuids} == {"enabled"}
        assert "disabled" not in {
            event["body"]["event-data"]["services"][0]["status"]
            for event in cloud.vim.events("service")[before:]
        }
        no_tracebacks(cloud)
        print("\nguestServer killed: all 3 heartbeat %.2f s after the start of the next one" % took)


def migrated(cloud, vm):
    """Move a machine to the second host, as libvirt does: the machine there, and when it took over."""
    folder = os.path.join(cloud.folder, "target")
    os.mkdir(folder)
    line = os.path.join(folder, "line")
    target = cloud.machine(vm.uuid, cloud.hosts[1], folder)
    cloud.vms.append(target)
    target.start("-incoming", "unix:" + line)
    wait_for(lambda: os.path.exists(line), "it is awaited there", BACK_WAIT, POLL)
    vm.qmp("migrate", uri="unix:" + line)
    wait_for(lambda: vm.qmp("query-migrate").get("status") == "completed", "it is there", BACK_WAIT, POLL)
    vm.kill()
    return target, time.monotonic()


@pytest.mark.full
def test_a_live_migration_to_another_host(qemu, no_tracebacks):
    with VmCluster(1, hosts=2) as cloud:
        cloud.ready()
        uuid, target_host = cloud.uuids[0], cloud.hosts[1]
        assert cloud.ask("notify", uuid, "live_migrate_begin")["guest-response"] == "proceed"
        target, began = migrated(cloud, cloud.vms[0])
        assert cloud.client.set(uuid, target_host.name, "enabled")[0] == 200
        cloud.beats(target, 3, BACK_WAIT)
        took = time.monotonic() - began
        wait_for(lambda: cloud.heartbeating() == [uuid], "guestAgent knows", BACK_WAIT, POLL)
        wait_for(lambda: uuid not in cloud.hosts[0].server.dump("guest"), "the first host forgets", 10, POLL)
        told = cloud.ask("notify", uuid, "live_migrate_end", host=1)
        assert told["guest-response"] == "proceed"
        undisturbed(LOSS, cloud.alarms)
        assert cloud.hosts[1].server.dump("guest")[uuid]["heartbeating"] == "enabled"
        no_tracebacks(cloud)
        print("\nlive migration: heartbeats on the other host after %.1f s, no alarm" % took)


TICKS = 100  # of a second, the kernel's USER_HZ


def usage(vm):
    """Of guestClient: seconds of CPU used so far, and kB resident."""
    pid = vm.do("cat /run/guestClient.pid").strip()
    words = vm.do("cat /proc/%s/stat" % pid).rpartition(")")[2].split()
    resident = vm.do("grep VmRSS /proc/%s/status" % pid).split()[1]
    return (int(words[11]) + int(words[12])) / TICKS, int(resident)


@pytest.mark.full
def test_what_the_client_costs_in_a_machine(qemu):
    with VmCluster(1) as cloud:
        cloud.ready()
        vm = cloud.vms[0]
        vm.script(HEALTH_SCRIPT, "exit 0")
        before, _ = usage(vm)
        seconds = cloud.beats(vm, 30, 60)
        after, resident = usage(vm)
        assert resident < 20_000  # all of it, for it is locked
        print(
            "\nguestClient in a VM without KVM: %.1f %% of a processor at one heartbeat a second and a "
            "health script every 2 s, %.1f MB resident" % (100 * (after - before) / seconds, resident / 1000)
        )
