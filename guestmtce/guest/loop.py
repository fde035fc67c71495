"""The event loop of the guest client: descriptors, signals, and parts that have a deadline.

What can be read is read before any deadline is judged: after a pause of the whole guest nobody is blamed for
what waits to be read.
"""

import os
import selectors
import signal
import time
from typing import Any, Callable, Dict, List

NEVER = float("inf")
SIGNAL_BUFFER = 256  # bytes, one a signal
WAIT_MAX = 3600.0  # s; a wait without end is no number that the system takes


class Loop:
    """See the module's text. A part has `deadline` (s, monotonic) and `tick(now)`."""

    def __init__(self) -> None:
        self.running = True
        self.parts: List[Any] = []
        self._selector = selectors.DefaultSelector()
        self._signals: Dict[int, Callable[[], None]] = {}
        self._signal_in, self._signal_out = os.pipe()
        for end in (self._signal_in, self._signal_out):
            os.set_blocking(end, False)
        self.watch(self._signal_in, self._serve_signals)

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

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop when the signal arrives."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._signal_out)
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)

    def run(self) -> None:
        """Serve until `running` is false."""
        while self.running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for the next descriptor, signal or deadline and serve all that is there."""
        wait = min([part.deadline for part in self.parts], default=NEVER) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, min(wait, WAIT_MAX))):
            # An earlier callback of this round may have closed this one.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        for part in self.parts:
            now = time.monotonic()
            if now >= part.deadline:
                part.tick(now)

    def close(self) -> None:
        """Give back the descriptors and the signal handlers."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.close(self._signal_in)
        os.close(self._signal_out)

    def _serve_signals(self) -> None:
        for number in sorted(set(os.read(self._signal_in, SIGNAL_BUFFER))):
            if number in self._signals:
                self._signals[number]()
