"""setproctitle's wheel without compiled code changes no title: nobody who needs a process may go by it."""

from __future__ import annotations

import os

from guestmtce.lab.cluster import Cluster

FAST = ["client.hbs_pulse_period=100"]
PURE = """
def setproctitle(title):
    pass


def getproctitle():
    return None
"""


def test_the_lab_finds_the_children_and_the_daemon_says_that_titles_have_no_effect(tmp_path, monkeypatch):
    (tmp_path / "setproctitle.py").write_text(PURE)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with Cluster(2, 1, 100, FAST, [], ["--scale", "0.1"]) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        children = cluster.children()
        assert set(children) == set(cluster.uuids)
        assert all(child.is_running() for child in children.values())
        for daemon in (cluster.hosts[0].server, cluster.agent):
            assert "setproctitle has no effect here" in daemon.log()
