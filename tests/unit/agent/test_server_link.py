"""UDP between guestAgent and guestServers as old ones speak it, over real sockets.

docs/protocol/2-datagrams.md#an-old-guestserver
"""

from types import SimpleNamespace

import pytest
from serverlink_bench import LOCAL, NAME, SERVER, Bench

from guestmtce.agent.server_link import Endpoint, ReceivedEvent, ServerLink
from guestmtce.wire import datagram, datagram_ext, guest_channel
from guestmtce.wire.datagram import (
    Ask,
    DeleteInstance,
    InstanceInfo,
    Loopback,
    Loss,
    Query,
    Ready,
    SetHost,
    SetInstance,
    VoteResult,
)

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"


@pytest.fixture
def bench():
    benches = []

    def make(address=""):
        benches.append(Bench(address))
        return benches[-1]

    yield make
    for one in benches:
        one.close()


COMMANDS = [
    (datagram.ADD_INST, SetInstance(U, True),
     {"uuid": U, "service": "heartbeat", "state": "enabled"}),
    (datagram.ADD_INST, SetInstance(U, False),
     {"uuid": U, "service": "heartbeat", "state": "disabled"}),
    (datagram.MOD_INST, SetInstance(U, True),
     {"uuid": U, "service": "heartbeat", "state": "enabled"}),
    (datagram.DEL_INST, DeleteInstance(U), {"uuid": U, "service": "heartbeat", "state": "disabled"}),
    (datagram.QRY_INST, Query(), {}),
    (datagram.VOTE_INST, Ask(U, guest_channel.VOTE, "stop"), {"uuid": U, "event": "stop"}),
    (datagram.NOTIFY_INST, Ask(U, guest_channel.NOTICE, "resume"), {"uuid": U, "event": "resume"}),
    (datagram.MOD_HOST, SetHost(U, False), {"uuid": U, "heartbeat": "disabled"}),
    (datagram.LOOPBACK, Loopback(), {}),
]  # fmt: skip


@pytest.mark.parametrize("address, source", [("", LOCAL), ("127.0.0.1", "127.0.0.1")])
def test_commands_arrive_as_the_old_server_reads_them(bench, address, source):
    one = bench(address)
    for cmd, command, body in COMMANDS:
        one.send((cmd, command))
        data, (came_from, port) = one.server.recvfrom(2048)
        frame = datagram.unpack(data)
        assert (frame.cmd, frame.body) == (cmd, {"source": source, **body})
        assert data[:64] == b"guest msg header:".ljust(64, b"\0")
        assert frame.ver == datagram_ext.EXTENSION_VERSION  # in a field that it does not look at
        assert (came_from, port) == (source, one.agent_port)
        assert datagram.parse_command(frame) == command
    assert one.link.port.sent == len(COMMANDS)


INFO = InstanceInfo("compute-0", U, True, True, "reboot", 601, 11, 12, 13, 14)
EVENTS = [
    (datagram.MONITOR_READY, Ready("compute-0")),
    (datagram.RUNNING, INFO),
    (datagram.STOPPED, INFO._replace(heartbeating=False)),
    (datagram.ILLHEALTH, INFO._replace(repair_action="stop")),
    (datagram.LOSS, Loss("compute-0", U)),
    (datagram.VOTE_NOTIFY, VoteResult("compute-0", U, guest_channel.VOTE, "stop", "reject", 'say "no"')),
    (datagram.QRY_INST, INFO),
]


def test_events_are_heard_in_order_full_or_short_with_and_without_signature(bench):
    one = bench()
    full = [datagram.build_event(cmd, event) for cmd, event in EVENTS]
    assert {len(data) for data in full} == {datagram.FULL_SIZE}
    one.say(*full)
    one.say(*(data.rstrip(b"\0") for data in full))
    one.say(*(datagram.AGENT_SIGNATURE.ljust(64, b"\0") + data[64:] for data in full))
    as_heard = [ReceivedEvent(cmd, event, SERVER, None, False, False) for cmd, event in EVENTS]
    assert one.heard == as_heard * 3 and one.link.refused == 0


def test_an_old_servers_reason_with_a_quote_is_recovered(bench):
    one = bench()
    body = (
        '{"hostname":"compute-0","uuid":"%s","notification_type":"revocable","event-type":"stop",'
        '"vote":"reject","reason":"not "now""}' % U
    ).encode()
    head = datagram.pack(datagram.VOTE_NOTIFY, {})
    one.say((head + body).ljust(datagram.FULL_SIZE, b"\0"))
    assert one.heard[0].event == VoteResult("compute-0", U, guest_channel.VOTE, "stop", "reject", 'not "now"')


LOSS = datagram.build_event(datagram.LOSS, Loss("compute-0", U))
BAD = {
    "nothing": b"",
    "too short": LOSS[:99],
    "too long": LOSS + b"\0",
    "far too long": LOSS.ljust(9000, b"\0"),
    "not terminated": LOSS[:100] + b"{" * 960,
    "no JSON": LOSS[:100] + b"\xff\xfe{",
    "no object": LOSS[:100] + b'"x"',
    "deep": LOSS[:100] + b'{"a":' * 150,
    "another command": datagram.build_command(datagram.ADD_INST, LOCAL, SetInstance(U, True)),
    "no command": datagram.pack(0, {"hostname": "h", "uuid": U}),
    "no body": datagram.pack(datagram.LOSS, {}),
    "no hostname": datagram.pack(datagram.LOSS, {"uuid": U}),
    "a uuid that is none": datagram.pack(datagram.LOSS, {"hostname": "h", "uuid": "../" + U}),
    "an info without a state": datagram.pack(datagram.RUNNING, {"hostname": "h", "uuid": U}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_datagram_is_dropped_and_counted(bench, name):
    one = bench()
    one.say(BAD[name], LOSS)
    assert one.link.refused == 1 and one.loop.defects == 0
    assert one.heard == [ReceivedEvent(datagram.LOSS, Loss(NAME, U), SERVER, None, False, False)]


def test_a_burst_is_heard_in_full(bench):
    """A host that loses all its guests at once: every one of them counts."""
    one = bench()
    uuids = ["%08x-0000-4000-8000-000000000000" % number for number in range(500)]
    one.say(*(datagram.build_event(datagram.LOSS, Loss("compute-0", uuid)) for uuid in uuids))
    assert one.link.refused == 0 and [heard.event.uuid for heard in one.heard] == uuids


@pytest.mark.parametrize("ip", ["", "..", "a" * 70, "fd00::1", "256.1.1.1", "no such host.invalid"])
def test_what_cannot_be_sent_does_no_harm(bench, ip):
    one = bench()
    one.send((datagram.QRY_INST, Query()), (datagram.MOD_INST, SetInstance(U, True)), ip=ip)
    one.send((datagram.MOD_INST, SetInstance("u" * 960, True)), (datagram.QRY_INST, Query()))
    assert datagram.unpack(one.server.recv(2048)).cmd == datagram.QRY_INST


def test_an_event_that_trips_us_does_not_end_the_loop(bench):
    one = bench()
    one.link._listener = SimpleNamespace(server_said=lambda received: 1 // 0)
    one.say(LOSS)
    assert one.loop.defects == 1
    one.link._listener = one
    one.say(LOSS)
    assert len(one.heard) == 1


def test_a_port_in_use_is_an_error_with_its_number(bench):
    one = bench(LOCAL)
    with pytest.raises(OSError, match=str(one.agent_port)):
        ServerLink(one.loop, Endpoint(LOCAL, one.agent_port, 1), one.lock, one)
