"""UDP between guestAgent and mtcAgent (docs/protocol/2-datagrams.md#mtcagent), over real sockets."""

import contextlib
import socket
from types import SimpleNamespace

import pytest

from guestmtce.agent.mtc_link import MtcLink
from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import Resolver
from guestmtce.lab.cluster import TimedOut, wait_for
from guestmtce.lab.mtc_agent import MtcAgent
from guestmtce.lab.ports import free_ports
from guestmtce.wire import datagram
from guestmtce.wire.datagram import HostRecord

LOCAL = "127.0.0.1"
HOST = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
SIX = HostRecord("compute-6", "aaaaaaaa-0000-4000-8000-000000000006", "fd00::6")
TICK = 0.005


class Bench:
    """A link in a loop, and the socket of an mtcAgent."""

    def __init__(self, period, address=LOCAL, names=None, **changes):
        self.heard = []
        self.loop = Loop()
        self.command_port, event_port = free_ports(2)
        self.mtc = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.mtc.bind((LOCAL, event_port))
        self.mtc.setblocking(False)
        settings = AgentSettings(
            bind=LOCAL, mtc_address=address, mtc_cmd_port=self.command_port, mtc_event_port=event_port,
            mtc_ask_period=period, **changes,
        )  # fmt: skip
        self.names, self.looked_up = dict(names or {}), []
        self.resolver = Resolver(self.loop, 0.02, 0.05, self.look_up)
        self.link = MtcLink(
            self.loop, settings, self, self.resolver
        )  # fmt: skip
        self.asked = []

    def host_named(self, cmd, record):
        self.heard.append((cmd, record))

    def look_up(self, name):
        """The name service, in the resolver's thread."""
        self.looked_up.append(name)
        if name not in self.names:
            raise OSError("Name or service not known")
        return self.names[name]

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
        one.resolver.close()
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
        one.link.ask_hosts()
    one.until(lambda: one.asked, "the first")
    with pytest.raises(TimedOut):
        one.until(lambda: len(one.asked) > 1, "more", seconds=0.05)
    one.until(lambda: one.link.ask_hosts() or len(one.asked) > 1, "it may again")


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


def test_an_mtcagent_that_cannot_be_found_does_no_harm_and_costs_one_line(bench, caplog):
    one = bench(period=0.02, address="controller")
    one.link.start()
    one.until(lambda: one.looked_up.count("controller") > 3, "it is looked up again and again")
    one.say(GOOD)
    assert (one.asked, one.heard, one.link.refused) == ([], [], 1)  # nobody is believed
    lines = [record.getMessage() for record in caplog.records if "resolve" in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith("cannot resolve controller: Name or service not known")


def test_an_mtcagent_is_asked_and_believed_as_soon_as_it_is_found(bench):
    one = bench(address="controller")
    one.link.start()
    one.until(lambda: one.looked_up.count("controller") > 1, "it is not found")
    one.names["controller"] = ["fd00::1", LOCAL]
    one.until(lambda: one.asked, "it is asked, at the address that the socket reaches")
    one.say(GOOD)
    assert one.heard == [(datagram.ADD_HOST, HOST)]


@pytest.mark.parametrize("name", ["controller", "controller-0", "controller-1"])
def test_mtcagent_may_speak_from_any_address_of_the_controllers(bench, name):
    one = bench(address="127.0.0.9", names={name: ["fd00::1", LOCAL]})
    one.until(lambda: one.resolver.addresses(name), "it is known")
    one.say(GOOD)
    assert one.heard == [(datagram.ADD_HOST, HOST)]


@pytest.mark.parametrize("cmd", [datagram.ADD_HOST, datagram.MOD_HOST, datagram.DEL_HOST])
def test_a_stranger_names_no_host_and_makes_nobody_look_up_a_name(bench, cmd, caplog):
    """Three such datagrams made the VIM reboot a guest."""
    one = bench(address="127.0.0.9")
    one.until(lambda: one.resolver._names["controller"].failing, "the names are looked up")
    count = one.looked_up.count("controller")
    for _ in range(20):
        one.say(datagram.build_host(cmd, HOST))
    assert (one.heard, one.link.heard, one.link.refused) == ([], False, 20)
    assert one.looked_up.count("controller") <= count + 5  # its own time, not theirs
    assert sum("no address of mtcAgent" in record.getMessage() for record in caplog.records) == 1


def test_it_is_asked_again_every_minute(bench):
    one = bench(period=0.01, mtc_refresh=0.05)
    one.link.start()
    one.say(GOOD)
    count = len(one.asked)
    one.until(lambda: len(one.asked) > count + 3, "it is asked on")


def test_one_address_after_the_other_is_asked_until_one_answers(bench):
    one = bench(period=0.02, address="controller", names={"controller": ["127.0.0.9", LOCAL]})
    one.link.start()
    one.until(lambda: one.asked, "the second")
    one.say(GOOD)
    count = len(one.asked)
    one.until(lambda: one.link.ask_hosts() or len(one.asked) > count, "and again the second")


def test_with_the_stand_in():
    loop, heard = Loop(), []
    command_port, event_port = free_ports(2)
    mtc = MtcAgent([HOST, SIX], LOCAL, event_port, command_port)
    mtc.start()
    settings = AgentSettings(
        bind=LOCAL, mtc_address=LOCAL, mtc_cmd_port=command_port, mtc_event_port=event_port
    )
    listener = SimpleNamespace(host_named=lambda cmd, record: heard.append((cmd, record)))
    link = MtcLink(loop, settings, listener, Resolver(loop, 1, 30))
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
        MtcLink(one.loop, settings, one, one.resolver)
