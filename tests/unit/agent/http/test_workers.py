"""Workers: each piece of work is done once, by whoever is free, and an end is an end."""

from __future__ import annotations

import threading

from guestmtce.agent.http.workers import Workers
from guestmtce.lab.cluster import wait_for

WAIT = 10  # s


def until(condition, what):
    wait_for(condition, what, WAIT)


def test_every_piece_of_work_is_done_once_whoever_is_busy():
    done, lock = [], threading.Lock()

    def do(work):
        with lock:
            done.append(work)

    workers = Workers("w", 3, do)
    for work in range(50):  # before anybody is there
        workers.hand_over(work)
    assert workers.backlog == 50
    workers.start()
    for work in range(50, 1000):
        workers.hand_over(work)
    until(lambda: len(done) == 1000, "all is done")
    assert sorted(done) == list(range(1000)) and workers.backlog == 0
    workers.end()


def test_one_that_hangs_leaves_the_work_to_the_others_and_the_rest_waits_in_order():
    done, go_on = [], threading.Event()

    def do(work):
        if work == "hang":
            go_on.wait(WAIT)
        done.append(work)

    workers = Workers("w", 2, do)
    workers.start()
    workers.hand_over("hang")
    for work in "abc":
        workers.hand_over(work)
    until(lambda: done == ["a", "b", "c"], "the other one has done it")
    workers.hand_over("hang")
    until(lambda: workers.backlog == 0, "both hang")
    for work in "de":
        workers.hand_over(work)
    assert workers.backlog == 2
    go_on.set()
    until(lambda: set(done[3:]) == {"hang", "d", "e"}, "all is done")
    workers.end()


def test_after_the_end_nothing_is_begun():
    done, go_on = [], threading.Event()
    workers = Workers("ended", 2, lambda work: (go_on.wait(WAIT), done.append(work)))
    workers.start()
    for work in "abc":
        workers.hand_over(work)
    until(lambda: workers.backlog == 1, "two have begun")
    workers.end()
    go_on.set()
    until(lambda: not any(t.name.startswith("ended") for t in threading.enumerate()), "the threads end")
    assert sorted(done) == ["a", "b"]
