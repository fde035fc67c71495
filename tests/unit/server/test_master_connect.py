"""Whose fault it is that a guest has no child: its socket's, or ours."""

from __future__ import annotations

import errno
import socket
import types

import pytest

from guestmtce.lab.guest import uuid_of
from guestmtce.server.child import session_types
from guestmtce.server.master import Master
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state.effects import Connect
from guestmtce.server.state.guest_table import GuestTable

ONE = uuid_of(1)


class Children:
    """The start of a child fails as the test wants it."""

    def __init__(self, error):
        self.error = error

    def start_child(self, uuid, channel, resume):
        channel.close()
        raise self.error


@pytest.fixture
def master(monkeypatch):
    """A master of whom only the table is real, and what it was told of the guest."""
    one = Master.__new__(Master)
    one._loop = types.SimpleNamespace(now=0.0)
    one._guests = GuestTable(ServerSettings())
    one.said = []
    monkeypatch.setattr(one._guests, "connect_failed", lambda *words: one.said.append(("refused", words[1])))
    monkeypatch.setattr(one._guests, "child_ended", lambda *words: one.said.append(words[1:3]))
    monkeypatch.setattr(one, "_carry_out", lambda: None)
    return one


OURS = {
    "the spawner's queue is full": BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    "there is no spawner": OSError("there is no spawner at the moment"),
    "no uid is free": OSError("client.child_uids 1-1: each of these 1 is in use"),
}


@pytest.mark.parametrize("name", OURS)
def test_what_fails_on_our_side_is_no_refusal_of_the_guest(master, tmp_path, name):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        master._children = Children(OURS[name])
        master._connect_now(Connect(ONE, path, None))
    assert master.said == [(session_types.FORK_FAILED, ": it could not be asked for: %s" % OURS[name])]


def test_no_socket_to_be_had_is_ours_too(master, monkeypatch):
    def none_left(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    master._connect_now(Connect(ONE, "/nowhere", None))
    assert [why for why, _ in master.said] == [session_types.FORK_FAILED]


def test_a_full_backlog_of_the_guest_s_socket_is_its_refusal(master, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        master._connect_now(Connect(ONE, path, None))
    ((word, error),) = master.said
    assert word == "refused" and error.errno == errno.EAGAIN
