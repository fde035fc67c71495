"""One guest's heartbeat as a state machine: bytes and time in, bytes and reports out.

docs/protocol/1-guest-channel.md#init-and-acknowledgement
docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#votes-and-notices

Nothing here reads a clock, a socket or a file. `now` is seconds on any monotonic clock.

The states:

WAITING      Nobody has introduced itself, or whoever did is gone. We send nothing; the guest's `init`
             starts everything. So does the answer to a challenge that stayed open when a guest went that
             nobody called lost: it may have been asked before it could run. A connection that waits too
             long is given up (`Reconnect`).
RESUMING     We know the guest's last `init` and not whether the guest is there: the connection is new, or
             reporting has become enabled, or the time of its expected silence is over. It has a challenge
             and its patience. A guest that is there answers, and heartbeating goes on; one that has
             restarted sends `init`. One that does neither is gone, and if it owes an answer that is a loss.
CHALLENGED   A challenge is open. The interval after it was sent decides.
RESTING      The challenge was answered; the rest of the interval passes before the next one.
CLOSED       The connection is of no more use. The owner closes it.

What can happen is an *input*: the guest says `INIT`, gives the `RIGHT` answer to the open challenge or
a `WRONG` one, or says `EXIT`; or the state's time is up: `DUE`. In CHALLENGED that is a `MISS` while
the misses in a row stay within the threshold, and beyond it a `LOSS`, or a `STOP` where silence is expected.
In RESUMING it is a `REPEAT` until the patience is over. TRANSITIONS holds every pair of state and input,
the state that follows, and the one method that does what is to be done.

Beside the state a session carries three facts that cross it:

- `owes_answer`: a right answer has come since the guest's last absence, and since reporting was last enabled.
  Only a guest that owes an answer can be lost: any other may be booting. Its `init` in mid-heartbeat changes
  nothing of that: a guest that says `init` again and again and answers nothing is lost as well.
- the open question (a vote or a notice): one at a time, with its own deadline. It ends with the guest's
  answer, with its deadline (silent agreement), or with the guest's going.
- expected silence, the bridge over what a notice announced
  (docs/protocol/1-guest-channel.md#expected-silence): from the moment that a notice of an event that silences
  a guest is put to it, until `expected_silence` s after it agreed.
  Challenges go on, misses count, the guest is told as stopped, and nothing is a loss. A refusal, `init`,
  `exit`, the answer to the notice of the opposite event or the enabling of reporting ends it before its time.
  When its time ends it, an answer since the notice matters: a guest that gave one gets its patience and is
  then lost; any other is quiet, as announced.

Time is judged fairly. The owner drains the socket before it calls `tick`. When `tick` itself comes late,
that delay was ours, and the guest gets as much more time (`_excuse`).
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

from guestmtce.server.child.session_types import (
    SILENT_AGREEMENT,
    Acknowledged,
    Answered,
    Ill,
    Late,
    Lost,
    Missed,
    Note,
    Output,
    Question,
    Reconnect,
    Report,
    ReportingEnabled,
    Resume,
    Running,
    Settings,
    Stopped,
    Well,
    agrees_to_silence,
    ends_silence,
    is_silencing,
    resuming_patience,
)
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import (
    HEALTHY,
    INT32_MAX,
    ActionNotify,
    ActionResponse,
    ChallengeResponse,
    Exit,
    Init,
    Nack,
)
from guestmtce.wire.guest_channel_fast import (
    build_challenge,
    build_init_ack,
    parse_healthy_answer,
    parse_init,
)

WAITING = "waiting"
RESUMING = "resuming"
CHALLENGED = "challenged"
RESTING = "resting"
CLOSED = "closed"
CHALLENGE_OPEN = (CHALLENGED, RESUMING)
STATES = (WAITING, RESUMING, CHALLENGED, RESTING, CLOSED)

INIT = "init"
RIGHT = "right answer"
WRONG = "wrong answer"
EXIT = "exit"
DUE = "due"
MISS = "miss"
LOSS = "loss"
STOP = "stop"
REPEAT = "repeat"
INPUTS = (INIT, RIGHT, WRONG, EXIT, DUE, MISS, LOSS, STOP, REPEAT)

# How many answered or missed challenges are remembered, to tell a late answer from a wrong one.
REMEMBERED = 8
NEVER = float("inf")
NOTHING: Output = (b"", ())
NO_CHALLENGE = -(2**40)  # no int32: no guest can answer it
RUNNING = Running()
REPORTING_ENABLED = ReportingEnabled()
STOPPED = Stopped()
GONE = Stopped(1)
# What `_answered` needs of the answer of a guest that is well.
WELL_ANSWER = ChallengeResponse(0, HEALTHY, "none", "")


class Session:
    """The heartbeat of one guest over one connection. See the module's text.

    `number` makes challenges, in 0 … 2³¹−1, that the guest cannot foresee. `deadline` is when `tick` is to be
    called next.
    """

    __slots__ = (
        "_acknowledged_at", "_announced", "_answered_since_notice", "_challenge", "_data", "_due", "_excused",
        "_idle_since", "_ill_at", "_init", "_interval", "_late_told_at", "_lines", "_nacked_at", "_next_init",
        "_noted", "_number", "_past", "_patience_until", "_question", "_reports", "_sent_at", "_sequence",
        "_settings", "_silence_until", "_stopped_due", "_told_init", "_told_init_at", "_unanswered_since",
        "deadline", "misses", "owes_answer", "state",
    )  # fmt: skip

    def __init__(self, settings: Settings, number: Callable[[], int]) -> None:
        self.state = WAITING
        self.owes_answer = False
        self.misses = 0
        self._announced = False
        self._told_init = True
        self._told_init_at = -NEVER
        self._settings = settings
        self._number = number
        self._lines = json_lines.LineBuffer()
        self._init: Optional[Init] = None
        self._next_init: Optional[Init] = None  # came too soon after the last one: it waits for its turn
        self._acknowledged_at = -NEVER
        self._unanswered_since: Optional[float] = None  # the first init since the last right answer
        self._interval = guest_channel.DEFAULT_INIT.heartbeat_interval_ms / 1000
        self._challenge = NO_CHALLENGE
        self._past: List[int] = []
        self._sequence = 0
        self._sent_at = self._excused = 0.0
        self._idle_since = 0.0
        self._due = self.deadline = NEVER
        self._patience_until = self._stopped_due = NEVER
        self._ill_at: Optional[float] = None
        self._question: Optional[Question] = None
        self._silence_until: Optional[float] = None
        self._answered_since_notice = False
        self._nacked_at = self._late_told_at = -NEVER
        self._noted: Dict[str, Tuple[float, int]] = {}
        self._data = b""
        self._reports: List[Report] = []

    # --- the five ways in --------------------------------------------------------------------------

    def start(self, resume: Optional[Resume], now: float) -> Output:
        """The connection stands. With `resume` the guest is challenged without waiting for its `init`."""
        self._data = guest_channel.RESYNC
        self._idle_since = now
        self._due = now + self._settings.idle_reconnect
        if resume is not None:
            self._adopt(resume.init, now)
            self.owes_answer = resume.owes_answer
            self._answered_since_notice = resume.answered_since_notice
            if resume.silence > 0:
                self._silence_until = now + resume.silence
            self.state = RESUMING
            self._send_challenge(now)
            patience = resuming_patience(
                self._interval, self._settings.guest_patience, self._settings.failure_threshold
            )
            self._due = self._patience_until = self._stopped_due = now + max(patience, resume.patience)
            if resume.ill:
                self._ill_at = now
        return self._output()

    def receive(self, data: bytes, now: float) -> Output:
        """The guest sent `data`."""
        overflows = self._lines.overflows
        for line in self._lines.feed(data):
            self._take(line, now)
        if self._lines.overflows != overflows:
            self._note("overflow", "a line longer than %d bytes was dropped" % json_lines.LINE_MAX, now)
        return self._output()

    def tick(self, now: float) -> Output:
        """Time has passed; to be called at `deadline`, after the socket was drained."""
        if not self._told_init:
            self._tell_init(now)
        init = self._next_init
        if init is not None and now >= self._acknowledged_at + self._settings.ack_period:
            self._next_init = None
            self._input(INIT, init, now)
        if self._question is not None and now >= self._question.deadline:
            self._settle(SILENT_AGREEMENT[self._question.notification_type], "no answer in time", now)
        if self._silence_until is not None and now >= self._silence_until:
            self._outlive_silence(now)
        if now >= self._due and not self._excuse(now):
            self._input(self._due_input(now), None, now)
        return self._output()

    def ask(
        self, number: int, notification_type: str, event_type: str, timeout_ms: int, now: float
    ) -> Output:
        """Put a vote or notice to the guest; it has `timeout_ms` to answer. `Answered` tells the outcome.

        An open question ends first, with silent agreement. A guest that is not there agrees at once.
        """
        there = self._init is not None and self.state not in (WAITING, CLOSED)
        if self._question is not None:
            agreed = SILENT_AGREEMENT[self._question.notification_type]
            self._settle(agreed, "overtaken by a new question", now)
        self._question = Question(number, notification_type, event_type, now + timeout_ms / 1000)
        if self._init is None or not there:
            self._settle(SILENT_AGREEMENT[notification_type], "the guest is not heartbeating", now)
        else:
            if is_silencing(notification_type, event_type):
                self._answered_since_notice = self._announced = False  # the next answer is news
            self._send(ActionNotify(self._init.invocation_id, event_type, notification_type, timeout_ms))
        return self._output()

    def enable_reporting(self, now: float) -> Output:
        """Losses are to be reported from now on: the guest has yet to show that it is there.

        docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled

        It may be booting, or be paused until later. `ReportingEnabled` separates what was reported before
        from what is reported under this rule.
        """
        self._reports.append(REPORTING_ENABLED)
        self._silence_until = None
        if self.state in (CHALLENGED, RESTING):
            self._idle_since = now
        if self._init is not None and self.state != CLOSED:
            self.owes_answer = self._answered_since_notice = self._announced = False
            self._ill_at = None  # who is ill now is to be told
            self._ask_whether_there(now)
        return self._output()

    def awaits_answer(self) -> bool:
        """Whether the deadline judges the guest: the socket is to be drained before `tick`."""
        return self.state in CHALLENGE_OPEN or self._question is not None

    # --- a message ---------------------------------------------------------------------------------

    def _take(self, line: bytes, now: float) -> None:
        number = parse_healthy_answer(line)
        if number is not None:
            self._input(RIGHT if self._is_right(number, now) else WRONG, WELL_ANSWER, now)
            return
        try:
            message = parse_init(line) or guest_channel.parse(line)
        except json_lines.NotAMessage:
            self._note("garbage", "a line that is no JSON object was dropped", now)
        except guest_channel.Refused as refused:
            self._nack(str(refused), now)
        else:
            if isinstance(message, Init):
                self._take_init(message, now)
            elif isinstance(message, ChallengeResponse):
                right = self._is_right(message.heartbeat_response, now)
                self._input(RIGHT if right else WRONG, message, now)
            elif isinstance(message, ActionResponse):
                self._take_vote(message, now)
            elif isinstance(message, Exit):
                self._input(EXIT, message, now)

    def _take_init(self, message: Init, now: float) -> None:
        """At most one per `ack_period` is acknowledged: a guest may answer each init_ack with an init."""
        if now >= self._acknowledged_at + self._settings.ack_period:
            self._input(INIT, message, now)
        else:
            self._next_init = message

    def _is_right(self, number: int, now: float) -> bool:
        if number == self._challenge:
            return True
        if number in self._past:
            self._note("late", "a late answer to an older challenge was ignored", now)
        else:
            self._note("wrong", "a wrong heartbeat_response was ignored", now)
        return False

    def _input(self, what: str, message: Optional[guest_channel.Message], now: float) -> None:
        self.state, action = TRANSITIONS[self.state, what]
        if action is not None:
            action(self, message, now)

    # --- actions of the table ----------------------------------------------------------------------

    def _acknowledge(self, message: Init, now: float) -> None:
        if self._is_silent():
            self.owes_answer = False  # it was told to restart
        if self._question is not None:
            self._end_question("the guest restarted", now)
        self._silence_until = None
        self._adopt(message, now)
        if self._unanswered_since is None:
            self._unanswered_since = now
            self.misses = 0
        elif now - self._due > self._settings.wake_slack:  # we are late, and so may be what it said
            self._unanswered_since += now - self._due
        self._ill_at = None
        self._told_init = False
        self._tell_init(now)
        self._acknowledged_at = now
        self._data += build_init_ack(self._next_sequence(), message.invocation_id)
        self._send_challenge(now)
        self._due = max(now, min(self._due, self._unanswered_since + self._loss_takes()))

    def _loss_takes(self) -> float:
        """s from a guest's last word to its loss."""
        return self._interval * (self._settings.failure_threshold + 1)

    def _tell_init(self, now: float) -> None:
        """Report the present init, at most one per `init_report_period`: a guest may send many."""
        if self._told_init or self._init is None:
            return
        if now - self._told_init_at >= self._settings.init_report_period:
            self._told_init, self._told_init_at = True, now
            self._announced = False
            self._reports.append(Acknowledged(self._init))

    def _adopt(self, init: Init, now: float) -> None:
        """`init` with its interval raised to the floor; one kept from before may be under today's floor."""
        floor = self._settings.interval_floor_ms
        if init.heartbeat_interval_ms < floor:
            text = "heartbeat interval %d ms is below the floor, raised to %d ms"
            self._note("floor", text % (init.heartbeat_interval_ms, floor), now)
            init = init._replace(heartbeat_interval_ms=floor)
        self._init = init
        self._interval = init.heartbeat_interval_ms / 1000

    def _send_challenge(self, now: float) -> None:
        self._close_challenge()
        number = self._number
        self._challenge = number()
        self._data += build_challenge(self._next_sequence(), self._challenge)
        self._sent_at = now
        self._excused = 0.0
        self._due = now + self._interval

    def _close_challenge(self) -> None:
        """An answer to the present challenge is a late one from now on."""
        self._past = [*self._past[1 - REMEMBERED :], self._challenge]
        self._challenge = NO_CHALLENGE

    def _challenge_again(self, _message: object, now: float) -> None:
        late = now - self._due
        told_before = now - self._late_told_at < self._settings.note_period
        if late > self._settings.wake_slack and not told_before:  # it costs the guest nothing, but is a sign
            self._late_told_at = now
            self._reports.append(Late(late))
        self._send_challenge(now)

    def _answered(self, message: ChallengeResponse, now: float) -> None:
        self.misses = 0
        self._due = max(now, self._sent_at + self._interval)
        self.owes_answer = self._answered_since_notice = True
        self._unanswered_since = None
        if not self._told_init:
            self._tell_init(now)
        if not self._announced:
            self._announced = True
            self._due = max(now, self._due - self._interval * self._settings.phase_spread * self._chance())
            self._reports.append(RUNNING)
        if message is WELL_ANSWER or message.heartbeat_health == HEALTHY:
            if self._ill_at is not None:
                self._ill_at = None
                self._reports.append(Well())
        else:
            self._ill(message, now)

    def _chance(self) -> float:
        """0 … 1, by the challenge's number, which is random: guests that start together part company."""
        return self._challenge / INT32_MAX

    def _ill(self, message: ChallengeResponse, now: float) -> None:
        if message.heartbeat_health != guest_channel.UNHEALTHY:
            text = "heartbeat_health %r is taken as unhealthy" % message.heartbeat_health
            self._note("health", text, now)
        if message.corrective_action in ("none", guest_channel.UNKNOWN):
            self._note("ill", "unhealthy, no corrective action: " + message.log_msg, now)
        elif self._ill_at is None or now - self._ill_at >= self._settings.ill_repeat:
            self._ill_at = now
            self._told_init_at = -NEVER  # the init before it ends an illness, and this one is newer
            self._tell_init(now)
            self._reports.append(Ill(message.corrective_action, message.log_msg))

    def _missed(self, _message: object, now: float) -> None:
        self.misses += 1
        self._reports.append(Missed(self.misses))
        self._send_challenge(now)

    def _stopped_in_silence(self, _message: object, now: float) -> None:
        """It is silent as announced: it counts as stopped from here on, and goes on being challenged."""
        if self.misses == self._settings.failure_threshold:
            self._reports += (Missed(self.misses + 1), STOPPED)
        self.misses += 1
        self._announced = False
        self._send_challenge(now)

    def _lost(self, _message: object, now: float) -> None:
        self.misses += 1
        self._reports.append(Missed(self.misses))
        self._lose_or_stop(now)

    def _not_resumed(self, _message: object, now: float) -> None:
        self.misses = max(1, self.misses)
        self._lose_or_stop(now)

    def _lose_or_stop(self, now: float) -> None:
        """Who owes no answer may be there later: its challenge stays open."""
        if self.owes_answer:
            self._reports.append(Lost(self.misses))
            self._close_challenge()
        else:
            self._reports.append(GONE)
        self._absent("the guest stopped answering", now)

    def _repeat_challenge(self, _message: object, now: float) -> None:
        """The same one again: whichever of them it answers shows that the guest is there."""
        late = now - self._due
        if late > self._settings.wake_slack:  # that time was ours, and it gets as much more
            self._stopped_due = max(self._stopped_due, now + min(late, self._interval))
        if now >= self._stopped_due:  # it may come back any time
            self._reports.append(STOPPED)
            self._announced = False
            self._stopped_due = NEVER
        self._data += build_challenge(self._next_sequence(), self._challenge)
        judged = [at for at in (self._patience_until, self._stopped_due) if at > now]
        self._due = min(now + self._interval, *judged)

    def _ask_whether_there(self, now: float) -> None:
        """Challenge the guest now and at its interval, for its patience.

        Who has missed before is told as stopped after as many misses as ever: patience delays its loss only.
        """
        patience_until = now + max(2 * self._interval, self._settings.guest_patience)
        more = self._settings.failure_threshold + 1 - self.misses
        stopped_due = now + max(0, more) * self._interval if self.misses else patience_until
        self._stopped_due = min(stopped_due, self._stopped_due) if self.state == RESUMING else stopped_due
        self._patience_until = patience_until
        self.state = RESUMING
        self._send_challenge(now)
        self._due = min(self._due, self._stopped_due)

    def _exit(self, message: Exit, now: float) -> None:
        self._note("exit", "the guest exits: " + message.log_msg, now)
        self._silence_until = self._next_init = None
        self._close_challenge()
        self._end_question("the guest exited", now)
        self._reports.append(GONE)
        self._absent("the guest exited", now)

    def _give_up(self, _message: object, now: float) -> None:
        self._due = NEVER
        self._reports.append(Reconnect("not heartbeating for %g s" % self._settings.idle_reconnect))

    # --- votes and notices -------------------------------------------------------------------------

    def _take_vote(self, message: ActionResponse, now: float) -> None:
        current = self._init.invocation_id if self._init is not None else 0
        if message.invocation_id != current:
            text = "Invocation id mismatch. Received: %d expect: %d"
            self._nack(text % (message.invocation_id, current), now)
            return
        question = self._question
        asked = question and (question.event_type, question.notification_type)
        if asked != (message.event_type, message.notification_type):
            text = "an answer (%s) to no open question, %s %s, was dropped"
            self._note(
                "foreign", text % (message.vote_result, message.notification_type, message.event_type), now
            )
        else:
            self._settle(message.vote_result, message.log_msg, now)

    def _settle(self, vote: str, reason: str, now: float) -> None:
        """The open question has its answer; a notice that was agreed to changes the heartbeat."""
        question, self._question = self._question, None
        if question is None:
            return
        self._reports.append(Answered(question.number, vote, reason))
        if ends_silence(question.notification_type, question.event_type, vote):
            self._silence_until = None
            self.misses = 0  # those in the time of the question were excused
            if self.state == RESUMING and now >= self._patience_until:  # and so was all its patience
                self._ask_whether_there(now)
        elif agrees_to_silence(question.notification_type, question.event_type, vote):
            self._silence_until = now + self._settings.expected_silence
            if question.event_type == "pause" and self.state != CLOSED:
                self._close_challenge()
                self._go_quiet(now)

    def _end_question(self, reason: str, now: float) -> None:
        """Whom the question was put to is gone: silent agreement, without what a notice would change."""
        question, self._question = self._question, None
        if question is not None:
            vote = SILENT_AGREEMENT[question.notification_type]
            self._reports.append(Answered(question.number, vote, reason))
            self._told_init_at = -NEVER  # the next init shows that this agreement silences nobody

    # --- expected silence --------------------------------------------------------------------------

    def _is_silent(self) -> bool:
        """Whether the guest may be silent: announced and agreed to, or announced and not yet answered."""
        question = self._question
        return self._silence_until is not None or (
            question is not None and is_silencing(question.notification_type, question.event_type)
        )

    def _outlive_silence(self, now: float) -> None:
        """Its time has ended it: who has answered since the notice was put to it still owes an answer."""
        self._silence_until = None
        if self.state in (WAITING, CLOSED) or self._is_silent():
            return
        answers = self.state != RESUMING and not self.misses
        if self._answered_since_notice:
            if not answers:
                self.owes_answer = True
                self._ask_whether_there(now)
        elif answers:  # it has not been asked since
            self.owes_answer = False
            self._ask_whether_there(now)
        else:
            self._go_quiet(now)

    def _go_quiet(self, now: float) -> None:
        self.state = WAITING
        self._reports.append(GONE)
        self._absent("the guest went quiet, as announced", now)

    def _absent(self, why: str, now: float) -> None:
        """Nobody is there any more: wait for init, and not for ever."""
        if self.owes_answer:
            self._idle_since = now
        self.owes_answer = self._announced = False
        self.misses = 0
        self._ill_at = self._unanswered_since = None
        self._end_question(why, now)
        self._due = max(now, self._idle_since + self._settings.idle_reconnect)

    # --- time --------------------------------------------------------------------------------------

    def _due_input(self, now: float) -> str:
        if self.state == RESUMING:
            return REPEAT if now < self._patience_until or self._is_silent() else DUE
        if self.state != CHALLENGED:
            return DUE
        begged_since = self._unanswered_since
        begs_for_too_long = begged_since is not None and now >= begged_since + self._loss_takes()
        if self.misses < self._settings.failure_threshold and not begs_for_too_long:
            return MISS
        return STOP if self._is_silent() else LOSS

    def _set_deadline(self) -> None:
        self.deadline = self._due
        if self._question is not None and self._question.deadline < self.deadline:
            self.deadline = self._question.deadline
        if self._silence_until is not None and self._silence_until < self.deadline:
            self.deadline = self._silence_until
        if self._next_init is not None:
            self.deadline = min(self.deadline, self._acknowledged_at + self._settings.ack_period)

    def _excuse(self, now: float) -> bool:
        """Whether this judgement must wait because our own wake-up was late.

        A delay shorter than the interval is given to the guest once over, and at most one interval for a
        challenge in all. A longer one says that nobody could have been judged in that time: the guest gets
        a fresh interval, and at most two for a challenge in all. So a slow machine cannot put a loss off
        for ever.
        """
        if self.state not in CHALLENGE_OPEN or (self.state == RESUMING and self._due < self._patience_until):
            return False
        late = now - self._due
        if late <= self._settings.wake_slack:
            return False
        limit = self._interval if late < self._interval else 2 * self._interval
        extra = min(late, self._interval, limit - self._excused)
        if extra <= 0:
            return False
        self._excused += extra
        self._due = now + extra
        self._reports.append(Late(late))
        return True

    # --- words -------------------------------------------------------------------------------------

    def _send(self, message: guest_channel.Message) -> None:
        self._data += guest_channel.build(message, self._next_sequence())

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) & INT32_MAX
        return self._sequence

    def _nack(self, why: str, now: float) -> None:
        self._note("refused", "refused a message: " + why, now)
        if now - self._nacked_at >= self._settings.nack_period:
            self._nacked_at = now
            self._send(Nack(self._init.invocation_id if self._init is not None else 0, why))

    def _note(self, kind: str, text: str, now: float) -> None:
        """One line for the log per kind and `note_period`."""
        last, more = self._noted.get(kind, (-NEVER, 0))
        if now - last < self._settings.note_period:
            self._noted[kind] = (last, more + 1)
        else:
            self._noted[kind] = (now, 0)
            self._reports.append(Note(text, more))

    def _output(self) -> Output:
        self._set_deadline()
        if not self._data and not self._reports:
            return NOTHING
        output = self._data, self._reports
        self._data = b""
        self._reports = []
        return output


# (state, input) → the state that follows, and what is done. Beside the inputs, the end of a notice or of the
# expected silence changes the state (`_go_quiet`, `_ask_whether_there`), and so does `enable_reporting`.
TRANSITIONS: Dict[Tuple[str, str], Tuple[str, Optional[Callable[..., None]]]] = {
    (WAITING, INIT): (CHALLENGED, Session._acknowledge),
    (WAITING, RIGHT): (RESTING, Session._answered),
    (WAITING, WRONG): (WAITING, None),
    (WAITING, EXIT): (WAITING, Session._exit),
    (WAITING, DUE): (CLOSED, Session._give_up),
    (RESUMING, INIT): (CHALLENGED, Session._acknowledge),
    (RESUMING, RIGHT): (RESTING, Session._answered),
    (RESUMING, WRONG): (RESUMING, None),
    (RESUMING, EXIT): (WAITING, Session._exit),
    (RESUMING, REPEAT): (RESUMING, Session._repeat_challenge),
    (RESUMING, DUE): (WAITING, Session._not_resumed),
    (CHALLENGED, INIT): (CHALLENGED, Session._acknowledge),
    (CHALLENGED, RIGHT): (RESTING, Session._answered),
    (CHALLENGED, WRONG): (CHALLENGED, None),
    (CHALLENGED, EXIT): (WAITING, Session._exit),
    (CHALLENGED, MISS): (CHALLENGED, Session._missed),
    (CHALLENGED, STOP): (CHALLENGED, Session._stopped_in_silence),
    (CHALLENGED, LOSS): (WAITING, Session._lost),
    (RESTING, INIT): (CHALLENGED, Session._acknowledge),
    (RESTING, RIGHT): (RESTING, None),
    (RESTING, WRONG): (RESTING, None),
    (RESTING, EXIT): (WAITING, Session._exit),
    (RESTING, DUE): (CHALLENGED, Session._challenge_again),
    (CLOSED, INIT): (CLOSED, None),
    (CLOSED, RIGHT): (CLOSED, None),
    (CLOSED, WRONG): (CLOSED, None),
    (CLOSED, EXIT): (CLOSED, None),
    (CLOSED, DUE): (CLOSED, None),
}
