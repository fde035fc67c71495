"""What is there before our packages come: a running original, and ini files of version 1.0.0.

The tests of this file are one story, in this order. What docs/install.md says is done as it stands there.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import shutil
import subprocess

import original
import pytest
from installed import OFFERED, WAIT, Daemon, Installed
from scripted import SCRIPTS, SHIPPED_BEFORE, read_text
from tree import POLL, REPOSITORY, Tree

from guestmtce.lab.cluster import wait_for
from guestmtce.server.settings import ServerSettings

pytestmark = pytest.mark.ci
OURS = ["mtce-guest-server", "mtce-guest-agent", "python3-guestmtce"]
CONTROL = """Package: mtce-guest-{part}
Version: 1.0-1.stx.1
Architecture: all
Maintainer: x <x@x.invalid>
Description: x
"""
APT = 'APT::Get::Assume-Yes "1"; DPkg::Options {"--force-confold"};\n'  # what whoever types would answer
RANGE = "guestmtce:70000:12288"


def commands(section, block):
    """An indented block in a section of docs/install.md, counted from 0: the lines of it."""
    text = read_text(os.path.join(REPOSITORY, "docs", "install.md"))
    (found,) = re.findall(r"(?ms)^## %s$(.*?)(?=^## |\Z)" % re.escape(section), text)
    return [line.strip() for line in re.findall(r"(?m)(?:^    .*\n)+", found)[block].splitlines()]


def build(root, target):
    words = ["dpkg-deb", "--root-owner-group", "-b", root, target]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)


def install_original(tree, part, name, folder):
    """The original as a package of its own."""
    original.put_into(tree, folder, name)
    original.write(folder + "/DEBIAN/control", CONTROL.format(part=part))
    original.write(folder + "/DEBIAN/conffiles", "/etc/mtc/%s.ini\n" % name)
    build(folder, tree.path(OFFERED + "/original.deb"))
    tree.run("dpkg -i %s/original.deb" % OFFERED)


def reserved(tree):
    return [line for line in tree.read("/etc/subuid").split() if line.startswith("guestmtce:")]


@pytest.fixture(scope="module")
def place(bookworm, debs, version):
    """A booted tree for which our packages are in /srv/packages/dist, and nothing is installed."""
    with Tree(bookworm) as tree:
        tree.boot()
        installed = Installed(tree)
        installed.offer(debs, version)
        tree.run("mkdir {0}/dist && cp {0}/*.deb {0}/dist".format(OFFERED))
        tree.write("/etc/apt/apt.conf.d/answers", APT)
        yield installed


@pytest.fixture
def clean(place):
    """The same; what is installed goes afterwards, and leaves nothing."""
    yield place
    place.tree.run("apt-get -q purge %s; rm -rf %s" % (" ".join(OURS), original.SOURCES))
    assert place.of_packages() == []
    assert (place.tree.status("getent passwd guestmtce"), reserved(place.tree)) == (2, [])


@pytest.mark.parametrize("in_unit", [True, False])
@pytest.mark.parametrize("packaged", [True, False])
@pytest.mark.parametrize("name, part", [("guestServer", "server"), ("guestAgent", "agent")])
def test_the_running_original_is_replaced_as_install_md_says(
    clean, tmp_path, name, part, packaged, in_unit
):  # fmt: skip
    tree, daemon = clean.tree, Daemon(clean.tree, name)
    if packaged:
        install_original(tree, part, name, str(tmp_path / "package"))
    else:
        original.put_into(tree, tree.path(""), name)
    by_hand = "/usr/local/bin/{0} {1}/{0}.py /run".format(name, original.SOURCES)
    tree.run("systemctl daemon-reload && " + ("systemctl start " + name if in_unit else by_hand))
    pid = daemon.pid
    assert original.runs(tree, pid)

    text = "\n".join(commands("In place of the original", 0)).replace("guest-server", "guest-" + part)
    said = tree.run("set -e; cd %s\n%s" % (OFFERED, text.replace("guestServer", name)))
    assert "%s runs, pid %d\n" % (name, daemon.pid) in said
    assert (tree.status("kill -0 %d" % pid), original.runs(tree, daemon.pid)) == (1, False)
    # guestServer's unit is started at once, and serves as soon as the original has ended.
    if in_unit or name == "guestServer":
        wait_for(lambda: daemon.is_active() == "active", "the unit serves", 20)
    else:
        assert daemon.is_active() != "active"
    assert daemon.found() == [daemon.pid]
    assert (tree.read("/etc/mtc/%s.ini" % name) == original.INI) == (not packaged)


def ours_before(debs, version, package, folder):
    """One of our packages as version 0.9.9, with the ini files of 1.0.0, built into `folder`."""
    root = os.path.join(folder, package)
    subprocess.run(["dpkg-deb", "-R", "%s/%s_%s_all.deb" % (debs, package, version), root], check=True)
    control = read_text(root + "/DEBIAN/control").replace(version, "0.9.9")
    original.write(root + "/DEBIAN/control", control)
    for name in os.listdir(SHIPPED_BEFORE):
        if os.path.exists(os.path.join(root, "etc/mtc", name)):
            shutil.copy(os.path.join(SHIPPED_BEFORE, name), os.path.join(root, "etc/mtc", name))
    build(root, os.path.join(folder, package + ".deb"))


def outdated(ini):
    """The keys of an ini file of guestServer whose values there are not the defaults of the checkout."""
    parser = configparser.ConfigParser(inline_comment_prefixes=(";",), interpolation=None)
    parser.read(ini)
    places = {field.metadata["place"]: field.default for field in dataclasses.fields(ServerSettings)}
    now = {(place.section, place.key): default for place, default in places.items() if place}
    return {
        key
        for section in parser.sections()
        for key, value in parser.items(section)
        if (section, key) in now and type(now[section, key])(value) != now[section, key]
    }


def test_an_upgrade_replaces_an_ini_file_that_nobody_has_changed_and_names_old_defaults_in_others(
    clean, debs, version, tmp_path
):
    tree, changed = clean.tree, "/etc/mtc/guestServer.ini"
    for package in OURS:
        ours_before(debs, version, package, str(tmp_path))
        shutil.copy(str(tmp_path / (package + ".deb")), tree.path(OFFERED))
    tree.run("cd %s && apt-get -q install %s" % (OFFERED, " ".join("./%s.deb" % one for one in OURS)))
    assert "\nexpected_silence = 60 " in tree.read(changed)
    tree.write(changed, tree.read(changed).replace("\nrescan = 180 ", "\nrescan = 170 "))
    assert reserved(tree) == [RANGE]
    tree.run("apt-get -q install " + " ".join(OURS))
    assert tree.read("/etc/mtc/guestAgent.ini") == read_text(os.path.join(SCRIPTS, "guestAgent.ini"))
    assert "\nrescan = 170 " in tree.read(changed)
    assert reserved(tree) == [RANGE]
    lines = tree.run("journalctl -q --no-pager -t guestServer").splitlines()
    named = {key for line in lines for key in re.findall(r"\[\w+\] (\w+) = .* default", line)}
    assert named == outdated(os.path.join(SHIPPED_BEFORE, "guestServer.ini")), lines


def test_a_range_of_uids_is_moved_as_install_md_says(clean):
    tree = clean.tree
    tree.run("apt-get -q install mtce-guest-server && echo bob:75000:10 >>/etc/subuid")
    said = tree.run("/usr/share/guestmtce/child-uids reserve", status=1)
    assert RANGE + " of /etc/subuid overlaps with bob:75000:10" in said
    tree.run("set -e\n" + "\n".join(commands("Users and uids", 0)))
    wait_for(lambda: clean.server.is_active() == "active", "guestServer runs", WAIT, POLL)
    assert reserved(tree) == ["guestmtce:200000:12288"]
    tree.run("/usr/share/guestmtce/child-uids reserve && sed -i /^bob:/d /etc/subuid")


@pytest.fixture(scope="module")
def checkout(place):
    """The checkout in the tree, and its modules where pip would put them, with what they need."""
    for part in ("guestmtce", "scripts"):
        shutil.copytree(os.path.join(REPOSITORY, part), place.tree.path("/srv/checkout/" + part))
    needed = ["cherrypy3", "psutil", "pyinotify", "requests", "setproctitle"]
    place.tree.run("apt-get -q install " + " ".join("python3-" + name for name in needed))
    place.tree.run("cp -r /srv/checkout/guestmtce /usr/lib/python3/dist-packages/")
    return "/srv/checkout"


@pytest.mark.parametrize("name, part, block", [("guestServer", "server", 1), ("guestAgent", "agent", 2)])
def test_host_install_replaces_the_running_original_as_install_md_says(place, checkout, name, part, block):
    tree, daemon = place.tree, Daemon(place.tree, name)
    original.put_into(tree, tree.path(""), name)
    tree.run("systemctl daemon-reload && systemctl start " + name)
    pid = daemon.pid
    steps = commands("Without packages", 0)
    assert [step.split()[0] for step in steps[:3]] == ["python3", "/opt/guestmtce/bin/pip", "export"]
    assert steps.pop() == "systemctl enable --now guestServer"
    script = "\n".join(steps[3:]).replace("host/install server", "host/install " + part)
    tree.run("set -e; cd %s\n%s" % (checkout, script))
    assert (daemon.pid, original.runs(tree, pid)) == (pid, True)
    tree.run("\n".join(commands("In place of the original", block)))
    assert (daemon.found(), original.runs(tree, daemon.pid)) == ([daemon.pid], False)
    assert (daemon.is_active(), reserved(tree)) == ("active", [RANGE])


def test_host_install_takes_away_running_daemons_as_install_md_says(place, checkout):
    tree = place.tree
    assert {place.server.is_active(), place.agent.is_active()} == {"active"}
    steps = commands("Without packages", 1)
    assert steps.pop() == "rm -r /opt/guestmtce"
    steps.insert(0, steps[0].replace(" server ", " agent "))
    tree.run("set -e; cd %s\n%s" % (checkout, "\n".join(steps)))
    assert (place.server.found(), place.agent.found(), reserved(tree)) == ([], [], [])
    others = (checkout, original.SOURCES, "/usr/lib/python3")
    left = {path for path in place.of_packages() if not path.startswith(others)}
    assert left == {"/etc/mtc", "/etc/mtc/guestServer.ini", "/etc/mtc/guestAgent.ini"}  # the original's


def test_host_install_leaves_to_a_package_what_is_its(place, checkout):
    place.tree.run("apt-get -q install mtce-guest-server")
    said = place.tree.run("%s/scripts/host/install --uninstall server ''" % checkout, status=1)
    assert "/usr/local/bin/guestServer belongs to a package" in said
    assert place.server.is_active() == "active"
