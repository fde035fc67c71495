"""Discovery against a real libvirt: what becomes of a channel when its domain reboots, is saved or ends."""

from __future__ import annotations

import os

import initramfs
import pytest
from cloud import Channels, VmCluster, undisturbed
from domain import Domain, Libvirt

pytestmark = pytest.mark.full


class LibvirtCluster(VmCluster):
    """Its guest is a domain of a libvirtd of its own."""

    def start_guests(self, host):
        """Start libvirtd, define the domain and power it on."""
        self.libvirt = Libvirt(self.folder)
        host.guests = Channels(self.libvirt.channels)
        self.libvirt.start()
        archive = os.path.join(self.folder, "initramfs")
        initramfs.build(archive)
        self.domain = Domain(self.libvirt, self.uuids[0], self.folder, archive)
        self.domain.start()
        self.vms = [self.domain]

    def stop(self):
        """Stop everything."""
        super().stop()
        self.libvirt.stop()


@pytest.fixture(scope="module")
def cloud(libvirt):
    with LibvirtCluster(1) as cluster:
        cluster.ready()
        yield cluster


def save(cloud):
    """Save its memory: seconds from then until the VIM has heard that it stopped."""
    cloud.domain.save()
    return cloud.await_status(cloud.uuids[0], "disabled")


def back(cloud):
    """Until the VIM has heard that it heartbeats: seconds from its start or reset."""
    cloud.await_status(cloud.uuids[0], "enabled")
    return cloud.told_since(cloud.domain.started, "service", cloud.uuids[0])


def test_a_libvirtd_that_is_killed_and_started_concerns_no_guest(cloud):
    cloud.libvirt.restart()
    cloud.beats(cloud.domain, 3)
    assert cloud.hosts[0].server.dump("guest")[cloud.uuids[0]]["connections"] == "1"
    assert cloud.alarms() == []


def test_an_announced_reboot_is_no_loss(cloud):
    assert cloud.ask("notify", cloud.uuids[0], "reboot")["guest-response"] == "proceed"
    cloud.domain.reboot()
    booted = cloud.domain.await_boot()
    took = booted + cloud.beats(cloud.domain, 3)
    undisturbed(3, cloud.alarms)
    print("\nannounced reboot: booted in %.1f s, heartbeats %.1f s after it" % (booted, took))


def test_an_announced_pause_is_no_loss(cloud):
    assert cloud.ask("notify", cloud.uuids[0], "pause")["guest-response"] == "proceed"
    cloud.domain.suspend()
    undisturbed(6, cloud.alarms)
    cloud.domain.resume()
    took = cloud.beats(cloud.domain, 3, 20)
    assert cloud.alarms() == []
    print("\nannounced pause: heartbeats %.1f s after it went on" % took)


@pytest.mark.parametrize("announced", [True, False])
def test_a_managed_save_is_no_loss_and_what_was_saved_goes_on(cloud, announced):
    if announced:
        assert cloud.ask("notify", cloud.uuids[0], "suspend")["guest-response"] == "proceed"
    stopped = save(cloud)
    cloud.domain.start()
    took = back(cloud)
    cloud.beats(cloud.domain, 3)
    assert cloud.alarms() == []
    print("\nmanaged save: STOPPED %.1f s after it, back %.1f s after `virsh start`" % (stopped, took))


def test_a_destroyed_domain_is_no_loss_and_is_watched_when_it_starts(cloud):
    cloud.domain.destroy()
    stopped = cloud.await_status(cloud.uuids[0], "disabled")
    assert cloud.uuids[0] not in str(os.listdir(cloud.libvirt.channels))
    cloud.domain.start()
    booted = cloud.domain.await_boot()
    took = back(cloud)
    assert cloud.alarms() == []
    print("\ndestroyed: STOPPED after %.1f s; started: booted in %.1f s, back after %.1f s"
          % (stopped, booted, took))  # fmt: skip


def test_after_an_unannounced_reset_it_comes_back_by_itself(cloud, no_tracebacks):
    cloud.domain.reset()  # it is lost unless it boots within two intervals
    took = cloud.domain.await_boot() + cloud.beats(cloud.domain)
    cloud.await_status(cloud.uuids[0], "enabled")
    assert cloud.alarms() in ([], [("failed", "reboot")])
    no_tracebacks(cloud)
    print("\nreset: %d alarms, heartbeats after %.1f s" % (len(cloud.alarms()), took))
