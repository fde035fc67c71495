"""The spine at life speed: figures are printed (pytest -s), their bounds are asserted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from guestmtce.lab.cluster import Cluster, TimedOut, wait_for

AT_LIFE_SPEED = [pytest.param(15, marks=pytest.mark.ci), pytest.param(60, marks=pytest.mark.full)]


def totals(cluster):
    rows = cluster.hosts[0].server.dump("guest").values()
    return {
        name: sum(int(row[name]) for row in rows) for name in ("misses", "connections", "crashes", "late")
    }


def cpu(processes):
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def let_time_pass(seconds, broken):
    """Waits, but not on once it is clear that it was in vain."""
    try:
        wait_for(broken, "trouble", seconds, step=0.5)
    except TimedOut:
        return
    raise AssertionError("trouble")


@pytest.mark.parametrize("seconds", AT_LIFE_SPEED)
def test_a_hundred_healthy_guests(seconds):
    with Cluster(100) as cluster:
        cluster.provision()
        cluster.await_heartbeats(30)
        server = psutil.Process(cluster.hosts[0].server.popen.pid)
        children = list(cluster.children().values())
        before, cpu_master, cpu_children = totals(cluster), cpu([server]), cpu(children)
        let_time_pass(seconds, lambda: totals(cluster)["misses"] > before["misses"])
        after = totals(cluster)
        master, all_children = cpu([server]) - cpu_master, cpu(children) - cpu_children
        late = after["late"] - before["late"]
        assert after == {**before, "late": after["late"]}, "how late this host was is no guest's fault"
        assert after["connections"] == 100
        print(
            "\n100 guests, %d s: 0 misses, 0 reconnects, %d late; CPU master %.2f %%, children %.2f %%, "
            "%.0f us a heartbeat in the child"
            % (seconds, late, 100 * master / seconds, 100 * all_children / seconds,
               1e6 * all_children / (100 * seconds))
        )  # fmt: skip
        if os.geteuid() == 0:
            uss = [child.memory_full_info().uss / 1e6 for child in children]
            print(
                "USS: child mean %.2f MB max %.2f, master %.1f MB, all children %.1f MB"
                % (sum(uss) / len(uss), max(uss), server.memory_full_info().uss / 1e6, sum(uss))
            )


@pytest.mark.ci
def test_a_hundred_megabytes_of_garbage_a_half_and_a_stopped_guest():
    with Cluster(20) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        guests = cluster.hosts[0].guests
        guests.say(1, "flood", 100)
        guests.say(2, "half")
        guests.say(3, "hang")
        started = time.monotonic()
        status = guests.status
        wait_for(
            lambda: status()[cluster.uuids[0]].get("flood_left") == 0, "the flood is over", 300, step=0.5
        )
        rows = cluster.hosts[0].server.dump("guest")
        assert {rows[uuid]["misses"] for uuid in cluster.uuids[3:]} == {"0"}
        assert {rows[uuid]["connections"] for uuid in cluster.uuids[3:]} == {"1"}
        wait_for(lambda: {e["body"]["uuid"] for e in cluster.vim.events("alarm")} >= set(cluster.uuids[1:3]),
                 "the half and the stopped guest are lost")  # fmt: skip
        print("\n100 MB in %.0f s; the other 17 missed nothing" % (time.monotonic() - started))


def test_a_killed_child_and_a_killed_master_at_life_speed():
    with Cluster(20) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        host, uuid = cluster.hosts[0], cluster.uuids[6]
        before = host.guests.status()
        killed = time.monotonic()
        cluster.children()[uuid].kill()
        wait_for(lambda: host.guests.status()[uuid]["last_beat"] > killed, "the guest heartbeats", 1.0)
        beat = host.guests.status()[uuid]["last_beat"] - killed
        children = list(cluster.children().values())
        killed = time.monotonic()
        host.server.kill()
        _, alive = psutil.wait_procs(children, timeout=1.0)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
        started = time.monotonic()
        cluster.start_server(host)
        wait_for(
            lambda: all(f["last_beat"] > started for f in host.guests.status().values()), "all beat", 2.0
        )
        took = max(facts["last_beat"] for facts in host.guests.status().values()) - started
        after = host.guests.status()
        assert {one: f["inits"] for one, f in after.items()} == {one: f["inits"] for one, f in before.items()}
        assert {f["links"] for one, f in after.items() if one != uuid} == {2}
        assert cluster.vim.events("alarm") == []
        print("\nchild killed: beat after %.0f ms; master restarted: all beat %.2f s after its start, no init"
              % (beat * 1000, took))  # fmt: skip


# --- the demo --------------------------------------------------------------------------------------


def living(processes):
    """Those that still run; one that only waits to be reaped does not."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def folder():
    """pytest's own are too long for the path of a UNIX socket (108 bytes)."""
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield path


def start_demo(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "guestmtce.cli.main", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": folder},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run with it ignored
    )


def test_the_demo_shows_everything_and_leaves_nothing(folder):
    demo = start_demo(folder)
    printed, family = "", set()
    for line in demo.stdout:
        printed += line.decode()
        family.update(psutil.Process(demo.pid).children(recursive=True))
    assert demo.wait(60) == 0, printed
    assert "no process and no file is left" in printed
    assert len(family) > 20
    assert living(family) == []
    assert os.listdir(folder) == []


def test_an_interrupted_demo_leaves_nothing(folder):
    demo = start_demo(folder)
    for line in demo.stdout:
        if b"A guest hangs" in line:
            family = psutil.Process(demo.pid).children(recursive=True)
            assert len(family) > 20
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert living(family) == []
    assert os.listdir(folder) == []
