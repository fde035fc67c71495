"""One guest's whole life: its session, the pipe to the master, and the master's table, at random.

The session and the table each have tests of their own; what one believes of the guest and what the other
believes of it must agree as well, whatever is on its way between them, and whoever dies. Here they run
together over a pipe that may hold packets up and lose them, with a guest that knows what it has done.

Two things must hold. No LOSS of a guest that owes nothing: one that beats, that said goodbye or `init`, that
was paused or went quiet as announced, or that has not answered since reporting was enabled. And a LOSS, soon,
of one that answered and then fell mute with reporting enabled, whatever happened to the daemon meanwhile.
"""

from __future__ import annotations

import os
import random
from collections import deque

import pytest
from guests_driver import INIT, PATH, SETTINGS, UUID, heartbeating, recalled, resumes
from session_driver import Bench as SessionBench

from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.child.session import Session
from guestmtce.server.child.session_states import CLOSED
from guestmtce.server.state import guest as row
from guestmtce.server.state import guest_table as g
from guestmtce.server.state.effects import (
    Connect,
    DropChild,
    LookForSocket,
    PutCommand,
    ReportEvent,
    SaveGuest,
    SaveHost,
)
from guestmtce.wire import datagram, guest_channel, json_lines
from guestmtce.wire.guest_channel import (
    ActionNotify,
    ActionResponse,
    Challenge,
    ChallengeResponse,
    Exit,
    InitAck,
)

SEEDS = int(os.environ.get("SEEDS", "300"))
SOON = 60.0  # s within which a loss is to be told: a bridge, a patience, and rests of children
GUEST_RETRY = 5.0
AGES = [0.1, 5.0, 25.0]
SILENCING = ["suspend", "pause", "reboot", "live_migrate_begin"]


class World:
    """`may`: a LOSS would be no lie. `must`: a guest that falls mute now must be found. See the module."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now, self.seed = 5000.0, seed
        self.numbers = iter(range(1, 10**9)).__next__
        self.log, self.losses = [], []
        self.memory, self.host = None, True
        self.session, self.up, self.down = None, deque(), deque()
        self.stalled_until = 0.0
        self.well, self.acked, self.init_at, self.reply = True, False, self.now, "accept"
        self.pending = []  # what the guest has not read yet
        self.may = self.must = False
        # Whether it has answered, and surely, since a notice that silences; None: there is no such notice.
        self.since_notice = None
        self.belief = None  # of guestAgent, whether it beats
        self.left = False  # it said goodbye, and has not answered since
        self.open_table()
        self.do(lambda: self.table.handle_command(datagram.SetInstance(UUID, True), self.now))

    # --- the master ---

    def open_table(self):
        self.table = g.GuestTable(SETTINGS, self.numbers)
        self.table.recall_host(self.host)

    @property
    def row(self):
        return self.table.guests[UUID]

    @property
    def reporting(self):
        return self.row.reporting and self.table.host_reporting

    def do(self, call):
        call()
        effects = self.table.drain_effects()
        while effects:
            for effect in effects:
                self.carry_out(effect)
            effects = self.table.drain_effects()

    def carry_out(self, effect):
        if isinstance(effect, Connect):
            self.up.clear()
            self.down.clear()
            self.session = Session(SETTINGS.session(), lambda: self.random.getrandbits(31))
            self.spoken(self.session.start(effect.resume, self.now))
            self.table.child_started(UUID, self.now)
        elif isinstance(effect, DropChild):
            self.session = None
            self.up.clear()
            self.down.clear()
        elif isinstance(effect, PutCommand) and self.session is not None:
            self.down.append(effect.command)
        elif isinstance(effect, LookForSocket):
            self.table.socket_found(UUID, PATH, 1, False, self.now)
        elif isinstance(effect, SaveGuest):
            self.memory = effect.memory
        elif isinstance(effect, SaveHost):
            self.host = effect.reporting
        elif isinstance(effect, ReportEvent):
            if effect.key.kind == row.STATE:
                self.belief = effect.cmd == datagram.RUNNING
            if effect.cmd == datagram.LOSS:
                self.note("LOSS")
                if effect.sequence not in self.losses:
                    self.losses.append(effect.sequence)
                    assert self.may, "a false loss: %s" % self.story()
                    self.may = self.must = False
            self.table.confirm_event(effect.key)

    def note(self, *what):
        self.log.append((round(self.now - 5000, 2), *what))

    def story(self):
        return "seed %d\n" % self.seed + "\n".join(map(repr, self.log[-40:]))

    # --- the child ---

    @property
    def lives(self):
        return self.session is not None and self.session.heartbeat.state != CLOSED

    def spoken(self, output):
        data, told = output
        self.up.extend(told)
        for line in json_lines.LineBuffer().feed(data):
            self.heard_by_guest(guest_channel.parse(line, guest_channel.FROM_HOST))
        if self.session is not None and self.session.heartbeat.state == CLOSED:
            self.up.append("closed")

    def pump(self):
        """Deliver what is on its way, unless the master stands still."""
        for _ in range(1000):
            if self.session is not None and self.down:
                command = self.down.popleft()
                if isinstance(command, pipe_protocol.AskGuest):
                    self.spoken(self.session.ask(*command, self.now))
                else:
                    self.spoken(self.session.enable_reporting(self.now))
            elif self.up and self.now >= self.stalled_until:
                report = self.up.popleft()
                if report == "left":
                    self.may = self.may and not self.left
                elif report == "closed":
                    self.session = None
                    self.do(lambda: self.table.child_ended(UUID, session_types.GAVE_UP, "", self.now))
                else:
                    if type(report).__name__ not in ("Missed", "Late"):
                        self.note("master hears", type(report).__name__, *report[:2])
                    self.do(lambda one=report: self.table.handle_report(UUID, one, self.now))
            else:
                break
        else:
            raise AssertionError("it never rests")
        life = self.row.liveness
        if self.now >= self.stalled_until and self.well and life.running and life.owes_answer:
            if self.may:
                self.must = self.reporting
            if self.since_notice is not None and self.since_notice[0]:
                self.since_notice = (True, True)

    # --- the guest ---

    def say(self, message):
        if self.lives:
            self.spoken(self.session.receive(guest_channel.build(message, 1), self.now))

    def heard_by_guest(self, message):
        notice = isinstance(message, ActionNotify) and message.notification_type == guest_channel.NOTICE
        if notice and message.event_type in SILENCING:
            self.since_notice = (False, False)
        self.pending.append(message)

    def guest_turn(self):
        pending, self.pending = self.pending, []
        if not self.well:
            return
        for message in pending:
            if isinstance(message, InitAck):
                self.acked = True
            elif isinstance(message, Challenge) and self.acked:
                self.init_at = self.now + GUEST_RETRY
                self.answered()
                self.say(ChallengeResponse(message.heartbeat_challenge, "healthy", "none", ""))
            elif isinstance(message, ActionNotify) and self.reply:
                self.note("guest answers", message.event_type, self.reply)
                kind, event = message.notification_type, message.event_type
                self.say(ActionResponse(message.invocation_id, event, kind, self.reply, ""))
        if self.now >= self.init_at:
            self.init_at, self.acked = self.now + GUEST_RETRY, False
            self.say(INIT)

    def answered(self):
        if self.session is not None:
            self.may, self.left = True, False
        if self.since_notice is not None:
            self.since_notice = (True, self.since_notice[1])

    # --- time ---

    def run(self, seconds):
        until = self.now + seconds
        for _ in range(20000):
            self.guest_turn()
            self.pump()
            if self.pending and self.well:
                continue
            due = [self.table.next_due if self.now >= self.stalled_until else self.stalled_until]
            if self.lives:
                due.append(self.session.deadline)
            if self.well:
                due.append(self.init_at)
            when = min(due)
            if when > until:
                break
            self.now = max(self.now, when)
            if self.lives and self.session.deadline <= self.now:
                self.spoken(self.session.tick(self.now))
            self.pump()
            if self.now >= self.stalled_until and self.table.next_due <= self.now:
                self.do(lambda: self.table.tick(self.now))
        else:
            raise AssertionError("no end " + self.story())
        self.now = until

    # --- what happens ---

    def step(self):
        what = self.random.choices(
            ["wait", "child", "master", "stall", "report", "host", "notice", "exit", "boot", "delete",
             "hiccup", "quiet"],
            [8, 3, 2, 2, 2, 1, 4, 1, 1, 0.5, 2, 3],
        )[0]  # fmt: skip
        self.note(what)
        getattr(self, "do_" + what)()

    def do_wait(self):
        self.run(self.random.choice([0.001, 0.3, 1.1, 3.0, 8.0, 17.0]))

    def do_hiccup(self):
        """It is mute for less than a miss is long, or answers nothing between."""
        was, self.well = self.well, False
        self.run(0.4)
        self.well = was

    def do_child(self):
        if self.session is not None and self.now >= self.stalled_until:
            heard = self.random.randrange(len(self.up) + 1)
            while len(self.up) > heard:
                self.up.pop()
            self.pump_reports()
            if self.session is None:
                return
            self.session = None
            self.up.clear()
            self.down.clear()
            self.do(lambda: self.table.child_ended(UUID, session_types.DIED, "", self.now))

    def pump_reports(self):
        """What the child said before it died."""
        self.down.clear()
        while self.up and self.session is not None:
            report = self.up.popleft()
            if report == "left":
                self.may = self.may and not self.left
            elif report != "closed":
                self.do(lambda one=report: self.table.handle_report(UUID, one, self.now))

    def do_master(self):
        """kill -9, and a restart."""
        age = self.random.choice(AGES)
        self.belief = None  # the audit tells what was not told any more
        marked = self.now - self.random.choice([0.0, 4.0])
        self.session = None
        self.up.clear()
        self.down.clear()
        self.stalled_until = 0.0
        self.now += age
        self.open_table()
        self.do(lambda: self.table.recall_guest(self.memory, marked, self.now))
        self.do(lambda: self.table.socket_found(UUID, PATH, 1, False, self.now))

    def do_stall(self):
        self.stalled_until = self.now + self.random.choice([0.3, 3.0, 10.0])

    def command(self, command):
        """The master obeys when it does not stand still."""
        if self.now < self.stalled_until:
            self.run(self.stalled_until - self.now)
        self.do(lambda: self.table.handle_command(command, self.now))

    def change(self, command):
        before = self.reporting
        self.command(command)
        if not self.reporting:
            self.must = self.may = False
            self.since_notice = None
        elif not before:
            self.may = self.must = False
            self.since_notice = None

    def do_report(self):
        for _ in range(self.random.choice([1, 2, 3])):
            self.change(datagram.SetInstance(UUID, not self.row.reporting))

    def do_host(self):
        self.change(datagram.SetHost("h", not self.table.host_reporting))

    def do_delete(self):
        self.command(datagram.DeleteInstance(UUID))
        self.belief = None  # whoever deletes an instance forgets its state
        self.may = self.must = False
        self.since_notice = None
        self.command(datagram.SetInstance(UUID, True))

    def do_notice(self):
        self.reply = self.random.choice(["accept", "complete", "reject", ""])
        event = self.random.choice([*SILENCING, "resume", "unpause"])
        kind = self.random.choice([guest_channel.NOTICE, guest_channel.NOTICE, guest_channel.VOTE])
        self.note("ask", kind, event, "reply", self.reply)
        self.command(datagram.Ask(UUID, kind, event))
        self.run(self.random.choice([0.0, 0.01, 1.0, 2.5]))

    def do_exit(self):
        if self.well and self.session is not None:
            self.say(Exit("bye"))
            self.must, self.left = False, True
            self.up.append("left")  # it counts as soon as the master knows of it
            self.acked, self.init_at = False, self.now + self.random.choice([1.0, 20.0, 140.0, 10**6])

    def do_quiet(self):
        """It agrees to a notice and is silent from then on; it comes back, booted or as it was."""
        beats = self.well and self.session is not None and self.row.liveness.running
        if self.now < self.stalled_until or not beats:
            return
        self.since_notice = None
        self.reply, event = "accept", self.random.choice(SILENCING)
        self.command(datagram.Ask(UUID, guest_channel.NOTICE, event))
        self.run(self.random.choice([0.0, 0.001, 0.5, 2.0]))
        if self.since_notice is None or self.row.questions:
            return  # it was not asked, or has not answered
        self.well = False
        self.note("quiet", event, self.since_notice)
        self.must = False
        self.may = self.may and self.since_notice[0] and event != "pause"
        for _ in range(self.random.randrange(4)):
            what = self.random.choice(["wait", "child", "master", "report"])
            self.note("quiet:", what, self.row.liveness.owes_answer, self.row.liveness.answered_since_notice)
            getattr(self, "do_" + what)()
        self.well = True
        if self.random.random() < 0.5:
            self.pending = []
            self.do_boot()
        else:
            self.init_at = self.now + GUEST_RETRY

    def do_boot(self):
        """The guest's client is started anew."""
        self.acked, self.init_at = False, self.now


def life(seed):
    """A random life, in which it never falls mute for long; then it does, and is to be found."""
    world = World(seed)
    world.do(lambda: world.table.socket_found(UUID, PATH, 1, True, world.now))
    world.run(3)
    for _ in range(world.random.randrange(2, 15)):
        world.step()
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_nobody_who_lives_is_lost(first):
    for seed in range(first, first + 50):
        world = life(seed)
        world.run(200)
        assert world.belief in (None, world.row.liveness.heartbeating), "a stale state: " + world.story()


def after(world):
    """Then what may happen to the daemon while the guest is mute."""
    for _ in range(world.random.randrange(0, 4)):
        what = world.random.choice(["child", "master", "stall", "wait1"])
        world.note("mute", what)
        if what == "wait1":
            world.run(world.random.choice([0.2, 1.0, 2.0]))
        else:
            getattr(world, "do_" + what)()


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_who_falls_mute_is_lost_soon(first):
    for seed in range(first, first + 50):
        world = life(seed)
        world.change(datagram.SetHost("h", True))
        world.change(datagram.SetInstance(UUID, True))
        world.init_at = min(world.init_at, world.now + 1)
        world.run(world.random.choice([3.0, 8.0]))
        if not (world.well and world.session is not None and world.row.liveness.running):
            continue
        before = len(world.losses)
        # It beats now, and nothing is announced that is not over: it owes an answer.
        expected = world.table._questions.expected_silence(world.row, world.now)
        if world.now < world.stalled_until or not world.acked:
            continue
        if any(question.event_type == "pause" for question in world.row.questions.values()):
            continue  # once it is over nobody asks the guest any more, whatever it answered before
        world.note("mute from here; silence", expected)
        world.well = False
        world.run(0.001)
        after(world)
        world.run(SOON + 15)
        if expected > 0 and not (world.since_notice and world.since_notice[1]):
            continue  # it may have gone quiet as announced
        assert len(world.losses) == before + 1, "a lost alarm: " + world.story()


# --- what this found, each by hand ---


def asked(event):
    """A guest that beats and has been put a notice; and the notice's number."""
    bench = heartbeating(reporting=True)
    bench.ask(event, guest_channel.NOTICE)
    return bench, max(bench.guest.questions)


def dies(bench):
    """The child dies; what the next one is given."""
    bench.take()
    bench.end(session_types.DIED)
    bench.run(0.1)
    return resumes(bench.take())[0]


def judged(resume, seconds=40):
    """What a new child finds of a guest that says nothing."""
    bench = SessionBench(resume=resume)
    bench.run(seconds, False)
    return bench.kinds()


def test_a_goodbye_within_the_silence_is_no_loss_later():
    session = SessionBench().heartbeat()
    session.ask(1, guest_channel.NOTICE, "reboot")
    session.respond("reboot", guest_channel.NOTICE, "accept")
    session.run(2, True)
    session.exit()
    bench, number = asked("reboot")
    for one in session.reports:
        bench.report(one._replace(question_id=number) if isinstance(one, session_types.Answered) else one)
    assert "Lost" not in judged(dies(bench))


def test_whoever_restarted_as_told_owes_nothing_to_the_next_child_either():
    bench, number = asked("reboot")
    bench.report(session_types.Answered(number, "accept", ""), session_types.Acknowledged(INIT))
    assert "Lost" not in judged(dies(bench))


@pytest.mark.parametrize("age", [20, 40])
def test_whoever_went_quiet_as_announced_while_we_were_away_is_not_lost(age):
    bench, number = asked("suspend")
    bench.report(session_types.Answered(number, "accept", ""))
    memory = bench.saved()
    back = recalled(memory._replace(silence_until=memory.silence_until - age), age=age)
    back.found()
    assert "Lost" not in judged(resumes(back.take())[0], 150)


def test_a_silence_that_is_over_makes_nobody_owe_an_answer():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Stopped(1))
    bench.run(5)
    bench.ask("suspend", guest_channel.NOTICE)
    bench.ask("resume", guest_channel.NOTICE)  # a new child
    assert "Lost" not in judged(resumes(bench.take())[0])


def test_a_loss_that_the_master_takes_for_silence_is_looked_into():
    """The master stood still when the answer came: its silence ends later than the child's."""
    bench, number = asked("suspend")
    bench.run(9)
    bench.report(session_types.Running(), session_types.Answered(number, "accept", ""))
    bench.run(8)
    bench.report(session_types.Missed(1))
    bench.run(1)
    bench.report(session_types.Missed(2), session_types.Lost(2))
    new = resumes(bench.take())
    assert new and judged(new[0])[-1] == "Lost"


def test_a_resume_notice_ends_the_notice_that_its_child_took_along():
    bench, _ = asked("suspend")
    bench.run(2)
    bench.report(session_types.Stopped())
    bench.take()
    bench.ask("resume", guest_channel.NOTICE)
    assert [vote[0] for vote in bench.votes()] == ["suspend"]
