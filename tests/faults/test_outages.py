"""What an outage, a burst or a stop of each part must not cost: the ones that are easy to name."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, wait_for
from guestmtce.lab.guest import uuid_of

pytestmark = pytest.mark.ci  # whole daemons, and many of them

FAST = [
    "client.hbs_pulse_period=50",
    "timers.guest_patience=0.5",
    "timers.stopped_grace=0.4",
    "timers.state_period=0.02",
]
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]


def cloud(guests, interval_ms=100, server=()):
    return Cluster(guests, 1, interval_ms, [*FAST, *server], AGENT, ["--scale", "0.1", "--secs", "1"])


def ready(cluster):
    cluster.provision()
    cluster.await_heartbeats(30)
    wait_for(lambda: "pending 0" in cluster.agent.health()["events"], "the VIM has heard all", 30)
    host = cluster.hosts[0]
    cluster.vim.hosts = {host.uuid: True}
    cluster.vim.instances = {host.uuid: [(uuid, host.name, True) for uuid in cluster.uuids]}
    cluster.vim.record.clear()


def alarmed(cluster):
    return [event["body"]["uuid"] for event in cluster.vim.events("alarm")]


OUTAGES = [1.0, pytest.param(60.0, marks=pytest.mark.full)]


@pytest.mark.parametrize("seconds", OUTAGES)
def test_failures_while_the_vim_is_down_are_told_when_it_returns_once_each(seconds):
    with cloud(50) as cluster:
        ready(cluster)
        cluster.vim.stop()
        back_at = time.monotonic() + seconds
        cluster.hosts[0].guests.say("all", "hang")
        wait_for(lambda: "pending 100" in cluster.agent.health()["events"], "alarms and states wait", 20)
        wait_for(lambda: time.monotonic() >= back_at, "the outage is over", seconds + 1)
        cluster.vim.start()
        # Its back-off may just have begun: at most 10 s, but never beyond what it is by then.
        wait_for(lambda: len(alarmed(cluster)) >= 50, "all alarms", 11)
        took = max(event["at"] for event in cluster.vim.events("alarm")) - back_at
        wait_for(lambda: "pending 0" in cluster.agent.health()["events"], "all told", 10)
        assert sorted(alarmed(cluster)) == sorted(cluster.uuids)
        print("\nVIM down for %g s: 50 of 50 alarms, the last %.2f s after its return" % (seconds, took))
        assert took < 5


STATES_BETWEEN = 6


@pytest.mark.parametrize(
    ("delay", "guests"),
    [pytest.param(0.05, 30, marks=pytest.mark.ci), pytest.param(1.0, 100, marks=pytest.mark.full)],
)
def test_a_slow_vim_hears_all_alarms_before_any_state(delay, guests):
    with cloud(guests) as cluster:
        ready(cluster)
        cluster.vim.delay = delay
        cluster.hosts[0].guests.say("all", "hang")
        events = cluster.vim.events
        wait_for(lambda: len(events("alarm")) >= guests, "all alarms", 20 + 2 * guests * delay, step=0.1)
        wait_for(lambda: len(events("service")) >= guests, "all states", 20 + 2 * guests * delay, step=0.1)
        assert sorted(alarmed(cluster)) == sorted(cluster.uuids)
        for uuid in cluster.uuids:
            order = [event["body"]["event-type"] for event in events(uuid=uuid)]
            assert order == ["alarm", "service"]
        # A state may go when no alarm has come yet: guests are not lost at the same moment.
        kinds = [event["body"]["event-type"] for event in events()]
        assert kinds[: guests + STATES_BETWEEN].count("alarm") == guests


def test_an_agent_that_restarts_while_guests_fail_tells_all_of_them():
    with cloud(10) as cluster:
        ready(cluster)
        cluster.agent.kill()
        cluster.hosts[0].guests.say("all", "hang")
        wait_for(
            lambda: all("loss" in row["pending"] for row in cluster.hosts[0].server.dump("guest").values()),
            "all are lost, and nobody knows",
        )
        cluster.start_agent()
        wait_for(lambda: len(alarmed(cluster)) >= 10, "all alarms", 15)
        wait_for(
            lambda: all(
                row["pending"] == "nothing" for row in cluster.hosts[0].server.dump("guest").values()
            ),
            "all is confirmed",
        )
        actions = {
            e["body"]["event-data"]["services"][0]["repair-action"] for e in cluster.vim.events("alarm")
        }
        assert sorted(alarmed(cluster)) == sorted(cluster.uuids)
        assert actions == {"reboot"}


def test_a_guest_server_that_dies_with_an_untold_failure_tells_it_after_its_restart():
    with cloud(4) as cluster:
        ready(cluster)
        host = cluster.hosts[0]
        cluster.agent.kill()
        host.guests.say(1, "hang")
        host.guests.say(2, "hang")
        wait_for(lambda: "loss" in host.server.dump("guest")[uuid_of(2)]["pending"], "lost")
        wait_for(lambda: "loss" in host.server.dump("guest")[uuid_of(1)]["pending"], "lost")
        host.server.kill()
        host.guests.say(2, "healthy")  # this one is over before anybody could be told
        cluster.start_server(host)
        cluster.start_agent()
        wait_for(lambda: uuid_of(1) in alarmed(cluster), "the open failure")
        wait_for(lambda: len(cluster.heartbeating()) == 3, "the others heartbeat")
        assert alarmed(cluster) == [uuid_of(1)]


def test_a_burst_of_sockets_is_connected_at_once():
    with cloud(1) as cluster:
        cluster.provision()
        folder = cluster.hosts[0].guests.folder
        listeners, began = [], time.monotonic()
        for number in range(1000, 1200):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(os.path.join(folder, "cgcs.heartbeat.%s.sock" % uuid_of(number)))
            listener.listen(1)
            listeners.append(listener)
        made = time.monotonic() - began

        def connected():
            rows = cluster.hosts[0].server.dump("guest").values()
            return sum(row["connection"] == "connected" for row in rows) == 201

        wait_for(connected, "all connected", 10.0, step=0.05)
        took = time.monotonic() - began - made
        print("\n200 sockets made in %.0f ms, all connected %.2f s later" % (made * 1000, took))
        for listener in listeners:
            listener.close()


@pytest.mark.ci
def test_a_thousand_instances_on_one_host():
    with cloud(1) as cluster:
        cluster.provision()
        host = cluster.hosts[0]
        for number in range(2, 1001):
            assert cluster.client.create(uuid_of(number), host.name) == (200, {"status": "pass"})
            assert cluster.client.set(uuid_of(number), host.name, "enabled")[0] == 200
        rows = wait_for(
            lambda: [r for r in [host.server.dump("guest")] if len(r) == 1000], "the server knows all"
        )[0]
        assert {row["reporting"] for row in rows.values()} == {"enabled"}
        assert len(cluster.agent.dump("instance")) == 1000


STOPS = [pytest.param(0.8, marks=pytest.mark.ci), pytest.param(10.0, marks=pytest.mark.full)]


@pytest.mark.parametrize("seconds", STOPS)
def test_a_stopped_daemon_is_nobodys_failure(seconds):
    with cloud(6) as cluster:
        ready(cluster)
        host = cluster.hosts[0]
        inits = {uuid: facts["inits"] for uuid, facts in host.guests.status().items()}
        master = host.server.popen.pid
        children = [child.pid for child in cluster.children().values()]

        def stop(pids):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            until = time.monotonic() + seconds
            wait_for(lambda: time.monotonic() >= until, "time passes", seconds + 1)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        stop([master])
        for child in children:
            stop([child])
        stop([master, int(host.server.health()["spawner"].split()[2]), *children])
        # Guests that were not challenged for longer than their patience introduce themselves again.
        wait_for(lambda: len(cluster.heartbeating()) == 6, "all heartbeat", 10)
        now = time.monotonic()
        wait_for(
            lambda: all(f["last_beat"] > now for f in host.guests.status().values()), "all are challenged"
        )
        assert alarmed(cluster) == []
        assert sum(int(row["losses"]) for row in host.server.dump("guest").values()) == 0
        assert {uuid: facts["links"] for uuid, facts in host.guests.status().items()} == dict.fromkeys(
            inits, 1
        )


def test_a_clock_that_jumps_is_nobodys_failure():
    """Only monotonic time is used: no module but the log's own asks for the time of day."""
    import guestmtce

    root = os.path.dirname(guestmtce.__file__)
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    text = file.read()
                assert "time.time(" not in text and "datetime" not in text, name


@pytest.mark.parametrize("key", [b"", b"a key that both sides share"])
def test_strangers_are_not_believed(key):
    """Commands and events from nowhere: counted, and without effect, with a key and without."""
    settings = []
    with cloud(2) as cluster:
        if key:
            path = os.path.join(cluster.folder, "key")
            with open(path, "wb") as file:
                file.write(key)
            os.chmod(path, 0o600)
            settings = ["security.key_file=" + path]
            cluster._server_settings = cluster._server_settings + settings
            cluster._agent_settings = cluster._agent_settings + settings
            cluster.hosts[0].server.kill()
            cluster.agent.kill()
            cluster.start_server(cluster.hosts[0])
            cluster.start_agent()
        ready(cluster)
        from guestmtce.wire import datagram

        delete = datagram.build_command(datagram.DEL_INST, "x", datagram.DeleteInstance(uuid_of(1)))
        loss = datagram.build_event(datagram.LOSS, datagram.Loss("compute-0", uuid_of(1)))
        stranger = AGENT_ADDRESS if key else "127.0.0.99"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.bind((stranger, 0))
            port.sendto(delete, (cluster.hosts[0].address, cluster.server_port))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.bind((cluster.hosts[0].address if key else "127.0.0.99", 0))
            port.sendto(loss, (AGENT_ADDRESS, cluster.agent_port))
        server, agent = cluster.hosts[0].server, cluster.agent
        wait_for(lambda: "refused 1" in server.health()["datagrams"], "the command is refused")
        counter = "datagrams" if key else "wrong-address-events"
        wait_for(lambda: int(_refused(agent, counter)) == 1, "the event is refused")
        assert len(server.dump("guest")) == 2
        cluster.hosts[0].guests.say(2, "hang")
        wait_for(lambda: alarmed(cluster), "a true failure")
        assert alarmed(cluster) == [uuid_of(2)]


def _refused(agent, counter):
    lines = agent._read_report(signal.SIGUSR1, "guestAgent.info")
    if counter == "wrong-address-events":
        return [line for line in lines if line.startswith("wrong-address-events")][0].split()[1]
    line = [line for line in lines if line.startswith("datagrams of guestServers")][0].split()
    return line[line.index("refused") + 1]


def test_a_child_that_is_stuck_is_replaced_and_its_guest_goes_on():
    with cloud(3, server=["timers.child_patience=0.5"]) as cluster:
        ready(cluster)
        host, uuid = cluster.hosts[0], cluster.uuids[1]
        os.kill(cluster.children()[uuid].pid, signal.SIGSTOP)
        wait_for(lambda: host.guests.status()[uuid]["links"] == 2, "it is replaced", 20)
        now = time.monotonic()
        wait_for(lambda: host.guests.status()[uuid]["last_beat"] > now, "its guest is challenged")
        assert "stuck 1" in host.server.health()["broken-rules"]
        assert alarmed(cluster) == []
        links = {facts["links"] for one, facts in host.guests.status().items() if one != uuid}
        assert links == {1}
