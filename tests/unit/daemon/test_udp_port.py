"""UDP as both daemons use it: IPv4 and IPv6, by address and by name."""

from __future__ import annotations

import socket

import pytest

from guestmtce.daemon import udp_port
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import Resolver
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.ports import free_ports

V4, V6 = "127.0.0.1", "::1"


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((V6, 0))
        return True
    except OSError:
        return False


both = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")


class Ports:
    """Ports in a loop, and what each has heard: (data, address)."""

    def __init__(self):
        self.loop = Loop()
        self.made = []

    def make(self, address, number=0):
        heard = []
        number = number or free_ports(1)[0]
        port = udp_port.UdpPort(self.loop, address, number, lambda *what: heard.append(what))
        self.made.append(port)
        return port, number, heard

    def until(self, condition):
        def turn():
            self.loop.after(0.005, lambda: None)
            self.loop.run_once()
            return condition()

        wait_for(turn, "it is heard", step=0)

    def close(self):
        for port in self.made:
            port.close()
        self.loop.close()


@pytest.fixture
def ports():
    one = Ports()
    yield one
    one.close()


@both
@pytest.mark.parametrize("address", [V4, V6])
def test_a_port_for_all_speaks_both_and_spells_an_address_as_it_is(ports, address):
    everywhere, number, heard = ports.make("")
    single, other, answers = ports.make(address)
    single.send(b"one", address, number)
    ports.until(lambda: heard)
    assert heard == [(b"one", address)]
    everywhere.send(b"two", heard[0][1], other)
    ports.until(lambda: answers)
    assert answers == [(b"two", address)]


@both
def test_a_port_for_all_reaches_every_address_and_another_those_of_its_kind(ports):
    everywhere, four, six = (ports.make(address)[0] for address in ("", V4, V6))
    assert [[port.reaches(address) for address in (V4, V6)] for port in (everywhere, four, six)] == [
        [True, True], [True, False], [False, True],
    ]  # fmt: skip


def test_a_port_bound_to_a_name_listens_as_soon_as_its_address_is_known(ports):
    entries = {"the.name": []}
    resolver = Resolver(ports.loop, 0.01, 0.02, entries.__getitem__)
    heard, number = [], free_ports(1)[0]
    port = udp_port.UdpPort(ports.loop, "the.name", number, lambda *what: heard.append(what), resolver)
    ports.made.append(port)
    single, _, _ = ports.make(V4)
    port.send(b"x", V4, 9)  # to nowhere: it is only logged
    assert (port.sent, port.address) == (0, "")
    entries["the.name"] = ["192.0.2.1", V4]  # the first is not this host's
    ports.until(lambda: port.address == V4)
    single.send(b"one", V4, number)
    ports.until(lambda: heard)
    resolver.close()


def test_a_name_is_no_address_to_bind_to_without_a_resolver_nor_to_send_to(ports, monkeypatch):
    with pytest.raises(OSError, match="no address"):
        ports.make("localhost")
    single, _, _ = ports.make(V4)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    single.send(b"x", "localhost", 9)
    assert single.sent == 0
    assert single.own_address("localhost") == ""


def test_our_own_address_is_looked_for_once(ports, monkeypatch):
    single, _, _ = ports.make(V4)
    assert single.own_address(V4) == V4
    monkeypatch.setattr(udp_port, "_own_address", None)
    assert [single.own_address(V4) for _ in range(3)] == [V4] * 3


@both
@pytest.mark.parametrize("address", [V4, V6])
def test_our_own_address_is_of_the_other_s_kind(ports, address):
    everywhere, _, _ = ports.make("")
    assert everywhere.own_address(address) == address


def test_without_ipv6_a_port_for_all_is_one_for_ipv4(ports, monkeypatch):
    real = socket.getaddrinfo

    def no_ipv6(host, *arguments, **named):
        if ":" in str(host):
            raise socket.gaierror(socket.EAI_ADDRFAMILY, "no such addresses here")
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", no_ipv6)
    everywhere, number, heard = ports.make("")
    single, _, _ = ports.make(V4)
    single.send(b"one", V4, number)
    ports.until(lambda: heard)
    assert heard == [(b"one", V4)]
    assert everywhere.reaches(V4) and not everywhere.reaches(V6)


@pytest.mark.parametrize("address", ["", V4])
def test_a_port_that_is_taken_is_said_to_be(ports, address):
    _, number, _ = ports.make(address)
    with pytest.raises(OSError, match="port %d" % number):
        ports.make(address, number)
