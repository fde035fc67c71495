"""What a child costs beside the others: it must share nearly all that the spawner made ready."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from children_driver import ROOT, bench, confined, gone, make_bench

from guestmtce.lab.guest import uuid_of
from guestmtce.server.child import confine, fork_sibling, page_layout, session_types, spawner
from guestmtce.server.child.session_types import DIED
from guestmtce.server.supervise import spawner_code

__all__ = ["bench", "make_bench"]  # fixtures

CHILDREN = 24
BEATS = 10
PAGE = os.sysconf("SC_PAGE_SIZE")
# Bytes, mean. Python 3.11 has what 3.13 needs not: references are counted to what never goes. Before 3.11 a
# function's names are counted, too.
USS_MAX = 640_000 if sys.version_info >= (3, 11) else 880_000


STARTS = 4  # of a spawner; how its heap falls out differs


@pytest.mark.skipif(not ROOT, reason="only root may read a child's memory")
def test_a_child_shares_nearly_all_of_its_memory(make_bench):
    means = []
    while not means or (min(means) >= USS_MAX and len(means) < STARTS):
        means.append(mean_size(make_bench))
    print("\nUSS of a child, mean: %s kB" % ", ".join("%.0f" % (mean / 1e3) for mean in means))
    assert min(means) < USS_MAX


def mean_size(make_bench, **options):
    """USS, in bytes, of a child of one spawner."""
    bench = make_bench(
        settings=session_types.SessionSettings(interval_floor_ms=100, failure_threshold=1000), **options
    )
    uuids = [uuid_of(number) for number in range(CHILDREN)]
    for uuid in uuids:
        bench.born(uuid)
        bench.beat(uuid)
    for _ in range(BEATS - 1):
        for uuid in uuids:
            bench.answer(uuid)
    bench.serve_for(0.3)
    assert bench.ends == []
    sizes = [psutil.Process(pid).memory_full_info().uss for pid in bench.children.list_pids().values()]
    bench.close()
    return sum(sizes) / len(sizes)


def test_a_spawner_that_lays_nothing_out_has_children_all_the_same(make_bench):
    """`[debug] page_layout = no`."""
    bench = make_bench(page_layout=False)
    bench.children.prove_confinement()
    pid = bench.born()
    bench.beat()
    assert bench.ends == []
    assert confined(pid)


PLAIN_OR_NOT = """
import sys
sys.path[:0] = %r.split(":")
from guestmtce.server.child import page_layout
page_layout.choose(%r)
def add(a, b): return a + b
code = add.__code__
page_layout.fill_holes()
page_layout.gather([code])
print(len(page_layout._filling) > 0, add.__code__ is not code, add(1, 2))
"""


@pytest.mark.parametrize(("layout", "does"), [(page_layout.LAID_OUT, True), (page_layout.PLAIN, False)])
def test_plain_memory_is_left_as_it_is(layout, does):
    words = [sys.executable, "-c", PLAIN_OR_NOT % (spawner_code.import_path(), layout)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "%s %s 3\n" % (does, does)


def test_a_sibling_is_our_parent_s_child():
    """Forked by a child of ours, it is ours."""
    ours, theirs = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        pid = fork_sibling.fork_sibling()
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


NO_NUMBER = "from guestmtce.server.child import fork_sibling as fork; fork.clone_number = fork.UNKNOWN;"


@pytest.fixture
def no_clone(monkeypatch):
    """A machine whose number of clone(2) is not known, for this process and its spawners."""
    monkeypatch.setattr(fork_sibling, "clone_number", fork_sibling.UNKNOWN)
    monkeypatch.setattr(spawner, "BOOT", spawner.BOOT.replace("; main(", ";" + NO_NUMBER + "main("))
    yield
    confine.prctl(fork_sibling.PR_SET_CHILD_SUBREAPER, 0)


def test_where_clone_has_no_number_children_are_the_master_s_all_the_same(no_clone, make_bench):
    bench = make_bench()
    bench.children.prove_confinement()
    pids = [bench.born(uuid_of(number)) for number in range(3)]
    bench.beat(uuid_of(1))
    assert [psutil.Process(pid).ppid() for pid in pids] == [os.getpid()] * 3
    os.kill(pids[0], signal.SIGKILL)
    bench.until(lambda: bench.ends)
    assert bench.ends == [(uuid_of(0), DIED, " of signal 9")]
    bench.children.drop_child(uuid_of(2))
    bench.until(lambda: gone(pids[2]))
    bench.born(uuid_of(0))
    assert bench.children.spawner.started == 1


def test_a_double_fork_that_fails_at_once_leaves_no_descriptor(no_clone, monkeypatch):
    def fail():
        raise OSError(errno.EAGAIN, "no room")

    monkeypatch.setattr(os, "fork", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no room"):
        fork_sibling.fork_sibling()
    assert os.listdir("/proc/self/fd") == before


def test_a_double_fork_that_fails_in_the_middle_costs_only_the_one_it_was_for(no_clone, monkeypatch):
    """Here the first fork is the real one, and the second fails."""
    real, forks = os.fork, []

    def fork_once():
        forks.append(1)
        if len(forks) % 2 == 0:
            raise BlockingIOError(errno.EAGAIN, "no process for now")
        return real()

    monkeypatch.setattr(os, "fork", fork_once)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockingIOError, match="cannot fork for the master"):
        fork_sibling.fork_sibling()
    assert len(os.listdir("/proc/self/fd")) == before


def test_after_the_holes_are_filled_what_is_made_lies_in_few_pages():
    """Each hole is in another pool: what is made would lie in nearly as many pages."""
    holes = [bytes(200) for _ in range(20_000)]
    del holes[::100]
    page_layout.fill_holes()
    made = [bytes(200) for _ in range(64)]
    assert len({id(one) // PAGE for one in made}) < 16, "13 kB side by side"


GIVES_UP = """
import os, sys
sys.path[:0] = %r.split(":")
from guestmtce.server.child import preload, page_layout
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
%s
before = resident()
for _ in range(3):
    page_layout.fill_holes()
print(resident() - before, len(page_layout._filling))
"""
OTHER_HEAP = """
starts = iter(range(2**46, 0, -2**17))
page_layout._malloc, freed = lambda size: next(starts), []
page_layout._free = freed.append
import atexit
atexit.register(lambda: print(len(freed)))
"""


@pytest.mark.parametrize(
    ("environment", "heap", "filled"),
    [({}, "", True), ({"PYTHONMALLOC": "malloc"}, "", False), ({}, OTHER_HEAP, True)],
    ids=["CPython's and glibc's", "no pools", "a heap that grows downwards"],
)
def test_with_another_allocator_nothing_is_kept(environment, heap, filled):
    words = [sys.executable, "-c", GIVES_UP % (spawner_code.import_path(), heap)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    grown, blocks, *freed = map(int, done.stdout.split())
    assert grown < 6 * 2**20
    assert (blocks > 0) is filled
    assert freed == ([3 * page_layout.HEAP_TRIES_MAX] if heap else [])


def _small(number):
    return number + 1


def _large(number):
    words = {"one": 1, "two": [2, 2], "three": (3, number)}
    try:
        total = sum(len(str(word)) for word in words.values() if word)
    except ValueError as error:
        raise RuntimeError("%r of %r" % (error, words)) from error
    return [total, *words, {name: value for name, value in words.items() if name != "two"}, number * 2]


def test_gathered_code_does_what_it_did_and_is_too_large_for_a_pool():
    before = _small(1), _large(2)
    small, large = _small.__code__, _large.__code__
    page_layout.gather(page_layout.list_codes_run_by(lambda: (_small(1), _large(2))))
    assert (_small(1), _large(2)) == before
    assert _small.__code__ is not small and _large.__code__ is not large
    assert _small.__code__.co_consts == small.co_consts
    assert _small.__code__.__sizeof__() > page_layout.BLOCK_MAX or sys.version_info < (3, 11)


def test_what_is_not_run_is_not_gathered():
    code = _large.__code__
    page_layout.gather(page_layout.list_codes_run_by(lambda: _small(1)))
    assert _large.__code__ is code
    assert sys.getprofile() is None
