"""UDP between guestAgent and mtcAgent (spec 2), over real sockets."""

import contextlib
import socket

import pytest

from guestmtce.agent.mtclink import MtcLink
from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import TimedOut, free_ports, wait_for
from guestmtce.lab.mtcagent import MtcAgent
from guestmtce.wire import datagram
from guestmtce.wire.datagram import HostRecord

LOCAL = "127.0.0.1"
HOST = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
SIX = HostRecord("compute-6", "aaaaaaaa-0000-4000-8000-000000000006", "fd00::6")
TICK = 0.005


class Bench:
    """A link in a loop, and the socket of an mtcAgent."""

    def __init__(self, period, address=LOCAL):
        self.heard = []
        self.loop = Loop()
        self.command_port, event_port = free_ports(2)
        self.mtc = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.mtc.bind((LOCAL, event_port))
        self.mtc.setblocking(False)
        settings = AgentSettings(
            bind=LOCAL, mtc_address=address, mtc_cmd_port=self.command_port, mtc_event_port=event_port,
            mtc_ask_period=period,
        )  # fmt: skip
        self.link = MtcLink(self.loop, settings, lambda cmd, record: self.heard.append((cmd, record)))
        self.asked = []

    def turn(self):
        self.loop.after(TICK, lambda: None)
        self.loop.run_once()
        with contextlib.suppress(BlockingIOError):
            self.asked.append(self.mtc.recv(2048))

    def until(self, condition, what, seconds=5.0):
        wait_for(lambda: self.turn() or condition(), what, seconds, step=0)

    def say(self, data):
        """Send it to the link, and wait until it was served."""
        before = self.link.port.received
        self.mtc.sendto(data, (LOCAL, self.command_port))
        self.until(lambda: self.link.port.received > before, "the datagram is served")


@pytest.fixture
def bench():
    benches = []

    def make(period=60.0, **more):
        benches.append(Bench(period, **more))
        return benches[-1]

    yield make
    for one in benches:
        assert one.loop.defects == 0
        one.link.close()
        one.loop.close()
        one.mtc.close()


def test_ready_has_the_bytes_that_mtcagent_looks_for(bench):
    one = bench()
    one.link.start()
    one.until(lambda: one.asked, "MONITOR_READY")
    data = one.asked[0]
    assert data[:18] == b"guest msg header:\0" and data[18:29] == b"guestAgent\0"
    assert data[72:76] == (0xF0F0F0F0).to_bytes(4, "little") and data[100:].rstrip(b"\0") == b""


def test_ready_is_repeated_until_a_host_is_named(bench):
    one = bench(period=0.03)
    one.link.start()
    one.until(lambda: len(one.asked) >= 3, "it asks again")
    one.say(b"junk")
    count = len(one.asked)
    one.until(lambda: len(one.asked) > count, "junk is no answer")
    one.say(datagram.build_host(datagram.ADD_HOST, HOST))
    count = len(one.asked)
    with pytest.raises(TimedOut):
        one.until(lambda: len(one.asked) > count + 1, "it asks on", seconds=0.15)


def test_it_asks_again_when_told_to_but_not_too_often(bench):
    one = bench(period=0.1)
    for _ in range(50):
        one.link.ask()
    one.until(lambda: one.asked, "the first")
    with pytest.raises(TimedOut):
        one.until(lambda: len(one.asked) > 1, "more", seconds=0.05)
    one.until(lambda: one.link.ask() or len(one.asked) > 1, "it may again")


@pytest.mark.parametrize("host", [HOST, SIX])
@pytest.mark.parametrize("cmd", [datagram.ADD_HOST, datagram.MOD_HOST, datagram.DEL_HOST])
def test_hosts_are_heard(bench, cmd, host):
    one = bench()
    one.say(datagram.build_host(cmd, host))
    assert one.heard == [(cmd, host._replace(ip="") if cmd == datagram.DEL_HOST else host)]
    assert one.link.heard and one.link.refused == 0


def test_an_address_is_kept_as_a_socket_spells_it(bench):
    """Events are believed from that address only, and compared as text."""
    one = bench()
    one.say(datagram.build_host(datagram.ADD_HOST, SIX._replace(ip="FD00:0::0006")))
    assert one.heard == [(datagram.ADD_HOST, SIX)]


BODY = {"hostname": "h", "uuid": "u", "ip": "10.0.0.1"}
GOOD = datagram.build_host(datagram.ADD_HOST, HOST)


def add(signature=datagram.MTC_SIGNATURE, cmd=datagram.ADD_HOST, **fields):
    return datagram.pack(cmd, {**BODY, **fields}, signature)


BAD = {
    "nothing": b"",
    "too short": GOOD[:99],
    "too long": GOOD.ljust(1061, b"\0"),
    "no JSON": GOOD[:100] + b"{",
    "no object": GOOD[:100] + b"[1]",
    "a guestAgent's signature": add(datagram.AGENT_SIGNATURE),
    "no signature": add(datagram.NO_SIGNATURE),
    "another command": add(cmd=datagram.ADD_INST),
    "no hostname": add(hostname=""),
    "a number for a uuid": add(uuid=1),
    "no ip": add(ip=None),
    "a name for an ip": add(ip="compute-0"),  # to be looked up with every datagram
    "an ip that no socket takes": add(ip=".." + "a" * 70),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_datagram_is_dropped_and_counted(bench, name):
    one = bench()
    one.say(BAD[name])
    assert one.link.refused == 1 and one.heard == [] and not one.link.heard
    one.say(GOOD)
    assert one.heard == [(datagram.ADD_HOST, HOST)]


def test_an_mtcagent_that_cannot_be_found_does_no_harm(bench):
    one = bench(period=0.02, address="no such name.invalid")
    one.link.start()
    one.until(lambda: one.loop.wake_ups > 10, "it lives on")
    assert one.asked == []
    one.say(GOOD)
    assert one.heard == [(datagram.ADD_HOST, HOST)]


def test_with_the_stand_in():
    loop, heard = Loop(), []
    command_port, event_port = free_ports(2)
    mtc = MtcAgent([HOST, SIX], LOCAL, event_port, command_port)
    mtc.start()
    settings = AgentSettings(
        bind=LOCAL, mtc_address=LOCAL, mtc_cmd_port=command_port, mtc_event_port=event_port
    )
    link = MtcLink(loop, settings, lambda cmd, record: heard.append((cmd, record)))
    try:
        link.start()
        wait_for(
            lambda: loop.after(TICK, lambda: None) and loop.run_once() or len(heard) == 2, "both", step=0
        )
        assert heard == [(datagram.ADD_HOST, HOST), (datagram.ADD_HOST, SIX)] and mtc.asked == 1
    finally:
        link.close()
        mtc.stop()
        loop.close()


def test_a_port_in_use_is_an_error_with_its_number(bench):
    one = bench()
    settings = AgentSettings(bind=LOCAL, mtc_cmd_port=one.command_port)
    with pytest.raises(OSError, match=str(one.command_port)):
        MtcLink(one.loop, settings, lambda cmd, record: None)
