"""The process that watches one guest: one socket, one pipe, one session.

It lives as long as its connection. It imports nothing, logs nothing and allocates little after the fork:
what it has to say goes to the master over the pipe, and how it ended is its exit status.
"""

from __future__ import annotations

from os import read, set_blocking, urandom, write
from select import POLLIN, POLLOUT, poll
from time import monotonic, sleep
from typing import List, Optional, Sequence

from guestmtce.server.child.pipe_protocol import ENABLE_REPORTING_PACKET, decode_ask, encode
from guestmtce.server.child.session import Session
from guestmtce.server.child.session_states import CLOSED
from guestmtce.server.child.session_types import Output, Report, Resume, SessionSettings

# Exit statuses. A death by signal or any other status is a crash.
END_PEER_CLOSED = 0
END_RECONNECT = 10
END_MASTER_GONE = 11
END_BOOT_FAILURE = 12
END_DEFECT = 13

FIRST_READ = 440  # bytes; a healthy guest's message fits, and CPython has the room for it at hand
READ_SIZE = 4096  # bytes
READ_BUDGET = 64 * 1024  # bytes read in one go before others get their turn on the processor
FLOOD_REST = 3  # a guest that fills the budget is left alone this many times as long as reading it took
FLOOD_REST_MIN = 0.005  # s
UNTOLD_MAX = 256  # reports kept while the master does not read
PACE = 10  # reports a second that a child sends at most, and
PACE_BURST = 100  # as many at once: a guest that makes it say more waits
POLL_MAX = 86400.0  # s; a guest may name intervals that poll(2) cannot wait for
POLL_LATE = 0.002  # s; the most that rounding, and waking up, make it late
POLL_SLACK = 0.001  # part of its time by which Linux lets poll(2) be late, to wake up less often


random_bytes = urandom  # `confine` has another where this one would open a file


def random_challenge() -> int:
    """A number in 0 … 2³¹−1 that the guest cannot foresee."""
    return int.from_bytes(random_bytes(4), "little") & 0x7FFFFFFF


def _short_of(wait: float) -> float:
    """A judgement is to be on time: poll(2) is late by its rounding and a thousandth, so less than `wait`."""
    if wait > POLL_LATE:
        return wait - POLL_LATE - wait * POLL_SLACK
    if wait > 0:
        sleep(wait)
    return 0.0


class _Ended(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Child:
    """Carries bytes between a guest's socket, a session and the master's pipe.

    Both are plain descriptors: socket objects would make every child touch, and so own, 150 kB more.
    """

    __slots__ = ("_guest", "_paced", "_pipe", "_poll", "_session", "_unsent", "_untold")

    def __init__(self, settings: SessionSettings) -> None:
        """All that can be made before a guest is known: the spawner makes it once for all children."""
        self._guest = self._pipe = -1
        self._poll = poll()
        self._session = Session(settings, random_challenge)
        self._paced = 0.0  # until when its reports fill the time that they have
        self._unsent = b""
        self._untold: List[bytes] = []

    def run(self, guest: int, pipe: int, resume: Optional[Resume]) -> int:
        """Serve the descriptors until the connection ends; returns the exit status."""
        self._guest, self._pipe = guest, pipe
        for descriptor in (guest, pipe):
            set_blocking(descriptor, False)
            self._poll.register(descriptor, POLLIN)
        try:
            self._put(self._session.start(resume, monotonic()))
            while self._session.heartbeat.state != CLOSED:
                self._step()
            return END_RECONNECT
        except _Ended as ended:
            return ended.status

    def _step(self) -> None:
        """Wait for the guest, the master or the session's deadline, and serve what came."""
        session = self._session
        wait = session.deadline - monotonic()
        if wait > POLL_MAX:
            wait = POLL_MAX
        if session.awaits_answer():
            wait = _short_of(wait)
        ready = self._poll.poll(int(wait * 1000) + 1 if wait > 0 else 0)
        now = monotonic()
        # A judgement comes after a last look at the socket, not after poll's word alone.
        heard = now >= session.deadline and session.awaits_answer()
        for descriptor, events in ready:
            if descriptor == self._guest:
                heard = True
            else:
                self._serve_pipe(events, now)
        if heard:
            self._read_guest(now)
        if now >= session.deadline:
            self._put(session.tick(now))

    def _read_guest(self, now: float) -> None:
        done, size = 0, FIRST_READ
        while done < READ_BUDGET:
            try:
                data = read(self._guest, size)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._flush_pipe()
                raise _Ended(END_PEER_CLOSED)
            self._put(self._session.receive(data, now))
            if len(data) < size:
                return
            done += size
            size = READ_SIZE
        sleep(max(FLOOD_REST_MIN, FLOOD_REST * (monotonic() - now)))

    def _serve_pipe(self, events: int, now: float) -> None:
        if events & POLLOUT:
            self._flush_pipe()
        if events & ~POLLOUT:
            try:
                packet = read(self._pipe, FIRST_READ)  # more than any command
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                raise _Ended(END_MASTER_GONE)
            if packet == ENABLE_REPORTING_PACKET:
                self._put(self._session.enable_reporting(now))
            else:
                self._put(self._session.ask(*decode_ask(packet), now))

    def _put(self, output: Output) -> None:
        data, reports = output
        if data:
            self._write_guest(data)
        if reports:
            self._tell(reports)

    def _write_guest(self, data: bytes) -> None:
        """Never blocks: what the guest's side does not take is dropped whole, so that framing holds."""
        try:
            if self._unsent:
                self._unsent = self._unsent[write(self._guest, self._unsent) :]
            if not self._unsent:
                self._unsent = data[write(self._guest, data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._flush_pipe()
            raise _Ended(END_PEER_CLOSED) from None

    def _tell(self, reports: Sequence[Report]) -> None:
        self._keep_pace(len(reports))
        self._untold.extend(map(encode, reports))
        del self._untold[:-UNTOLD_MAX]
        self._flush_pipe()

    def _keep_pace(self, count: int) -> None:
        now = monotonic()
        self._paced = max(self._paced, now - PACE_BURST / PACE) + count / PACE
        if self._paced > now:
            sleep(self._paced - now)

    def _flush_pipe(self) -> None:
        told = 0
        try:
            for packet in self._untold:
                write(self._pipe, packet)
                told += 1
        except BlockingIOError:
            pass
        except OSError:
            raise _Ended(END_MASTER_GONE) from None
        if told or self._untold:
            del self._untold[:told]
            self._poll.modify(self._pipe, POLLIN | POLLOUT if self._untold else POLLIN)
