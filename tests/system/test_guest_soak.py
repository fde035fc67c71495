"""A hundred thousand heartbeats of one guestClient, with its scripts and a local process: nothing grows."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from guest_process import GuestProcess, host, write_script
from places import SCRIPTS

from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel, guest_channel_fast
from guestmtce.wire.guest_channel import ActionResponse, ChallengeResponse, Init, InitAck

__all__ = ["host"]  # a fixture

EXAMPLE = SCRIPTS / "guest" / "process_example.py"
HEARTBEATS = [pytest.param(2000, marks=pytest.mark.ci), pytest.param(100000, marks=pytest.mark.full)]
WARM = 0.1  # of the heartbeats, before it is measured
VOTE_EVERY = 500  # heartbeats
HANG_UPS_IN = 500  # heartbeats
WARM_HANG_UPS = 10
GROWTH_MAX = 300e3  # bytes


class Measured:
    """What the process takes."""

    def __init__(self, pid):
        process = psutil.Process(pid)
        times = process.cpu_times()
        self.rss = process.memory_info().rss
        self.cpu = times.user + times.system
        self.descriptors = process.num_fds()


def introduce(host):
    init = host.hear(Init)
    host.say(InitAck(init.invocation_id))
    return init.invocation_id


def heartbeats(host, ident, numbers):
    """A challenge follows every answer; now and then there is a question."""
    for number in numbers:
        host.link.sendall(guest_channel_fast.build_challenge(number, number))
        assert host.hear(ChallengeResponse).heartbeat_response == number
        if number % VOTE_EVERY == 0:
            host.say(guest_channel.ActionNotify(ident, "stop", "revocable", 9000))
            assert host.hear(ActionResponse).vote_result == "reject"


@pytest.mark.parametrize("count", HEARTBEATS)
def test_many_heartbeats_without_growth(host, tmp_path, count):
    health = write_script(tmp_path / "health", "echo well")
    event = write_script(tmp_path / "event", "echo no; exit 1")
    keys = {"HEALTH_CHECK_SCRIPT": health, "HEALTH_CHECK_INTERVAL": 0.1, "EVENT_NOTIFICATION_SCRIPT": event}
    client = GuestProcess(tmp_path / "guest", host.path, HB_INTERVAL=1, **keys)
    ident = introduce(host.accept())
    example = subprocess.Popen([sys.executable, str(EXAMPLE), client.socket])
    try:
        wait_for(lambda: "example (pid " in client.log(), "the example is registered")
        first = int(count * WARM)
        heartbeats(host, ident, range(first))
        before = Measured(client.popen.pid)
        heartbeats(host, ident, range(first, count))
        after = Measured(client.popen.pid)
    finally:
        example.kill()
        example.wait()
        client.stop()
    print(
        "\n%d heartbeats: RSS %.2f → %.2f MB, %d → %d descriptors, %.0f us CPU a heartbeat, scripts included"
        % (count, before.rss / 1e6, after.rss / 1e6, before.descriptors, after.descriptors,
           1e6 * (after.cpu - before.cpu) / (count - first))
    )  # fmt: skip
    assert after.rss - before.rss < GROWTH_MAX
    assert abs(after.descriptors - before.descriptors) <= 2  # a script may run just now


@pytest.mark.parametrize("count", HEARTBEATS)
def test_many_hang_ups_leave_nothing_behind(host, tmp_path, count):
    client = GuestProcess(tmp_path / "guest", host.path, HB_INTERVAL=1)
    introduce(host.accept())
    for number in range(count // HANG_UPS_IN + WARM_HANG_UPS):
        if number == WARM_HANG_UPS:
            before = Measured(client.popen.pid)
        host.link.close()
        host.accept()
        host.link.sendall(guest_channel_fast.build_challenge(number, number))
        assert host.hear(ChallengeResponse).heartbeat_response == number
    after = Measured(client.popen.pid)
    client.stop()
    assert after.descriptors == before.descriptors
    assert after.rss - before.rss < GROWTH_MAX
