"""What may wait is done beside the loop, one at a time, and its end is served in the loop."""

from __future__ import annotations

import threading

import pytest

from guestmtce.daemon import beside_loop
from guestmtce.daemon.beside_loop import BesideLoop
from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for

PATIENCE = 0.05  # s


class Bench:
    """Work that goes on when it may, and what came of it."""

    def __init__(self, patience=60.0):
        self.loop = Loop()
        self.may = threading.Semaphore(0)
        self.begun, self.ended, self.late = 0, [], 0
        self.error = None
        self.beside = BesideLoop(self.loop, self._work, self._finish, patience, self._be_late)

    def _work(self):
        self.begun += 1
        number = self.begun
        assert self.may.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        return number

    def _finish(self, give):
        assert threading.current_thread() is threading.main_thread()
        self.ended.append(give())

    def _be_late(self):
        self.late += 1

    def turn_until(self, condition, what):
        self.loop.at(0.0, lambda: None)

        def turn():
            self.loop.after(0.01, lambda: None)
            self.loop.run_once()
            return condition()

        wait_for(turn, what)


@pytest.fixture
def bench():
    one = Bench()
    yield one
    one.may.release(10)
    one.loop.close()


def test_the_loop_goes_on_and_gets_the_result(bench):
    bench.beside.start()
    bench.turn_until(lambda: bench.begun == 1, "it has begun")
    assert bench.ended == []
    bench.may.release()
    bench.turn_until(lambda: bench.ended == [1], "its result")
    assert bench.late == bench.loop.defects == 0


def test_who_asks_meanwhile_is_given_one_more_run(bench):
    for _ in range(5):
        bench.beside.start()
    bench.may.release(2)
    bench.turn_until(lambda: bench.ended == [1, 2], "both runs")
    assert not bench.beside.is_asked_again
    bench.beside.start()
    bench.may.release()
    bench.turn_until(lambda: bench.ended == [1, 2, 3], "another")


def test_what_the_work_raises_is_raised_in_the_loop_and_the_next_run_follows(bench):
    bench.error = ValueError("a defect")
    bench.beside.start()
    bench.beside.start()
    bench.may.release()
    bench.turn_until(lambda: bench.loop.defects == 1, "the loop counts it")
    bench.error = None
    bench.may.release()
    bench.turn_until(lambda: bench.ended == [2], "the next one")


def test_without_a_thread_to_be_had_it_has_failed(bench, monkeypatch):
    class NoThread:
        def __init__(self, **_):
            pass

        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(beside_loop.threading, "Thread", NoThread)
    with pytest.raises(OSError, match="no thread can be made: can't start new thread"):
        bench.beside.start()


def test_who_is_late_is_named_and_waited_for():
    bench = Bench(PATIENCE)
    bench.beside.start()
    bench.turn_until(lambda: bench.late == 1, "it is late")
    bench.beside.start()
    bench.turn_until(lambda: bench.late == 2, "who asks again hears of it again")
    bench.may.release(2)
    bench.turn_until(lambda: bench.ended == [1, 2], "it is done")
    bench.loop.close()
