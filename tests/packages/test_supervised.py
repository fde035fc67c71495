"""The installed daemons under who watches them: the process monitor, the resource agent, systemd."""

from __future__ import annotations

import contextlib
import json
import re
import time
from xml.dom import minidom

import pytest
from installed import GUESTS, OCF, WAIT, spread
from pmon import Monitor, elapsed
from tree import POLL

from guestmtce.lab.cluster import wait_for

CONF = "/usr/share/starlingx/pmon.d/guestServer.conf"
SUCCESS, GENERIC, UNIMPLEMENTED, NOT_INSTALLED, NOT_RUNNING = 0, 1, 3, 5, 7
ACTION_LIMIT = 10.0  # s that the service manager gives an action
# An exposure below this is what systemd itself calls OK.
EXPOSURE_LIMIT = 4.9


def test_pmon_finds_a_dead_guest_server_and_restarts_it(cloud):
    monitor = Monitor(cloud.tree, CONF)
    assert monitor.conf["mode"] == "passive"
    monitor.step()
    assert (monitor.restarts, monitor.pid()) == (0, cloud.server.pid)
    with cloud.silences() as silences:
        cloud.server.signal("KILL")
        wait_for(lambda: not monitor.lives(), "it is dead", 1, POLL)
        took = elapsed(monitor.step)
        cloud.await_beats()
    assert monitor.restarts == 1
    assert cloud.server.found() == [monitor.pid()]
    assert cloud.alarms() == []
    print("\npmon restarted it in %.2f s; no answers for %s" % (took, spread(silences)))


def test_pmon_in_active_mode_is_answered_and_misses_a_main_loop_that_stands_still(cloud):
    tree, ini = cloud.tree, "/etc/mtc/guestServer.ini"
    assert "[pmon]" in tree.read(ini)
    example = dict(re.findall(r"(?m)^;(\w+) *= *(\w+)", tree.read(CONF)))
    assert example["mode"] == "active"
    before = tree.read(ini)
    tree.write(ini, re.sub(r"(?m)^;?port = \w+", "port = " + example["port"], before))
    tree.run("systemctl restart guestServer")
    monitor, port = Monitor(tree, CONF), int(example["port"])
    assert all(monitor.pulse(port, float(example["timeout"])) for _ in range(3))
    cloud.server.signal("STOP")
    assert not monitor.pulse(port, 1)
    cloud.server.signal("CONT")
    tree.write(ini, before)
    tree.run("systemctl restart guestServer")
    cloud.await_beats()


def test_the_resource_agent_takes_guest_agent_through_its_life(cloud):
    tree, agent = cloud.tree, cloud.agent
    tree.run("systemctl stop guestAgent")
    status = lambda word: tree.status("OCF_ROOT=/usr/lib/ocf %s %s" % (OCF, word))  # noqa: E731
    described = minidom.parseString(tree.run(OCF + " meta-data"))
    actions = {node.getAttribute("name") for node in described.getElementsByTagName("action")}
    assert actions == {"start", "stop", "monitor", "status", "validate-all", "meta-data"}
    assert [status(word) for word in ("validate-all", "monitor", "stop", "nonsense")] == [
        SUCCESS, NOT_RUNNING, SUCCESS, UNIMPLEMENTED,
    ]  # fmt: skip

    took = elapsed(lambda: tree.run(OCF + " start"))
    assert took < ACTION_LIMIT
    assert agent.found() == [agent.pid]
    pid = agent.pid
    assert [status(word) for word in ("start", "monitor", "status")] == [SUCCESS] * 3
    assert agent.pid == pid
    cloud.await_heartbeats()

    agent.signal("STOP")
    hung = elapsed(lambda: tree.run(OCF + " monitor", status=GENERIC))
    stopped = elapsed(lambda: tree.run(OCF + " stop"))  # INT, INT, INT, KILL
    assert (agent.found(), agent.pid) == ([], 0)
    assert status("monitor") == NOT_RUNNING
    tree.run(OCF + " start")
    at_once = elapsed(lambda: tree.run(OCF + " stop"))
    assert at_once < 2
    assert agent.found() == []
    tree.run("mv /usr/local/bin/guestAgent /usr/local/bin/guestAgent.away")
    assert [status(word) for word in ("validate-all", "start")] == [NOT_INSTALLED] * 2
    tree.run("mv /usr/local/bin/guestAgent.away /usr/local/bin/guestAgent")
    print("\nstart %.1f s, stop %.1f s; hung: monitor says so after %.1f s, stop takes %.1f s"
          % (took, at_once, hung, stopped))  # fmt: skip


def test_the_resource_agent_lets_a_stranger_live(cloud):
    tree = cloud.tree
    tree.run("systemctl stop guestAgent")
    tree.run("(exec sleep 300) >/dev/null 2>&1 </dev/null & echo $! >/run/guestAgent.pid")
    pid = cloud.agent.pid
    assert tree.status(OCF + " monitor") == NOT_RUNNING
    assert tree.status("/etc/init.d/guestAgent status") == 1  # dead, and its pid file is there
    assert tree.status("/etc/init.d/guestAgent reload") == NOT_RUNNING
    tree.run(OCF + " stop")
    assert tree.status("kill -0 %d" % pid) == 0
    tree.run("kill %d" % pid)
    tree.run("systemctl start guestAgent")
    assert cloud.agent.found() == [cloud.agent.pid]


@pytest.mark.parametrize("name", ["guestServer", "guestAgent"])
def test_the_units_are_sound_and_hardened(place, name):
    said = place.tree.run("systemd-analyze verify %s.service 2>&1" % name, status=None)
    assert [line for line in said.splitlines() if name in line] == []
    exposed = place.tree.run("systemd-analyze security %s.service" % name).splitlines()[-1]
    figure = float(re.findall(r"\d+\.\d+", exposed)[0])
    assert figure < EXPOSURE_LIMIT
    print("\n" + exposed)


@contextlib.contextmanager
def notified(tree, name, *changes):
    """systemd watches the daemon meanwhile by its unit with these lines changed."""
    folder = "/etc/systemd/system/%s.service.d" % name
    tree.run("mkdir -p %s" % folder)
    tree.write(folder + "/test.conf", "\n".join(["[Service]", *changes, ""]))
    tree.run("systemctl daemon-reload && systemctl restart " + name)
    try:
        yield
    finally:
        tree.run("rm -r %s && systemctl daemon-reload && systemctl restart %s" % (folder, name))


def test_systemd_itself_waits_for_the_daemons_and_notices_one_that_stands_still(cloud):
    tree = cloud.tree
    tree.run("grep -rq NOTIFY_SOCKET /usr/lib/python3/dist-packages/guestmtce/daemon")
    for daemon in (cloud.server, cloud.agent):
        with notified(tree, daemon.name, "WatchdogSec=3"):
            assert daemon.found() == [daemon.pid]
            time.sleep(4)  # s, beyond the watchdog's time
            pid = daemon.pid
            assert tree.run("systemctl show --value -p NRestarts " + daemon.name).strip() == "0"
            daemon.signal("STOP")
            wait_for(lambda one=daemon, old=pid: one.pid not in (0, old), "it was replaced", WAIT, POLL)
            wait_for(lambda one=daemon: one.is_active() == "active", "it serves", WAIT, POLL)
    cloud.await_beats()


def test_what_the_init_script_stops_is_not_restarted_by_systemd(cloud):
    server = cloud.server
    with notified(cloud.tree, server.name, "RestartSec=3"):
        server.signal("KILL")
        wait_for(lambda: server.is_active() == "activating", "systemd is about to restart it", 2, POLL)
        cloud.tree.run("/etc/init.d/guestServer stop")
        time.sleep(4)  # s, beyond RestartSec
        assert (server.titles(), server.is_active()) == ([], "inactive")
    cloud.await_beats()


def shown(tree, name, what):
    """A property of a unit."""
    return tree.run("systemctl show --value -p %s %s" % (what, name)).strip()


def test_systemd_restarts_a_daemon_that_dies_and_not_where_pmon_does(cloud):
    tree, unit = cloud.tree, "/etc/systemd/system/pmon.service"
    tree.run("mkdir -p /etc/pmon.d")  # by itself it is no pmon
    for daemon in (cloud.server, cloud.agent):
        assert shown(tree, daemon.name, "Type") == "notify"
        assert shown(tree, daemon.name, "Restart") == "on-failure"
        pid = daemon.pid
        daemon.signal("KILL")
        wait_for(lambda one=daemon, old=pid: one.pid not in (0, old), "it was replaced", WAIT, POLL)
        wait_for(lambda one=daemon: one.is_active() == "active", "it serves", WAIT, POLL)
    tree.write(unit, "[Service]\nExecStart=/bin/sleep 1000\n")
    tree.run("systemctl daemon-reload")
    assert [shown(tree, one, "Restart") for one in ("guestServer", "guestAgent")] == ["no", "no"]
    tree.run("rm %s && ln -s /dev/null %s && systemctl daemon-reload" % (unit, unit))
    assert [shown(tree, one, "Restart") for one in ("guestServer", "guestAgent")] == ["on-failure"] * 2
    tree.run("rm %s && systemctl daemon-reload" % unit)
    cloud.await_beats()


def test_systemctl_status_shows_the_guests_and_what_is_waited_for(cloud):
    tree = cloud.tree
    wait_for(lambda: shown(tree, "guestServer", "StatusText") == "3 guests: 3 ok", "the guests", WAIT, POLL)
    assert 'Status: "3 guests: 3 ok"' in tree.run("systemctl status guestServer")
    wait_for(lambda: "3 heartbeating" in shown(tree, "guestAgent", "StatusText"), "the instances", WAIT, POLL)
    tree.run("mv /run/.goenabled /run/away && systemctl restart guestServer")
    assert shown(tree, "guestServer", "StatusText") == "waiting for /var/run/.goenabled"
    tree.run("mv /run/away /run/.goenabled")
    wait_for(lambda: "3 ok" in shown(tree, "guestServer", "StatusText"), "the guests again", WAIT, POLL)
    tree.run("mv /etc/platform /etc/away && systemctl restart guestServer")
    wait_for(lambda: "3 ok" in shown(tree, "guestServer", "StatusText"), "it waited for nothing", WAIT, POLL)
    tree.run("mv /etc/away /etc/platform")
    cloud.await_beats()


def test_the_journal_has_levels_and_one_time_stamp(cloud):
    said = cloud.tree.run("journalctl -t guestServer -o json --no-pager -n 50")
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    started = [line for line in lines if "started, pid" in str(line["MESSAGE"])]
    assert started and started[-1]["PRIORITY"] == "6" and started[-1]["SYSLOG_FACILITY"] == "21"
    assert started[-1]["MESSAGE"].startswith("INFO started, pid")


def processes_shown(tree, unit):
    """What `systemctl status` lists below a unit, one line for each process."""
    said = tree.run("systemctl status --no-pager --full -n 0 " + unit, status=None)
    return [title.strip('"') for title in re.findall(r"[├└]─ *\d+ (.*)", said)]


def scopes(tree):
    """The scopes of guests' processes."""
    said = tree.run("systemctl list-units --all --plain --no-legend 'guestServer-guests-*.scope'")
    return [line.split()[0] for line in said.splitlines()]


def test_systemctl_status_lists_one_process_and_the_guests_are_in_a_scope(cloud):
    tree = cloud.tree
    guests = ["guestServer: " + one for one in cloud.uuids]
    with cloud.silences() as silences:
        tree.run("systemctl restart guestServer")
        cloud.await_beats()
    (scope,) = scopes(tree)
    assert processes_shown(tree, "guestServer") == ["guestServer"]
    assert sorted(processes_shown(tree, scope)) == [*guests, "guestServer: spawner"]
    assert shown(tree, scope, "TasksMax") == "infinity"
    assert shown(tree, scope, "PartOf") == "guestServer.service"
    assert shown(tree, scope, "OOMPolicy") in ("continue", "")  # older scopes have none, and act so
    assert cloud.alarms() == []
    print("\n%s; no answers for %s" % (tree.run("systemctl --version").split("\n")[0], spread(silences)))


def test_a_new_spawner_has_a_scope_of_its_own_and_the_guests_stay(cloud):
    tree, server = cloud.tree, cloud.server
    (before,) = scopes(tree)
    with cloud.silences() as silences:
        tree.run("kill -KILL " + server.health()["spawner"].split()[2])
        wait_for(lambda: len(scopes(tree)) == 2, "the new spawner's scope", WAIT, POLL)
        cloud.await_beats()
    assert sorted(processes_shown(tree, before)) == ["guestServer: " + one for one in cloud.uuids]
    assert processes_shown(tree, "guestServer") == ["guestServer"]
    tree.run("kill -KILL " + server.dump("guest")[cloud.uuids[0]]["pid"])
    wait_for(lambda: len(server.titles()) == GUESTS + 2, "the guest's new process", WAIT, POLL)
    cloud.await_beats()
    new = next(one for one in scopes(tree) if one != before)
    assert sorted(processes_shown(tree, new)) == ["guestServer: " + cloud.uuids[0], "guestServer: spawner"]
    assert cloud.alarms() == []
    print("\nno answers for %s" % spread(silences))


@pytest.mark.parametrize("ends", ["systemctl stop guestServer", "kill -TERM", "kill -KILL", "a lost scope"])
def test_whatever_ends_the_main_process_no_process_and_no_scope_is_left(cloud, ends):
    tree, server = cloud.tree, cloud.server
    with notified(tree, server.name, "Restart=no"):
        cloud.await_beats()
        if ends == "a lost scope":  # somebody stops it by hand: guests are served by another
            tree.run("systemctl stop " + scopes(tree)[0])
            cloud.await_beats()
            assert len(server.titles()) == GUESTS + 2
            tree.run("systemctl stop guestServer")
        else:
            began = time.monotonic()
            tree.run(ends + (" %d" % server.pid if ends.startswith("kill") else ""))
            wait_for(lambda: server.titles() == [], "all have ended", 2, POLL)
            print("\n%s took %.2f s" % (ends, time.monotonic() - began))
        wait_for(lambda: scopes(tree) == [], "its scopes have ended", WAIT, POLL)
        assert server.titles() == []
        tree.run("systemctl reset-failed guestServer || true")
    cloud.await_beats()
    assert cloud.alarms() == []


def test_the_scope_is_in_the_slice_of_the_unit(cloud):
    with notified(cloud.tree, "guestServer", "Slice=vms-heartbeat.slice"):
        cloud.await_beats()
        (scope,) = scopes(cloud.tree)
        assert shown(cloud.tree, scope, "Slice") == "vms-heartbeat.slice"
    cloud.await_beats()


def test_without_systemds_socket_all_is_as_it_was(cloud):
    tree = cloud.tree
    with notified(tree, "guestServer", "InaccessiblePaths=/run/systemd/private"):
        cloud.await_beats()
        assert scopes(tree) == []
        assert len(processes_shown(tree, "guestServer")) == GUESTS + 2
        said = tree.run("journalctl --no-pager _PID=%d" % cloud.server.pid)
        assert said.count("systemd gives them no scope: /run/systemd/private: ") == 1
    cloud.await_beats()
    assert cloud.alarms() == []
