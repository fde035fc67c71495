"""One request to the VIM: one deadline and one size for its whole answer, and what is known of its fate.

A time-out of requests is one between two bytes, and ends no answer that drips. Here the socket of the
connection has the deadline, and notes what decides whether a request may be repeated: whether the VIM's
kernel has all of it, and whether a status line or not a byte has come.

docs/protocol/3-vim-http.md#how-events-are-delivered
"""

from __future__ import annotations

import errno
import fcntl
import json
import re
import socket
import struct
import termios
import threading
import time
from typing import Any, Callable, Mapping, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from guestmtce.wire import vim_http

HEADERS = {
    "User-Agent": vim_http.AGENT_USER_AGENT,
    "Content-Type": "application/json",
    "Connection": "close",
}
# s for a connection. A VIM whose queue of connections is full does not answer; the kernel would try again
# after 1, 3, 7 … s, which is later than a new connection.
CONNECT_MAX = 3.0
# Bytes of an answer that are read. 10,000 instances of a host with the longest names, 255 bytes, are 4.2 MB.
ANSWER_MAX = 8 * 1024 * 1024
CHUNK = 65536  # bytes
TEXT_MAX = 200  # characters of an error in a log line
END_OF_HEAD = b"\r\n\r\n"  # no JSON ends so
HEAD_MAX = 64  # bytes that are kept of an answer, for its status line
STATUS_LINE = re.compile(rb"HTTP/1\.\d (\d{3})[ \r\n]")


class Silent(Exception):
    """The VIM closed the connection without a byte."""


class Unanswered(Exception):
    """Time was up. `has_all`: the VIM's kernel has the whole request, and will not lose it."""

    def __init__(self, text: str, has_all: bool) -> None:
        super().__init__(text)
        self.has_all = has_all


class Unreached(Exception):
    """The VIM does not have the request: it was reset, or there was no connection."""


class Down(Unreached):
    """The VIM does not even listen."""


class NoRoom(Down):
    """The VIM listens, and its queue of connections is full."""


class Wait(NamedTuple):
    """How long, in s: until the first byte of an answer, and from there to its end; `first` bounds it all."""

    first: float
    rest: float


def _do_nothing() -> None:
    pass


class Steps(NamedTuple):
    """What is called once the connection is there: before the first byte is sent, and before the body is."""

    before_head: Callable[[], None] = _do_nothing
    before_body: Callable[[], None] = _do_nothing


NO_STEPS = Steps()


class Reply(NamedTuple):
    """An HTTP answer; `body` is its JSON, None if there is none that can be read."""

    status: int
    body: object


class _Exchange:
    """What is known of the request that is under way in this thread."""

    def __init__(self, wait: Wait, steps: Steps) -> None:
        self.deadline = time.monotonic() + wait.first
        self.rest = wait.rest
        self.steps = steps
        self.handed_over = False  # to the kernel, in full
        self.has_all = False  # the VIM's kernel
        self.ended = False
        self.head = b""

    def note_bytes(self, data: bytes) -> None:
        """Bytes of the answer, or none: its end."""
        if not data:
            self.ended = True
        elif not self.head:
            self.deadline = min(self.deadline, time.monotonic() + self.rest)
        self.head = (self.head + data[:HEAD_MAX])[:HEAD_MAX]

    @property
    def status(self) -> int:
        """The status of the answer, whatever became of the rest; 0 if none has come."""
        match = STATUS_LINE.match(self.head)
        return int(match.group(1)) if match else 0


# urllib3 makes the sockets and passes nothing of ours on: the thread's exchange is the way to them.
_current = threading.local()


class _Socket(socket.socket):
    """A connected socket whose reads end at the deadline of the exchange."""

    exchange: _Exchange

    def sendall(self, data: Any, flags: int = 0) -> None:
        # http.client and urllib3 send the head in one call and the body in the next. Without the body the VIM
        # begins nothing: the note that the alarm is under way is made between the two.
        steps = self.exchange.steps
        steps.before_head() if data.endswith(END_OF_HEAD) else steps.before_body()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        left = self.exchange.deadline - time.monotonic()
        try:
            if left <= 0:
                raise socket.timeout("the whole answer was not there in time")
            self.settimeout(left)
            count = super().recv_into(buffer, nbytes, flags)
        except socket.timeout:
            self._give_up()
            raise
        if count == 0 or len(self.exchange.head) < HEAD_MAX:
            self.exchange.note_bytes(bytes(memoryview(buffer)[:count]))
        return count

    def _give_up(self) -> None:
        """Is all of the request there? If not it must not arrive later: the connection is reset."""
        # SIOCOUTQ, the same number: bytes that were not sent, or not acknowledged by the other kernel.
        unsent = struct.unpack("i", fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        self.exchange.has_all = self.exchange.handed_over and unsent == 0
        if unsent:
            # A linger of 0 s: close() throws away what is unsent, and resets.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Connection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        plain = self.sock
        # Detached, or the plain socket would close the descriptor when it is collected.
        wrapped = _Socket(plain.family, plain.type, plain.proto, plain.detach())
        wrapped.settimeout(CONNECT_MAX)  # for sending, too: a request is less than what a socket takes
        wrapped.exchange = _current.exchange
        self.sock = wrapped

    def getresponse(self, *arguments: Any, **named: Any) -> Any:
        _current.exchange.handed_over = True
        return super().getresponse(*arguments, **named)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class Caller:
    """The VIM at `base`, for the use of one thread."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between us and the VIM
        self._session.headers.clear()
        adapter = HTTPAdapter()
        adapter.poolmanager.pool_classes_by_scheme = {"http": _Pool}
        self._session.mount("http://", adapter)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object],
        wait: Wait,
        steps: Steps = NO_STEPS,
    ) -> Reply:
        """One request, on a connection of its own.

        Raises Silent, Unanswered, Unreached, Down, NoRoom, and what `steps` raise, before which nothing more
        was sent.
        """
        exchange = _current.exchange = _Exchange(wait, steps)
        try:
            # The session takes a new connection for each: on one that stands, an answer would prove nothing
            # of an alarm sent on a later one, and its silent end would mean a delivery.
            with self._request(method, path, body, wait.first) as response:
                return Reply(response.status_code, _read_json(response))
        except requests.RequestException as error:
            # A status has come, whatever broke behind it: the VIM has processed the request.
            if exchange.status:
                return Reply(exchange.status, None)
            raise _name_fate(error, exchange) from None
        finally:
            self._session.close()  # the connection, should the other side keep it: it must serve no other

    def _request(
        self, method: str, path: str, body: Mapping[str, object], seconds: float
    ) -> requests.Response:
        return self._session.request(
            method,
            self._base + path,
            data=json.dumps(body) if body else None,
            headers=HEADERS,
            timeout=(min(CONNECT_MAX, seconds), seconds),
            allow_redirects=False,
            # The head alone: the body is read in pieces, up to ANSWER_MAX.
            stream=True,
        )


def _read_json(response: requests.Response) -> object:
    """The reply's JSON, or None. The VIM has said yes: a body that breaks off must not repeat an alarm."""
    data = bytearray()
    try:
        for chunk in response.iter_content(CHUNK):
            data += chunk
            if len(data) > ANSWER_MAX:
                return None
        return json.loads(data)
    except (requests.RequestException, ValueError, RecursionError):
        return None


def _name_fate(error: requests.RequestException, exchange: _Exchange) -> Exception:
    """What became of a request to which no status came."""
    text = " ".join(str(error).split())[:TEXT_MAX]
    if exchange.ended and not exchange.head:
        return Silent("closed without an answer")
    # Before Timeout, which it is as well.
    if isinstance(error, requests.ConnectTimeout):
        return NoRoom(text)
    if isinstance(error, requests.Timeout):
        return Unanswered(text, exchange.has_all)
    # requests wraps the OSError of a refused connection: its errno shows in the text.
    return (Down if "[Errno %d]" % errno.ECONNREFUSED in text else Unreached)(text)
