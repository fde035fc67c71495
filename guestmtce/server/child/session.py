"""One guest's heartbeat over one connection: bytes and time in, bytes and reports out.

docs/protocol/1-guest-channel.md#init-and-acknowledgement
docs/protocol/1-guest-channel.md#votes-and-notices

Nothing here reads a clock, a socket or a file. `now` is seconds on any monotonic clock.

A session tells what its guest says from what it must not say, and gives each its way:

session_heartbeat   challenges, answers, misses, losses: the state machine
session_states      its states and transitions, and their reasons
session_inits       how often introductions are acknowledged and reported
session_questions   the open vote or notice, and expected silence
session_patience    how much time a guest gets beyond its interval
session_output      bytes and reports that are not handed out yet
session_types       settings, reports, and what is known from before

The parts read each other's plain fields, and a heartbeat's way through them is short: with thousands of
guests one call more is seen (docs/performance.md).
"""

from __future__ import annotations

from typing import Callable, Optional

from guestmtce.server.child.session_heartbeat import WELL_ANSWER, Heartbeat
from guestmtce.server.child.session_inits import InitState
from guestmtce.server.child.session_output import SessionOutput
from guestmtce.server.child.session_questions import QuestionState
from guestmtce.server.child.session_states import CHALLENGE_OPEN, CLOSED, EXIT, INIT, RIGHT, WAITING, WRONG
from guestmtce.server.child.session_types import (
    NEVER,
    Output,
    ReportingEnabled,
    Resume,
    SessionQuestion,
    SessionSettings,
    is_silencing,
)
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ActionNotify, ActionResponse, ChallengeResponse, Exit, Init
from guestmtce.wire.guest_channel_fast import parse_healthy_answer, parse_init

NOTHING: Output = (b"", ())
REPORTING_ENABLED = ReportingEnabled()


class Session:
    """See the module's text. The owner drains the guest's socket before it calls `tick`.

    `next_challenge` makes challenges, in 0 … 2³¹−1, that the guest cannot foresee. `deadline` is when `tick`
    is to be called next. `heartbeat.state` is CLOSED when the connection is of no more use.
    """

    __slots__ = ("_inits", "_lines", "_output", "_questions", "deadline", "heartbeat")

    def __init__(self, settings: SessionSettings, next_challenge: Callable[[], int]) -> None:
        self.deadline = NEVER
        self._lines = json_lines.LineBuffer()
        self._output = SessionOutput(settings)
        self._inits = InitState(settings)
        self._questions = QuestionState(settings.expected_silence)
        self.heartbeat = Heartbeat(settings, next_challenge, self._output, self._inits, self._questions)

    # --- the five ways in --------------------------------------------------------------------------

    def start(self, resume: Optional[Resume], now: float) -> Output:
        """The connection stands. With `resume` the guest is challenged without waiting for its `init`.

        docs/protocol/1-guest-channel.md#resuming-a-guest
        """
        self._output.data = guest_channel.RESYNC
        self.heartbeat.wait_for_first_init(now)
        if resume is not None:
            self._questions.answered_since_notice = resume.answered_since_notice
            if resume.silence > 0:
                self._questions.expect_silence(now + resume.silence)
            self.heartbeat.resume(resume, now)
        return self._take_output()

    def receive(self, data: bytes, now: float) -> Output:
        """The guest sent `data`: any part of a line, or many lines."""
        overflows = self._lines.overflows
        for line in self._lines.feed(data):
            self._receive_line(line, now)
        # After the lines that came with it: what stands behind the long one counts like any other.
        if self._lines.overflows != overflows:
            text = "a line longer than %d bytes was dropped" % json_lines.LINE_MAX
            self._output.note("overflow", text, now)
        return self._take_output()

    def tick(self, now: float) -> Output:
        """Time has passed; to be called at `deadline`, after the socket was drained."""
        inits, heartbeat = self._inits, self.heartbeat
        if not inits.reported:
            heartbeat.report_init(now)
        # An init whose turn has come goes before the judgement: it voids the challenge that would be judged.
        init = inits.waiting
        if init is not None and now >= inits.turn_at:
            inits.waiting = None
            heartbeat.handle_input(INIT, init, now)
        # The end of a silence goes before the judgement, too: it says whether the guest owes an answer.
        if now >= self._questions.deadline:
            self._serve_question_deadline(now)
        if now >= heartbeat.due and not heartbeat.extend_deadline_for_own_delay(now):
            heartbeat.handle_input(heartbeat.choose_due_input(now), None, now)
        return self._take_output()

    def ask(
        self, question_id: int, notification_type: str, event_type: str, timeout_ms: int, now: float
    ) -> Output:
        """Put a vote or notice to the guest; it has `timeout_ms` to answer. `Answered` tells the outcome.

        An open question ends first, with silent agreement. A guest that is not there agrees at once.
        """
        init = self.heartbeat.init
        there = self.heartbeat.state not in (WAITING, CLOSED)
        if self._questions.open is not None:
            # Answers to two open questions of a kind could not be told apart: the guest's id is in both.
            self._resolve_silently("overtaken by a new question", now)
        deadline = now + timeout_ms / 1000
        self._questions.put_question(SessionQuestion(question_id, notification_type, event_type, deadline))
        if init is None or not there:
            self._resolve_silently("the guest is not heartbeating", now)
        else:
            if is_silencing(notification_type, event_type):
                # The next answer is reported as RUNNING again: so the master learns, and keeps over the death
                # of this process, that the guest has answered since the notice.
                self.heartbeat.announce_next_answer()
            self._output.send_message(
                ActionNotify(init.invocation_id, event_type, notification_type, timeout_ms)
            )
        return self._take_output()

    def enable_reporting(self, now: float) -> Output:
        """Losses are to be reported from now on: the guest has yet to show that it is there.

        docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled

        It may be booting, or be paused until later. `ReportingEnabled` separates what was reported before
        from what is reported under this rule.
        """
        self._output.reports.append(REPORTING_ENABLED)
        # This command ends what a notice announced (docs/protocol/1-guest-channel.md#expected-silence).
        self._questions.end_silence()
        self.heartbeat.start_anew(now)
        return self._take_output()

    def awaits_answer(self) -> bool:
        """Whether the deadline judges the guest: the socket is to be drained before `tick`."""
        return self.heartbeat.state in CHALLENGE_OPEN or self._questions.open is not None

    # --- what the guest says -----------------------------------------------------------------------

    def _receive_line(self, line: bytes, now: float) -> None:
        # Nearly every line is a healthy answer, which the fast parser knows without JSON
        # (docs/performance.md).
        response = parse_healthy_answer(line)
        if response is not None:
            heartbeat = self.heartbeat
            heartbeat.handle_input(RIGHT if heartbeat.is_right(response, now) else WRONG, WELL_ANSWER, now)
            return
        try:
            message = parse_init(line) or guest_channel.parse(line)
        except json_lines.NotAMessage:
            self._output.note("garbage", "a line that is no JSON object was dropped", now)
        except guest_channel.Refused as refused:
            self._output.refuse_message(str(refused), self._invocation_id(), now)
        else:
            if isinstance(message, Init):
                self._receive_init(message, now)
            elif isinstance(message, ChallengeResponse):
                right = self.heartbeat.is_right(message.heartbeat_response, now)
                self.heartbeat.handle_input(RIGHT if right else WRONG, message, now)
            elif isinstance(message, ActionResponse):
                self._receive_vote(message, now)
            elif isinstance(message, Exit):
                self.heartbeat.handle_input(EXIT, message, now)

    def _receive_init(self, message: Init, now: float) -> None:
        if now >= self._inits.turn_at:
            self.heartbeat.handle_input(INIT, message, now)
        else:
            # The last one wins: it says what the guest is now. `tick` takes it at `turn_at`.
            self._inits.waiting = message

    def _receive_vote(self, message: ActionResponse, now: float) -> None:
        expected = self._invocation_id()
        if message.invocation_id != expected:
            text = "Invocation id mismatch. Received: %d expect: %d" % (message.invocation_id, expected)
            self._output.refuse_message(text, expected, now)
        elif self._questions.matches(message):
            self._resolve_question(message.vote_result, message.log_msg, now)
        else:
            text = "an answer (%s) to no open question, %s %s, was dropped"
            text %= (message.vote_result, message.notification_type, message.event_type)
            self._output.note("foreign", text, now)

    def _invocation_id(self) -> int:
        init = self.heartbeat.init
        return init.invocation_id if init is not None else 0

    # --- the open question -------------------------------------------------------------------------

    def _serve_question_deadline(self, now: float) -> None:
        if self._questions.is_overdue(now):
            self._resolve_silently("no answer in time", now)
        if self._questions.is_silence_over(now):
            self.heartbeat.outlive_silence(now)

    def _resolve_question(self, vote: str, reason: str, now: float) -> None:
        self.heartbeat.change_by(self._questions.resolve(vote, reason, now, self._output.reports), now)

    def _resolve_silently(self, reason: str, now: float) -> None:
        self.heartbeat.change_by(self._questions.resolve_silently(reason, now, self._output.reports), now)

    def _take_output(self) -> Output:
        """All that is to be written and reported; and `deadline` for what is to come."""
        deadline, inits, output = self.heartbeat.due, self._inits, self._output
        if self._questions.deadline < deadline:
            deadline = self._questions.deadline
        if inits.waiting is not None and inits.turn_at < deadline:
            deadline = inits.turn_at
        self.deadline = deadline
        data, reports = output.data, output.reports
        if not data and not reports:
            return NOTHING
        output.data = b""
        output.reports = []
        return data, reports
