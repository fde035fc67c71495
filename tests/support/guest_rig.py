"""The guest client's loop, served by a test until something has come true."""

from __future__ import annotations

import contextlib
import signal
import time

from guestmtce.guest.log import Log
from guestmtce.guest.loop import Loop
from guestmtce.guest.runner import Runner
from guestmtce.lab.pace import within

STEP = 0.005  # s between two looks at the condition


class Clock:
    """A part that wakes the loop so that conditions are looked at."""

    def __init__(self):
        self.deadline = 0.0

    def tick(self, now):
        self.deadline = now + STEP


class Rig:
    """A loop with its log; `parts` take part in it."""

    def __init__(self, *parts):
        self.loop = Loop()
        self.loop.parts = [Clock(), *parts]
        self.lines = []
        self.log = Log(self.lines.append, 0.0)

    def serve(self, condition, what, seconds=5.0):
        """Serve the loop until the condition holds; returns its value. A busy machine has more time.

        Raises AssertionError.
        """
        began = time.monotonic()
        while not condition():
            took = time.monotonic() - began
            assert within(seconds, took), "not within %g s: %s; log: %s" % (seconds, what, self.lines)
            self.loop.run_once()
        return condition()

    def rest(self, seconds):
        """Serve the loop for so long, in which something must not happen."""
        until = time.monotonic() + seconds
        self.serve(lambda: time.monotonic() >= until, "time passes", seconds + 5)

    def close(self):
        self.loop.close()


@contextlib.contextmanager
def rig_with_runner():
    """A Rig whose `runner` runs scripts and hears of their end."""
    rig = Rig()
    rig.runner = Runner(lambda: None)
    rig.loop.on_signal(signal.SIGCHLD, rig.runner.reap)
    yield rig
    rig.runner.stop()
    rig.close()
