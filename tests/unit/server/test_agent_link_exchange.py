"""One guestAgent takes the place of another, or two are there at once; over real sockets."""

from __future__ import annotations

import time

import pytest
from agentlink_driver import (
    HOST,
    INFO,
    KEY,
    SET,
    UUID,
    Agent,
    Bench,
    Process,
    loss,
    old_command,
    running,
    stopped,
)

from guestmtce.peer import retransmit
from guestmtce.server.following import PREDECESSORS_MAX, Following, Identity
from guestmtce.server.state.effects import ReportEvent
from guestmtce.server.state.guest import ILLNESS, OUTCOME, PendingKey
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import GOODBYE, Tag

ADD = datagram.ADD_INST
UNSET = datagram.SetInstance(UUID, False)
STOP_INFO = INFO._replace(heartbeating=False)
LOST = datagram.Loss(HOST, UUID)
OTHER = "99999999-2222-3333-4444-555555555555"
NONE = 0.3  # s in which nothing comes that does not come
SILENCE = 0.4  # s after which an agent is followed no more, where a test waits for it


@pytest.fixture
def make(monkeypatch):
    """Gives links in whose time nothing is repeated of itself, that know one stopped guest."""
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 1000.0)
    made = []

    def make_one(**changes):
        made.append(Bench(**changes))
        made[-1].infos[UUID] = STOP_INFO
        return made[-1]

    yield make_one
    for bench in made:
        assert bench.loop.defects == 0
        bench.close()


@pytest.fixture
def bench(make):
    return make()


def settle(bench):
    """The old agent has had its time to name its instances."""
    bench.until(lambda: bench.link._grace is None)


def events(agent):
    """What the agent has heard since the last time."""
    heard = agent.events()
    agent.heard.clear()
    return heard


def lost_to_ours(bench):
    """An agent of ours was told of a loss, did not confirm, and is gone."""
    bench.send(Process(5).query())
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()))
    bench.first.heard.clear()


def lost_to_old(bench):
    """An old agent was told of a loss."""
    bench.send(old_command())
    settle(bench)
    bench.report(loss())
    bench.until(lambda: LOST in bench.first.events())
    bench.first.heard.clear()


# --- ours, then an old one -------------------------------------------------------------------------


@pytest.mark.parametrize("cmd", [datagram.ADD_INST, datagram.MOD_INST])
def test_an_old_agent_hears_the_state_before_a_held_loss_once(bench, cmd):
    """Without the state it would have the VIM do what it does for a guest that is unknown: log."""
    lost_to_ours(bench)
    bench.send(old_command(cmd=cmd))
    bench.until(lambda: LOST in bench.first.events())
    bench.quiet(NONE)
    assert events(bench.first) == [STOP_INFO, LOST]
    assert (bench.told, bench.link.waiting) == ([loss().key], 0)


def test_an_old_agent_hears_of_a_loss_when_it_names_the_instance_and_not_before(bench):
    """It learns of all its instances, then names them one by one, and drops what it hears before it does."""
    lost_to_ours(bench)
    bench.send(old_command(datagram.Query(), datagram.QRY_INST), old_command(SET._replace(uuid=OTHER), ADD))
    assert bench.first.events() == []
    bench.send(old_command(cmd=ADD))
    bench.until(lambda: LOST in bench.first.events())
    bench.quiet(NONE)
    assert events(bench.first) == [STOP_INFO, LOST]


def test_an_old_agent_that_names_no_instance_hears_of_the_loss_after_a_while(bench):
    lost_to_ours(bench)
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    bench.until(lambda: LOST in bench.first.events())
    assert events(bench.first) == [STOP_INFO, LOST]
    bench.quiet(NONE)
    assert events(bench.first) == []


def test_a_loss_in_the_while_waits_and_is_withdrawn_like_others(bench):
    bench.send(old_command(datagram.Query(), datagram.QRY_INST))
    bench.report(loss())
    bench.report(running(9))
    bench.withdraw(loss().key)
    settle(bench)
    bench.quiet(NONE)
    assert (events(bench.first), bench.told) == ([INFO], [running().key])


# --- an old one that was there before us -----------------------------------------------------------


@pytest.mark.parametrize("speaks_from", ["127.0.0.1", "127.0.0.2"])
def test_an_old_agent_has_heard_what_was_said_to_the_controller_wherever_it_speaks_from(bench, speaks_from):
    bench.link.start()
    bench.report(loss())
    bench.send(old_command(), agent=bench.first if speaks_from == "127.0.0.1" else bench.second)
    bench.quiet(NONE)
    assert (bench.told, bench.second.events()) == ([loss().key], [])
    assert bench.first.events().count(LOST) == 1


def test_of_two_addresses_of_the_controller_the_old_agent_may_have_heard_the_other(make):
    names = {"the.controller": ["127.0.0.1", "127.0.0.2"]}
    bench = make(controller="the.controller", names=names, ready_repeat=60)
    bench.link.start()
    bench.until(bench.first.events)
    bench.report(loss())
    bench.send(old_command(), agent=bench.second)
    bench.until(lambda: LOST in bench.second.events())
    assert (bench.told, bench.link.waiting) == ([loss().key], 0)


# --- an old one, then ours -------------------------------------------------------------------------


def test_ours_hears_of_what_an_old_one_was_told_and_is_still_true(bench):
    lost_to_old(bench)
    agent = Process(5)
    bench.send(agent.query())
    bench.until(lambda: bench.first.count(loss()))
    (frame,) = bench.first.frames()
    assert datagram.parse_event(frame) == STOP_INFO and datagram_ext.read_tag(frame).wants_ack
    assert (bench.told, bench.link.waiting) == ([loss().key], 1)
    bench.send(*agent.ack(loss()))
    assert (bench.told, bench.link.waiting) == ([loss().key] * 2, 0)


def test_ours_hears_nothing_of_what_is_over(bench):
    lost_to_old(bench)
    bench.withdraw(loss().key)
    bench.send(Process(5).query())
    bench.quiet(NONE)
    assert (events(bench.first), bench.link.waiting) == ([], 0)


def test_a_newer_loss_takes_the_place_of_the_one_that_was_said(bench):
    lost_to_old(bench)
    bench.report(loss(33))
    bench.send(Process(5).query())
    bench.until(lambda: bench.first.count(loss(33)) == 2)
    assert (bench.first.count(loss()), bench.link.waiting) == (0, 1)


# --- an old one starts anew ------------------------------------------------------------------------


def test_an_old_agent_that_starts_anew_hears_the_state_and_the_loss_once(bench):
    lost_to_old(bench)
    bench.send(old_command(cmd=ADD))
    bench.until(lambda: LOST in bench.first.events())
    bench.quiet(NONE)
    assert events(bench.first) == [STOP_INFO, LOST]
    bench.send(old_command())  # one that runs
    bench.quiet(NONE)
    assert events(bench.first) == []


def test_one_at_another_address_too(make):
    bench = make(agent_silence=0.001)
    lost_to_old(bench)
    bench.send(old_command(cmd=ADD), agent=bench.second)
    bench.until(lambda: LOST in bench.second.events())
    bench.quiet(NONE)
    assert (events(bench.second), events(bench.first)) == ([STOP_INFO, LOST], [])


def test_the_action_on_a_loss_ends_it(bench):
    """The VIM disables reporting when it acts; what is told after that would be a second reboot."""
    lost_to_old(bench)
    bench.serve = lambda command: bench.withdraw(loss().key)  # as the table does
    bench.send(old_command(UNSET, datagram.MOD_INST), old_command(cmd=ADD))
    bench.until(bench.first.events)
    bench.quiet(NONE)
    assert events(bench.first) == [STOP_INFO]


@pytest.mark.parametrize("info, cmd", [(INFO, datagram.RUNNING), (STOP_INFO, datagram.STOPPED)])
def test_an_old_agent_hears_how_a_known_instance_is_when_it_names_it(bench, info, cmd):
    bench.infos[UUID] = info
    bench.send(old_command())
    settle(bench)
    bench.send(old_command(cmd=ADD))
    bench.until(bench.first.frames)
    assert [(frame.cmd, datagram.parse_event(frame)) for frame in bench.first.frames()] == [(cmd, info)]


def test_of_an_unknown_instance_there_is_nothing_to_say(bench):
    del bench.infos[UUID]
    bench.send(old_command(cmd=ADD))
    bench.quiet(NONE)
    assert events(bench.first) == []


def test_an_illness_is_kept_like_a_loss(bench):
    ill = ReportEvent(datagram.ILLHEALTH, INFO, 4, PendingKey(UUID, ILLNESS))
    bench.send(old_command())
    settle(bench)
    bench.report(ill)
    bench.send(Process(5).query())
    bench.until(lambda: bench.first.count(ill) == 2)


# --- outcomes that nobody waits for any more -------------------------------------------------------


def outcome(seconds, number=7):
    result = datagram.VoteResult(HOST, UUID, "revocable", "stop", "reject", "")
    until = time.monotonic() + seconds
    return ReportEvent(datagram.VOTE_NOTIFY, result, number, PendingKey(UUID, OUTCOME, number), until)


@pytest.mark.parametrize("agent", ["ours", "ours that is gone", "nobody", "old"])
def test_an_outcome_ends_with_its_question(make, agent):
    bench = make(controller="127.0.0.1" if agent != "nobody" else "the.controller")
    if agent.startswith("ours"):
        process = Process(5)
        bench.send(process.query())
        if agent != "ours":
            bench.send(goodbye(process))
    elif agent == "old":
        bench.send(old_command())
    tell = outcome(0.05 if agent != "old" else -1)
    bench.report(tell)
    bench.until(lambda: bench.told)
    assert (bench.told, bench.link.waiting) == ([tell.key], 0)
    bench.first.hear()
    bench.first.heard.clear()
    bench.send(Process(6).query())
    bench.quiet(NONE)
    assert events(bench.first) == []


# --- two agents at once ----------------------------------------------------------------------------


def goodbye(process):
    data = datagram.build_command(datagram.LOOPBACK, "192.0.2.1", datagram.Loopback())
    return process.tag_and_seal(data, Tag(GOODBYE))


@pytest.mark.parametrize("kinds", ["ours ours", "old old", "ours old", "old ours"])
def test_one_of_two_agents_is_followed_and_the_other_changes_nothing(bench, kinds, caplog):
    first, second = (kind == "ours" and Process(number) for number, kind in enumerate(kinds.split(), 5))
    words = [
        (lambda process=process, wanted=wanted: process.command(wanted) if process else old_command(wanted))
        for process, wanted in ((first, SET), (second, UNSET))
    ]
    for _ in range(5):
        bench.send(words[0]())
        bench.send(words[1](), agent=bench.second)
    assert bench.commands == [SET] * 5
    assert (bench.link.agent, bench.link.not_followed, bench.link.refused) == ("127.0.0.1", 5, 0)
    assert bench.second.acks() == []  # what is not obeyed is not confirmed: it is repeated
    named = [record for record in caplog.records if "is not obeyed" in record.getMessage()]
    assert len(named) == 1 and "127.0.0.2" in named[0].getMessage()


def test_the_other_one_s_confirmations_count_nothing_and_its_queries_are_answered(bench):
    bench.infos[UUID] = INFO
    bench.serve = lambda command: bench.link.answer_query([UUID])
    first, second = Process(5), Process(6)
    bench.send(first.query())
    bench.until(bench.first.events)
    bench.report(loss())
    bench.send(*second.ack(loss()), second.query(), agent=bench.second)
    bench.until(bench.second.events)
    assert (bench.told, bench.link.waiting, bench.second.events()) == ([], 1, [INFO])
    assert len(bench.second.heard[0]) < datagram.FULL_SIZE


def test_with_a_key_too_the_second_agent_can_ask_and_the_first_is_not_disturbed(make, tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    bench = make(key_file=str(tmp_path / "key"), agents="")
    bench.serve = lambda command: (bench.commands.append(command), bench.link.answer_query([UUID]))
    first, second = Process(5, key=KEY), Process(6, key=KEY)
    for process, agent in ((first, bench.first), (second, bench.second)):
        bench.send(process.query(), agent=agent)
        bench.until(agent.hear)
        for data in agent.heard:
            process.meet(data)
        agent.heard.clear()
        bench.send(process.query(), process.command(), agent=agent)
        bench.until(lambda process=process, agent=agent: STOP_INFO in agent.events())
        for data in agent.heard:
            process.meet(data)  # which raises for a wrong seal
            assert datagram_ext.read_tag(datagram.unpack(data)).echo == process.speaker.nonce
        agent.heard.clear()
    assert bench.commands.count(SET) == 1 and bench.link.agent == "127.0.0.1"
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()))
    assert datagram_ext.read_tag(bench.first.frames()[-1]).echo == first.speaker.nonce
    bench.send(*first.ack(loss()))
    assert bench.told == [loss().key]


def test_after_a_goodbye_the_next_one_is_followed_at_once_and_hears_all(bench):
    first, second = Process(5), Process(6)
    bench.send(first.query())
    bench.report(loss())
    bench.send(goodbye(first))
    bench.send(first.command(UNSET))  # late
    assert bench.commands == [datagram.Query()]
    bench.send(second.command(), agent=bench.second)
    assert (bench.commands, bench.link.agent) == ([datagram.Query(), SET], "127.0.0.2")
    bench.until(lambda: bench.second.count(loss()))


def test_nothing_is_repeated_to_one_that_has_said_goodbye(monkeypatch, make):
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 0.02)
    bench, agent = make(), Process(5)
    bench.send(agent.query())
    bench.send(goodbye(agent))
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()))
    bench.quiet(NONE)
    assert bench.first.count(loss()) == 1  # an old one may listen there soon, who bears no repetition
    bench.send(old_command(cmd=ADD))
    bench.until(lambda: LOST in bench.first.events())


def test_the_goodbye_of_another_one_changes_nothing(bench):
    bench.send(Process(5).query())
    other = Process(6)
    bench.send(other.query(), goodbye(other), other.command(), agent=bench.second)
    assert (bench.commands, bench.link.agent) == ([datagram.Query()] * 2, "127.0.0.1")


def test_one_that_is_silent_for_two_audits_is_followed_no_more(make):
    bench = make(agent_silence=SILENCE)
    first, second = Process(5), Process(6)
    bench.send(first.query())
    bench.send(second.command(), agent=bench.second)
    assert bench.link.agent == "127.0.0.1"
    bench.quiet(SILENCE)
    bench.send(second.command(), agent=bench.second)
    assert (bench.commands[-1], bench.link.agent) == (SET, "127.0.0.2")
    bench.send(first.command(UNSET))  # it was only away
    assert (bench.commands[-1], bench.link.agent) == (SET, "127.0.0.2")


def test_our_own_stall_is_not_the_silence_of_the_agent(make):
    """After it the words of both wait to be read, and those of the other one may stand first."""
    bench = make(agent_silence=SILENCE)
    first, second = Process(5), Process(6)
    bench.send(first.query())
    time.sleep(SILENCE)
    bench.loop.stood_still += SILENCE  # as the loop counts it when it goes on
    bench.send(second.command(UNSET), agent=bench.second)
    bench.send(first.command())
    assert (bench.commands, bench.link.agent) == ([datagram.Query(), SET], "127.0.0.1")


def test_a_dead_agent_is_left_by_a_host_that_stands_still_again_and_again():
    following = Following(20.0)
    following.admit_speaker(Identity("192.0.2.1", 5), 0.0)
    taken = []
    for now in range(10, 60, 10):
        following.excuse_silence(1.1)
        taken.append(following.admit_speaker(Identity("192.0.2.2", 6), float(now)))
    assert taken == [False, False, True, True, True]


def test_a_new_process_at_the_same_address_is_followed_at_once_and_the_one_before_no_more(bench):
    first, second = Process(5), Process(6)
    bench.send(first.command(), second.command(UNSET), first.command(), second.command(UNSET))
    assert bench.commands == [SET, UNSET, UNSET]
    assert bench.link.not_followed == 1


def test_the_same_process_may_speak_from_another_address(bench):
    agent = Process(5)
    bench.send(agent.command())
    bench.send(agent.command(UNSET), agent=bench.second)
    assert (bench.commands, bench.link.agent) == ([SET, UNSET], "127.0.0.2")


def test_many_agents_are_not_remembered_one_and_all():
    bench = Bench(agents=",".join("127.0.2.%d" % number for number in range(1, 60)))
    agents = [Agent("127.0.2.%d" % number) for number in range(1, 60)]
    try:
        bench.send(Process(5).query())
        for number, agent in enumerate(agents):
            bench.send(Process(100 + number).query(), agent=agent)
        assert len(bench.link._others) <= 16 and len(bench.link._named) <= 16
    finally:
        bench.close()
        for agent in agents:
            agent.socket.close()


# --- the rule itself -------------------------------------------------------------------------------

A, B, OLD = Identity("a", 1), Identity("b", 2), Identity("a", 0)


@pytest.mark.parametrize(
    "heard",
    [
        [(A, 0, True), (B, 1, False), (A, 10, True), (B, 29, False), (B, 30, True), (A, 31, False)],
        [(A, 0, True), (B, 20, True)],
        [(A, 0, True), (Identity("a", 2), 1, True), (A, 2, False), (A, 21, True)],
        [(A, 0, True), (OLD, 1, True), (A, 2, False), (OLD, 3, True), (Identity("a", 3), 4, True)],
        [(OLD, 0, True), (Identity("b", 0), 1, False), (OLD, 2, True), (Identity("b", 0), 22, True)],
        [(A, 0, True), (Identity("c", 1), 1, True), (B, 2, False)],
    ],
)
def test_who_is_followed(heard):
    following = Following(20.0)
    for who, now, followed in heard:
        assert following.admit_speaker(who, now) is followed


def test_predecessors_are_forgotten_in_the_end():
    following = Following(20.0)
    for nonce in range(1, 1000):
        assert following.admit_speaker(Identity("a", nonce), 0.0)
    assert len(following._predecessors) == PREDECESSORS_MAX


def test_the_stopped_of_the_table_is_not_said_a_second_time(bench):
    lost_to_old(bench)
    bench.report(stopped())
    bench.report(running(9))
    bench.report(stopped(10))
    bench.until(lambda: len(bench.first.hear()) == 2)
    assert events(bench.first) == [INFO, STOP_INFO]
    assert bench.told == [loss().key, *[running().key] * 3]


def test_who_was_followed_before_our_restart_is_waited_for():
    before, other = Identity("10.0.0.1", 5), Identity("10.0.0.2", 6)
    following = Following(20.0, before.address, 1000.0)
    assert not following.admit_speaker(other, 1001.0)
    assert following.admit_speaker(before._replace(nonce=7), 1002.0)
    assert not following.admit_speaker(other, 1003.0)
    following = Following(20.0, before.address, 1000.0)
    assert following.admit_speaker(other, 1020.0), "it is gone"


def test_the_followed_address_is_told_once_and_a_goodbye_takes_it_back(make):
    bench, followed = make(), []
    bench.link._handlers = bench.link._handlers._replace(followed=followed.append)
    agent = Process(5)
    for _ in range(3):
        bench.send(agent.query())
    assert followed == ["127.0.0.1"]
    bench.send(goodbye(agent))
    assert followed == ["127.0.0.1", ""]
