"""UDP with guestAgent, over real sockets on loopback."""

from __future__ import annotations

import threading
import time

import pytest
from agentlink_driver import HOST, INFO, SET, UUID, Agent, Bench, Process, loss, old_command, running

from guestmtce.lab.pace import within
from guestmtce.server import answers
from guestmtce.server.state.effects import ReportEvent
from guestmtce.server.state.guest import OUTCOME, PendingKey
from guestmtce.wire import datagram, datagram_ext

PROMPT = 2.0  # s; far less than a name service takes that does not answer


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


def test_a_controller_without_an_address_is_told_when_it_has_one():
    bench = Bench(controller="the.controller", agents="127.0.0.1", resolve_first=0.01, ready_repeat=60)
    try:
        bench.link.start()
        bench.report(loss())
        bench.until(lambda: len(bench.asked) > 1)
        bench.names["the.controller"] = ["fd00::1", "127.0.0.1"]  # the socket reaches the second
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


def test_a_name_service_that_hangs_holds_up_neither_the_start_nor_the_loop():
    answer = threading.Event()
    bench = Bench(controller="the.controller", names={"the.controller": ["127.0.0.1"]})
    look_up = bench.look_up
    bench.link._resolver._look_up = lambda name: answer.wait() and look_up(name)
    try:
        start = time.monotonic()
        bench.link.start()
        bench.send(old_command(), agent=bench.second)  # by address: its look-up is none
        assert within(PROMPT, time.monotonic() - start)
        assert (bench.commands, bench.link.refused) == ([SET], 0)
        answer.set()
        bench.until(lambda: bench.link._resolver.addresses("the.controller"))
    finally:
        answer.set()
        bench.close()


def test_every_address_of_the_controller_is_tried():
    names = {"the.controller": ["127.0.0.1", "127.0.0.2"]}
    bench = Bench(controller="the.controller", agents="", names=names)
    try:
        bench.link.start()
        bench.until(lambda: bench.first.hear() and bench.second.hear())
        for agent in (bench.second, bench.first):
            bench.send(old_command(), agent=agent)
        assert (bench.commands, bench.link.refused) == ([SET], 0)
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
        datagram_ext.build_ack(datagram.AGENT_SIGNATURE),
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


def test_events_go_to_the_agent_that_is_followed_at_the_agents_port():
    bench = Bench(agent_silence=0.001)
    try:
        follow_to_the_agents_port(bench)
    finally:
        bench.close()


def follow_to_the_agents_port(bench):
    bench.link.start()
    assert bench.link.agent == "127.0.0.1"
    bench.send(old_command(), agent=bench.second)
    bench.until(lambda: bench.commands)
    bench.report(running())
    bench.until(lambda: bench.second.hear())
    assert bench.second.events() == [INFO]
    # From another port of the first address: the answer goes to the agent's port all the same.
    stranger = Agent("127.0.0.1")
    bench.send(old_command(), agent=stranger)
    stranger.socket.close()
    bench.until(lambda: len(bench.commands) == 2)
    bench.report(loss())
    bench.until(lambda: datagram.Loss(HOST, UUID) in bench.first.events())
    assert bench.second.events() == [INFO]


def test_events_have_the_full_size_for_an_old_agent(bench):
    bench.send(old_command())
    bench.until(lambda: bench.commands)
    result = datagram.VoteResult(HOST, UUID, "r", "stop", "reject", '"é\n' * 99)
    bench.report(ReportEvent(datagram.VOTE_NOTIFY, result, 5, PendingKey(UUID, OUTCOME, 1)))
    bench.until(lambda: bench.first.hear())
    assert len(bench.first.heard[0]) == datagram.FULL_SIZE


def known(bench, count):
    """So many instances that the table knows."""
    infos = [INFO._replace(uuid="%08d%s" % (number, UUID[8:])) for number in range(count)]
    bench.infos.update({info.uuid: info for info in infos})
    return infos


def answer(bench, infos):
    bench.link.answer_query([info.uuid for info in infos])


def test_answers_are_paced_complete_and_in_order(bench):
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    bench.until(lambda: bench.commands)
    wanted = known(bench, 3 * answers.ANSWERS_A_TURN + 1)
    answer(bench, wanted)
    bench.first.hear()
    assert bench.link.port.sent == answers.ANSWERS_A_TURN
    bench.until(lambda: len(bench.first.hear()) >= len(wanted))
    assert bench.first.events() == wanted


def test_an_answer_tells_what_is_true_when_it_is_sent(bench):
    first, second, third = known(bench, 3)
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    answer(bench, [*known(bench, answers.ANSWERS_A_TURN), first, second, third])
    bench.first.hear()
    bench.infos[first.uuid] = first._replace(heartbeating=False)
    del bench.infos[second.uuid]
    bench.until(lambda: len(bench.first.hear()) == answers.ANSWERS_A_TURN + 2)
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
        assert bench.link.port.sent == answers.ANSWERS_A_TURN
        bench.until(lambda: bench.link.port.sent == 2 * answers.ANSWERS_A_TURN)
        bench.until(lambda: len(bench.first.hear()) == answers.ANSWERS_A_TURN + 20)
        assert bench.first.events()[answers.ANSWERS_A_TURN :] == known(bench, 20)
        answer(bench, [])
        answer(bench, known(bench, 1))
        bench.until(lambda: len(bench.first.hear()) == answers.ANSWERS_A_TURN + 21)
    finally:
        bench.close()


def test_a_defect_in_the_table_does_not_deafen_the_link(bench):
    bench.serve = lambda command: 1 / 0
    bench.send(old_command())
    bench.until(lambda: bench.loop.defects)
    bench.serve = bench.commands.append
    bench.send(old_command())
    bench.until(lambda: bench.commands)


# --- what people are told --------------------------------------------------------------------------


def lines(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_ten_thousand_strangers_are_one_line_in_the_log(bench, caplog):
    for number in range(300):
        address = "127.1.%d.%d" % divmod(number, 250)
        bench.link._serve_datagram(old_command(), address)
        bench.link._serve_datagram(b"junk", address)
    assert (bench.link.refused, len(lines(caplog, "was dropped"))) == (600, 1)


@pytest.mark.parametrize(
    "addresses, said, period",
    [
        ([], "cannot resolve the.controller", 0.0),  # for ever, so not even throttled
        (["fd00::1"], "--bind 127.0.0.1 reaches no address of --controller the.controller", 60.0),
    ],
)
def test_a_controller_that_cannot_be_told_is_one_line_however_much_there_is_to_tell(
    caplog, addresses, said, period
):
    bench = Bench(controller="the.controller", agents="", names=addresses and {"the.controller": addresses})
    try:
        bench.link._throttle._period = period
        resolver = bench.link._resolver
        bench.until(lambda: resolver.addresses("the.controller") or lines(caplog, "cannot resolve"))
        for number in range(10):
            bench.report(running(number))
        (line,) = lines(caplog, "the.controller")
        assert said in line
    finally:
        bench.close()


def test_an_agent_that_takes_nothing_is_complained_of(caplog):
    bench = Bench(unconfirmed_warn=0.1)
    try:
        bench.link.start()
        bench.send(Process(5).query())
        assert bench.link.complaint() == ""
        bench.report(running())
        bench.report(loss())
        bench.until(lambda: lines(caplog, "does not take our events"))
        (line,) = lines(caplog, "does not take our events")
        assert "(2 unconfirmed since 0 s ago)" in line and HOST in line
        assert bench.link.complaint() == line
        bench.quiet(0.3)
        assert len(lines(caplog, "does not take our events")) == 1
        bench.withdraw(running().key)
        bench.withdraw(loss().key)
        assert bench.link.complaint() == ""
    finally:
        bench.close()


def test_where_no_agent_speaks_the_complaint_names_the_setting(caplog):
    bench = Bench(unconfirmed_warn=0.1)
    try:
        bench.link.start()
        bench.report(loss())
        bench.until(lambda: lines(caplog, "no guestAgent has spoken to us (1 unconfirmed since"))
        assert lines(caplog, "--controller 127.0.0.1")
    finally:
        bench.close()
