"""What a child costs beside the others: it must share nearly all that the spawner made ready."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
from children_driver import ROOT, bench, make_bench

from guestmtce.lab.guests import uuid_of
from guestmtce.server import compact, fork, reports

__all__ = ["bench", "make_bench"]  # fixtures

CHILDREN = 24
BEATS = 10
USS_MAX = 950_000  # bytes, mean


@pytest.mark.skipif(not ROOT, reason="only root may read a child's memory")
def test_a_child_shares_nearly_all_of_its_memory(make_bench):
    bench = make_bench(settings=reports.Settings(interval_floor_ms=100, failure_threshold=1000))
    uuids = [uuid_of(number) for number in range(CHILDREN)]
    for uuid in uuids:
        bench.born(uuid)
        bench.beat(uuid)
    for _ in range(BEATS - 1):
        for uuid in uuids:
            bench.answer(uuid)
    bench.serve_for(0.3)
    assert bench.ends == []
    sizes = [psutil.Process(pid).memory_full_info().uss for pid in bench.children.pids().values()]
    print("\nUSS of a child: mean %.0f kB, max %.0f kB" % (sum(sizes) / len(sizes) / 1e3, max(sizes) / 1e3))
    assert sum(sizes) / len(sizes) < USS_MAX


def test_a_sibling_is_our_parent_s_child():
    """Forked by a child of ours, it is ours."""
    ours, theirs = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        pid = fork.fork_sibling()
        if pid == 0:
            theirs.send(b"%d " % os.getppid())
            os._exit(7)
        theirs.send(b"%d " % pid)
        os._exit(0)
    assert os.waitpid(middle, 0) == (middle, 0)
    pid, status = os.waitpid(-1, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    heard = ours.recv(100)
    while len(heard.split()) < 2:
        heard += ours.recv(100)
    assert {int(number) for number in heard.split()} == {pid, os.getpid()}
    ours.close()
    theirs.close()


def test_after_the_holes_are_filled_what_is_made_lies_side_by_side():
    holes = [bytes(200) for _ in range(2000)]
    del holes[::2]
    compact.fill_holes()
    made = [bytes(200) for _ in range(8)]
    assert max(map(id, made)) - min(map(id, made)) < compact.POOL_SIZE
