"""The process that watches one guest: one socket, one pipe, one session.

It lives as long as its connection. It imports nothing, logs nothing and allocates little after the fork:
what it has to say goes to the master over the pipe, and how it ended is its exit status.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import List, Optional

from guestmtce.server import pipe as pipe_module
from guestmtce.server.reports import Output, Reconnect, Report, Resume, Settings
from guestmtce.server.session import CLOSED, Session

# Exit statuses. A death by signal or any other status is a crash.
END_PEER_CLOSED = 0
END_RECONNECT = 10
END_MASTER_GONE = 11
END_BOOT_FAILURE = 12
END_DEFECT = 13

READ_SIZE = 4096  # bytes; a healthy guest's message fits many times over
READ_BUDGET = 64 * 1024  # bytes read in one go before others get their turn on the processor
FLOOD_REST = 3  # a guest that fills the budget is left alone this many times as long as reading it took
FLOOD_REST_MIN = 0.005  # s
UNTOLD_MAX = 256  # reports kept while the master does not read
POLL_MAX = 86400.0  # s; a guest may name intervals that poll(2) cannot wait for

random_bytes = os.urandom  # `confine` has another where this one would open a file


def random_challenge() -> int:
    """A number in 0 … 2³¹−1 that the guest cannot foresee."""
    return int.from_bytes(random_bytes(4), "little") & 0x7FFFFFFF


class _Ended(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Child:
    """Carries bytes between a guest's socket, a session and the master's pipe."""

    __slots__ = ("_guest", "_pipe", "_poll", "_session", "_unsent", "_untold")

    def __init__(self, guest: socket.socket, pipe: socket.socket, settings: Settings) -> None:
        guest.setblocking(False)
        pipe.setblocking(False)
        self._guest = guest
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(guest.fileno(), select.POLLIN)
        self._poll.register(pipe.fileno(), select.POLLIN)
        self._session = Session(settings, random_challenge, time.monotonic())
        self._unsent = b""
        self._untold: List[bytes] = []

    def run(self, resume: Optional[Resume]) -> int:
        """Serve until the connection ends; returns the exit status."""
        try:
            self.start(resume)
            while self._session.state != CLOSED:
                self.step()
            return END_RECONNECT
        except _Ended as ended:
            return ended.status

    def start(self, resume: Optional[Resume]) -> None:
        """The connection stands: say what is to be said first."""
        self._put(self._session.start(resume, time.monotonic()))

    def step(self) -> None:
        """Wait for the guest, the master or the session's deadline, and serve what came."""
        session = self._session
        wait = min(session.deadline - time.monotonic(), POLL_MAX)
        ready = dict(self._poll.poll(max(0, int(wait * 1000) + 1) if wait > 0 else 0))
        if self._pipe.fileno() in ready:
            self._serve_pipe(ready[self._pipe.fileno()])
        # A judgement comes after a last look at the socket, not after poll's word alone.
        if self._guest.fileno() in ready or (session.awaits_answer and time.monotonic() >= session.deadline):
            self._read_guest()
        now = time.monotonic()
        if now >= session.deadline:
            self._put(session.tick(now))

    def _read_guest(self) -> None:
        began = time.monotonic()
        read = 0
        while read < READ_BUDGET:
            try:
                data = self._guest.recv(READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._flush_pipe()
                raise _Ended(END_PEER_CLOSED)
            self._put(self._session.receive(data, time.monotonic()))
            read += len(data)
            if len(data) < READ_SIZE:
                return
        time.sleep(max(FLOOD_REST_MIN, FLOOD_REST * (time.monotonic() - began)))

    def _serve_pipe(self, events: int) -> None:
        if events & select.POLLOUT:
            self._flush_pipe()
        if events & ~select.POLLOUT:
            try:
                packet = self._pipe.recv(pipe_module.PACKET_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                raise _Ended(END_MASTER_GONE)
            self._put(self._session.ask(*pipe_module.decode_ask(packet), time.monotonic()))

    def _put(self, output: Output) -> None:
        if output.data:
            self._write_guest(output.data)
        if output.reports:
            self._tell(output.reports)

    def _write_guest(self, data: bytes) -> None:
        """Never blocks: what the guest's side does not take is dropped whole, so that framing holds."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self._guest.send(self._unsent) :]
            if not self._unsent:
                self._unsent = data[self._guest.send(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._flush_pipe()
            raise _Ended(END_PEER_CLOSED) from None

    def _tell(self, reports: List[Report]) -> None:
        self._untold += [pipe_module.encode(report) for report in reports]
        del self._untold[:-UNTOLD_MAX]
        self._flush_pipe()
        if isinstance(reports[-1], Reconnect):
            raise _Ended(END_RECONNECT)

    def _flush_pipe(self) -> None:
        told = 0
        try:
            for packet in self._untold:
                self._pipe.send(packet)
                told += 1
        except BlockingIOError:
            pass
        except OSError:
            raise _Ended(END_MASTER_GONE) from None
        if told or self._untold:
            del self._untold[:told]
            events = select.POLLIN | (select.POLLOUT if self._untold else 0)
            self._poll.modify(self._pipe.fileno(), events)
