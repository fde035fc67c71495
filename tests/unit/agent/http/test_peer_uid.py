"""Whose a connection is: the kernel's own answers about real sockets, and the bytes of the question."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys

import pytest
from places import SUPPORT

from guestmtce.agent.http import peer_uid
from guestmtce.agent.http.peer_uid import (
    End,
    NoUid,
    Owner,
    PeerUids,
    build_query,
    find_in_table,
    parse_answer,
)

OTHER_USER = SUPPORT / "other_user.py"
OTHER = 61234
LOCAL = "127.0.0.1"
WAIT = 10  # s

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@pytest.fixture(params=["sock_diag", "tables"])
def uids(request):
    peers = PeerUids()
    if request.param == "tables":
        peers.close()  # as where there is no sock_diag
    yield peers
    peers.close()


def accepted(listener, uid, act):
    """The connection of a client of `uid` that did `act`, as the listener accepts it, and the client."""
    command = [sys.executable, str(OTHER_USER), str(uid), str(listener.getsockname()[1]), act, "x"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "done\n"
    connection, _ = listener.accept()
    return connection, client


@contextlib.contextmanager
def pair(bound=LOCAL, host=LOCAL):
    """An accepted connection, and its other end."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = socket.create_server((bound, 0), family=family, dualstack_ipv6=bound == "::")
        port = stack.enter_context(listener).getsockname()[1]
        client = stack.enter_context(socket.create_connection((host, port), WAIT))
        yield stack.enter_context(listener.accept()[0]), client


@pytest.mark.parametrize("act, is_known", [
    ("open", True), ("half closed", True), ("closed", False), ("reset", False),
])  # fmt: skip
@pytest.mark.parametrize("uid", [os.geteuid(), pytest.param(OTHER, marks=needs_root)])
def test_a_socket_that_nobody_holds_is_nobodys(uids, uid, act, is_known):
    """The kernel shows uid 0 for it."""
    with socket.create_server((LOCAL, 0)) as listener:
        connection, client = accepted(listener, uid, act)
        with client, connection:
            assert uids.look_up(connection) == (uid if is_known else NoUid.GONE)
            client.communicate()
            assert uids.look_up(connection) is NoUid.GONE


@pytest.mark.parametrize("bound, host", [
    (LOCAL, LOCAL), ("::1", "::1"), ("::", "::1"), ("::", LOCAL), ("::", "::ffff:127.0.0.1"), ("", LOCAL),
])  # fmt: skip
def test_all_addresses_of_this_host(uids, bound, host):
    with pair(bound, host) as (connection, _):
        assert uids.look_up(connection) == os.geteuid()
    assert uids.means in ("sock_diag", "/proc/self/net/tcp")


def test_a_kernel_that_tells_nothing(monkeypatch):
    monkeypatch.setattr(peer_uid, "TABLES", ("/nowhere/tcp", "/nowhere/tcp6"))
    uids = PeerUids()
    uids.close()
    with socket.create_server((LOCAL, 0)) as listener:
        connection, client = accepted(listener, os.geteuid(), "open")
        with client, connection:
            assert uids.look_up(connection) is NoUid.NO_MEANS
            assert uids.means.startswith("NOTHING")
            client.communicate()
        connection, client = accepted(listener, os.geteuid(), "reset")
        with client, connection:
            assert uids.look_up(connection) is NoUid.GONE


def test_sock_diag_that_knows_no_socket_is_not_believed(monkeypatch):
    """A kernel without the module answers as for a socket that is not there."""
    uids = PeerUids()
    monkeypatch.setattr(uids, "_query_kernel", lambda near, far: None)
    with pair() as (connection, _):
        assert uids.look_up(connection) == os.geteuid()
    assert uids.means == "/proc/self/net/tcp"
    uids.close()


@pytest.mark.parametrize("is_own, reason", [(True, NoUid.GONE), (False, NoUid.ELSEWHERE)])
def test_who_is_not_found_is_elsewhere_only_if_its_address_is(monkeypatch, is_own, reason):
    uids = PeerUids()
    monkeypatch.setattr(peer_uid, "_is_own_address", lambda address: is_own)
    with pair() as (connection, client):
        far = peer_uid.parse_end(client.getsockname())
        ask = uids._query_kernel
        monkeypatch.setattr(uids, "_query_kernel", lambda near, to: None if near == far else ask(near, to))
        assert uids.look_up(connection) is reason
    uids.close()


def test_own_addresses():
    assert peer_uid._is_own_address(bytes([127, 9, 9, 9])) and peer_uid._is_own_address(bytes(15) + b"\1")
    assert not peer_uid._is_own_address(bytes([192, 0, 2, 1]))
    assert not peer_uid._is_own_address(bytes([0x20, 1, 0xD, 0xB8]) + bytes(12))


# --- bytes ---

V4, V4_FAR = End(bytes([127, 0, 0, 1]), 0x1234), End(bytes([127, 0, 0, 2]), 2410)


def test_the_question():
    data = build_query(V4, V4_FAR, 7)
    assert struct.unpack_from("=IHHII", data) == (len(data), 20, 1, 7, 0) and len(data) == 72
    assert data[16:24] == bytes([socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 255, 255, 255, 255])
    assert data[24:28] == b"\x12\x34\x09\x6a" and data[28:32] == V4.address
    assert data[44:48] == V4_FAR.address and data[60:] == bytes(4) + b"\xff" * 8
    assert build_query(End(bytes(16), 1), End(bytes(16), 2), 1)[16] == socket.AF_INET6


def message(kind, body, sequence=7):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def test_answers():
    body = bytes([2, 1, 0, 0]) + bytes(48) + bytes(12) + struct.pack("=II", 1000, 99)
    assert parse_answer(message(20, body)) == (7, Owner(1, 1000, 99))
    assert parse_answer(message(2, struct.pack("=i", -errno.ENOENT), 8)) == (8, None)
    for data in (
        b"",
        b"x",
        message(20, body[:-1]),
        message(2, b""),
        message(2, struct.pack("=i", -errno.EPERM)),
    ):
        with pytest.raises(OSError):
            parse_answer(data)


def test_tables():
    def word(address):
        return "".join("%08X" % each for each in struct.unpack("=%dI" % (len(address) // 4), address))

    near, far = word(V4.address), word(V4_FAR.address)
    line = "   1: %s:%04X %s:%04X 01 00000000:00000000 00:00000000 00000000  1000        0 99 1 0 20\n"
    other = line % (far, V4_FAR.port, near, V4.port)
    assert find_in_table(other, V4, V4_FAR) is None
    assert find_in_table(other + line % (near, V4.port, far, V4_FAR.port), V4, V4_FAR) == Owner(1, 1000, 99)
    mapped = word(peer_uid.MAPPED)
    found = find_in_table(line % (mapped + near, V4.port, mapped + far, V4_FAR.port), V4, V4_FAR)
    assert found == Owner(1, 1000, 99)
    assert find_in_table("", V4, V4_FAR) is find_in_table("nonsense\n", V4, V4_FAR) is None
