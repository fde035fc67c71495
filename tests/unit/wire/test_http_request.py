"""HTTP requests from bytes: what is one, what is refused, and that nothing grows without a bound."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.wire import http_request
from guestmtce.wire.http_request import RequestReader, build_json_response
from guestmtce.wire.vim_http import Failure

BODY_MAX = 1000


def read(data, body_max=BODY_MAX):
    reader = RequestReader(body_max)
    return reader.feed(data), reader


def post(*fields, body=b"", line=b"POST /v1/x HTTP/1.1"):
    return b"\r\n".join([line, b"Host: x", *fields, b"", b""]) + body


CHUNKED = b"Transfer-Encoding: chunked"


def chunks(*parts, trailer=b""):
    data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return post(CHUNKED, body=data + b"0\r\n" + trailer + b"\r\n")


WHOLE = {
    "no body": (post(), b""),
    "a body": (post(b"Content-Length: 2", body=b"{}"), b"{}"),
    "a length with zeros before it": (post(b"Content-Length: 0002", body=b"{}"), b"{}"),
    "the longest body": (post(b"Content-Length: 1000", body=b"x" * 1000), b"x" * 1000),
    "an empty line before": (b"\r\n" + post(b"Content-Length: 2", body=b"{}"), b"{}"),
    "no space after the colon": (post(b"Content-Length:2", body=b"{}"), b"{}"),
    "chunks": (chunks(b"{", b"}"), b"{}"),
    "no chunks": (chunks(), b""),
    "a trailer": (chunks(b"{}", trailer=b"X: y\r\nZ: z\r\n"), b"{}"),
    "a chunk's extension": (post(CHUNKED, body=b"2;a=b\r\n{}\r\n0\r\n\r\n"), b"{}"),
    "a chunk's size in capitals": (post(CHUNKED, body=b"A\r\n" + b"x" * 10 + b"\r\n0\r\n\r\n"), b"x" * 10),
    "CHUNKED": (post(b"TRANSFER-ENCODING: Chunked", body=b"2\r\n{}\r\n0\r\n\r\n"), b"{}"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_requests(name):
    data, body = WHOLE[name]
    request, reader = read(data)
    assert (request.method, request.path, request.version) == ("POST", "/v1/x", "HTTP/1.1")
    assert request.body == body and request.headers["host"] == "x" and reader.size == 0


@pytest.mark.parametrize("name", WHOLE)
def test_no_request_is_whole_before_its_last_byte(name):
    data, body = WHOLE[name]
    reader = RequestReader(BODY_MAX)
    for at in range(len(data) - 1):
        assert reader.feed(data[at : at + 1]) is None
    assert reader.feed(data[-1:]).body == body


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(0, 1200), max_size=8))
def test_pieces_of_any_size_make_the_same_request(name, cuts):
    data, body = WHOLE[name]
    reader, ends = RequestReader(BODY_MAX), sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    replies = [reader.feed(data[begin:end]) for begin, end in zip(ends, ends[1:])]
    assert replies[:-1] == [None] * (len(replies) - 1) and replies[-1].body == body


def test_what_follows_a_request_is_not_its_body():
    request, reader = read(post(b"Content-Length: 2", body=b"{}GET / HTTP/1.1"))
    assert request.body == b"{}" and reader.size == len("GET / HTTP/1.1")


TARGETS = {
    b"/v1/hosts/x": ("/v1/hosts/x", ""),
    b"/v1/%68osts/%ff?a=%20&b": ("/v1/hosts/\xff", "a=%20&b"),
    b"http://controller:2410/v1/hosts/x?a": ("/v1/hosts/x", "a"),
    b"http://controller": ("/", ""),
    b"/x?u=http://y/z": ("/x", "u=http://y/z"),
    b"*": ("*", ""),
}


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target):
    request, _ = read(post(line=b"GET %s HTTP/1.1" % target))
    assert (request.path, request.query) == TARGETS[target]


def test_versions_and_headers():
    assert read(post(line=b"GET / HTTP/1.0"))[0].version == "HTTP/1.0"
    assert read(post(line=b"GET / HTTP/1.9"))[0].version == "HTTP/1.1"
    headers = read(post(b"Accept: a", b"ACCEPT:\t b \t", b"Empty:", b"Latin: \xe9"))[0].headers
    assert headers == {"host": "x", "accept": "a, b", "empty": "", "latin": "\xe9"}
    assert read(post(b"X: XyX"))[0].headers["x"] == "XyX"
    assert read(post(b"Expect: 100-continue", b"Content-Length: 2"))[1].wants_continue


REFUSED = {
    "a negative length": (post(b"Content-Length: -1"), 400),
    "a length with a sign": (post(b"Content-Length: +2", body=b"{}"), 400),
    "a length in hexadecimal": (post(b"Content-Length: 0x2", body=b"{}"), 400),
    "a length of nothing": (post(b"Content-Length:"), 400),
    "a length in other digits": (post(b"Content-Length: \xb2"), 400),
    "a list of lengths": (post(b"Content-Length: 2, 2", body=b"{}"), 400),
    "two lengths": (post(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"), 400),
    "two equal lengths": (post(b"Content-Length: 2", b"content-length: 2", body=b"{}"), 400),
    "one byte too many": (post(b"Content-Length: 1001"), 413),
    "a length that is a book": (post(b"Content-Length: " + b"9" * 5000), 413),
    "length and chunks": (post(b"Content-Length: 2", CHUNKED), 400),
    "chunks in HTTP/1.0": (post(CHUNKED, line=b"POST / HTTP/1.0"), 400),
    "chunks twice": (post(CHUNKED, CHUNKED), 400),
    "another encoding": (post(b"Transfer-Encoding: gzip, chunked"), 501),
    "no encoding": (post(b"Transfer-Encoding:"), 501),
    "two hosts": (post(b"Host: y"), 400),
    "a folded header": (post(b"Content-Length: 2", b" 3"), 400),
    "a space before the colon": (post(b"Content-Length : 2"), 400),
    "no colon": (post(b"Content-Length"), 400),
    "no name": (post(b": x"), 400),
    "NUL in a header": (post(b"X: a\0b"), 400),
    "CR in a header": (post(b"X: a\rContent-Length: 2"), 400),
    "LF in a header": (post(b"X: a\nContent-Length: 2"), 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "a bare LF": (b"GET / HTTP/1.1\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n", 505),
    "two spaces": (b"GET  / HTTP/1.1\r\n", 400),
    "a target that is no ASCII": (b"GET /\xff HTTP/1.1\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\n", 400),
    "a line without an end": (b"x" * http_request.HEAD_MAX, 431),
    "headers without an end": (post()[:-2] + b"X: y\r\n" * 11000, 431),
    "a chunk's size that is none": (post(CHUNKED, body=b"zz\r\n"), 400),
    "a chunk's size with a sign": (post(CHUNKED, body=b"-1\r\n"), 400),
    "a huge chunk": (post(CHUNKED, body=b"ffffffff\r\n"), 413),
    "a chunk's size that is a book": (post(CHUNKED, body=b"0" * 300), 400),
    "a chunk that is too long": (post(CHUNKED, body=b"2\r\n{}}}\r\n"), 400),
    "chunks that are too much": (chunks(b"x" * 600, b"x" * 600), 413),
    "trailers without an end": (chunks(trailer=b"X: y\r\n" * 2000), 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, status = REFUSED[name]
    with pytest.raises(Failure) as caught:
        read(data)
    assert caught.value.status == status and caught.value.detail


def test_many_small_chunks_are_refused_whatever_their_sum():
    with pytest.raises(Failure) as caught:
        read(chunks(*[b"x"] * (http_request.CHUNKS_MAX + 1)), body_max=10**6)
    assert caught.value.status == 413


def test_a_body_may_have_1024_chunks_with_the_last_that_is_empty():
    request, _ = read(chunks(*[b"x"] * (http_request.CHUNKS_MAX - 1)), body_max=10**6)
    assert request.body == b"x" * 1023
    with pytest.raises(Failure):
        read(chunks(*[b"x"] * http_request.CHUNKS_MAX), body_max=10**6)


@pytest.mark.parametrize("zeros", [255, 256])
def test_a_line_between_chunks_may_have_255_bytes_without_its_end(zeros):
    if zeros < 256:
        assert read(post(CHUNKED, body=b"0" * zeros))[0] is None
    else:
        with pytest.raises(Failure):
            read(post(CHUNKED, body=b"0" * zeros))


def test_what_follows_chunks_is_not_looked_at():
    request, reader = read(chunks(b"{}") + b"x" * 300)
    assert (request.body, reader.size) == (b"{}", 300)


@given(st.binary(max_size=300), st.sampled_from([b"", post(CHUNKED), post(b"Content-Length: 300")]))
def test_any_bytes_are_a_request_a_failure_or_a_wait(data, before):
    reader = RequestReader(BODY_MAX)
    try:
        for byte in before + data:
            if reader.feed(bytes([byte])) is not None:
                break
    except Failure as failure:
        assert 400 <= failure.status <= 505
    assert reader.size <= len(before + data)


def test_a_response_says_that_its_connection_ends():
    head, _, body = build_json_response(403, {"status": "fail"}).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 403 Forbidden" and b"Connection: close" in lines
    assert b"Content-Type: application/json" in lines
    assert b"Content-Length: %d" % len(body) in lines and json.loads(body) == {"status": "fail"}


def test_a_request_has_begun_with_its_first_byte_and_who_expects_nothing_is_sent_nothing():
    reader = RequestReader(BODY_MAX)
    assert (reader.has_begun, reader.wants_continue) == (False, False)
    reader.feed(b"P")
    assert reader.has_begun
    reader = read(post(b"Content-Length: 2"))[1]
    assert (reader.has_begun, reader.size, reader.wants_continue) == (True, 0, False)


def test_chunks_may_fill_the_longest_body():
    assert read(chunks(b"x" * 600, b"x" * 400))[0].body == b"x" * 1000
