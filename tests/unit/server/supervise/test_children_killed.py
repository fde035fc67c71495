"""A stranger that kills guests' processes hides no guest's hang: it cannot, or not for long."""

from __future__ import annotations

import pwd
import subprocess
import time

import pytest
from children_driver import ROOT

from guestmtce.lab.cluster import Cluster, TimedOut, wait_for
from guestmtce.lab.pace import within

pytestmark = [pytest.mark.ci, pytest.mark.skipif(not ROOT, reason="only root has children of another user")]

NOBODY = pwd.getpwnam("nobody")
KILLS = 6  # one more than a guest's processes may die within a minute


class OneUser(Cluster):
    server_words = ("--child-uids", "none")


class OwnUids(Cluster):
    server_words = ("--child-uids", "61450-61479")


def killed_as_nobody(pid):
    options = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []}
    return not subprocess.run(
        ["kill", "-9", str(pid)], capture_output=True, check=False, **options
    ).returncode


def test_a_child_with_a_uid_of_its_own_is_killed_by_nobody():
    with OwnUids(2, 1, 400) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        for child in cluster.children().values():
            assert not killed_as_nobody(child.pid)
        assert cluster.hosts[0].server.health()["confinement"].startswith("confinement user 61450-61479 ")


def test_where_all_have_one_user_a_hang_after_six_kills_is_told_within_15_s():
    """It was 66 s: the guest rested for 60."""
    with OneUser(2, 1, 400) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        uuid, kills = cluster.uuids[0], []

        def kill():
            child = cluster.children().get(uuid)
            if child is not None and child.pid not in kills and killed_as_nobody(child.pid):
                kills.append(child.pid)
            return len(kills) == KILLS

        try:
            wait_for(kill, "six kills", 10, step=0.1)
        except TimedOut:
            pytest.fail("only %d kills" % len(kills))
        cluster.hosts[0].guests.say(uuid, "hang")
        began = time.monotonic()
        wait_for(lambda: cluster.vim.events("alarm", uuid), "the VIM hears of it", 20)
        assert within(15, time.monotonic() - began)
