"""Events are repeated until guestAgent confirms them, commands are obeyed once; over real sockets."""

from __future__ import annotations

import pytest
from agentlink_driver import INFO, SERVER, SET, UUID, Bench, Process, loss, old_command, running, stopped

from guestmtce.peer import retransmit
from guestmtce.server.state.guest import STATE, PendingKey
from guestmtce.wire import datagram, datagram_ext

OTHER = "99999999-2222-3333-4444-555555555555"
UNSET = datagram.SetInstance(UUID, False)
SEVERAL = 3  # repetitions that show that there is no end to them
NONE = 0.3  # s without a repetition that show that there is none


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 0.02)
    monkeypatch.setattr(retransmit, "REPEAT_MAX", 0.05)
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def slow(bench, monkeypatch):
    """A bench in whose time nothing is repeated of itself."""
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 1000.0)
    return bench


def told(bench, *tells):
    """These, to an agent of ours that does not confirm them yet."""
    agent = Process(5)
    bench.send(agent.query())
    for tell in tells:
        bench.report(tell)
    bench.until(lambda: all(bench.first.count(tell) for tell in tells))
    return agent


def counts(bench, *tells):
    return [bench.first.count(tell) for tell in tells]


def no_more(bench, *tells):
    """None of these is said any more."""
    before = counts(bench, *tells)
    bench.quiet(NONE)
    return counts(bench, *tells) == before


# --- events to one of ours -------------------------------------------------------------------------


def test_an_event_is_repeated_until_it_is_confirmed(bench):
    agent = told(bench, running(), loss())
    bench.until(lambda: min(counts(bench, running(), loss())) > SEVERAL)
    assert (bench.told, bench.link.waiting) == ([], 2)
    bench.send(*agent.ack(loss()))
    assert (bench.told, bench.link.waiting) == ([loss().key], 1)
    seen = counts(bench, running())[0]
    assert no_more(bench, loss())
    assert counts(bench, running())[0] >= seen + SEVERAL
    bench.send(*agent.ack(running(), loss(), running()))
    assert (bench.told, bench.link.waiting) == ([loss().key, running().key], 0)
    assert no_more(bench, running(), loss())


def test_the_intervals_grow(bench, monkeypatch):
    monkeypatch.setattr(retransmit, "REPEAT_MAX", 1000.0)
    told(bench, running())
    bench.quiet(0.5)  # 0.02, 0.06, 0.14, 0.30 s after the first
    assert 3 <= counts(bench, running())[0] <= 5


def test_confirmations_of_something_else_confirm_nothing(bench):
    agent = told(bench, running())
    bench.send(*agent.ack(running(), sender=SERVER + 1), *agent.ack(running(99)))
    assert (bench.told, bench.link.waiting, bench.link.refused) == ([], 1, 0)


def test_a_withdrawn_event_is_not_repeated(bench):
    agent = told(bench, running(), loss())
    bench.withdraw(loss().key)
    bench.withdraw(PendingKey(OTHER, STATE))
    assert no_more(bench, loss())
    assert bench.link.waiting == 1
    bench.send(*agent.ack(loss()))  # it was on its way
    assert bench.told == []


def test_a_newer_event_takes_the_place_of_the_older(bench):
    agent = told(bench, running())
    bench.report(stopped())
    bench.until(lambda: counts(bench, stopped())[0] > 1)
    assert no_more(bench, running())
    bench.send(*agent.ack(running()))
    assert bench.told == []
    bench.send(*agent.ack(stopped()))
    assert bench.told == [stopped().key]


def test_what_ours_is_told_is_short_and_a_loss_carries_the_state(bench):
    told(bench, loss())
    (data,) = [data for data in bench.first.hear() if datagram.unpack(data).num == 3][:1]
    assert len(data) < 500
    frame = datagram.unpack(data)
    assert datagram.parse_event(frame) == INFO._replace(heartbeating=False)
    tag = datagram_ext.read_tag(frame)
    flags = datagram_ext.WANTS_ACK | datagram_ext.TAKES_MARKS
    assert (tag.flags, tag.sender, tag.nonce != 0) == (flags, SERVER, True)


# --- another agent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sender", "nonce", "address"])
def test_a_new_agent_hears_everything_again_at_once(slow, how):
    agent = told(slow, running(), loss())
    slow.send(agent.query(), agent.query())
    assert counts(slow, running(), loss()) == [1, 1]
    if how == "address":
        slow.send(agent.query(), agent=slow.second)
    else:
        nonce = agent.speaker.nonce if how == "sender" else 0
        slow.send(Process(6 if how == "sender" else 5, nonce).query())
    heard = slow.second if how == "address" else slow.first
    more = 1 if how == "address" else 2
    slow.until(lambda: [heard.count(running()), heard.count(loss())] == [more, more])
    assert slow.link.waiting == 2


def test_an_agent_that_speaks_at_last_hears_what_it_may_have_missed(slow):
    slow.link.start()
    slow.report(running())
    slow.until(lambda: counts(slow, running()) == [1])
    agent = Process(5)
    slow.send(agent.query())
    slow.until(lambda: counts(slow, running()) == [2])
    slow.send(*agent.ack(running()))
    assert slow.told == [running().key]


# --- old agents ------------------------------------------------------------------------------------


def test_an_old_agent_is_told_once_in_the_old_form_and_the_state_before_the_loss(bench):
    bench.send(old_command())
    bench.quiet(2 * bench.settings.old_agent_grace)
    for tell in (running(), loss(), stopped()):
        bench.report(tell)
    assert bench.told == [tell.key for tell in (running(), loss(), stopped())]
    assert bench.link.waiting == 0
    bench.until(lambda: len(bench.first.hear()) == 3)
    assert bench.first.events() == [INFO, stopped().event, datagram.Loss("host-0", UUID)]
    bench.quiet(NONE)
    assert len(bench.first.hear()) == 3
    assert {len(data) for data in bench.first.heard} == {datagram.FULL_SIZE}
    assert {frame.rev for frame in bench.first.frames()} == {0}


def test_what_was_told_before_an_old_agent_spoke_is_not_repeated_to_it(bench):
    bench.link.start()
    bench.report(loss())
    bench.until(lambda: counts(bench, loss()) == [1])
    assert no_more(bench, loss())
    assert bench.told == []
    bench.send(old_command())
    assert (bench.told, bench.link.waiting) == ([loss().key], 0)
    assert no_more(bench, loss())
    assert counts(bench, loss()) == [1]


def test_an_old_agent_in_the_place_of_ours_is_told_once_what_ours_did_not_confirm(slow):
    agent = told(slow, running(), loss())
    slow.send(*agent.ack(running()))
    slow.first.heard.clear()
    slow.send(old_command())
    slow.until(lambda: counts(slow, loss()) == [1])
    assert (slow.told, slow.link.waiting) == ([running().key, loss().key], 0)
    assert {len(data) for data in slow.first.heard} == {datagram.FULL_SIZE}
    assert slow.first.events() == [stopped().event, datagram.Loss("host-0", UUID)]
    slow.send(old_command(), old_command())
    assert no_more(slow, running(), loss())


def test_one_of_ours_in_the_place_of_an_old_agent_has_to_confirm(bench):
    bench.send(old_command())
    bench.report(running())
    agent = Process(5)
    bench.send(agent.query())
    bench.report(loss())
    bench.until(lambda: counts(bench, loss())[0] > SEVERAL)
    assert (bench.told, counts(bench, running())) == ([running().key], [1])
    bench.send(*agent.ack(loss()))
    assert bench.told == [running().key, loss().key]


# --- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "cmd"),
    [(SET, datagram.MOD_INST), (datagram.Ask(UUID, "irrevocable", "stop"), datagram.NOTIFY_INST)],
)
def test_a_command_is_confirmed_each_time_and_obeyed_once(bench, wanted, cmd):
    agent = Process(5)
    data = agent.command(wanted, cmd)
    bench.send(data, data)
    bench.send(data)
    bench.until(lambda: len(bench.first.acks()) == 3)
    assert set(bench.first.acks()) == {(5, 1)}
    assert bench.commands == [wanted]


def test_a_query_is_not_confirmed(bench):
    agent = Process(5)
    bench.send(agent.query(), agent.query(), agent.command())
    bench.until(bench.first.acks)
    assert bench.first.acks() == [(5, 1)]
    assert bench.commands == [datagram.Query(), datagram.Query(), SET]


STOP, PAUSE = datagram.Ask(UUID, "revocable", "stop"), datagram.Ask(UUID, "revocable", "pause")
MOD, VOTE = datagram.MOD_INST, datagram.VOTE_INST


@pytest.mark.parametrize(
    ("sent", "obeyed"),
    [
        ([(UNSET, MOD, 2), (SET, MOD, 1)], [UNSET]),
        ([(datagram.DeleteInstance(UUID), datagram.DEL_INST, 2), (SET, MOD, 1)],
         [datagram.DeleteInstance(UUID)]),
        ([(UNSET, MOD, 1), (SET, MOD, 2)], [UNSET, SET]),
        ([(UNSET, MOD, 3), (SET, MOD, 1), (SET, MOD, 2), (SET, MOD, 4)], [UNSET, SET]),
        ([(UNSET, MOD, 2**32 - 1), (SET, MOD, 1), (UNSET, MOD, 2**32 - 2)], [UNSET, SET]),
        ([(SET, MOD, 2), (SET._replace(uuid=OTHER), MOD, 1)], [SET, SET._replace(uuid=OTHER)]),
        ([(datagram.SetHost("h", False), datagram.MOD_HOST, 2),
          (datagram.SetHost("h", True), datagram.MOD_HOST, 1)], [datagram.SetHost("h", False)]),
        ([(SET, MOD, 3), (STOP, VOTE, 2), (PAUSE, VOTE, 1)], [SET, STOP, PAUSE]),
    ],
)  # fmt: skip
def test_an_overtaken_command_is_confirmed_and_not_obeyed(bench, sent, obeyed):
    agent = Process(5)
    bench.send(*[agent.command(*one) for one in sent])
    assert bench.commands == obeyed
    bench.until(lambda: len(bench.first.acks()) == len(sent))
    assert bench.first.acks() == [(5, number) for _, _, number in sent]


def test_a_new_agent_counts_anew(bench):
    bench.send(Process(5).command(number=1000), Process(6).command(UNSET), old_command())
    assert bench.commands == [SET, UNSET, SET]


def test_only_so_much_is_remembered_of_commands(bench, monkeypatch):
    monkeypatch.setattr("guestmtce.server.following.SEEN_MAX", 4)
    agent, wanted = Process(5), [SET._replace(uuid="%08d%s" % (n, UUID[8:])) for n in range(10)]
    bench.send(*[agent.command(one, number=2 * n + 2) for n, one in enumerate(wanted)])
    bench.send(agent.command(wanted[9]._replace(reporting=False), number=19))
    assert (bench.commands, len(bench.link._order._latest)) == (wanted, 4)
    # What is commanded anew drives out nothing, and goes last itself.
    bench.send(agent.command(wanted[7], number=30), agent.command(wanted[6], number=13))
    bench.send(agent.command(wanted[0], number=31), agent.command(wanted[1], number=32))
    bench.send(agent.command(wanted[7], number=29))
    assert bench.commands == [*wanted, wanted[7], wanted[0], wanted[1]]


# --- who may command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [old_command, lambda: Process(5).command(), lambda: Process(5).ack(loss())[0]]
)
def test_a_stranger_is_not_obeyed_not_believed_and_not_answered(slow, make):
    told(slow, loss())
    slow.send(make(), agent=slow.third)
    assert (slow.link.refused, slow.link.agent, slow.link.waiting) == (1, "127.0.0.1", 1)
    assert (slow.commands, slow.told) == ([datagram.Query()], [])
    slow.quiet(0.05)
    assert slow.third.hear() == []
    slow.send(make(), agent=slow.second)  # it may speak, and is not followed as long as the first one is
    assert (slow.link.refused, slow.link.not_followed, slow.link.agent) == (1, 1, "127.0.0.1")


def test_whoever_may_command_is_looked_up_by_name_and_never_because_of_a_stranger():
    names = {"the.controller": ["fd00::1", "127.0.0.1"], "the.other": ["127.0.0.2"]}
    bench = Bench(controller="the.controller", agents="one.more, the.other", names=names)
    try:
        bench.send(old_command(), agent=bench.third)
        bench.until(lambda: bench.link._resolver.addresses("the.other"))
        bench.send(old_command(), old_command(), agent=bench.third)
        bench.send(old_command(), old_command())
        assert (len(bench.commands), bench.link.refused) == (2, 3)
        assert bench.asked == ["the.controller", "one.more", "the.other"]
    finally:
        bench.close()


def test_what_was_disabled_and_enabled_again_is_both_though_only_the_last_arrives(bench):
    agent = Process(5)
    on = datagram.SetInstance(SET.uuid, True)
    data = agent.tag_and_seal(
        old_command(on, datagram.MOD_INST),
        datagram_ext.Tag(datagram_ext.WANTS_ACK | datagram_ext.ANEW, number=7),
    )
    bench.send(agent.query(), data, data)
    assert bench.commands[-2:] == [on._replace(reporting=False), on]
    assert bench.commands.count(on) == 1


# --- what is repeated stands in the table ----------------------------------------------------------


def test_what_the_table_has_no_more_is_not_repeated(bench):
    bench.send(Process(5).query())
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()) >= 2)
    del bench.reports[loss().key]
    bench.until(lambda: bench.link.waiting == 0)
    said = bench.first.count(loss())
    bench.quiet(0.2)
    assert bench.first.count(loss()) == said and bench.told == []
