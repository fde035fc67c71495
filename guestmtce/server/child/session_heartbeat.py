"""The heartbeat of one guest: its state, its challenge, and what each input does to them.

docs/protocol/1-guest-channel.md#challenge-and-response
docs/protocol/1-guest-channel.md#misses-and-losses

`session_states` has the states, the inputs and the transitions, with their reasons; here is a method for
each of their actions. Beside the state a heartbeat has a challenge, in plain fields: nearly all that ever
happens is that an answer is compared with it and the next one sent, and a call more for that shows in what a
heartbeat costs (docs/performance.md).

Time is judged fairly. When `tick` comes late, that delay was ours, and the guest gets as much more time
(`extend_deadline_for_own_delay`).
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

from guestmtce.server.child import session_questions, session_states
from guestmtce.server.child.session_inits import InitState
from guestmtce.server.child.session_output import SessionOutput
from guestmtce.server.child.session_patience import Patience, extra_time
from guestmtce.server.child.session_questions import QuestionState
from guestmtce.server.child.session_states import (
    CHALLENGE_OPEN,
    CHALLENGED,
    CLOSED,
    DUE,
    LOSS,
    MISS,
    REPEAT,
    RESUMING,
    STOP,
    TRANSITIONS,
    WAITING,
)
from guestmtce.server.child.session_types import (
    NEVER,
    Acknowledged,
    Ill,
    Late,
    Lost,
    Missed,
    Reconnect,
    Resume,
    Running,
    SessionSettings,
    Stopped,
    Well,
    resuming_patience,
)
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import HEALTHY, INT32_MAX, ChallengeResponse, Exit, Init
from guestmtce.wire.guest_channel_fast import build_challenge, build_init_ack

# How many answered or missed challenges are remembered, to tell a late answer from a wrong one.
REMEMBERED = 8
NO_CHALLENGE = -(2**40)  # no int32: no guest can answer it
# What has no fields of its own is made once: a child makes as little as it can.
RUNNING = Running()
STOPPED = Stopped()
GONE = Stopped(1)
# What `_accept_answer` needs of the answer of a guest that is well.
WELL_ANSWER = ChallengeResponse(0, HEALTHY, "none", "")


class Heartbeat:
    """See the module's text. It writes to `output`, and shares `inits` and `questions` with the session.

    `next_challenge` makes challenges, in 0 … 2³¹−1, that the guest cannot foresee. `init` is the guest's last
    one. `due` (s, monotonic) is when the state's time is up. `misses` are those in a row.

    `was_heartbeating`: a right answer has come since the guest's last absence, and since reporting was last
    enabled. Only such a guest owes an answer and can be lost: any other may be booting. Its `init` in
    mid-heartbeat changes nothing of that: a guest that says `init` again and again and answers nothing is
    lost as well.
    """

    __slots__ = (
        "_challenge", "_granted", "_idle_since", "_ill_at", "_inits", "_interval", "_late_reported_at",
        "_next_challenge", "_output", "_past", "_patience", "_questions", "_running_reported", "_sent_at",
        "_settings", "due", "init", "misses", "state", "was_heartbeating",
    )  # fmt: skip

    def __init__(
        self,
        settings: SessionSettings,
        next_challenge: Callable[[], int],
        output: SessionOutput,
        inits: InitState,
        questions: QuestionState,
    ) -> None:
        self.state = WAITING
        self.was_heartbeating = False
        self.misses = 0
        self.init: Optional[Init] = None
        self.due = NEVER
        self._settings = settings
        self._next_challenge = next_challenge
        self._output = output
        self._inits = inits
        self._questions = questions
        self._patience = Patience()
        self._interval = guest_channel.DEFAULT_INIT.heartbeat_interval_ms / 1000
        self._running_reported = False
        self._challenge = NO_CHALLENGE
        self._past: List[int] = []
        self._sent_at = 0.0  # when the present challenge was sent, and
        self._granted = 0.0  # how much more time it has got than its interval
        self._idle_since = 0.0
        self._ill_at: Optional[float] = None
        self._late_reported_at = -NEVER

    def wait_for_first_init(self, now: float) -> None:
        """The connection stands, and nothing is known of the guest."""
        self._idle_since = now
        self.due = now + self._settings.idle_reconnect

    def resume(self, resume: Resume, now: float) -> None:
        """Challenge a guest whose last `init` is known.

        docs/protocol/1-guest-channel.md#resuming-a-guest
        """
        self._adopt_init(resume.init, now)
        self.was_heartbeating = resume.was_heartbeating
        self.state = RESUMING
        self._send_challenge(now)
        patience = resuming_patience(
            self._interval, self._settings.guest_patience, self._settings.failure_threshold
        )
        self.due = now + max(patience, resume.patience)
        # No STOPPED before that: the master counts `stopped_grace` for a guest whose child is gone.
        self._patience.until = self._patience.stopped_due = self.due
        if resume.ill:
            self._ill_at = now

    def announce_next_answer(self) -> None:
        """The next answer is news: the guest is not silent yet, or not any more."""
        self._questions.answered_since_notice = self._running_reported = False

    def start_anew(self, now: float) -> None:
        """Reporting is enabled: what the guest has answered so far counts for nothing."""
        if self.state in (CHALLENGED, session_states.RESTING):
            self._idle_since = now
        # Without an init nothing is sent: the guest has not shown that it speaks this protocol, and says
        # `init` by itself.
        if self.init is not None and self.state != CLOSED:
            self.was_heartbeating = False
            self.announce_next_answer()
            self._ill_at = None  # who is ill now is to be reported again
            self._ask_whether_there(now)

    # --- inputs ------------------------------------------------------------------------------------

    def is_right(self, response: int, now: float) -> bool:
        """Whether this answers the open challenge; a note says what else it is."""
        if response == self._challenge:
            return True
        if response in self._past:
            self._output.note("late", "a late answer to an older challenge was ignored", now)
        else:
            self._output.note("wrong", "a wrong heartbeat_response was ignored", now)
        return False

    def handle_input(self, symbol: str, message: Optional[guest_channel.Message], now: float) -> None:
        """Take the transition of `symbol`, one of INPUTS, and do what belongs to it."""
        self.state, action = _STEPS[self.state, symbol]
        if action is not None:
            action(self, message, now)

    def choose_due_input(self, now: float) -> str:
        """What it means in this state that its time is up."""
        if self.state == RESUMING:
            # Silence that was announced is not judged here, patience or not: `outlive_silence` does that at
            # its end.
            return REPEAT if now < self._patience.until or self._questions.may_be_silent() else DUE
        if self.state != CHALLENGED:
            return DUE
        # Each `init` brings a new challenge, so a guest that says it again and again collects no misses: the
        # time since the first one counts instead.
        if self.misses < self._settings.failure_threshold and not self._inits.begs_too_long(
            self._loss_time(), now
        ):
            return MISS
        return STOP if self._questions.may_be_silent() else LOSS

    def extend_deadline_for_own_delay(self, now: float) -> bool:
        """Whether this judgement must wait because our own wake-up was late (`extra_time`)."""
        # No judgement waits in the other states. A repeated challenge is none either: `_repeat_challenge`
        # makes up for its lateness.
        if self.state not in CHALLENGE_OPEN or (self.state == RESUMING and self.due < self._patience.until):
            return False
        late = now - self.due
        if late <= self._settings.wake_slack:
            return False
        extra = extra_time(late, self._interval, self._granted)
        if extra <= 0:
            return False
        self._granted += extra
        self.due = now + extra
        self._output.reports.append(Late(late))
        return True

    # --- actions of the table: introductions and answers -------------------------------------------

    def _acknowledge_init(self, message: Init, now: float) -> None:
        """docs/protocol/1-guest-channel.md#a-guest-that-restarts"""
        inits, output = self._inits, self._output
        if self._questions.may_be_silent():
            self.was_heartbeating = False  # it was told to restart
        if self._questions.open is not None:
            self._withdraw_question("the guest restarted")
        self._questions.end_silence()
        self._adopt_init(message, now)
        # Only the first init since the last right answer pardons misses: a guest that says nothing else is
        # lost.
        if inits.unanswered_since is None:
            inits.unanswered_since = now
            self.misses = 0
        elif now - self.due > self._settings.wake_slack:  # we are late, and so may be what it said
            inits.unanswered_since += now - self.due
        self._ill_at = None
        inits.reported = False
        self.report_init(now)
        inits.turn_at = now + self._settings.ack_period
        output.data += build_init_ack(output.next_sequence(), message.invocation_id)
        self._send_challenge(now)
        # The new challenge has its interval, but ends with the time that all unanswered inits have together.
        self.due = max(now, min(self.due, inits.unanswered_since + self._loss_time()))

    def _loss_time(self) -> float:
        """s from a guest's last word to its loss."""
        return self._interval * (self._settings.failure_threshold + 1)

    def report_init(self, now: float) -> None:
        """To the master, if it does not know the present one and its time has come."""
        if self.init is not None and self._inits.admit_report(now):
            self._running_reported = False
            self._output.reports.append(Acknowledged(self.init))

    def _adopt_init(self, init: Init, now: float) -> None:
        """`init` with its interval raised to the floor; one kept from before may be under today's floor."""
        floor = self._settings.interval_floor_ms
        if init.heartbeat_interval_ms < floor:
            text = "heartbeat interval %d ms is below the floor, raised to %d ms"
            self._output.note("floor", text % (init.heartbeat_interval_ms, floor), now)
            init = init._replace(heartbeat_interval_ms=floor)
        self.init = init
        self._interval = init.heartbeat_interval_ms / 1000

    def _accept_answer(self, message: ChallengeResponse, now: float) -> None:
        self.misses = 0
        # Counted from the challenge and not from its answer: a slow guest's heartbeat keeps its period.
        self.due = max(now, self._sent_at + self._interval)
        self.was_heartbeating = self._questions.answered_since_notice = True
        inits = self._inits
        inits.unanswered_since = None
        # `report_init` makes RUNNING news again: the master hears of the init before it hears of the answer.
        if not inits.reported:
            self.report_init(now)
        if not self._running_reported:
            self._running_reported = True
            # Once for each RUNNING: the heartbeats that follow keep the phase. The first is sooner, never
            # later.
            spread = self._interval * self._settings.phase_spread
            self.due = max(now, self.due - spread * self._phase_offset())
            self._output.reports.append(RUNNING)
        # The fast parser's healthy answers are all this one object: most heartbeats compare no text.
        if message is WELL_ANSWER or message.heartbeat_health == HEALTHY:
            if self._ill_at is not None:
                self._ill_at = None
                self._output.reports.append(Well())
        else:
            self._report_illness(message, now)

    def _phase_offset(self) -> float:
        """0 … 1, by the challenge's value, which is random: guests that start together part company."""
        return self._challenge / INT32_MAX

    def _report_illness(self, message: ChallengeResponse, now: float) -> None:
        """docs/protocol/1-guest-channel.md#ill-health"""
        if message.heartbeat_health != guest_channel.UNHEALTHY:
            text = "heartbeat_health %r is taken as unhealthy" % message.heartbeat_health
            self._output.note("health", text, now)
        # Without an action there is nothing that the VIM could do.
        if message.corrective_action in ("none", guest_channel.UNKNOWN):
            self._output.note("ill", "unhealthy, no corrective action: " + message.log_msg, now)
        elif self._ill_at is None or now - self._ill_at >= self._settings.ill_repeat:
            self._ill_at = now
            self._inits.report_without_delay()  # an init ends an illness, and this illness is newer
            self.report_init(now)
            self._output.reports.append(Ill(message.corrective_action, message.log_msg))

    def _accept_exit(self, message: Exit, now: float) -> None:
        self._output.note("exit", "the guest exits: " + message.log_msg, now)
        self._questions.end_silence()
        # An init that still waits for its turn is older than the exit, and would bring the guest back.
        self._inits.waiting = None
        self._close_challenge()
        self._withdraw_question("the guest exited")
        self._output.reports.append(GONE)
        self._wait_for_init("the guest exited", now)

    # --- actions of the table: challenges, misses, losses ------------------------------------------

    def _send_challenge(self, now: float) -> None:
        self._close_challenge()
        self._challenge = self._next_challenge()
        output = self._output
        output.data += build_challenge(output.next_sequence(), self._challenge)
        self._sent_at = now
        self._granted = 0.0
        self.due = now + self._interval

    def _close_challenge(self) -> None:
        """An answer to the present challenge is a late one from now on."""
        self._past = [*self._past[1 - REMEMBERED :], self._challenge]
        self._challenge = NO_CHALLENGE

    def _challenge_again(self, _message: object, now: float) -> None:
        late = now - self.due
        reported = now - self._late_reported_at < self._settings.note_period
        if late > self._settings.wake_slack and not reported:  # it costs the guest nothing, but is a sign
            self._late_reported_at = now
            self._output.reports.append(Late(late))
        self._send_challenge(now)

    def _count_miss(self, _message: object, now: float) -> None:
        self.misses += 1
        self._output.reports.append(Missed(self.misses))
        self._send_challenge(now)

    def _count_silent_miss(self, _message: object, now: float) -> None:
        """It is silent as announced: it counts as stopped from here on, and goes on being challenged."""
        # Once, at the miss that would have been a loss: later ones tell nothing new.
        if self.misses == self._settings.failure_threshold:
            self._output.reports += (Missed(self.misses + 1), STOPPED)
        self.misses += 1
        self._running_reported = False
        self._send_challenge(now)

    def _end_in_loss(self, _message: object, now: float) -> None:
        self.misses += 1
        self._output.reports.append(Missed(self.misses))
        self._report_lost_or_gone(now)

    def _end_resuming(self, _message: object, now: float) -> None:
        # A repeated challenge counts no misses, and a loss has at least one.
        self.misses = max(1, self.misses)
        self._report_lost_or_gone(now)

    def _report_lost_or_gone(self, now: float) -> None:
        """Who owes no answer may be there later: its challenge stays open."""
        if self.was_heartbeating:
            self._output.reports.append(Lost(self.misses))
            # Whoever is lost comes back by `init` or on a new connection: no late answer does it.
            self._close_challenge()
        else:
            self._output.reports.append(GONE)
        self._wait_for_init("the guest stopped answering", now)

    def _wait_for_init(self, why: str, now: float) -> None:
        """Nobody is there any more: wait for init, and not for ever. `why` ends an open question."""
        if self.was_heartbeating:
            self._idle_since = now
        self.was_heartbeating = self._running_reported = False
        self.misses = 0
        self._ill_at = self._inits.unanswered_since = None
        self._withdraw_question(why)
        self.due = max(now, self._idle_since + self._settings.idle_reconnect)

    def _give_up_connection(self, _message: object, now: float) -> None:
        self.due = NEVER
        why = "not heartbeating for %g s" % self._settings.idle_reconnect
        self._output.reports.append(Reconnect(why))

    # --- whether the guest is there ----------------------------------------------------------------

    def _ask_whether_there(self, now: float) -> None:
        """Challenge the guest now and at its interval, for its patience.

        Who has missed before is reported as stopped after as many misses as ever: patience delays its loss
        only.
        """
        patience, interval = self._patience, self._interval
        until = now + max(2 * interval, self._settings.guest_patience)
        # Misses that are left until it would have been a loss.
        more = self._settings.failure_threshold + 1 - self.misses
        stopped_due = now + max(0, more) * interval if self.misses else until
        # A second reason to ask, while the first is still open, does not put STOPPED off.
        patience.stopped_due = (
            min(stopped_due, patience.stopped_due) if self.state == RESUMING else stopped_due
        )
        patience.until = until
        self.state = RESUMING
        self._send_challenge(now)
        self.due = min(self.due, patience.stopped_due)

    def _repeat_challenge(self, _message: object, now: float) -> None:
        """The same one again: whichever of them it answers shows that the guest is there."""
        patience, output = self._patience, self._output
        late = now - self.due
        if late > self._settings.wake_slack:
            patience.delay_stop(late, self._interval, now)
        if now >= patience.stopped_due:  # it may come back any time
            output.reports.append(STOPPED)
            self._running_reported = False
            patience.stopped_due = NEVER
        output.data += build_challenge(output.next_sequence(), self._challenge)
        self.due = patience.next_look(self._interval, now)

    # --- questions and expected silence ------------------------------------------------------------

    def change_by(self, change: str, now: float) -> None:
        """What the end of a question changes in the heartbeat."""
        if change == session_questions.RETURN:
            self.misses = 0  # those in the time of the question were excused
            if self.state == RESUMING and now >= self._patience.until:  # and so was all its patience
                self._ask_whether_there(now)
        elif change == session_questions.PAUSE and self.state != CLOSED:
            self._close_challenge()
            self._go_quiet(now)

    def _withdraw_question(self, reason: str) -> None:
        if self._questions.withdraw(reason, self._output.reports):
            self._inits.report_without_delay()  # it shows that this agreement silences nobody

    def outlive_silence(self, now: float) -> None:
        """Its time has ended it: who has answered since the notice was put to it still owes an answer.

        A guest that gave one gets its patience and is then lost; any other is quiet, as announced.
        """
        questions = self._questions
        questions.end_silence()
        if self.state in (WAITING, CLOSED) or questions.may_be_silent():
            return
        answers = self.state != RESUMING and not self.misses
        # The four cases of docs/protocol/1-guest-channel.md#expected-silence, in its order. Who has answered
        # since the notice and answers now goes on as before.
        if questions.answered_since_notice:
            if not answers:
                self.was_heartbeating = True
                self._ask_whether_there(now)
        elif answers:  # it has not been asked since
            self.was_heartbeating = False
            self._ask_whether_there(now)
        else:
            self._go_quiet(now)

    def _go_quiet(self, now: float) -> None:
        self.state = WAITING
        self._output.reports.append(GONE)
        self._wait_for_init("the guest went quiet, as announced", now)


_ACTIONS: Dict[str, Callable[..., None]] = {
    session_states.ACKNOWLEDGE_INIT: Heartbeat._acknowledge_init,
    session_states.ACCEPT_ANSWER: Heartbeat._accept_answer,
    session_states.ACCEPT_EXIT: Heartbeat._accept_exit,
    session_states.GIVE_UP_CONNECTION: Heartbeat._give_up_connection,
    session_states.REPEAT_CHALLENGE: Heartbeat._repeat_challenge,
    session_states.END_RESUMING: Heartbeat._end_resuming,
    session_states.COUNT_MISS: Heartbeat._count_miss,
    session_states.COUNT_SILENT_MISS: Heartbeat._count_silent_miss,
    session_states.END_IN_LOSS: Heartbeat._end_in_loss,
    session_states.CHALLENGE_AGAIN: Heartbeat._challenge_again,
}
# TRANSITIONS with the methods in the place of their names: one look-up for each input.
_STEPS: Dict[Tuple[str, str], Tuple[str, Optional[Callable[..., None]]]] = {
    pair: (state, None if action is None else _ACTIONS[action])
    for pair, (state, action) in TRANSITIONS.items()
}
