"""The local processes of a guest: registering, heartbeats, health, votes, and the rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.common.log_line import LogLine
from guestmtce.guest import local_processes as r
from guestmtce.guest import member
from guestmtce.guest.health import Illness, gravest
from guestmtce.guest.local_processes import (
    MEMBERS_MAX,
    CloseConnection,
    CountVote,
    Registry,
    RemoveVoter,
    SendLine,
)
from guestmtce.guest.settings import Settings
from guestmtce.wire import json_lines

BEGIN = 1000.0


class Bench:
    """A registry with its clock, and what it wants done."""

    def __init__(self):
        self.now = BEGIN
        self.registry = Registry(Settings())
        self.done = []

    def open(self, key=1, uid=0):
        self.registry.note_opened(key, self.now, member.Peer(4000 + key, uid))

    def raw(self, data, key=1):
        self.registry.receive(key, data, self.now)
        self.done += self.registry.drain_effects()

    def say(self, key=1, **message):
        self.raw(json.dumps(message).encode() + b"\n", key)

    def register(self, key=1, name="db", interval_ms=1000, action="reboot", uid=0, **more):
        self.open(key, uid)
        self.say(key, type="register", name=name, interval_ms=interval_ms, corrective_action=action, **more)
        return self

    def tick(self):
        self.now = max(self.now, self.registry.deadline)
        self.registry.tick(self.now)
        self.done += self.registry.drain_effects()

    def close(self, key=1):
        self.registry.note_closed(key, "its connection ended", self.now)
        self.done += self.registry.drain_effects()

    def heard(self, key=1):
        """What was said to the connection, in order; then forgotten."""
        said = [json.loads(one.line) for one in self.done if isinstance(one, SendLine) and one.key == key]
        self.done = [one for one in self.done if not (isinstance(one, SendLine) and one.key == key)]
        return said

    def told(self, kind):
        return [one for one in self.done if isinstance(one, kind)]

    def illnesses(self):
        return self.registry.illnesses


def refusal(bench, key=1):
    said = bench.heard(key)[-1]
    assert said["type"] == "refused" and CloseConnection(key) in bench.done
    return said["reason"]


def test_registering_is_confirmed_and_the_first_heartbeat_follows():
    bench = Bench().register()
    bench.tick()
    assert bench.now == BEGIN
    assert bench.heard() == [{"type": "registered", "name": "db"}, {"type": "heartbeat", "number": 1}]
    bench.tick()
    assert bench.now == BEGIN + 1


@pytest.mark.parametrize("interval", [{}, {"interval_ms": 0}])
def test_a_member_without_a_heartbeat_is_never_asked_nor_missed(interval):
    bench = Bench()
    bench.open()
    bench.say(type="register", name="db", **interval)
    assert bench.heard() == [{"type": "registered", "name": "db"}] and bench.registry.deadline == r.NEVER
    bench.now += 3600
    bench.registry.tick(bench.now)
    assert bench.registry.drain_effects() == [] and bench.illnesses() == []


@pytest.mark.parametrize("message", [{"name": "x" * 31}, {"interval_ms": 3600000}, {"interval_ms": 1}])
def test_the_longest_name_and_interval_are_taken(message):
    bench = Bench()
    bench.open()
    bench.say(type="register", **{"name": "db", **message})
    assert bench.heard()[0]["type"] == "registered"


def test_forty_lines_at_once_and_twenty_a_second_are_taken():
    """As docs/guest-client.md says."""
    bench = Bench()
    bench.open()
    bench.raw(b'{"type":"members"}\n' * 40)
    bench.now += 1
    bench.raw(b'{"type":"members"}\n' * 20)
    assert bench.told(CloseConnection) == []
    bench.raw(b'{"type":"members"}\n')
    assert "lines a second" in refusal(bench)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"type": "alive", "number": 1}, "register first"),
        ({"type": "register"}, "name:"),
        ({"type": "register", "name": ""}, "name:"),
        ({"type": "register", "name": 5}, "name:"),
        ({"type": "register", "name": "x" * 32}, "name:"),
        ({"type": "register", "name": "a\nb"}, "name:"),
        ({"type": "register", "name": "a", "interval_ms": -1}, "interval_ms:"),
        ({"type": "register", "name": "a", "interval_ms": "1"}, "interval_ms:"),
        ({"type": "register", "name": "a", "interval_ms": True}, "interval_ms:"),
        ({"type": "register", "name": "a", "interval_ms": 3600001}, "interval_ms:"),
        ({"type": "register", "name": "a", "corrective_action": "explode"}, "corrective_action:"),
        ({"type": "register", "name": "a", "corrective_action": []}, "corrective_action:"),
    ],
)
def test_a_wrong_registration_is_refused_with_its_reason(message, why):
    bench = Bench()
    bench.open()
    bench.say(**message)
    assert why in refusal(bench)
    assert bench.illnesses() == []


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"type": "register", "name": "again"}, "unknown type"),
        ({"type": "nonsense"}, "unknown type"),
        ({}, "unknown type"),
        ({"type": ["x"]}, "unknown type"),
        ({"type": "health"}, "health:"),
        ({"type": "health", "health": "so-so"}, "health:"),
        ({"type": "health", "health": "unhealthy", "reason": 5}, "reason:"),
        ({"type": "answer", "number": 1, "vote": "perhaps"}, "vote:"),
    ],
)
def test_a_member_that_breaks_the_rules_is_refused_and_has_failed(message, why):
    bench = Bench().register()
    bench.say(**message)
    assert why in refusal(bench)
    assert [illness.corrective_action for illness in bench.illnesses()] == ["reboot"]


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b"\xff\n", b"[" * 4000 + b"\n", b"x" * 5000])
def test_what_is_no_object_or_too_long_is_refused(line):
    bench = Bench()
    bench.open()
    bench.raw(line)
    assert refusal(bench) in ("a JSON object expected", "a line of more than 4096 bytes")


def test_who_does_not_register_in_time_is_closed():
    bench = Bench()
    bench.open()
    bench.tick()
    assert bench.now == BEGIN + 5
    assert refusal(bench) == "not registered in time"


def test_more_lines_than_allowed_are_a_failure_and_as_many_as_allowed_are_not():
    bench = Bench().register()
    for _ in range(300):
        bench.now += 1 / member.RATE
        bench.say(type="health", health="healthy")
    assert bench.told(CloseConnection) == []
    for _ in range(int(member.BURST) + 1):
        bench.say(type="health", health="healthy")
    assert "lines a second" in refusal(bench)
    assert len(bench.illnesses()) == 1


def test_a_ninth_process_is_refused_and_a_name_is_taken_once():
    bench = Bench()
    for key in range(1, MEMBERS_MAX + 1):
        bench.register(key, "app%d" % key)
    assert bench.told(CloseConnection) == []
    bench.register(20, "one more")
    assert "no more" in refusal(bench, 20)
    bench.register(21, "app1")
    assert "of this name" in refusal(bench, 21)
    bench.say(1, type="bye")
    bench.register(22, "one more")
    assert bench.heard(22) == [{"type": "registered", "name": "one more"}]


# --- heartbeats and health -------------------------------------------------------------------------


def beat(bench, answer=True, **more):
    bench.tick()
    number = bench.heard()[-1]["number"]
    if answer:
        bench.say(type="alive", number=number, **more)


def test_two_heartbeats_without_an_answer_are_a_failure_and_an_answer_heals():
    bench = Bench().register()
    beat(bench)
    beat(bench, answer=False)
    beat(bench, answer=False)
    assert bench.illnesses() == []
    beat(bench, answer=False)
    assert bench.illnesses() == [Illness("reboot", "db: no answer for 2 heartbeats")]
    beat(bench)
    assert bench.illnesses() == []
    for _ in range(3):
        beat(bench, answer=False)
    assert bench.illnesses() == [Illness("reboot", "db: no answer for 2 heartbeats")]


def test_a_process_that_never_answers_has_failed_after_two_intervals():
    bench = Bench().register()
    while not bench.illnesses():
        beat(bench, answer=False)
    assert bench.now == BEGIN + 2


def test_one_missed_heartbeat_is_forgiven_and_a_wrong_number_is_no_answer():
    bench = Bench().register()
    for _ in range(5):
        beat(bench, answer=False)
        beat(bench)
    assert bench.illnesses() == []
    for _ in range(3):
        beat(bench, answer=False)
        bench.say(type="alive", number=99)
    assert len(bench.illnesses()) == 1


def test_the_interval_has_a_floor():
    bench = Bench().register(interval_ms=1)
    bench.tick()
    bench.tick()
    assert bench.now - BEGIN == pytest.approx(0.1)


def test_a_process_that_ends_without_bye_has_failed_until_it_registers_again():
    bench = Bench().register()
    bench.close()
    assert bench.illnesses() == [Illness("reboot", "db: its connection ended")]
    bench.register(2)
    assert bench.illnesses() == []
    bench.say(2, type="bye")
    assert bench.illnesses() == [] and CloseConnection(2) in bench.done


def test_a_process_without_a_heartbeat_may_just_leave():
    bench = Bench().register(interval_ms=0, votes=True)
    assert bench.registry.deadline == r.NEVER
    bench.close()
    assert bench.illnesses() == [] and bench.told(RemoveVoter) == [RemoveVoter("process db")]
    bench.register(2, interval_ms=0)


def test_a_process_says_that_it_is_ill_and_well():
    bench = Bench().register(action="log")
    bench.say(type="health", health="unhealthy", reason='disk "sda" fails')
    assert bench.illnesses() == [Illness("log", 'db: disk "sda" fails')]
    beat(bench, health="healthy")
    assert bench.illnesses() == []
    beat(bench, health="unhealthy")
    assert bench.illnesses() == [Illness("log", "db: unhealthy")]


def test_the_gravest_illness_counts():
    ills = [Illness("log", "a"), Illness("stop", "b"), Illness("reboot", "c"), Illness("stop", "d")]
    assert gravest(ills) == Illness("stop", "b")
    assert gravest([]) is None
    assert gravest([Illness("none", "a")]) == Illness("none", "a")
    assert gravest([Illness("none", "a"), Illness("log", "b")]) == Illness("log", "b")


# --- votes -----------------------------------------------------------------------------------------


def test_a_question_goes_to_those_that_vote_and_is_answered_once():
    bench = Bench().register(1, "a", votes=True).register(2, "b")
    assert bench.registry.voters == {"process a"}
    bench.heard(1)
    bench.registry.ask_members(3, "revocable", "stop", 7.5)
    bench.done += bench.registry.drain_effects()
    question = {"type": "question", "number": 3, "kind": "revocable", "event": "stop", "timeout_ms": 7500}
    assert bench.heard(1) == [question]
    bench.say(1, type="answer", number=2, vote="reject")
    bench.say(1, type="answer", number=3, vote="reject", reason="busy")
    bench.say(1, type="answer", number=3, vote="accept")
    for number in (0, 1, 3):
        bench.say(1, type="answer", number=number, vote="accept")
    assert bench.told(CountVote) == [CountVote(3, "process a", "reject", "busy")]


def test_who_was_not_asked_has_no_say():
    bench = Bench().register(1, "a", votes=True)
    for number in (0, 1):
        bench.say(1, type="answer", number=number, vote="reject")
    bench.registry.ask_members(3, "revocable", "stop", 7.5)
    bench.registry.withdraw_question(3)
    for number in (0, 1, 3):
        bench.say(1, type="answer", number=number, vote="reject")
    assert bench.told(CountVote) == []


def test_a_withdrawn_question_is_told_to_those_that_have_not_answered():
    bench = Bench().register(1, "a", votes=True).register(2, "b", votes=True)
    bench.registry.ask_members(3, "revocable", "stop", 7.5)
    bench.done += bench.registry.drain_effects()
    bench.say(1, type="answer", number=3, vote="accept")
    bench.heard(1), bench.heard(2)
    bench.registry.withdraw_question(3)
    bench.registry.withdraw_question(2)
    bench.done += bench.registry.drain_effects()
    assert (bench.heard(1), bench.heard(2)) == ([], [{"type": "withdrawn", "number": 3}])


# --- anything --------------------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=300), st.just([{}]))
WORDS = st.sampled_from(["register", "alive", "health", "answer", "bye", "nonsense", "healthy", "unhealthy"])
FIELDS = st.sampled_from(
    ["type", "name", "number", "interval_ms", "corrective_action", "votes", "health", "reason", "vote"]
)
MESSAGES = st.dictionaries(FIELDS, WORDS | VALUES).map(lambda one: json.dumps(one).encode() + b"\n")
GOOD = st.builds(
    lambda name, ms: json.dumps({"type": "register", "name": name, "interval_ms": ms}).encode() + b"\n",
    st.text(min_size=1, max_size=5),
    st.integers(0, 5000),
)
STEPS = st.tuples(
    st.integers(1, 12),
    st.one_of(st.just(b""), st.binary(), MESSAGES, GOOD, st.just("close"), st.just("tick")),
)


@given(st.lists(STEPS, max_size=60))
def test_whatever_processes_do_the_rules_hold(steps):
    bench = Bench()
    for key, what in steps:
        if what == "tick":
            bench.tick() if bench.registry.deadline < r.NEVER else None
        elif what == "close":
            bench.close(key)
        elif key in bench.registry._connections:
            bench.raw(what, key)
        else:
            bench.open(key)
        for one in bench.told(CloseConnection):
            assert one.key not in bench.registry._connections
        bench.done = []
        assert len(bench.registry._members) <= MEMBERS_MAX
        linked = [link.member for link in bench.registry._connections.values() if link.member]
        assert len(linked) == len(set(linked))
        for illness in bench.illnesses():
            assert len(illness.reason.encode()) <= json_lines.LOG_MSG_MAX


# --- those that failed and are gone ----------------------------------------------------------------

REMEMBERED = Settings().remember_failed


def test_crashed_processes_with_changing_names_take_no_place():
    bench = Bench()
    for number in range(3 * MEMBERS_MAX):
        bench.register(number, "job-%d" % number)
        bench.close(number)
    bench.register(100, "db")
    assert bench.heard(100) == [{"type": "registered", "name": "db"}]


def test_a_dead_member_makes_the_guest_ill_for_a_time_and_is_forgotten():
    bench = Bench().register(interval_ms=60_000)
    bench.close()
    bench.now += REMEMBERED - 0.1
    bench.registry.tick(bench.now)
    assert len(bench.illnesses()) == 1 and bench.registry.deadline == pytest.approx(bench.now + 0.1)
    bench.tick()
    assert bench.illnesses() == [] and bench.registry.described == []
    assert "is forgotten" in bench.told(LogLine)[-1].text


def test_only_so_many_dead_ones_are_remembered_the_oldest_goes():
    bench = Bench()
    for number in range(r.REMEMBERED_MAX + 3):
        bench.now += 1
        bench.register(number, "job-%d" % number, interval_ms=60_000)
        bench.close(number)
    names = [one["name"] for one in bench.registry.described]
    assert names == ["job-%d" % number for number in range(3, r.REMEMBERED_MAX + 3)]


@pytest.mark.parametrize("uid", [0, 1000])
def test_who_is_connected_or_root_takes_no_place_among_the_remembered(uid):
    bench = Bench().register(900, "alive", uid=uid)
    bench.register(901, "other", uid=1000 - uid)
    bench.close(901)
    for number in range(r.REMEMBERED_MAX):
        bench.register(number, "job-%d" % number, interval_ms=60_000, uid=uid)
        bench.close(number)
    assert len(bench.registry.described) == r.REMEMBERED_MAX + 2


def test_root_has_places_of_its_own():
    bench = Bench()
    for key in range(MEMBERS_MAX):
        bench.register(key, "app%d" % key, uid=1000)
    bench.register(20, "one more", uid=1001)
    assert "no more" in refusal(bench, 20)
    bench.register(21, "roots")
    assert bench.heard(21) == [{"type": "registered", "name": "roots"}]


def test_a_name_is_its_users():
    bench = Bench().register(uid=1000)
    bench.close()
    bench.register(2, uid=1001)
    assert refusal(bench, 2) == "this name is of uid 1000"
    bench.register(3, uid=0)
    assert bench.illnesses() == []


def test_a_member_that_is_well_has_no_illness():
    (said,) = Bench().register().registry.described
    assert said["illness"] == "" and said["connected"]


def test_members_are_listed_to_anybody_who_may_connect():
    bench = Bench().register(uid=1000)
    bench.say(1, type="health", health="unhealthy", reason="no disk")
    bench.open(2, 1001)
    bench.say(2, type="members")
    (said,) = bench.heard(2)
    assert said == {
        "type": "members",
        "members": [
            {"name": "db", "pid": 4001, "uid": 1000, "connected": True, "corrective_action": "reboot",
             "illness": "db: no disk"}
        ],
    }  # fmt: skip


OF_ANOTHER = "it is of uid 1000: root and that user may have it forgotten"


@pytest.mark.parametrize(("uid", "why"), [(0, ""), (1000, ""), (1001, OF_ANOTHER)])
def test_a_dead_one_is_forgotten_for_root_and_its_user(uid, why):
    bench = Bench().register(uid=1000)
    bench.close()
    bench.open(2, uid)
    bench.say(2, type="forget", name="db")
    if why:
        assert refusal(bench, 2) == why
    else:
        assert bench.heard(2) == [{"type": "members", "members": []}]
    assert bool(bench.illnesses()) is bool(why)


@pytest.mark.parametrize(
    ("name", "why"), [("db", "it is connected"), ("x", "no process of this name is known")]
)
def test_what_cannot_be_forgotten_is_said(name, why):
    bench = Bench().register()
    bench.open(2)
    bench.say(2, type="forget", name=name)
    assert refusal(bench, 2) == why
