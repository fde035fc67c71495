"""The lab's virtio port: what it keeps, and what each side sees of the other."""

from __future__ import annotations

import os
import socket

import pytest

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.virtio_port import VirtioPort


@pytest.fixture
def port(tmp_path):
    with VirtioPort(str(tmp_path / "host"), str(tmp_path / "guest")) as one:
        one.host_path = str(tmp_path / "host")
        yield one


def connect(path):
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(60)
    link.connect(path)
    return link


def guest_of(port):
    def try_to():
        try:
            return connect(port.device)
        except OSError:  # it is being made
            return None

    return wait_for(try_to, "the guest sees the host")


def test_words_go_both_ways_and_are_kept_until_the_guest_is_there(port):
    with connect(port.host_path) as host:
        host.sendall(b"early")
        with guest_of(port) as guest:
            assert guest.recv(10) == b"early"
            guest.sendall(b"hello")
            assert host.recv(10) == b"hello"


def test_a_guest_that_goes_is_not_seen_by_the_host(port):
    with connect(port.host_path) as host:
        guest_of(port).close()
        with guest_of(port) as guest:
            host.sendall(b"still")
            assert guest.recv(10) == b"still"


def test_a_host_that_hangs_up_is_seen_by_the_guest_and_may_come_back(port):
    host = connect(port.host_path)
    with guest_of(port) as guest:
        host.close()
        assert guest.recv(10) == b""
    wait_for(lambda: not os.path.exists(port.device), "the device is gone")
    with connect(port.host_path) as host, guest_of(port) as guest:
        host.sendall(b"again")
        assert guest.recv(10) == b"again"
    assert port.connections == 2
