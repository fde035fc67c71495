"""The event loop of the guest client: descriptors, signals, and parts that have a deadline.

A turn has one moment, `now`; what can be read at it is read before any deadline is judged (`common.turn`).
Signal handlers only note the signal; the loop serves it.
"""

import os
import selectors
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Set

from guestmtce.common import NEVER, turn

WAKE_BUFFER = 4096  # bytes, one a signal


class Loop:
    """See the module's text. A part has `deadline` (s, monotonic) and `tick(now)`."""

    def __init__(self) -> None:
        self.running = True
        self.parts: List[Any] = []
        self._selector = selectors.DefaultSelector()
        self._turn: Optional[float] = None  # this turn's moment
        self._signals: Dict[int, Callable[[], None]] = {}
        self._arrived: Set[int] = set()  # signals; the pipe only wakes: it may be full
        self._signal_in, self._signal_out = os.pipe()
        for end in (self._signal_in, self._signal_out):
            os.set_blocking(end, False)
        self.watch(self._signal_in, self._drain)

    @property
    def now(self) -> float:
        """The moment of this turn, in s, monotonic; outside of a turn the clock's."""
        return time.monotonic() if self._turn is None else self._turn

    def watch(self, descriptor: int, callback: Callable[[], None], writing: bool = False) -> None:
        """Call `callback` when `descriptor` can be read, or, with `writing`, written; also when it ends."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        try:
            self._selector.modify(descriptor, events, callback)
        except KeyError:
            self._selector.register(descriptor, events, callback)

    def unwatch(self, descriptor: int) -> None:
        """No longer watch it; to be called before it is closed. One that is not watched is fine."""
        try:
            self._selector.unregister(descriptor)
        except KeyError:
            pass

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop when the signal arrives."""
        self._signals[signum] = callback
        wake_by(self._signal_out)
        signal.signal(signum, lambda signum, _: self._arrived.add(signum))
        # signal.signal() switches that on; a call that a signal interrupts goes on, as Python's callers
        # expect.
        signal.siginterrupt(signum, False)

    def run(self) -> None:
        """Serve until `running` is false."""
        while self.running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for the next descriptor, signal or deadline and serve all that is there."""
        ready = self._wait()
        try:
            for key, _ in ready:
                # An earlier callback of this round may have closed this one.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            # After the descriptors: where both are there at once, the words of a process come before its end.
            while self._arrived:
                self._signals[self._arrived.pop()]()
            for part in self.parts:
                if self.now >= part.deadline:
                    part.tick(self.now)
        finally:
            self._turn = None

    def _wait(self) -> turn.Ready:
        """Begin a turn; what can be read at its moment."""
        deadline = min([part.deadline for part in self.parts], default=NEVER)
        ready = turn.wait_until(self._selector, deadline)
        self._turn, ready = turn.begin_turn(self._selector, deadline, ready)
        return ready

    def close(self) -> None:
        """Give back the descriptors and the signal handlers."""
        if self._signals:
            wake_by(-1)
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        os.close(self._signal_in)
        os.close(self._signal_out)

    def _drain(self) -> None:
        """What was to wake the loop has done so."""
        os.read(self._signal_in, WAKE_BUFFER)


def wake_by(descriptor: int) -> None:
    """Have each signal write to `descriptor`, without a word when that is full. -1: no longer."""
    if sys.version_info >= (3, 7):
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    else:
        signal.set_wakeup_fd(descriptor)
