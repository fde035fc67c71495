"""The master's table in random lives: whatever happens in whatever order, the rules hold."""

from __future__ import annotations

import collections

from guests_driver import INIT, PATH, UUID, Bench
from hypothesis import given, settings
from hypothesis import strategies as st

from guestmtce.server import guests as g
from guestmtce.server import reports
from guestmtce.wire import channel, datagram

NOTICE, VOTE = channel.NOTICE, channel.VOTE
PATHS = [PATH, "/q/wrs.heartbeat.agent.0.%s.sock" % UUID]
REPORTS = [
    reports.Acknowledged(INIT), reports.Running(), reports.Stopped(), reports.Quiet(), reports.Lost(2),
    reports.Missed(1), reports.Silence(60.0), reports.Silence(0.0), reports.Ill("log", ""),
]  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.02, 0.5, 1.5, 5, 30, 100])),
    st.tuples(st.just("found"), st.sampled_from(PATHS), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("gone"), st.sampled_from(PATHS)),
    st.tuples(st.just("child"), st.sampled_from(["started", "refused", "missing"])),
    st.tuples(st.just("end"), st.sampled_from([g.PEER_CLOSED, g.GAVE_UP, g.DIED])),
    st.tuples(st.just("report"), st.sampled_from(REPORTS)),
    st.tuples(st.just("report"), st.just(reports.Running())),
    st.tuples(st.just("answer"), st.sampled_from(channel.VOTE_RESULTS)),
    st.tuples(st.just("set"), st.booleans()),
    st.tuples(st.just("host"), st.booleans()),
    st.tuples(st.just("delete")),
    st.tuples(
        st.just("ask"), st.sampled_from(["pause", "resume", "reboot"]), st.sampled_from([VOTE, NOTICE])
    ),
)
BEGINNING = [
    ("found", PATH, 1, True), ("set", True), ("child", "started"), ("report", reports.Running()),
]  # fmt: skip


class World(Bench):
    """Plays master and children as they would behave, and checks every effect."""

    def __init__(self):
        super().__init__()
        self.asked = collections.Counter()
        self.given = set()
        self.child = self.pid = False

    def link(self):
        return self.table.table[UUID].link if UUID in self.table.table else g.ABSENT

    def step(self, what, *values):
        lost = what == "report" and isinstance(values[0], reports.Lost) and self.child
        reporting = UUID in self.table.table and self.guest.reporting and self.table.host_reporting
        getattr(self, "do_" + what)(*values)
        losses = self.check()
        assert losses == 0 or (lost and reporting and losses == 1)

    def check(self):
        losses = 0
        for effect in self.take():
            if isinstance(effect, g.Connect):
                assert not self.child, "one child at a time"
                self.child, self.pid, self.given = True, False, set()
            elif isinstance(effect, g.Drop):
                self.child = False
                if UUID not in self.table.table:
                    self.asked.clear()
            elif isinstance(effect, g.Put):
                assert self.child and effect.ask.timeout_ms > 0
                assert effect.ask.number not in self.given, "given twice to one child"
                self.given.add(effect.ask.number)
            elif isinstance(effect, g.Tell) and effect.cmd == datagram.VOTE_NOTIFY:
                key = (effect.event.event_type, effect.event.notification_type)
                self.asked[key] -= 1
                assert self.asked[key] >= 0, "an answer to nothing"
            elif isinstance(effect, g.Tell):
                losses += effect.cmd == datagram.LOSS
        assert self.child == (self.link() in (g.CONNECTING, g.CONNECTED))
        if UUID in self.table.table:
            assert not self.guest.running or self.guest.heartbeating
        return losses

    def do_wait(self, seconds):
        until = self.now + seconds
        for _ in range(1000):
            if self.table.next_due > until:
                break
            self.now = max(self.now, self.table.next_due)
            self.table.tick(self.now)
            assert self.table.next_due > self.now
            assert self.check() == 0
        else:
            raise AssertionError("ticks without end")
        self.now = until

    def do_found(self, *values):
        self.found(*values)

    def do_gone(self, path):
        self.gone(path)

    def do_child(self, how):
        if self.child and not self.pid:
            if how == "started":
                self.pid = True
                self.table.connected(UUID, self.now)
            else:
                self.child = False
                self.table.connect_failed(UUID, how == "missing", how, self.now)

    def do_end(self, why):
        if self.child:
            self.child = False
            self.end(why)

    def do_report(self, report):
        if self.child:
            self.report(report)

    def do_answer(self, vote):
        if self.given and self.child:
            self.report(reports.Answered(max(self.given), vote, ""))

    def do_set(self, reporting):
        self.set(reporting)

    def do_host(self, reporting):
        self.table.command(datagram.SetHost("h", reporting), self.now)

    def do_delete(self):
        self.table.command(datagram.DeleteInstance(UUID), self.now)

    def do_ask(self, event, kind):
        self.asked[event, kind] += 1
        self.ask(event, kind)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_random_lives_keep_the_rules(steps):
    world = World()
    for step in [*BEGINNING, *steps]:
        world.step(*step)
    world.step("wait", 30)
    assert +world.asked == {}, "every question is settled in bounded time"
    if UUID in world.table.table:
        assert world.link() != g.ABSENT or world.guest.provisioned
        assert world.child or not world.guest.heartbeating
