"""One flat event loop: descriptors, timers and signals, all handled in one thread.

A turn has one moment, `now`, and what can be read at it is read before any timer is served (`common.turn`).

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
from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple

from guestmtce.common import NEVER, turn

log = logging.getLogger(__name__)

WAKE_BUFFER = 4096  # bytes, one a signal or a call
STALL = 1.0  # s that this process stands still before it is worth a line in the log
TIMERS_KEPT = 256  # cancelled ones are looked for beyond so many, and beyond twice as many as were left


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
        self.stood_still = 0.0  # s in all stalls
        self._turn: Optional[float] = None  # this turn's moment
        self._busy = 0.0  # s that the last turn took
        self._selector = selectors.DefaultSelector()
        self._timers: List[Tuple[float, int, Timer]] = []
        self._timers_kept = TIMERS_KEPT
        # Of timers with the same moment the first that was set is the first that is called; and it keeps
        # heapq from comparing two Timers, which have no order.
        self._order = itertools.count()
        self._signals: Dict[int, Callable[[], None]] = {}
        self._arrived: Set[int] = set()  # signals; the pipe only wakes: it may be full
        self.idle = False  # it waits: what could be read has been read
        self.on_idle: Optional[Callable[[], None]] = None  # called whenever it becomes so
        self._calls: Deque[Callable[[], None]] = collections.deque()
        # A socket pair: signals and threads write one byte to one end, and the selector waits at the other.
        self._signal_in, self._signal_out = socket.socketpair()
        self._signal_in.setblocking(False)
        self._signal_out.setblocking(False)
        self.watch(self._signal_in, self._drain)

    @property
    def now(self) -> float:
        """The moment of this turn, in s, monotonic; outside of a turn the clock's."""
        return time.monotonic() if self._turn is None else self._turn

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
        # A cancelled timer stays in the heap until its moment, which may be hours away. Cleaning up when the
        # heap has doubled costs each timer a constant share.
        if len(self._timers) > self._timers_kept:
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._timers_kept = max(TIMERS_KEPT, 2 * len(self._timers))
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `seconds`."""
        # From the clock and not from `now`: in a long callback the turn's moment may be seconds ago.
        return self.at(time.monotonic() + seconds, callback)

    def on_signal(self, signum: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop when the signal arrives."""
        self._signals[signum] = callback
        # The byte wakes the selector even where the signal arrives just before it begins to wait.
        signal.set_wakeup_fd(self._signal_out.fileno(), warn_on_full_buffer=False)
        # Python runs handlers between any two steps of the main thread: one that did more would meet
        # half-changed state of ours.
        signal.signal(signum, lambda signum, _: self._arrived.add(signum))
        # Python's signal.signal() makes system calls interruptible (siginterrupt(3)); this takes it back.
        signal.siginterrupt(signum, False)

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop soon; any thread may ask for it."""
        # Before the byte: the loop that it wakes must find the call. A deque's append needs no lock.
        self._calls.append(callback)
        try:
            self._signal_out.send(b"\0")
        except OSError:
            pass  # full: it will wake up anyway

    def call(self, callback: Callable[[], None]) -> None:
        """Call it now; what it raises is logged and counted."""
        try:
            callback()
        # Not BaseException: SystemExit and KeyboardInterrupt are meant to end the process.
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
        ready = self._wait()
        try:
            for key, _ in ready:
                # An earlier callback of this round may have closed this one.
                if self._selector.get_map().get(key.fd) is key:
                    self.call(key.data)
            # Descriptors and calls before timers: a deadline is judged when all that has arrived was heard.
            self._serve_calls()
            self._serve_timers()
        finally:
            # Though no timer was due meanwhile: the next turn tells of a callback that stood still.
            self._busy = time.monotonic() - self.now
            self._turn = None

    def _wait(self) -> turn.Ready:
        """Begin a turn; what can be read at its moment."""
        when = self._timers[0][0] if self._timers else NEVER
        # Only where somebody wants to hear of idleness: the look costs a system call a turn.
        ready = self._selector.select(0) if self.on_idle is not None else []
        if not ready:
            self._become_idle()
            ready = turn.wait_until(self._selector, when)
            self.idle = False
        self._turn, ready = turn.begin_turn(self._selector, when, ready)
        self.wake_ups += 1
        # A callback that took long, or a wake-up that came long after its timer was due.
        self._note_stall(max(self._busy, self._turn - when))
        return ready

    def _become_idle(self) -> None:
        self.idle = True
        if self.on_idle is not None:
            self.call(self.on_idle)

    def _note_stall(self, seconds: float) -> None:
        if seconds > STALL:
            self.stalls += 1
            self.stood_still += seconds
            log.warning("this host, or this daemon, stood still for %.1f s", seconds)

    def close(self) -> None:
        """Give back the descriptors and the signal handlers."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        self._signal_in.close()
        self._signal_out.close()

    def _serve_timers(self) -> None:
        """Those that are due at this turn's moment; one that is set meanwhile waits for the next turn."""
        due = []
        # All that are due are taken out first: a callback that sets a timer for now does not keep this loop
        # here.
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            # One that was served before it in this turn may have cancelled it.
            if timer.callback is not None:
                self.call(timer.callback)

    def _drain(self) -> None:
        """What was to wake the loop has done so."""
        try:
            self._signal_in.recv(WAKE_BUFFER)
        except BlockingIOError:
            pass

    def _serve_calls(self) -> None:
        """What threads and signals have asked for until now."""
        # Those that are there now: a call that asks for another one must not starve the timers.
        for _ in range(len(self._calls)):
            self.call(self._calls.popleft())
        while self._arrived:
            self.call(self._signals[self._arrived.pop()])
