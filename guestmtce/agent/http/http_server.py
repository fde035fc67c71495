"""An HTTP server whose workers never wait for a client.

One thread accepts connections and reads them without waiting. Only a whole request goes to a worker, which
answers it, sends the response and closes. So a connection that is idle, sends by drops or does not read costs
memory, and never a worker; how many there may be, for how long and with how many bytes is bounded.

CherryPy's own servers give each new connection to a worker, which then waits for the request; they have no
public place to change that. Here CherryPy is what it is under any server: a WSGI application.

`HttpServer._run` and all that it calls belong to the one thread; `_serve_request` and what it calls to the
workers. A connection is in the hands of one of them at a time.
"""

from __future__ import annotations

import collections
import errno
import logging
import resource
import selectors
import socket
import threading
import time
from typing import Callable, Deque, Iterator, Optional, Tuple, Union

from guestmtce.agent.http.http_connections import Caller, Connection, DeadlineQueue
from guestmtce.agent.http.workers import Workers
from guestmtce.daemon.log import Throttle
from guestmtce.wire import vim_http
from guestmtce.wire.http_request import Request, build_json_response
from guestmtce.wire.vim_http import Failure

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024  # whose request is not whole; one more, and the oldest is closed
STRANGERS_MAX = 128  # the same of those who will be refused: they push out each other only
DEPARTING_MAX = 256  # that are answered and not closed yet
BYTES_MAX = 16 * 1024 * 1024  # of requests that are not whole; one more, and the oldest are closed
LISTEN_MAX = 1024  # connections that wait to be accepted; one too many costs its client a second
ACCEPTS_AT_ONCE = 64
WAKE_UPS_MAX = 4096  # bytes, one each
ACCEPT_PAUSE = 0.1  # s, when this process has no descriptor for a connection
BACKLOG_MAX = 1024  # whole requests that wait for a worker
DEPARTURE_TIME = 5.0  # s for a client to take its response, or to finish what nobody wants to hear
DRAIN_MAX = 2 * 1024 * 1024  # bytes of it: a close while there is unread data would destroy the response
JOIN_TIME = 1.0  # s
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GOOD = b"HTTP/1.1 2"
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Ready = Union[Connection, Callable[[], None]]
Answer = Callable[[Request, str], bytes]  # (the request, the client's address) → the response
Identify = Callable[[socket.socket], Caller]


class HttpServer:
    """See the module's text. `answer` and `identify` must not wait; `answer` is called by several threads.

    `timeout`: s from a connection's begin to the end of its request.
    """

    def __init__(self, threads: int, timeout: float, answer: Answer, identify: Identify) -> None:
        self.served = self.refused = 0  # by an answer of 2xx, or another one
        self.accepted = self.unfinished = self.pushed_out = 0  # connections
        self._counting = threading.Lock()
        self._answer = answer
        self._identify = identify
        self._timeout = timeout
        self._throttle = Throttle(log)
        # A quarter of the descriptors for each queue: the last one is for files, UDP and the calls to the
        # VIM.
        share = _count_descriptors() // 4
        self._waiting = DeadlineQueue(timeout, min(CONNECTIONS_MAX, share))
        self._strangers = DeadlineQueue(timeout, min(STRANGERS_MAX, share))
        self._departing = DeadlineQueue(DEPARTURE_TIME, min(DEPARTING_MAX, share))
        self._bytes = 0  # of requests that are not whole
        self._workers: Workers[Tuple[Connection, Request]] = Workers("http", threads, self._serve_request)
        self._sent_in_part: Deque[Connection] = collections.deque()
        self._closing = False
        self._accepts_from = 0.0  # s, monotonic; 0: it accepts
        self._listener: Optional[socket.socket] = None
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._serve_wake_up)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    # --- for any thread ----------------------------------------------------------------------------

    def start(self, address: str, port: int) -> None:
        """Listen. Raises OSError when that cannot be."""
        family, _, _, _, name = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM,
                                                   flags=socket.AI_PASSIVE)[0]  # fmt: skip
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        # Connections of the agent before this one may still be in TIME_WAIT on this port.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        self._listener.bind(name)
        self._listener.listen(LISTEN_MAX)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept_all)
        self._workers.start()
        self._thread.start()

    def close(self) -> None:
        """Stop listening, without waiting for requests that are under way."""
        self._closing = True
        if self._thread.is_alive():
            self._wake_up()
            self._thread.join(JOIN_TIME)
        elif not self._thread.ident:  # it never ran
            self._close_all()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._listener.getsockname()[1]) if self._listener is not None else 0

    @property
    def departing(self) -> int:
        """Connections that have their answer and are not closed yet."""
        return len(self._departing)

    def describe(self) -> str:
        """For the health report."""
        counts = (self.served, self.refused, self.accepted, self.unfinished, self.pushed_out)
        return "commands served %d refused %d connections %d unfinished %d pushed out %d" % counts

    def _wake_up(self) -> None:
        try:
            self._wake_out.send(b"\0")
        except OSError:
            pass  # full: it will wake up anyway; or closed

    # --- the workers -------------------------------------------------------------------------------

    def _serve_request(self, whole: Tuple[Connection, Request]) -> None:
        connection, request = whole
        try:
            connection.response = self._answer(request, connection.address)
        except Exception:
            log.exception("a defect in guestmtce: %s %s failed", request.method, request.path)
            connection.response = build_json_response(500, Failure(500, vim_http.BAD_STATE).body())
        self._count_answer(connection.response.startswith(GOOD))
        self._send_response(connection)

    def _count_answer(self, is_good: bool) -> None:
        with self._counting:
            self.served += is_good
            self.refused += not is_good

    def _send_response(self, connection: Connection) -> None:
        """A response fits into the socket's buffer; what does not is sent by the one thread.

        A close while there is unread data would make the client lose the response.
        """
        if connection.send_some() and (connection.response or connection.reader.size):
            self._sent_in_part.append(connection)
            self._wake_up()
        else:
            connection.sock.close()

    # --- the one thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._longest_wait()):
                if self._selector.get_map().get(key.fd) is key:  # none before it has closed it
                    self._call_guarded(key.data)
            self._call_guarded(self._end_overdue)
        self._close_all()

    def _call_guarded(self, ready: Ready) -> None:
        """Serve a connection, or make a call. A defect costs the connection, not the server."""
        try:
            if isinstance(ready, Connection):
                self._serve_connection(ready)
            else:
                ready()
        except Exception:
            log.exception("a defect in guestmtce: the HTTP server")
            if isinstance(ready, Connection):
                self._drop_connection(ready)

    def _longest_wait(self) -> Optional[float]:
        """s until something is overdue; None: nothing will be."""
        oldest = (queue.oldest for queue in (self._waiting, self._strangers, self._departing))
        due = [connection.deadline for connection in oldest if connection is not None]
        if self._accepts_from:
            due.append(self._accepts_from)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _serve_wake_up(self) -> None:
        try:
            while self._wake_in.recv(WAKE_UPS_MAX):
                pass
        except BlockingIOError:
            pass
        while self._sent_in_part:
            self._see_off(self._sent_in_part.popleft())

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for waiting in (self._waiting, self._strangers, self._departing):
            while waiting.oldest is not None and waiting.oldest.deadline <= now:
                self._end_one_overdue(waiting.oldest)
        if self._accepts_from and self._accepts_from <= now and self._listener is not None:
            self._accepts_from = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept_all)

    def _end_one_overdue(self, connection: Connection) -> None:
        if connection.waits_in is self._waiting and connection.reader.has_begun:
            detail = "no whole request within %g s" % self._timeout
            return self._refuse_request(connection, Failure(408, vim_http.PARSE_ERROR, detail))
        if connection.waits_in is not self._departing:
            self.unfinished += 1
        self._drop_connection(connection)

    def _close_all(self) -> None:
        for waiting in (self._waiting, self._strangers, self._departing):
            while waiting.oldest is not None:
                self._drop_connection(waiting.oldest)
        self._workers.end()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # accepting

    def _accept_all(self) -> None:
        """All are accepted before one is served: a worker that is busy makes each system call dear."""
        for sock, address in list(self._accept_some()):
            self._admit_connection(sock, address)

    def _accept_some(self) -> Iterator[Tuple[socket.socket, str]]:
        assert self._listener is not None
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, name = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._make_room(error)
                    return
                continue  # it is gone again
            yield sock, str(name[0])

    def _make_room(self, error: OSError) -> None:
        """Who waits to be accepted keeps the listener readable: spinning on it would help nobody."""
        text = "a connection cannot be accepted (%s): the oldest one is closed; see ulimit -n"
        self._throttle.warning("resources", text, error)
        # First who is refused anyway, then who has its answer, and last who may command.
        for waiting in (self._strangers, self._departing, self._waiting):
            if waiting.oldest is not None:
                return self._drop_connection(waiting.oldest)
        assert self._listener is not None
        self._selector.unregister(self._listener)
        self._accepts_from = time.monotonic() + ACCEPT_PAUSE

    def _admit_connection(self, sock: socket.socket, address: str) -> None:
        self.accepted += 1
        sock.setblocking(False)
        connection = Connection(sock, address, self._identify(sock))
        waiting = self._waiting if connection.caller.refusal is None else self._strangers
        if waiting.is_full() and waiting.oldest is not None:
            self._push_out(waiting.oldest)
        waiting.add(connection)
        self._call_guarded(connection)  # most have sent their request by now
        # Else it was answered, handed over or closed by that call.
        if connection.waits_in is waiting:
            self._watch_connection(connection, selectors.EVENT_READ)

    def _push_out(self, connection: Connection) -> None:
        self.pushed_out += 1
        text = "%d connections have sent no whole request: the oldest, of %s, is closed"
        waiting = len(self._waiting) + len(self._strangers)
        self._throttle.warning("pushed out", text, waiting, connection.caller.name)
        self._drop_connection(connection)

    # a request

    def _serve_connection(self, connection: Connection) -> None:
        if connection.waits_in is self._departing:
            return self._continue_departure(connection)
        data = connection.receive()
        if data is None:
            return
        if not data:
            self.unfinished += connection.reader.has_begun
            return self._drop_connection(connection)
        # A stranger is answered without being understood: its bytes reach no parser, and are not kept.
        if connection.caller.refusal is not None:
            return self._refuse_request(connection, connection.caller.refusal)
        try:
            request = connection.reader.feed(data)
        except Failure as failure:
            return self._refuse_request(connection, failure)
        if request is not None:
            return self._hand_over(connection, request)
        self._wait_for_more(connection)

    def _wait_for_more(self, connection: Connection) -> None:
        if connection.reader.wants_continue:
            connection.reader.wants_continue = False
            connection.response = CONTINUE
            connection.send_some()
        self._count_bytes(connection, connection.reader.size)
        while self._bytes > BYTES_MAX and self._waiting.oldest is not None:
            self._push_out(self._waiting.oldest)

    def _hand_over(self, connection: Connection, request: Request) -> None:
        if self._workers.backlog >= BACKLOG_MAX:
            return self._refuse_request(
                connection, Failure(503, vim_http.BAD_STATE, "%d requests wait" % BACKLOG_MAX)
            )
        # Before the worker has it: that one may close the socket, and the next connection may get its
        # descriptor's number.
        self._release_connection(connection)
        self._workers.hand_over((connection, request))

    def _refuse_request(self, connection: Connection, failure: Failure) -> None:
        self._count_answer(False)
        text = "a command of %s was refused with %d: %s"
        detail = failure.detail or failure.reason
        self._throttle.warning(
            "%d %s" % (failure.status, failure.reason), text, connection.caller.name, failure.status, detail
        )
        connection.response = build_json_response(failure.status, failure.body())
        self._see_off(connection)

    # the end

    def _see_off(self, connection: Connection) -> None:
        """It has its answer: from now on all that counts is that the client gets it."""
        self._release_connection(connection)
        # It has its answer, and has had more time than all others to read it.
        if self._departing.is_full() and self._departing.oldest is not None:
            self._drop_connection(self._departing.oldest)
        self._departing.add(connection)
        self._continue_departure(connection)

    def _continue_departure(self, connection: Connection) -> None:
        """Send what is left of the response; then read what the client still sends, until its end."""
        if connection.response and not connection.send_some():
            return self._drop_connection(connection)
        if connection.response:
            return self._watch_connection(connection, selectors.EVENT_WRITE)
        if connection.watched != selectors.EVENT_READ:
            # The client sees the end of the response at once, and is read on until it ends, too.
            connection.end_sending()
            self._watch_connection(connection, selectors.EVENT_READ)
        data = connection.receive()
        if data is not None:
            connection.drained += len(data)
            if not data or connection.drained > DRAIN_MAX:
                self._drop_connection(connection)

    def _drop_connection(self, connection: Connection) -> None:
        self._release_connection(connection)
        connection.sock.close()

    def _release_connection(self, connection: Connection) -> None:
        """It is no longer in this thread's hands."""
        self._watch_connection(connection, 0)
        self._count_bytes(connection, 0)
        if connection.waits_in is not None:
            connection.waits_in.remove(connection)

    def _count_bytes(self, connection: Connection, size: int) -> None:
        self._bytes += size - connection.kept
        connection.kept = size

    def _watch_connection(self, connection: Connection, events: int) -> None:
        if connection.watched and events:
            self._selector.modify(connection.sock, events, connection)
        elif events:
            self._selector.register(connection.sock, events, connection)
        elif connection.watched:
            self._selector.unregister(connection.sock)
        connection.watched = events


def _count_descriptors() -> int:
    """How many this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4 * CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else max(4, soft)
