"""Two guestAgents at once, and a key that is changed under real daemons."""

from __future__ import annotations

import os
import signal
import time

import pytest

from guestmtce.lab.cluster import START_WAIT, Cluster, Daemon, wait_for
from guestmtce.lab.pace import within
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import Vim

SECOND = "127.0.0.100"
AUDIT = 0.2  # s
SERVER = ["client.hbs_pulse_period=50", "timers.guest_patience=0.5", "security.agents=" + SECOND]
AGENT = ["timers.audit_first=0.1", "timers.audit_period=%g" % AUDIT, "timers.mtc_ask_period=0.3"]


@pytest.fixture
def cluster():
    with Cluster(1, 1, 100, SERVER, AGENT, ["--scale", "0.1", "--secs", "1"]) as made:
        made.provision()
        made.await_heartbeats()
        yield made


@pytest.fixture
def second_vim(cluster):
    """Of the other side of a split: it says that reporting is disabled."""
    host, one = cluster.hosts[0], Vim()
    one.hosts, one.instances = {host.uuid: True}, {host.uuid: [(cluster.uuids[0], host.name, False)]}
    one.start()
    yield one
    one.stop()


def start_second(cluster, vim):
    host = cluster.hosts[0]
    http, command, event = free_ports(3)
    arguments = ["--bind", SECOND, "--http-port", str(http), "--vim-url", vim.url, "--mtc-address", SECOND]
    arguments += ["--rx-port", str(cluster.agent_port), "--server-port", str(cluster.server_port)]
    arguments += ["--mtc-cmd-port", str(command), "--mtc-event-port", str(event)]
    arguments += ["--set", "agent.hosts=%s %s %s" % host.record]
    arguments += [word for setting in AGENT for word in ("--set", setting)]
    daemon = Daemon("guestAgent", "guestmtce.agent.main", os.path.join(cluster.folder, "second"), arguments)
    cluster._processes.append(daemon)
    wait_for(lambda: "started, pid" in daemon.log(), "the second agent serves", START_WAIT)
    return daemon


def reporting(cluster):
    return cluster.hosts[0].server.dump("guest")[cluster.uuids[0]]["reporting"]


def not_followed(cluster):
    return int(cluster.hosts[0].server.health()["other-agents"].split()[1])


def test_a_second_agent_changes_nothing_until_the_first_one_stops(cluster, second_vim):
    """Before, both turned the guest's reporting on and off, an audit each."""
    start_second(cluster, second_vim)
    before = not_followed(cluster)
    seen = set()
    wait_for(
        lambda: seen.add(reporting(cluster)) or not_followed(cluster) > before + 5, "it speaks", step=0.02
    )
    assert seen == {"enabled"}
    assert cluster.hosts[0].server.log().count("is not obeyed") == 1
    start = time.monotonic()
    cluster.agent.stop()
    wait_for(lambda: reporting(cluster) == "disabled", "the second is followed", step=0.02)
    assert within(10, time.monotonic() - start)  # it said goodbye; its silence would have lasted 20 s
    assert "guestAgent at 127.0.0.1 stops" in cluster.hosts[0].server.log()


def write_key(cluster, name, text):
    path = os.path.join(cluster.folder, name)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    return path


def refused(server):
    words = server.health()["datagrams"].split()
    return int(words[words.index("refused") + 1])


@pytest.mark.ci
def test_a_key_is_changed_step_by_step_and_no_datagram_is_refused():
    """The procedure of docs/install.md."""
    cluster = Cluster(1, 1, 100, SERVER, AGENT, ["--scale", "0.1", "--secs", "1"])
    key, old = write_key(cluster, "key", "the key of before"), write_key(cluster, "old", "the key of after!")
    words = ["security.key_file=" + key, "security.old_key_file=" + old]
    cluster._server_settings, cluster._agent_settings = SERVER + words, AGENT + words
    with cluster:
        cluster.provision()
        cluster.await_heartbeats()
        server, agent = cluster.hosts[0].server, cluster.agent
        before = refused(server)
        for number, (first, second) in enumerate([("the key of after!", "the key of before")] * 2):
            if number:
                second = first  # the old one is worth nothing
            write_key(cluster, "key", first)
            write_key(cluster, "old", second)
            for daemon in (server, agent):
                daemon.signal(signal.SIGHUP)
                wait_for(lambda one=daemon, n=number: one.log().count("was changed") == n + 1, "it is taken")
                start = time.monotonic()
                wait_for(lambda start=start: time.monotonic() - start > 3 * AUDIT, "audits", step=AUDIT)
                assert cluster.client.set(cluster.uuids[0], cluster.hosts[0].name, "enabled")[0] == 200
        wait_for(lambda: "unconfirmed 0" in agent.health()["commands-out"], "all is confirmed")
        assert refused(server) == before
        assert "not sealed" not in server.log() + agent.log()
        assert "the seal is wrong" not in server.log() + agent.log()
