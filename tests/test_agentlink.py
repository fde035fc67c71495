"""UDP with guestAgent, over real sockets on loopback."""

from __future__ import annotations

import socket
import time

import pytest

from guestmtce.daemon.loop import Loop
from guestmtce.server import agentlink
from guestmtce.server.agentlink import AgentLink
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram

UUID = "11111111-2222-3333-4444-555555555555"
INFO = datagram.InstanceInfo("host-0", UUID, True, True, "log", 1, 2, 3, 4, 5)
BOUND = 10.0  # s; what has not happened by then does not happen
SET = datagram.SetInstance(UUID, True)


class Agent:
    """A guestAgent on an address of its own; all of them share the agent's port."""

    def __init__(self, address, port=0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]
        self.heard = []

    def hear(self):
        try:
            while True:
                self.heard.append(self.socket.recv(4096))
        except BlockingIOError:
            pass
        return self.heard

    def events(self):
        return [datagram.parse_event(datagram.unpack(data)) for data in self.hear()]


class Bench:
    """An AgentLink between two agents on 127.0.0.1 and 127.0.0.2."""

    def __init__(self, controller="127.0.0.1", **changes):
        self.first = Agent("127.0.0.1")
        self.second = Agent("127.0.0.2", self.first.port)
        probe = Agent("127.0.0.1")
        probe.socket.close()
        values = {"ready_repeat": 0.02, "answer_pace": 0.001, **changes}
        self.settings = ServerSettings(
            bind="127.0.0.1", rx_port=probe.port, agent_port=self.first.port, hostname="host-0",
            controller=controller, **values,
        )  # fmt: skip
        self.loop = Loop()
        self.commands = []
        self.link = AgentLink(self.loop, self.settings, self.commands.append)

    def until(self, condition):
        """Run the loop until it is so."""
        end = time.monotonic() + BOUND
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            self.loop.after(0.005, lambda: None)
            self.loop.run_once()

    def send(self, data, agent=None):
        (agent or self.first).socket.sendto(data, ("127.0.0.1", self.settings.rx_port))

    def close(self):
        self.link.close()
        self.loop.close()
        self.first.socket.close()
        self.second.socket.close()


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def command(wanted=SET, cmd=datagram.MOD_INST):
    return datagram.build_command(cmd, "192.0.2.1", wanted)


def test_ready_is_repeated_until_an_agent_speaks(bench):
    bench.link.start()
    bench.until(lambda: len(bench.first.hear()) >= 3)
    assert set(bench.first.events()) == {datagram.Ready("host-0")}
    bench.send(command(datagram.Loopback(), datagram.LOOPBACK))
    bench.until(lambda: bench.commands)
    count = len(bench.first.hear())
    quiet = time.monotonic() + 5 * bench.settings.ready_repeat
    bench.until(lambda: time.monotonic() > quiet)
    assert len(bench.first.hear()) == count


def test_bad_datagrams_do_not_end_the_ready(bench):
    bench.link.start()
    bench.send(b"x")
    bench.until(lambda: bench.link.refused)
    count = len(bench.first.hear())
    bench.until(lambda: len(bench.first.hear()) >= count + 2)


def test_a_controller_without_an_address_is_tried_again():
    bench = Bench(controller="no.such.name.invalid")
    try:
        addresses = iter(["", "", "127.0.0.1"])
        bench.link.port.resolve = lambda name: next(addresses, "127.0.0.1")
        bench.link.start()
        bench.link.tell(datagram.LOSS, datagram.Loss("host-0", UUID))
        bench.until(lambda: bench.first.hear())
        assert bench.first.events()[0] == datagram.Ready("host-0")
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("cmd", "wanted"),
    [
        (datagram.ADD_INST, SET),
        (datagram.MOD_INST, datagram.SetInstance(UUID, False)),
        (datagram.DEL_INST, datagram.DeleteInstance(UUID)),
        (datagram.QRY_INST, datagram.Query()),
        (datagram.VOTE_INST, datagram.Ask(UUID, "revocable", "stop")),
        (datagram.NOTIFY_INST, datagram.Ask(UUID, "irrevocable", "dance")),
        (datagram.MOD_HOST, datagram.SetHost("some-host", False)),
        (datagram.LOOPBACK, datagram.Loopback()),
    ],
)
def test_commands_arrive(bench, cmd, wanted):
    bench.send(command(wanted, cmd))
    bench.until(lambda: bench.commands)
    assert bench.commands == [wanted]
    assert (bench.link.agent, bench.link.refused) == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 99,
        b"x" * 1061,
        b"x" * 9000,
        datagram.pack(datagram.QRY_INST, {"source": "x"}),
        datagram.pack(datagram.QRY_INST, {"source": "x"}, datagram.MTC_SIGNATURE),
        datagram.pack(0x77, {}, datagram.AGENT_SIGNATURE),
        datagram.pack(datagram.MOD_INST, {"uuid": "../../x", "state": "enabled"}, datagram.AGENT_SIGNATURE),
        datagram.pack(datagram.MOD_INST, {"uuid": UUID, "state": "on"}, datagram.AGENT_SIGNATURE),
        datagram.pack(datagram.DEL_INST, {}, datagram.AGENT_SIGNATURE),
        datagram.pack(datagram.VOTE_INST, {"uuid": UUID, "event": 5}, datagram.AGENT_SIGNATURE),
        datagram.pack(datagram.MOD_INST, {}, datagram.AGENT_SIGNATURE) + b"[" * 900,
        datagram.pack(datagram.MOD_INST, {}, datagram.AGENT_SIGNATURE) + b"\xff" * 900,
    ],
)
def test_a_bad_datagram_is_counted_and_changes_nothing(bench, data):
    bench.send(command())
    bench.until(lambda: bench.commands)
    bench.send(data, bench.second)
    bench.until(lambda: bench.link.refused)
    assert (bench.commands, bench.link.agent, bench.loop.defects) == ([SET], "127.0.0.1", 0)


def test_events_follow_the_last_speaker_to_the_agents_port(bench):
    bench.link.start()
    assert bench.link.agent == "127.0.0.1"
    bench.send(command(), bench.second)
    bench.until(lambda: bench.commands)
    bench.link.tell(datagram.RUNNING, INFO)
    bench.until(lambda: bench.second.hear())
    assert bench.second.events() == [INFO]
    # From another port of the first address: the answer goes to the agent's port all the same.
    stranger = Agent("127.0.0.1")
    bench.send(command(), stranger)
    stranger.socket.close()
    bench.until(lambda: len(bench.commands) == 2)
    bench.link.tell(datagram.LOSS, datagram.Loss("host-0", UUID))
    bench.until(lambda: datagram.Loss("host-0", UUID) in bench.first.events())
    assert bench.second.events() == [INFO]


def test_events_have_the_full_size(bench):
    bench.send(command())
    bench.until(lambda: bench.commands)
    bench.link.tell(
        datagram.VOTE_NOTIFY, datagram.VoteResult("host-0", UUID, "r", "stop", "reject", '"é\n' * 99)
    )
    bench.until(lambda: bench.first.hear())
    assert len(bench.first.heard[0]) == datagram.FULL_SIZE


def infos(count):
    return [INFO._replace(uuid="%08d%s" % (number, UUID[8:])) for number in range(count)]


def test_answers_are_paced_complete_and_in_order(bench):
    bench.send(command(datagram.Query(), datagram.QRY_INST))
    bench.until(lambda: bench.commands)
    wanted = infos(3 * agentlink.ANSWERS_A_TURN + 1)
    bench.link.answer(wanted)
    bench.first.hear()
    assert bench.link.port.sent == agentlink.ANSWERS_A_TURN
    bench.until(lambda: len(bench.first.hear()) >= len(wanted))
    assert bench.first.events() == wanted


def test_a_new_query_starts_anew_without_a_second_pace():
    bench = Bench(answer_pace=0.05)
    try:
        bench.send(command(datagram.Query(), datagram.QRY_INST))
        bench.until(lambda: bench.commands)
        bench.link.answer(infos(100))
        bench.link.answer(infos(20))
        assert bench.link.port.sent == agentlink.ANSWERS_A_TURN
        bench.until(lambda: bench.link.port.sent == 2 * agentlink.ANSWERS_A_TURN)
        bench.until(lambda: len(bench.first.hear()) == agentlink.ANSWERS_A_TURN + 20)
        assert bench.first.events()[agentlink.ANSWERS_A_TURN :] == infos(20)
        bench.link.answer([])
        bench.link.answer(infos(1))
        bench.until(lambda: len(bench.first.hear()) == agentlink.ANSWERS_A_TURN + 21)
    finally:
        bench.close()


def test_a_defect_in_the_table_does_not_deafen_the_link(bench):
    bench.link._on_command = lambda command: 1 / 0
    bench.send(command())
    bench.until(lambda: bench.loop.defects)
    bench.link._on_command = bench.commands.append
    bench.send(command())
    bench.until(lambda: bench.commands)
