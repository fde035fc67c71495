"""Random lives of one guest: plays the master, the children and guestAgent; knows what must be pending."""

from __future__ import annotations

import collections
import itertools

from guests_driver import BUSY, INIT, MISSING, PATH, REFUSED, SETTINGS, UUID, Bench
from hypothesis import strategies as st

from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state import guest as row
from guestmtce.server.state import guest_table as g
from guestmtce.server.state.effects import (
    Connect,
    DropChild,
    ForgetGuest,
    PutCommand,
    ReportEvent,
    SaveGuest,
    SaveHost,
    WithdrawEvent,
)
from guestmtce.server.state.questions import OUTCOMES_MAX
from guestmtce.wire import datagram, guest_channel

NOTICE, VOTE = guest_channel.NOTICE, guest_channel.VOTE
FAILURES = (row.LOSS, row.ILLNESS)
PATHS = [PATH, "/q/wrs.heartbeat.agent.0.%s.sock" % UUID]
REPORTS = [
    session_types.Acknowledged(INIT), session_types.Running(), session_types.Stopped(), session_types.Lost(2),
    session_types.Missed(1), session_types.ReportingEnabled(), session_types.Ill("log", ""),
    session_types.Well(),
]  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.02, 0.5, 1.5, 5, 30, 100])),
    st.tuples(st.just("found"), st.sampled_from(PATHS), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("gone"), st.sampled_from(PATHS)),
    st.tuples(st.just("child"), st.sampled_from(["started", REFUSED, MISSING, BUSY])),
    st.tuples(
        st.just("end"),
        st.sampled_from([session_types.PEER_CLOSED, session_types.GAVE_UP, session_types.DIED]),
    ),
    st.tuples(st.just("report"), st.sampled_from(REPORTS)),
    st.tuples(st.just("report"), st.sampled_from([session_types.Running(), session_types.Lost(2)])),
    st.tuples(st.just("answer"), st.sampled_from(guest_channel.VOTE_RESULTS)),
    st.tuples(st.just("set"), st.booleans()),
    st.tuples(st.just("host"), st.booleans()),
    st.tuples(st.just("delete")),
    st.tuples(
        st.just("ask"), st.sampled_from(["pause", "resume", "reboot"]), st.sampled_from([VOTE, NOTICE])
    ),
    st.tuples(st.just("confirm"), st.sampled_from([row.STATE, row.LOSS, row.ILLNESS, row.OUTCOME, ""])),
    st.tuples(st.just("restart"), st.sampled_from([0.0, 5.0, 100.0])),
)
BEGINNING = [
    ("found", PATH, 1, True), ("set", True), ("child", "started"), ("report", session_types.Running()),
]  # fmt: skip


class World(Bench):
    """`due` is what must be pending, by kind; `votes` the outcomes; `out` what the link repeats, by kind.

    `belief` is whether guestAgent takes the guest for heartbeating; None where nobody need have told it.
    """

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count(1)
        self.table = self.make_table()
        self.asked = collections.Counter()
        self.given = set()
        self.child = self.pid = self.spoke = False
        self.memory, self.host = None, True
        self.due, self.votes, self.out = {}, [], {}
        self.cmds = {}
        self.until = {}
        self.belief = False

    def make_table(self):
        return g.GuestTable(SETTINGS, self.numbers.__next__)

    @property
    def known(self):
        return UUID in self.table.guests

    def link(self):
        return self.guest.connection.state if self.known else row.ABSENT

    def step(self, what, *values):
        lost = what == "report" and isinstance(values[0], session_types.Lost) and self.child
        reporting = self.known and self.guest.reporting and self.table.host_reporting
        for kind in self.over(what, *values):
            self.due.pop(kind, None)
        getattr(self, "do_" + what)(*values)
        losses = self.check()
        assert losses == 0 or (lost and reporting and losses == 1)

    # --- what a step ends --------------------------------------------------------------------------

    def over(self, what, *values):
        """Which kinds are no longer true after this."""
        return getattr(self, "over_" + what, lambda *_: ())(*values) if self.known else ()

    def over_found(self, path, ident, fresh):
        guest = self.guest
        one = guest.connection
        if one.state != row.ABSENT and not fresh and (one.path != path or one.socket_identity == ident):
            return ()
        remade = fresh or one.socket_identity not in (None, ident)
        return FAILURES if remade else [row.ILLNESS] * (one.state != row.ABSENT)

    def over_gone(self, path):
        return [row.ILLNESS] * (path == self.guest.connection.path)

    def over_child(self, how):
        return [row.ILLNESS] * (how is MISSING and self.child and not self.pid and not self.spoke)

    def over_end(self, why):
        return [row.ILLNESS] * (self.child and why == session_types.PEER_CLOSED)

    def over_report(self, report):
        if not self.child:
            return ()
        if isinstance(report, session_types.Running):
            return [row.LOSS]
        ends = (session_types.Stopped, session_types.Lost, session_types.Well, session_types.Acknowledged)
        return [row.ILLNESS] * isinstance(report, ends)

    def over_set(self, reporting):
        changed = (self.guest.provisioned, self.guest.reporting) != (True, reporting)
        return FAILURES if changed and not (reporting and self.table.host_reporting) else ()

    def over_host(self, reporting):
        return FAILURES if not (reporting and self.guest.reporting) else ()

    def over_delete(self):
        self.votes, self.belief = [], False
        return list(self.due)

    def over_restart(self, age):
        guest, memory = self.guest, self.memory
        lives = memory is not None and memory.heartbeating and age <= SETTINGS.memory_valid
        over = [] if guest.reporting and self.host else list(FAILURES)
        if lives != guest.liveness.heartbeating or guest.pending.state_due != row.NEVER:
            self.belief = None
        running = self.cmds.get(self.due.get(row.STATE)) == datagram.RUNNING
        return [*over, row.STATE] if running and not lives else over

    # --- what must hold ----------------------------------------------------------------------------

    def check(self):
        losses = 0
        for effect in self.take():
            if isinstance(effect, Connect):
                assert not self.child, "one child at a time"
                self.child, self.pid, self.spoke, self.given = True, False, False, set()
            elif isinstance(effect, DropChild):
                self.child = False
                if not self.known:
                    self.asked.clear()
            elif isinstance(effect, PutCommand):
                assert self.child
                self.check_command(effect.command)
            elif isinstance(effect, ReportEvent):
                losses += self.check_tell(effect)
            elif isinstance(effect, WithdrawEvent):
                self.out.pop(str(effect.key), None)
            elif isinstance(effect, SaveGuest):
                self.memory = effect.memory
            elif isinstance(effect, SaveHost):
                self.host = effect.reporting
            elif isinstance(effect, ForgetGuest):
                self.memory = None
        self.check_pending()
        assert self.child == (self.link() in (row.CONNECTING, row.CONNECTED))
        return losses

    def check_command(self, command):
        if isinstance(command, pipe_protocol.AskGuest):
            assert command.timeout_ms > 0
            assert command.question_id not in self.given, "given twice to one child"
            self.given.add(command.question_id)
        else:
            assert self.guest.reporting and self.table.host_reporting

    def check_tell(self, tell):
        """Whether it is the news of a loss."""
        kind = str(tell.key)
        self.until[tell.sequence] = tell.until
        if self.known:
            self.out[kind] = tell.sequence
        if tell.sequence in self.cmds:  # after a restart, under its old number
            assert tell.sequence in self.votes or self.due[kind] == tell.sequence, "told, and over"
            return False
        self.cmds[tell.sequence] = tell.cmd
        if tell.cmd == datagram.VOTE_NOTIFY:
            self.votes = [*self.votes, tell.sequence][-OUTCOMES_MAX:] if self.known else []
            key = (tell.event.event_type, tell.event.notification_type)
            self.asked[key] -= 1
            assert self.asked[key] >= 0, "an answer to nothing"
        else:
            self.due[kind] = tell.sequence
        if kind == row.STATE and self.belief is None:
            self.belief = False  # from here on it knows
        return tell.cmd == datagram.LOSS

    def check_pending(self):
        if not self.known:
            assert not self.due and not self.votes and not self.out
            return
        guest = self.guest
        assert not guest.liveness.running or (guest.liveness.heartbeating and row.LOSS not in self.pending)
        pending = {kind: one.sequence for kind, one in self.pending.items()}
        assert {kind: number for kind, number in pending.items() if "outcome" not in kind} == self.due
        assert [number for kind, number in pending.items() if "outcome" in kind] == self.votes
        assert self.out == {kind: one.sequence for kind, one in self.pending.items() if not one.held}
        saved = [event.sequence for _, event in self.memory.pending] if self.memory is not None else []
        assert saved == list(pending.values())
        state = self.cmds.get(self.due.get(row.STATE))
        if (state is not None or self.belief is not None) and guest.pending.state_due == row.NEVER:
            believed = state == datagram.RUNNING if state is not None else self.belief
            assert believed == guest.liveness.heartbeating

    # --- steps -------------------------------------------------------------------------------------

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
                self.table.child_started(UUID, self.now)
            elif not self.spoke:
                self.child = False
                self.table.connect_failed(UUID, how, self.now)

    def do_end(self, why):
        if self.child:
            self.child = False
            self.end(why)

    def do_report(self, report):
        if self.child:
            self.spoke = True  # the news of its pid may come later
            self.report(report)

    def do_answer(self, vote):
        if self.given and self.child:
            self.report(session_types.Answered(max(self.given), vote, ""))

    def do_set(self, reporting):
        self.set(reporting)

    def do_host(self, reporting):
        self.table.handle_command(datagram.SetHost("h", reporting), self.now)

    def do_delete(self):
        self.table.handle_command(datagram.DeleteInstance(UUID), self.now)

    def do_ask(self, event, kind):
        self.asked[event, kind] += 1
        self.ask(event, kind)

    def do_confirm(self, which):
        for kind in [kind for kind in self.out if kind.startswith(which)]:
            number = self.out.pop(kind)
            if kind == row.STATE:
                self.belief = self.cmds[number] == datagram.RUNNING
            if "outcome" in kind:
                self.votes.remove(number)
            else:
                del self.due[kind]
            self.confirm(kind)

    def do_restart(self, age):
        """As after kill -9: what was saved is there, and nothing else."""
        self.child = self.pid = False
        self.given, self.out = set(), {}
        self.table = self.make_table()
        self.table.recall_host(self.host)
        self.now += age
        self.votes = [number for number in self.votes if self.until[number] > self.now]
        for _, kind, event, deadline in self.memory.questions if self.memory else ():
            if deadline + SETTINGS.outcome_valid <= self.now:
                self.asked[event, kind] -= 1  # nobody waits for the outcome any more
        if self.memory is not None:
            self.table.recall_guest(self.memory, self.now - age, self.now)
            self.table.tick(self.now)
