"""UDP with guestAgent, over real sockets on loopback."""

from __future__ import annotations

import pytest
from agentlink_driver import HOST, INFO, SET, UUID, Agent, Bench, loss, old_command, running

from guestmtce.server import agentlink
from guestmtce.server.guest import Tell
from guestmtce.wire import datagram, extension


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


def test_ready_is_repeated_until_an_agent_speaks(bench):
    bench.link.start()
    bench.until(lambda: len(bench.first.hear()) >= 3)
    assert set(bench.first.events()) == {datagram.Ready(HOST)}
    bench.send(old_command(datagram.Loopback(), datagram.LOOPBACK))
    bench.until(lambda: bench.commands)
    count = len(bench.first.hear())
    bench.quiet(5 * bench.settings.ready_repeat)
    assert len(bench.first.hear()) == count


def test_bad_datagrams_do_not_end_the_ready(bench):
    bench.link.start()
    bench.send(b"x")
    bench.until(lambda: bench.link.refused)
    count = len(bench.first.hear())
    bench.until(lambda: len(bench.first.hear()) >= count + 2)


def test_a_controller_without_an_address_is_tried_again():
    bench = Bench(controller="no.such.name.invalid", agents="127.0.0.1")
    try:
        addresses = iter(["", "", "127.0.0.1"])
        bench.link.port.resolve = lambda name: next(addresses, "127.0.0.1")
        bench.link.start()
        bench.link.tell(loss())
        bench.until(lambda: bench.first.hear())
        assert bench.first.events()[0] == datagram.Ready(HOST)
        # Nobody could be told of the loss until now; so even an old agent has yet to hear of it.
        assert bench.told == []
        bench.send(old_command())
        bench.until(lambda: datagram.Loss(HOST, UUID) in bench.first.events())
        assert bench.told == [loss().key]
        assert bench.first.events().count(datagram.Loss(HOST, UUID)) == 1
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
    bench.send(old_command(wanted, cmd))
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
        extension.build_ack(datagram.AGENT_SIGNATURE),
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
    bench.send(old_command())
    bench.until(lambda: bench.commands)
    bench.send(data, agent=bench.second)
    bench.until(lambda: bench.link.refused)
    assert (bench.commands, bench.link.agent, bench.loop.defects) == ([SET], "127.0.0.1", 0)


def test_events_follow_the_last_speaker_to_the_agents_port(bench):
    bench.link.start()
    assert bench.link.agent == "127.0.0.1"
    bench.send(old_command(), agent=bench.second)
    bench.until(lambda: bench.commands)
    bench.link.tell(running())
    bench.until(lambda: bench.second.hear())
    assert bench.second.events() == [INFO]
    # From another port of the first address: the answer goes to the agent's port all the same.
    stranger = Agent("127.0.0.1")
    bench.send(old_command(), agent=stranger)
    stranger.socket.close()
    bench.until(lambda: len(bench.commands) == 2)
    bench.link.tell(loss())
    bench.until(lambda: datagram.Loss(HOST, UUID) in bench.first.events())
    assert bench.second.events() == [INFO]


def test_events_have_the_full_size_for_an_old_agent(bench):
    bench.send(old_command())
    bench.until(lambda: bench.commands)
    result = datagram.VoteResult(HOST, UUID, "r", "stop", "reject", '"é\n' * 99)
    bench.link.tell(Tell(datagram.VOTE_NOTIFY, result, 5, (UUID, "vote 1")))
    bench.until(lambda: bench.first.hear())
    assert len(bench.first.heard[0]) == datagram.FULL_SIZE


def known(bench, count):
    """So many instances that the table knows."""
    infos = [INFO._replace(uuid="%08d%s" % (number, UUID[8:])) for number in range(count)]
    bench.infos.update({info.uuid: info for info in infos})
    return infos


def answer(bench, infos):
    bench.link.answer([info.uuid for info in infos])


def test_answers_are_paced_complete_and_in_order(bench):
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    bench.until(lambda: bench.commands)
    wanted = known(bench, 3 * agentlink.ANSWERS_A_TURN + 1)
    answer(bench, wanted)
    bench.first.hear()
    assert bench.link.port.sent == agentlink.ANSWERS_A_TURN
    bench.until(lambda: len(bench.first.hear()) >= len(wanted))
    assert bench.first.events() == wanted


def test_an_answer_tells_what_is_true_when_it_is_sent(bench):
    first, second, third = known(bench, 3)
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    answer(bench, [*known(bench, agentlink.ANSWERS_A_TURN), first, second, third])
    bench.first.hear()
    bench.infos[first.uuid] = first._replace(heartbeating=False)
    del bench.infos[second.uuid]
    bench.until(lambda: len(bench.first.hear()) == agentlink.ANSWERS_A_TURN + 2)
    assert bench.first.events()[-2:] == [first._replace(heartbeating=False), third]
    numbers = [frame.num for frame in bench.first.frames()]
    assert numbers == sorted(set(numbers)) and numbers[0] > 0


def test_a_new_query_starts_anew_without_a_second_pace():
    bench = Bench(answer_pace=0.05)
    try:
        bench.send(old_command(datagram.Query(), datagram.QRY_INST))
        bench.until(lambda: bench.commands)
        answer(bench, known(bench, 100))
        answer(bench, known(bench, 20))
        assert bench.link.port.sent == agentlink.ANSWERS_A_TURN
        bench.until(lambda: bench.link.port.sent == 2 * agentlink.ANSWERS_A_TURN)
        bench.until(lambda: len(bench.first.hear()) == agentlink.ANSWERS_A_TURN + 20)
        assert bench.first.events()[agentlink.ANSWERS_A_TURN :] == known(bench, 20)
        answer(bench, [])
        answer(bench, known(bench, 1))
        bench.until(lambda: len(bench.first.hear()) == agentlink.ANSWERS_A_TURN + 21)
    finally:
        bench.close()


def test_a_defect_in_the_table_does_not_deafen_the_link(bench):
    bench.serve = lambda command: 1 / 0
    bench.send(old_command())
    bench.until(lambda: bench.loop.defects)
    bench.serve = bench.commands.append
    bench.send(old_command())
    bench.until(lambda: bench.commands)
