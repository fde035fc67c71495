"""Real guestClients on real daemons: guestServer, guestAgent and a VIM; time runs faster than life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from guest_process import GuestProcess, write_script
from places import SCRIPTS
from tiers import PACE

from guestmtce.lab.cluster import Cluster, wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.virtio_port import VirtioPort

INTERVAL_MS = int(150 * PACE)
GUESTS_PATIENCE = 0.5 * PACE  # s; 5 s in life
SERVER = [
    "client.hbs_pulse_period=50", "timers.stopped_grace=%g" % (0.4 * PACE),
    "timers.guest_patience=%g" % GUESTS_PATIENCE, "timers.reconnect_max=0.1", "timers.rescan=0.5",
    "timers.expected_silence=%g" % (3 * PACE), "timers.stable_after=0.05", "timers.state_period=0.02",
    "timers.ill_repeat=%g" % (0.3 * PACE),
]  # fmt: skip
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]
EXAMPLE = SCRIPTS / "guest" / "process_example.py"


@pytest.fixture(scope="module")
def cloud():
    with Cluster(0, 1, INTERVAL_MS, SERVER, AGENT) as cluster:
        cluster.provision()
        yield cluster


class Guest:
    """One instance: its port, its guestClient, and what the VIM heard of it."""

    number = 500

    def __init__(self, cloud, folder):
        Guest.number += 1
        self.cloud = cloud
        self.host = cloud.hosts[0]
        self.folder = folder
        self.uuid = uuid_of(Guest.number)
        name = "cgcs.heartbeat.%s.sock" % self.uuid
        self.port = VirtioPort(os.path.join(self.host.guests.folder, name), str(folder / "device"))
        self.client = None
        assert cloud.client.create(self.uuid, self.host.name)[0] == 200
        assert cloud.client.set(self.uuid, self.host.name, "enabled")[0] == 200

    def start(self, **keys):
        self.client = GuestProcess(self.folder, self.port.device, HB_INTERVAL=INTERVAL_MS, VOTE=1, **keys)
        self.await_status("enabled")
        return self

    def stop(self):
        if self.client is not None:
            self.client.stop()
        self.port.close()
        self.cloud.client.delete(self.uuid)

    def await_status(self, expected):
        wait_for(lambda: self.status() == expected, "the VIM is told that it is " + expected, 20)

    def status(self):
        events = self.cloud.vim.events("service", self.uuid)
        return events[-1]["body"]["event-data"]["services"][0]["status"] if events else None

    def alarms(self):
        events = self.cloud.vim.events("alarm", self.uuid)
        services = [event["body"]["event-data"]["services"][0] for event in events]
        return [(service["state"], service["repair-action"]) for service in services]

    def ask(self, word, event):
        """Vote or notify; returns what the VIM is told: (response, reason)."""
        asked = len(self.cloud.vim.events("action", self.uuid))
        assert self.cloud.client.ask(word, self.uuid, self.host.name, event)[0] == 200
        wait_for(lambda: len(self.cloud.vim.events("action", self.uuid)) > asked, "the outcome", 20)
        data = self.cloud.vim.events("action", self.uuid)[-1]["body"]["event-data"]
        assert data["action"] == event
        return data["guest-response"], data["reason"]

    def row(self):
        return self.host.server.dump("guest")[self.uuid]


@pytest.fixture
def guest(cloud, tmp_path):
    one = Guest(cloud, tmp_path)
    yield one
    one.stop()
    assert "Traceback" not in one.client.log()


def test_a_client_that_is_stopped_is_lost_and_comes_back_by_itself(guest):
    guest.start()
    assert guest.row()["action"] == "reboot"
    guest.client.signal(signal.SIGSTOP)
    wait_for(guest.alarms, "the alarm")
    guest.await_status("disabled")
    assert guest.alarms() == [("failed", "reboot")]
    guest.client.signal(signal.SIGCONT)
    guest.await_status("enabled")
    assert guest.alarms() == [("failed", "reboot")]


def test_a_client_that_is_ended_says_so_and_that_is_no_loss(guest):
    guest.start()
    guest.client.signal(signal.SIGTERM)
    assert guest.client.popen.wait(60) == 0
    guest.await_status("disabled")
    assert guest.alarms() == []


def test_a_killed_guestserver_is_forgiven_and_gets_no_init_again(guest, cloud):
    guest.start()
    guest.host.server.kill()
    links, killed_at = guest.port.connections, time.monotonic()
    cloud.start_server(guest.host)
    wait_for(lambda: guest.port.connections > links, "the new one connects")
    wait_for(lambda: guest.row().get("heartbeating") == "enabled", "it heartbeats", 2.0)
    away = time.monotonic() - killed_at
    wait_for(lambda: "the host hung up" in guest.client.log(), "the client has noticed")
    # A machine that is busy starts it later than the guest's patience lasts, which is scaled down here.
    assert guest.client.log().count("acknowledged") == 1 or away > GUESTS_PATIENCE - INTERVAL_MS / 1000
    assert guest.alarms() == [] and guest.status() == "enabled"


def test_a_vote_is_rejected_by_a_script_with_its_reason(guest):
    text = '[ "$1 $2" = "revocable reboot" ] || exit 0\necho \'disk "a" is busy\'\necho more\nexit 1'
    guest.start(EVENT_NOTIFICATION_SCRIPT=write_script(guest.folder / "event", text))
    assert guest.ask("vote", "reboot") == ("reject", 'disk "a" is busy')
    assert guest.ask("vote", "stop") == ("allow", "")
    assert guest.ask("notify", "reboot") == ("proceed", "")


def test_heartbeats_go_on_while_a_script_is_slow_or_hangs(guest):
    text = '[ "$1" = revocable ] && sleep 600\nsleep 0.7\necho done'
    guest.start(EVENT_NOTIFICATION_SCRIPT=write_script(guest.folder / "event", text))
    misses = guest.row()["misses"]
    assert guest.ask("notify", "resize_begin") == ("proceed", "done")
    assert guest.ask("vote", "resize_begin") == ("allow", "no answer in time from script")
    assert guest.row()["misses"] == misses
    assert guest.alarms() == []


def test_a_pause_that_was_announced_is_no_loss(guest):
    guest.start(EVENT_NOTIFICATION_SCRIPT=write_script(guest.folder / "event", "exit 0"))
    assert guest.ask("notify", "pause") == ("proceed", "")
    guest.client.signal(signal.SIGSTOP)
    guest.await_status("disabled")
    guest.client.signal(signal.SIGCONT)
    guest.await_status("enabled")
    assert guest.alarms() == []


def test_an_ill_guest_is_told_with_its_action_and_may_be_well_again(guest):
    ill = guest.folder / "ill"
    script = write_script(guest.folder / "health", "[ -e %s ] || exit 0\necho no memory\nexit 1" % ill)
    guest.start(HEALTH_CHECK_SCRIPT=script, HEALTH_CHECK_INTERVAL=0.05, CORRECTIVE_ACTION="stop")
    for count in (1, 2):
        ill.touch()
        wait_for(lambda count=count: len(guest.alarms()) >= count, "the alarm")
        wait_for(lambda: "corrective action stop: no memory" in guest.client.log(), "the client knows")
        ill.unlink()
        wait_for(lambda count=count: guest.client.log().count("is healthy") >= count, "it is well")
    assert set(guest.alarms()) == {("unhealthy", "stop")}
    assert guest.status() == "enabled"


def test_a_local_process_rejects_and_is_missed_when_it_is_killed(guest):
    guest.start()
    process = subprocess.Popen([sys.executable, str(EXAMPLE), guest.client.socket])
    try:
        wait_for(
            lambda: (
                "example (pid %d, uid %d) is registered" % (process.pid, os.geteuid()) in guest.client.log()
            ),
            "it is registered",
        )
        assert guest.ask("vote", "stop") == ("reject", "process example: a backup is running")
    finally:
        process.kill()
        process.wait()
    wait_for(guest.alarms, "the alarm")
    assert guest.alarms()[0] == ("unhealthy", "log")
    assert guest.ask("vote", "stop") == ("allow", "")
