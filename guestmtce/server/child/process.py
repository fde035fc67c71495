"""The process that watches one guest: one socket, one pipe, one session.

It lives as long as its connection. It imports nothing, logs nothing and allocates little after the fork:
what it has to say goes to the master over the pipe, and how it ended is its exit status.
"""

from __future__ import annotations

from os import read, set_blocking, urandom, write
from select import POLLIN, POLLOUT, poll
from time import monotonic, sleep
from typing import List, Optional, Sequence

from guestmtce.server.child.pipe_protocol import (
    ENABLE_REPORTING_PACKET,
    END_MASTER_GONE,
    END_PEER_CLOSED,
    END_RECONNECT,
    decode_ask,
    encode,
)
from guestmtce.server.child.session import Session
from guestmtce.server.child.session_states import CLOSED
from guestmtce.server.child.session_types import Output, Report, Resume, SessionSettings

FIRST_READ = 440  # bytes; a healthy guest's message fits, and CPython has the room for it at hand
READ_SIZE = 4096  # bytes
READ_BUDGET = 64 * 1024  # bytes read in one go before others get their turn on the processor
FLOOD_REST = 3  # a guest that fills the budget is left alone this many times as long as reading it took
FLOOD_REST_MIN = 0.005  # s
UNSENT_REPORTS_MAX = 256  # kept while the master does not read; the oldest go first
REPORTS_PER_SECOND = 10  # that a child sends at most, half of what the master kills it for, and
REPORTS_BURST = 100  # as many at once: a guest that makes it say more waits
POLL_MAX = 86400.0  # s; a guest may name intervals that poll(2) cannot wait for
POLL_LATE = 0.002  # s; the most that rounding, and waking up, make it late
POLL_SLACK = 0.001  # part of its time by which Linux lets poll(2) be late, to wake up less often


random_bytes = urandom  # `confine` has another where this one would open a file


def random_challenge() -> int:
    """A number in 0 … 2³¹−1 that the guest cannot foresee."""
    return int.from_bytes(random_bytes(4), "little") & 0x7FFFFFFF


def _shorten_wait(wait: float) -> float:
    """How long, in s, to poll(2) where a judgement is due in `wait` s.

    poll(2) comes late by its rounding and a thousandth of its time, and a loss told late is an alarm late. So
    it waits for less, and the rest is slept: 2.4 ms sooner at the VIM.
    """
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

    __slots__ = ("_guest", "_reports_fill_until", "_pipe", "_poll", "_session", "_unsent", "_unsent_packets")

    def __init__(self, settings: SessionSettings) -> None:
        """All that can be made before a guest is known: the spawner makes it once for all children."""
        self._guest = self._pipe = -1
        self._poll = poll()
        self._session = Session(settings, random_challenge)
        self._reports_fill_until = 0.0  # s, monotonic: reports sent so far fill their time until then
        self._unsent = b""
        self._unsent_packets: List[bytes] = []

    def run(self, guest: int, pipe: int, resume: Optional[Resume]) -> int:
        """Serve the descriptors until the connection ends; returns the exit status."""
        self._guest, self._pipe = guest, pipe
        for descriptor in (guest, pipe):
            # A guest that does not read, and a master that does not, must not stop the judgement.
            set_blocking(descriptor, False)
            self._poll.register(descriptor, POLLIN)
        try:
            self._carry_out(self._session.start(resume, monotonic()))
            while self._session.heartbeat.state != CLOSED:
                self._serve_next()
            return END_RECONNECT
        except _Ended as ended:
            return ended.status

    def _serve_next(self) -> None:
        """Wait for the guest, the master or the session's deadline, and serve what came."""
        session = self._session
        wait = session.deadline - monotonic()
        if wait > POLL_MAX:
            wait = POLL_MAX
        if session.awaits_answer():
            wait = _shorten_wait(wait)
        # Rounded up: a wait that ends in the last millisecond would be polled for with 0 again and again.
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
            self._carry_out(session.tick(now))

    def _read_guest(self, now: float) -> None:
        """All that has come, up to a budget: a guest that sends without end must not cost the others."""
        done, size = 0, FIRST_READ
        while done < READ_BUDGET:
            try:
                data = read(self._guest, size)
            except BlockingIOError:
                return
            # ECONNRESET is QEMU's closing, too: an end like EOF, and no loss
            # (docs/protocol/1-guest-channel.md#connection-upkeep).
            except OSError:
                data = b""
            if not data:
                self._flush_pipe()
                raise _Ended(END_PEER_CLOSED)
            self._carry_out(self._session.receive(data, now))
            # The socket is empty: one more read(2) would only say so, and cost every heartbeat a system call.
            if len(data) < size:
                return
            done += size
            size = READ_SIZE
        sleep(max(FLOOD_REST_MIN, FLOOD_REST * (monotonic() - now)))

    def _serve_pipe(self, events: int, now: float) -> None:
        if events & POLLOUT:
            self._flush_pipe()
        # POLLHUP and POLLERR come unasked; read(2) says what they mean. The pipe is SOCK_SEQPACKET: one read
        # is one command.
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
                self._carry_out(self._session.enable_reporting(now))
            else:
                self._carry_out(self._session.ask(*decode_ask(packet), now))

    def _carry_out(self, output: Output) -> None:
        data, reports = output
        if data:
            self._write_guest(data)
        if reports:
            self._send_reports(reports)

    def _write_guest(self, data: bytes) -> None:
        """Never blocks: what the guest's side does not take is dropped whole, so that framing holds."""
        try:
            # The rest of a message of which the socket took a part goes first.
            if self._unsent:
                self._unsent = self._unsent[write(self._guest, self._unsent) :]
            if not self._unsent:
                self._unsent = data[write(self._guest, data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._flush_pipe()
            raise _Ended(END_PEER_CLOSED) from None

    def _send_reports(self, reports: Sequence[Report]) -> None:
        self._keep_pace(len(reports))
        self._unsent_packets.extend(map(encode, reports))
        del self._unsent_packets[:-UNSENT_REPORTS_MAX]
        self._flush_pipe()

    def _keep_pace(self, count: int) -> None:
        """Sleep while `count` more reports would be too many.

        Not common.rate_limit, which refuses: a child loses no report while the master reads, but makes its
        guest wait. One
        number is enough for that, and is no object on a page of its own.
        """
        now = monotonic()
        # Quiet earns one burst at most: a child that said nothing for a day may not say a day's reports.
        self._reports_fill_until = (
            max(self._reports_fill_until, now - REPORTS_BURST / REPORTS_PER_SECOND)
            + count / REPORTS_PER_SECOND
        )
        if self._reports_fill_until > now:
            sleep(self._reports_fill_until - now)

    def _flush_pipe(self) -> None:
        sent = 0
        try:
            for packet in self._unsent_packets:
                write(self._pipe, packet)
                sent += 1
        except BlockingIOError:
            pass
        except OSError:
            raise _Ended(END_MASTER_GONE) from None
        if sent or self._unsent_packets:
            del self._unsent_packets[:sent]
            # POLLOUT only while reports are left over: a pipe that has room would end every poll(2) at once.
            self._poll.modify(self._pipe, POLLIN | POLLOUT if self._unsent_packets else POLLIN)
