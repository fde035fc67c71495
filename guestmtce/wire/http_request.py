"""HTTP/1.1 from bytes to a request, and from a response to bytes (RFC 9112). Pure.

docs/protocol/3-vim-http.md#requests-and-their-limits

A request is returned only when all of it is there. What two readers could understand in two ways is refused:
more than one length, a length that is no number, a length beside chunks, folded headers, bare line feeds
(RFC 9112, section 11.2: request smuggling). Every part has a bound, whatever the headers announce.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any, Dict, Iterable, NamedTuple, Optional, Tuple
from urllib.parse import unquote_to_bytes

from guestmtce.wire import vim_http
from guestmtce.wire.vim_http import Failure

HEAD_MAX = 64 * 1024  # bytes of request line and headers; a token of keystone may have many KiB
LINE_MAX = 256  # bytes of a line between chunks
CHUNKS_MAX = 1024  # chunks and trailers of a body: each costs time, however short it is
DIGITS_MAX = 18  # of a Content-Length; longer is too large, and int() takes time for each digit
QUOTED_MAX = 40  # bytes of what was refused that the log shows

CR_LF = b"\r\n"
HEAD_END = CR_LF + CR_LF

# RFC 9110, section 5.6.2; RFC 9112, sections 3 and 7.1; field values without control characters but tabs.
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
ONLY_ONCE = ("content-length", "transfer-encoding", "host")


class Request(NamedTuple):
    """A whole request. `path` is without its percent signs and, like all text here, Latin-1 (PEP 3333)."""

    method: str
    path: str
    query: str
    version: str  # HTTP/1.0 or HTTP/1.1
    headers: Dict[str, str]  # by their names in lower case
    body: bytes


class RequestReader:
    """The one request of a connection, whose bytes come in pieces. A body has at most `body_max` bytes."""

    def __init__(self, body_max: int) -> None:
        self.wants_continue = False  # the client waits for "100 Continue" before it sends the body
        self._body_max = body_max
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer that hold no end of the headers
        self._line_is_valid = False
        self._head: Optional[Request] = None
        self._length: Optional[int] = None  # of the body in bytes; None: chunked
        self._chunked_body = bytearray()
        self._chunks = 0
        self._in_trailer = False

    @property
    def size(self) -> int:
        """Bytes that are kept. After a whole request: those that do not belong to it."""
        return len(self._buffer) + len(self._chunked_body)

    @property
    def has_begun(self) -> bool:
        """Whether any part of a request has come."""
        return self._head is not None or bool(self._buffer)

    def feed(self, data: bytes) -> Optional[Request]:
        """Add `data`; returns the request once it is whole, None before.

        Raises vim_http.Failure with status 400, 413, 431, 501 or 505 for what is no request, or is too large.
        """
        self._buffer += data
        if self._head is None and not self._read_head():
            return None
        return self._read_sized_body() if self._length is not None else self._read_chunked_body()

    def _read_head(self) -> bool:
        if not self._line_is_valid:
            self._buffer = self._buffer.lstrip(CR_LF)  # some clients end a request with an empty line more
            self._check_first_line()
        # From a little before what was searched, for the end may come in two pieces. A head that comes in
        # drops is not searched from its begin each time.
        end = self._buffer.find(HEAD_END, max(0, self._scanned - len(HEAD_END) + 1), HEAD_MAX)
        if end < 0:
            self._scanned = len(self._buffer)
            if len(self._buffer) >= HEAD_MAX:
                raise Failure(431, vim_http.NO_BUFFER, "headers of more than %d bytes" % HEAD_MAX)
            return False
        line, *fields = bytes(self._buffer[:end]).split(CR_LF)
        del self._buffer[: end + len(HEAD_END)]
        method, path, query, version = _parse_request_line(line)
        headers = _parse_fields(fields)
        self._length = _body_length(version, headers, self._body_max)
        self._head = Request(method, path, query, version, headers, b"")
        self.wants_continue = headers.get("expect", "").lower() == "100-continue"
        return True

    def _check_first_line(self) -> None:
        """Refuse at once what will never be a request: HTTP/0.9 has no end that could be waited for."""
        end = self._buffer.find(b"\n", 0, HEAD_MAX)
        if end >= 0:
            if self._buffer[end - 1 : end] != b"\r":
                raise Failure(400, vim_http.PARSE_ERROR, "a line that does not end with CR LF")
            _parse_request_line(bytes(self._buffer[: end - 1]))
            self._line_is_valid = True

    def _read_sized_body(self) -> Optional[Request]:
        assert self._head is not None and self._length is not None
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return self._head._replace(body=body)

    def _read_chunked_body(self) -> Optional[Request]:
        assert self._head is not None
        while True:
            line = self._next_line()
            if line is None:
                return None
            if self._in_trailer:
                # A trailer is read over: nothing here wants one.
                del self._buffer[: len(line) + len(CR_LF)]
                if not line:
                    body, self._chunked_body = bytes(self._chunked_body), bytearray()
                    return self._head._replace(body=body)
            elif not self._read_chunk(len(line) + len(CR_LF), _chunk_size(line)):
                return None
            self._chunks += 1
            if self._chunks > CHUNKS_MAX:
                raise Failure(413, vim_http.NO_BUFFER, "a body of more than %d chunks" % CHUNKS_MAX)

    def _next_line(self) -> Optional[bytes]:
        """The line at the buffer's begin, without its end, or None while it is not whole."""
        end = self._buffer.find(CR_LF, 0, LINE_MAX)
        if end < 0 and len(self._buffer) >= LINE_MAX:
            raise Failure(400, vim_http.PARSE_ERROR, "a line of more than %d bytes between chunks" % LINE_MAX)
        return bytes(self._buffer[:end]) if end >= 0 else None

    def _read_chunk(self, begin: int, size: int) -> bool:
        """Take the chunk of `size` bytes at `begin` if it is whole; one of 0 bytes begins the trailer."""
        if len(self._chunked_body) + size > self._body_max:
            raise _too_large(self._body_max)
        if size == 0:
            self._in_trailer = True
            del self._buffer[:begin]
            return True
        end = begin + size
        behind = end + len(CR_LF)
        if len(self._buffer) < behind:
            return False
        if self._buffer[end:behind] != CR_LF:
            raise Failure(400, vim_http.PARSE_ERROR, "a chunk that is longer than it says")
        self._chunked_body += self._buffer[begin:end]
        del self._buffer[:behind]
        return True


def _parse_request_line(line: bytes) -> Tuple[str, str, str, str]:
    """Method, path, query and version. Raises Failure 400 or 505."""
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Failure(400, vim_http.PARSE_ERROR, "no request line of HTTP/1: %r" % line[:QUOTED_MAX])
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Failure(505, vim_http.PARSE_ERROR, "HTTP/%s" % major.decode("ascii"))
    scheme, is_absolute, rest = target.partition(b"://")
    if is_absolute and not target.startswith(b"/"):  # as to a proxy; a server must understand it too
        target = b"/" + rest.partition(b"/")[2]
    path, _, query = target.partition(b"?")
    # Within one major version a higher minor one is read as the highest that is known.
    version = "HTTP/1.0" if minor == b"0" else "HTTP/1.1"
    return method.decode("ascii"), unquote_to_bytes(path).decode("latin-1"), query.decode("ascii"), version


def _parse_fields(lines: Iterable[bytes]) -> Dict[str, str]:
    """Headers by their names in lower case; what comes twice is joined. Raises Failure 400."""
    headers: Dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(raw_name) or CONTROL.search(raw_value):
            raise Failure(400, vim_http.PARSE_ERROR, "a header that is none: %r" % line[:QUOTED_MAX])
        name, value = raw_name.decode("ascii").lower(), raw_value.strip(b" \t").decode("latin-1")
        if name in headers and name in ONLY_ONCE:
            raise Failure(400, vim_http.PARSE_ERROR, "%s is there twice" % name)
        # As one list, in their order (RFC 9110, section 5.3).
        headers[name] = "%s, %s" % (headers[name], value) if name in headers else value
    return headers


def _body_length(version: str, headers: Dict[str, str], body_max: int) -> Optional[int]:
    """The body's length in bytes, or None for a chunked one. Raises Failure 400, 413 or 501."""
    length, encoding = headers.get("content-length"), headers.get("transfer-encoding")
    if encoding is not None:
        if length is not None or version == "HTTP/1.0":
            raise Failure(400, vim_http.PARSE_ERROR, "Transfer-Encoding beside Content-Length or in HTTP/1.0")
        if encoding.lower() != "chunked":
            raise Failure(501, vim_http.PARSE_ERROR, "Transfer-Encoding: %s" % encoding)
        return None
    # A request without a length has no body (RFC 9112, section 6.3).
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()):
        raise Failure(400, vim_http.PARSE_ERROR, "Content-Length: %s" % length)
    if len(length) > DIGITS_MAX or int(length) > body_max:
        raise _too_large(body_max)
    return int(length)


def _chunk_size(line: bytes) -> int:
    match = CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise Failure(400, vim_http.PARSE_ERROR, "no size of a chunk: %r" % line[:QUOTED_MAX])
    return int(match.group(1), 16)


def _too_large(body_max: int) -> Failure:
    return Failure(413, vim_http.NO_BUFFER, "a body of more than %d bytes" % body_max)


# --- responses -------------------------------------------------------------------------------------


def build_response(status: str, headers: Iterable[Tuple[str, str]], body: bytes) -> bytes:
    """The response with which its connection ends. `status` is the code and its phrase."""
    lines = ["HTTP/1.1 " + status, *("%s: %s" % header for header in headers), "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def build_json_response(status: int, reply: Dict[str, Any]) -> bytes:
    """The response that carries a JSON object."""
    body = json.dumps(reply).encode("ascii")
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return build_response("%d %s" % (status, HTTPStatus(status).phrase), headers, body)
