"""Ports for a laboratory's daemons."""

import os
import socket

import pytest

from guestmtce.lab import ports


def test_they_are_free_and_come_in_turn():
    given = ports.free_ports(5) + ports.free_ports(5)
    assert len(set(given)) == 10 and all(ports.FIRST <= port <= ports.LAST for port in given)
    for port in given:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as bound:
                bound.bind(("127.0.0.1", port))


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_one_that_is_taken_is_left_out(kind, monkeypatch):
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", ports.free_ports(1)[0]))
        port = taken.getsockname()[1]
        candidates = iter([port, port + 1, port + 2])
        monkeypatch.setattr(ports, "_list_candidates", lambda _: candidates)
        monkeypatch.setattr(ports, "_is_free", lambda _, other, is_free=ports._is_free: (
            is_free("127.0.0.1", other) if other == port else True
        ))  # fmt: skip
        assert ports.free_ports(2) == [port + 1, port + 2]


def test_where_none_is_free_that_is_said(monkeypatch):
    monkeypatch.setattr(ports, "_is_free", lambda address, port: False)
    with pytest.raises(OSError, match="no 1 free ports from 10000 to 29999 at 127.0.0.1"):
        ports.free_ports(1)


def test_a_forked_process_begins_elsewhere(monkeypatch):
    before = ports.free_ports(1)
    monkeypatch.setattr(os, "getpid", lambda: 2**22)
    monkeypatch.setattr(ports.random.SystemRandom, "randint", lambda *_: 20_000)
    assert 20_000 <= ports.free_ports(1)[0] < 20_100 and before
