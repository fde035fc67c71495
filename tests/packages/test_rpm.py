"""The RPMs in a tree: installed by rpm itself, their scriptlets run, both programs started."""

from __future__ import annotations

import glob
import subprocess

import original
import pytest
from installed import OCF, WAIT, Installed
from tree import POLL, Tree

from guestmtce.lab.cluster import wait_for

SITE = "/usr/lib/python3.9/site-packages"
DEPENDENCIES = "cherrypy3 psutil pyinotify requests setproctitle"


def _scriptlet(package, name):
    said = subprocess.run(
        ["rpm", "-qp", "--queryformat", "%%{%s}" % name, package], stdout=subprocess.PIPE, check=True
    )
    return said.stdout.decode()


def _run_scriptlet(tree, package, name, argument):
    """As rpm would in the running tree: `argument` is how many of the package will be installed."""
    tree.write("/root/scriptlet", _scriptlet(package, name))
    tree.run("sh -e /root/scriptlet %d" % argument)


def _run_original(tree, daemon):
    """The original runs, as if its package had been there before ours."""
    original.put_into(tree, tree.path("/root/package"), daemon.name)
    tree.run(
        "/root/package/usr/local/bin/{0} /root/package{1}/{0}.py /run".format(daemon.name, original.SOURCES)
    )
    assert original.runs(tree, daemon.pid)


@pytest.mark.ci
def test_rpm_installs_them_and_both_programs_run(bookworm, rpms, version):
    packages = glob.glob("%s/*-%s-1.el9.noarch.rpm" % (rpms, version))
    assert len(packages) == 4
    server, agent = (
        "%s/mtce-guest-%s-%s-1.el9.noarch.rpm" % (rpms, one, version) for one in ("server", "agent")
    )
    with Tree(bookworm) as tree:
        installed = Installed(tree)
        tree.write("/usr/lib/python3/dist-packages/el.pth", SITE + "\n")  # EL's Python looks there by itself
        subprocess.run(["rpm", "--root", tree.root, "--nodeps", "-i", *packages], check=True)
        tree.boot()
        tree.run("apt-get -q -y install " + " ".join("python3-" + one for one in DEPENDENCIES.split()))
        # systemd did not run when rpm did, as in an image that is being made.
        assert (installed.server.is_enabled(), installed.agent.is_enabled()) == ("enabled", "disabled")
        assert "guestmtce:70000:12288" in tree.read("/etc/subuid").split()
        tree.run("systemctl disable guestServer")
        _run_scriptlet(tree, server, "POSTIN", 2)  # an upgrade
        assert installed.server.is_enabled() == "disabled"
        _run_scriptlet(tree, server, "POSTIN", 1)
        assert installed.server.is_enabled() == "enabled"
        wait_for(lambda: installed.server.is_active() == "active", "guestServer runs", WAIT, POLL)
        assert installed.server.found() == [installed.server.pid]
        assert installed.agent.is_enabled() == "disabled"
        tree.run("systemctl start guestAgent")
        assert installed.agent.found() == [installed.agent.pid]
        installed.open_cloud()
        try:
            installed.provision()
        finally:
            installed.close_cloud()

        pids = installed.server.pid, installed.agent.pid
        _run_scriptlet(tree, server, "POSTUN", 1)
        _run_scriptlet(tree, agent, "POSTUN", 1)
        assert (installed.server.pid, installed.agent.pid) != pids
        tree.run("systemctl stop guestAgent && %s start" % OCF)
        pids = installed.agent.found()
        _run_scriptlet(tree, agent, "POSTUN", 1)
        assert (installed.agent.found(), installed.agent.is_active()) == ([installed.agent.pid], "inactive")
        assert installed.agent.found() != pids
        for daemon, package in ((installed.server, server), (installed.agent, agent)):
            tree.run("/etc/init.d/%s stop" % daemon.name)
            _run_original(tree, daemon)
            _run_scriptlet(tree, package, "POSTTRANS", 1)
            assert not original.runs(tree, daemon.pid)
            pid = daemon.pid
            _run_scriptlet(tree, package, "POSTTRANS", 1)
            assert daemon.found() == [pid]
        for daemon, package in ((installed.server, server), (installed.agent, agent)):
            _run_scriptlet(tree, package, "PREUN", 0)
            assert (daemon.titles(), daemon.is_enabled()) == ([], "disabled")
            _run_scriptlet(tree, package, "POSTUN", 0)
        assert "guestmtce" not in tree.read("/etc/subuid") + tree.read("/etc/passwd")
        assert tree.run("ls -d /run/guest* /var/log/guest*.dump 2>/dev/null || true").split() == []
