"""One flat event loop: descriptors, timers and signals, all handled in one thread.

Signal handlers only note the signal; the loop serves it. A callback that raises is a defect of ours: it
is logged with its traceback and counted, and the loop goes on, because every other guest still needs it.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from typing import Any, Callable, Deque, Dict, List, Tuple

log = logging.getLogger(__name__)

NEVER = float("inf")
SIGNAL_BUFFER = 4096  # bytes, one a signal
STALL = 1.0  # s that a timer is late before it is worth a line in the log


class Timer:
    """A call that will be made once at `when` (s, monotonic) unless it is cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The call will not be made."""
        self.callback = None


class Loop:
    """See the module's text. Create it in the thread, and after the fork, in which it will run."""

    def __init__(self) -> None:
        self.running = True
        self.defects = 0
        self.wake_ups = self.stalls = 0
        self._selector = selectors.DefaultSelector()
        self._timers: List[Tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._signals: Dict[int, Callable[[], None]] = {}
        self._calls: Deque[Callable[[], None]] = collections.deque()
        self._signal_in, self._signal_out = socket.socketpair()
        self._signal_in.setblocking(False)
        self._signal_out.setblocking(False)
        self.watch(self._signal_in, self._serve_signals)

    def watch(self, source: Any, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `source` (a socket or descriptor) can be read."""
        self._selector.register(source, selectors.EVENT_READ, callback)

    def unwatch(self, source: Any) -> None:
        """No longer watch `source`; to be called before it is closed. One that is not watched is fine."""
        try:
            self._selector.unregister(source)
        except (KeyError, ValueError):
            pass  # ValueError: it is closed, and was not watched

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` at `when` (s, monotonic) or as soon after it as may be."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `seconds`."""
        return self.at(time.monotonic() + seconds, callback)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop when the signal arrives."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._signal_out.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop soon; any thread may ask for it."""
        self._calls.append(callback)
        try:
            self._signal_out.send(b"\0")
        except OSError:
            pass  # full: it will wake up anyway

    def call(self, callback: Callable[[], None]) -> None:
        """Call it now; what it raises is logged and counted."""
        try:
            callback()
        except Exception:
            self.defects += 1
            log.exception("a defect in guestmtce: %r failed", callback)

    def stop(self) -> None:
        """End `run` after the present round."""
        self.running = False

    def run(self) -> None:
        """Serve until `stop`."""
        while self.running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for the next descriptor, timer or signal and serve all that is there."""
        when = self._timers[0][0] if self._timers else NEVER
        wait = None if when == NEVER else max(0.0, when - time.monotonic())
        ready = self._selector.select(wait)
        self.wake_ups += 1
        late = time.monotonic() - when
        if late > STALL:
            self.stalls += 1
            log.warning("this host, or this daemon, stood still for %.1f s", late)
        for key, _ in ready:
            # An earlier callback of this round may have closed this one.
            if self._selector.get_map().get(key.fd) is key:
                self.call(key.data)
        self._serve_timers()

    def close(self) -> None:
        """Give back the descriptors and the signal handlers."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        self._signal_in.close()
        self._signal_out.close()

    def _serve_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self.call(timer.callback)

    def _serve_signals(self) -> None:
        try:
            numbers = set(self._signal_in.recv(SIGNAL_BUFFER))
        except BlockingIOError:
            return
        while self._calls:
            self.call(self._calls.popleft())
        for number in numbers:
            callback = self._signals.get(number)
            if callback is not None:
                self.call(callback)
