"""The Debian packages on a system that boots: installed, started, stopped, rotated, upgraded, removed.

The tests of this file are one story for each suite, in this order.
"""

from __future__ import annotations

import re
import time

import pytest
from installed import CHANNELS, GUESTS, NEXT, OCF, WAIT, spread
from tree import POLL

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.virtio_port import VirtioPort
from guestmtce.server.settings import ServerSettings

TERM_LIMIT = 2.0  # s
UPGRADE_LIMIT = 2.0  # s without heartbeats beyond the interval between two
INTERVAL = 1.0  # s
STATUS_OF_STOPPED = 3


def test_guest_server_runs_at_once_and_after_a_reboot_and_guest_agent_when_it_is_told_to(place):
    server, agent, tree = place.server, place.agent, place.tree
    for booted in (0.0, None):
        if booted is None:
            booted = tree.reboot()
        wait_for(lambda: server.is_active() == "active", "guestServer is active", WAIT, POLL)
        assert server.is_enabled() == "enabled"
        assert server.found() == [server.pid]
        assert (agent.is_enabled(), agent.is_active(), agent.found()) == ("disabled", "inactive", [])
    for word, then in (("enable", "enabled"), ("disable", "disabled")):
        tree.run("systemctl %s guestAgent" % word)
        assert agent.is_enabled() == then
    tree.run("systemctl start guestAgent")
    assert agent.found() == [agent.pid]
    assert agent.is_active() == "active"
    print("\nbooted in %.1f s" % booted)


def test_guests_heartbeat_and_one_that_hangs_is_reported(cloud):
    uuid = cloud.uuids[0]
    children = ["guestServer: " + one for one in cloud.uuids]
    assert cloud.server.titles() == ["guestServer", *children, "guestServer: spawner"]
    assert cloud.server.found() == [cloud.server.pid]
    user = "70000-82287" if ServerSettings().child_uids else "nobody"  # what the package has reserved
    confined = cloud.server.health()["confinement"]
    assert confined == "confinement user %s landlock yes seccomp yes rlimits yes oom yes" % user
    cloud.await_beats()
    assert cloud.alarms() == []
    cloud.guests.say(1, "hang")
    began = time.monotonic()
    wait_for(cloud.alarms, "the alarm", WAIT, POLL)
    print("\nalarm after %.2f s" % (time.monotonic() - began))
    assert {event["body"]["uuid"] for event in cloud.alarms()} == {uuid}
    cloud.guests.say(1, "healthy")
    cloud.await_heartbeats()


def test_the_installed_client_heartbeats(cloud):
    tree, uuid, device = cloud.tree, uuid_of(GUESTS + 1), "/run/guest-port"
    channel = "%s/cgcs.heartbeat.%s.sock" % (CHANNELS, uuid)
    assert tree.run("systemctl is-enabled guestClient").strip() == "enabled"

    def heartbeats():
        return cloud.server.dump("guest").get(uuid, {}).get("heartbeating") == "enabled"

    with cloud.instance(uuid), VirtioPort(tree.path(channel), tree.path(device)):
        wait_for(lambda: tree.exists(device), "guestServer has connected", WAIT, POLL)
        tree.run("/usr/local/bin/guestClient --device %s --pid-file /run/guestClient.pid" % device)
        wait_for(heartbeats, "the client heartbeats", WAIT, POLL)
        tree.run("kill $(cat /run/guestClient.pid)")
    assert cloud.alarms() == []


def test_the_words_of_service_and_systemctl(cloud):
    server, agent, tree = cloud.server, cloud.agent, cloud.tree
    for daemon in (server, agent):
        assert tree.status("service %s status" % daemon.name) == 0
        assert tree.status("/etc/init.d/%s status" % daemon.name) == 0
        pid = daemon.pid
        tree.run("systemctl reload " + daemon.name)
        wait_for(
            lambda one=daemon: "reloaded" in tree.read("/var/log/%s.log" % one.name), "reloaded", WAIT, POLL
        )
        assert daemon.pid == pid
        tree.run("/etc/init.d/%s restart" % daemon.name)
        assert (daemon.found(), daemon.is_active()) == ([daemon.pid], "active")
        assert daemon.pid != pid
        began = time.monotonic()
        daemon.signal("TERM")
        wait_for(lambda one=daemon: one.is_active() == "inactive", "it has ended", TERM_LIMIT, POLL)
        print("\n%s ended %.2f s after TERM" % (daemon.name, time.monotonic() - began))
        assert (daemon.titles(), daemon.pid) == ([], 0)
        assert tree.status("service %s status" % daemon.name) == STATUS_OF_STOPPED
        assert tree.status("/etc/init.d/%s status" % daemon.name) == STATUS_OF_STOPPED
        assert tree.status("/etc/init.d/%s condrestart" % daemon.name) == 0
        assert daemon.found() == []
        tree.run("/etc/init.d/%s start" % daemon.name)
        assert (daemon.found(), daemon.is_active()) == ([daemon.pid], "active")


def restarted(daemon, pid):
    """Whether another process serves in place of this one."""
    return daemon.is_active() == "active" and daemon.found() == [daemon.pid] != [pid]


def test_a_killed_main_takes_its_children_along_and_is_restarted(cloud):
    server, agent = cloud.server, cloud.agent
    with cloud.silences() as silences:
        pid = server.pid
        server.signal("KILL")
        wait_for(lambda: restarted(server, pid), "systemd has started it again", WAIT, POLL)
        cloud.await_beats()
    assert cloud.alarms() == []
    pid = agent.pid
    agent.signal("KILL")
    wait_for(lambda: restarted(agent, pid), "systemd has started it again", WAIT, POLL)
    cloud.await_heartbeats()
    assert cloud.alarms() == []
    print("\nno answers for %s" % spread(silences))


def test_guest_server_waits_until_its_host_is_ready(cloud):
    tree, server = cloud.tree, cloud.server
    tree.run("rm /run/.goenabled && systemctl restart guestServer")
    assert (server.is_active(), server.titles()) == ("active", ["guestServer"])
    tree.run("touch /run/.goenabled")
    cloud.await_beats()
    assert cloud.alarms() == []


def test_guest_server_serves_a_host_without_a_platform(cloud):
    tree, folder = cloud.tree, "/etc/systemd/system/guestServer.service.d"
    tree.run("rm /run/.goenabled && mkdir -p " + folder)
    command = "ExecStart=/usr/local/bin/guestServer --foreground --no-wait"
    tree.write(folder + "/override.conf", "[Service]\nExecStart=\n%s\n" % command)
    tree.run("systemctl daemon-reload && systemctl restart guestServer")
    cloud.await_beats()
    tree.run("rm -r %s && touch /run/.goenabled" % folder)
    tree.run("systemctl daemon-reload && systemctl restart guestServer")
    cloud.await_beats()
    assert cloud.alarms() == []


def test_guest_agent_is_told_of_its_host_where_there_is_no_mtcagent(cloud):
    tree, ini = cloud.tree, "/etc/mtc/guestAgent.ini"
    before = tree.read(ini)
    with cloud.without_mtc():
        # As docs/install.md has it.
        uuid = "$(cat /proc/sys/kernel/random/uuid)"
        tree.run('sed -i "s|^;*hosts = .*|hosts = $(hostname) %s 127.0.0.1|" %s' % (uuid, ini))
        tree.run("systemctl restart guestAgent")
        cloud.provision()
        cloud.guests.say(1, "hang")
        wait_for(cloud.alarms, "the alarm", WAIT, POLL)
        cloud.guests.say(1, "healthy")
        cloud.await_heartbeats()
        tree.write(ini, before)
        tree.run("systemctl restart guestAgent")
    cloud.await_heartbeats()


def test_a_second_start_leaves_the_first_alone(cloud):
    pid = cloud.server.pid
    said = cloud.tree.run("/usr/local/bin/guestServer")
    assert said.strip() == "guestServer is already running, pid %d" % pid
    assert cloud.server.found() == [pid]


def test_logs_rotate_and_go_on(cloud):
    tree = cloud.tree
    for daemon in (cloud.server, cloud.agent):
        log = "/var/log/%s.log" % daemon.name
        said = re.compile(r"%s(\[\d+\])?: INFO " % daemon.name)  # from the journal, or from the daemon
        assert said.search(tree.read(log))
        tree.run("logrotate -f /etc/logrotate.d/" + daemon.name)
        assert said.search(tree.read(log + ".1"))
        daemon.signal("HUP")
        wait_for(lambda one=log: "reloaded" in tree.read(one), "the new log is written to", WAIT, POLL)
        assert tree.run("stat -c '%a %U %G' " + log).strip() == "640 root root"


@pytest.mark.parametrize("pid_file", ["syslogd.pid", "rsyslogd.pid"])
def test_logs_rotate_on_a_host_whose_syslog_daemon_is_no_unit(cloud, pid_file):
    tree, log = cloud.tree, "/var/log/guestServer.log"
    tree.run(
        "pidof rsyslogd >/run/%s && mkdir -p /root/no && ln -sf /bin/false /root/no/systemctl" % pid_file
    )
    tree.run("PATH=/root/no:$PATH logrotate -f /etc/logrotate.d/guestServer")
    tree.run("rm -r /run/%s /root/no" % pid_file)
    cloud.server.signal("HUP")
    wait_for(lambda: "reloaded" in tree.read(log), "the new log is written to", WAIT, POLL)


def test_an_upgrade_costs_no_alarm(cloud, debs):
    tree, changed = cloud.tree, "/etc/mtc/guestServer.ini"
    tree.write(changed, tree.read(changed).replace(";debug_level = 0", "debug_level = 1"))
    pids = cloud.server.pid, cloud.agent.pid
    cloud.offer(debs, NEXT)
    with cloud.silences() as silences:
        cloud.apt("install mtce-guest-server mtce-guest-agent mtce-guest-client")
        cloud.await_beats()
    assert (cloud.server.pid != pids[0], cloud.agent.pid != pids[1]) == (True, True)
    assert tree.run("dpkg-query -W -f '${Version}' mtce-guest-server") == NEXT
    assert max(silences) < UPGRADE_LIMIT + INTERVAL
    cloud.await_heartbeats()
    assert cloud.alarms() == []
    assert "debug_level = 1" in tree.read(changed)
    print("\nno answers for %s during the upgrade" % spread(silences))


def leave_units(cloud):
    """As the service manager starts guestAgent, and as guestServer is started without systemd."""
    tree = cloud.tree
    tree.run("systemctl stop guestServer guestAgent")
    tree.run("SYSTEMCTL_SKIP_REDIRECT=1 /etc/init.d/guestServer start && %s start" % OCF)
    assert (cloud.server.is_active(), cloud.agent.is_active()) == ("inactive", "inactive")


def test_a_downgrade_works_and_restarts_what_runs_outside_its_unit(cloud, version):
    tree, daemons = cloud.tree, (cloud.server, cloud.agent)
    leave_units(cloud)
    pids = [daemon.pid for daemon in daemons]
    names = ["python3-guestmtce", "mtce-guest-server", "mtce-guest-agent", "mtce-guest-client"]
    cloud.apt("install --allow-downgrades " + " ".join("%s=%s" % (name, version) for name in names))
    assert tree.run("dpkg-query -W -f '${Version}' mtce-guest-server") == version
    for daemon, pid in zip(daemons, pids):
        assert daemon.found() == [daemon.pid] != [pid]
    assert cloud.agent.is_active() == "inactive"
    tree.run(OCF + " monitor")
    cloud.await_heartbeats()
    cloud.await_beats()
    assert cloud.alarms() == []
    assert "debug_level = 1" in tree.read("/etc/mtc/guestServer.ini")
    for daemon in daemons:
        tree.run("/etc/init.d/%s stop" % daemon.name)


def test_a_damaged_client_can_be_removed(cloud):
    folder = "/usr/local/lib/guest-client"
    cloud.tree.run("mv %s %s.away" % (folder, folder))
    cloud.tree.run("sh /var/lib/dpkg/info/mtce-guest-client.prerm upgrade")
    cloud.tree.run("mv %s.away %s" % (folder, folder))


def test_removed_and_purged_nothing_is_left(cloud):
    cloud.server.dump("guest")
    leave_units(cloud)
    cloud.apt("remove mtce-guest-server mtce-guest-agent mtce-guest-client python3-guestmtce")
    assert cloud.server.titles() + cloud.agent.titles() == []
    assert cloud.tree.exists("/etc/mtc/guestServer.ini")
    assert cloud.tree.status("/etc/init.d/guestServer stop") == 0
    cloud.apt("purge mtce-guest-server mtce-guest-agent mtce-guest-client python3-guestmtce")
    assert cloud.of_packages() == []
