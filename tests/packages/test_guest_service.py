"""guestClient.service in a Debian 12 with its own systemd: its flags, and its scripts when it ends or dies.

The tree has no virtio port, so the unit's words about that are taken out.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from tree import POLL, REPOSITORY, Tree

from guestmtce.lab.cluster import wait_for

pytestmark = pytest.mark.ci

UNIT = "/lib/systemd/system/guestClient.service"
FLAG = "/run/guest-client/unhealthy"
CONF = "/etc/guest-client/heartbeat/guest_heartbeat.conf"
SCRIPT = "/root/health"
# A daemon in a session of its own, whose parent has ended, of a script that does not end.
TEXT = "#!/bin/sh\n(setsid sleep 7777 &)\nsleep 8888\n"
WAIT = 20.0  # s
SLEEPS = "pgrep -f 'sleep (7777|8888)'"


@pytest.fixture(scope="module")
def tree(bookworm):
    with Tree(bookworm) as one:
        subprocess.run([os.path.join(REPOSITORY, "scripts", "guest", "install"), one.root], check=True)
        unit = one.read(UNIT)
        kept = [line for line in unit.splitlines() if not line.startswith(("BindsTo=", "After="))]
        one.write(UNIT, "\n".join(kept) + "\n")
        one.boot()
        yield one


def test_a_flag_is_there_after_every_end_of_the_service_and_only_root_can_make_one(tree):
    tree.run("systemctl start guestClient")
    assert tree.run("stat -c '%U %a' /run/guest-client").strip() == "root 755"
    tree.run("touch " + FLAG)
    for words in ("restart", "stop", "start", "kill --signal=KILL"):
        tree.run("systemctl %s guestClient" % words)
        assert tree.exists(FLAG), words
    wait_for(lambda: tree.status("systemctl is-active guestClient") == 0, "it is started again", WAIT, POLL)
    assert tree.status("/etc/guest-client/heartbeat/sample_health_check_script") == 1
    tree.run("rm " + FLAG)
    assert tree.status("/etc/guest-client/heartbeat/sample_health_check_script") == 0


@pytest.mark.parametrize("words", ["stop", "kill --kill-who=main --signal=KILL"])
def test_all_that_a_health_script_has_started_ends_with_the_service(tree, words):
    tree.write(SCRIPT, TEXT)
    tree.run("chmod 755 %s; systemctl stop guestClient" % SCRIPT)
    tree.write(CONF, "HEALTH_CHECK_SCRIPT=%s\n" % SCRIPT)
    tree.run("systemctl start guestClient")
    wait_for(lambda: len(tree.run(SLEEPS, None).split()) >= 2, "the script runs", WAIT, POLL)
    before = set(tree.run(SLEEPS).split())
    tree.write(CONF, "")
    tree.run("systemctl %s guestClient" % words)
    wait_for(lambda: not before & set(tree.run(SLEEPS, None).split()), "all are gone", WAIT, POLL)


def test_the_manual_page_is_where_man_looks_for_it(tree):
    assert tree.read("/usr/share/man/man8/guestClient.8").startswith(".TH GUESTCLIENT 8 ")
