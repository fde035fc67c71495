"""Votes and notices: what guestAgent asks of a guest, from the command to the outcome.

docs/protocol/1-guest-channel.md#votes-and-notices

A question is in the row until it is resolved: by the child, which gives it to the guest and reports the
answer or its deadline, or here, where no child knows of it. It survives its child and this daemon. What the
outcome of a notice means for the guest's silence follows here from the outcome, whoever found it: a child may
die before it could say more.

An outcome is of use while the VIM waits for it: until the guest's time is over, and `outcome_valid` s more. A
later one would be taken for that of whatever the VIM does then.
"""

from __future__ import annotations

import itertools
from typing import List, Optional, Tuple

from guestmtce.common.log_line import INFO, WARNING
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.effects import PutCommand
from guestmtce.server.state.guest import NEVER, OUTCOME, Guest, OpenQuestion, PendingEvent, PendingKey
from guestmtce.server.state.pending_events import PendingEvents
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import datagram, guest_channel

OUTCOMES_MAX = 16  # kept for guestAgent, per guest


class Questions:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, settings: TableSettings, agenda: Agenda, pending: PendingEvents) -> None:
        self._settings = settings
        self._agenda = agenda
        self._pending = pending
        self._ids = itertools.count(1)

    def next_question_id(self) -> int:
        """An id for a question or its outcome, 0 … 2³¹−1."""
        return next(self._ids) & guest_channel.INT32_MAX

    def overdue_at(self, question: OpenQuestion) -> float:
        """When a question is resolved if nobody else has done it."""
        return question.deadline + self._settings.question_grace

    def recall_questions(
        self, guest: Guest, questions: Tuple[Tuple[int, str, str, float], ...], now: float
    ) -> None:
        """Take up what was open when a former guestServer ended."""
        for _, notification_type, event_type, deadline in questions:
            if deadline <= now + guest_channel.SECS_MAX:
                question = OpenQuestion(notification_type, event_type, deadline, False)
                guest.questions[self.next_question_id()] = question
                self._agenda.wake_guest(guest, self.overdue_at(question))

    def recall_outcome(self, guest: Guest, event: PendingEvent, now: float) -> None:
        """Take up an outcome that was not confirmed then, if the VIM still waits for it."""
        event = event._replace(until=min(event.until, now + self._settings.outcome_valid))
        if event.until > now:
            key = PendingKey(guest.uuid, OUTCOME, self.next_question_id())  # they are counted anew
            guest.pending.events[key] = event
            self._pending.resend_event(guest, key)

    def expected_silence(self, guest: Guest, now: float) -> float:
        """For how long, in s, the guest may be silent: as agreed, or as an open notice may bring about.

        docs/protocol/1-guest-channel.md#expected-silence
        """
        ends = [guest.liveness.silence_until]
        for question in guest.questions.values():
            if session_types.is_silencing(question.notification_type, question.event_type):
                ends.append(self.overdue_at(question) + self._settings.expected_silence)
        return max(0.0, max(ends) - now)

    # --- from the command to the guest -------------------------------------------------------------

    def refuse_question(self, guest: Optional[Guest], command: datagram.Ask, why: str, now: float) -> None:
        """It cannot be asked. `guest` is None where the instance is not known."""
        self._agenda.log_line(WARNING, "%s: question refused: %s", command.uuid, why, subject="ask")
        question_id = self.next_question_id()
        question = OpenQuestion(command.notification_type, command.event, now, False)
        if guest is not None:
            guest.questions[question_id] = question
            self.resolve_question(guest, question_id, "error", why, now)
        else:
            result = self._make_outcome(command.uuid, question, "error", why)
            key = PendingKey(command.uuid, OUTCOME, question_id)
            self._pending.report_once(key, datagram.VOTE_NOTIFY, result, self._useful_until(question))

    def open_question(self, guest: Guest, command: datagram.Ask, now: float) -> int:
        """A new question; returns its id. Those that nobody was given are overtaken by it."""
        notification_type, event_type = command.notification_type, command.event
        # The guest's own timeouts, of its init, which guestAgent answered to the VIM as well.
        seconds = guest_channel.timeout_secs(guest.known_init, notification_type, event_type)
        for older, question in sorted(guest.questions.items()):
            if not question.given:  # of one that it has, the child reports the end
                self.agree_silently(guest, older, "overtaken by a new question", now)
        question_id = self.next_question_id()
        question = OpenQuestion(notification_type, event_type, now + seconds, False)
        guest.questions[question_id] = question
        self._agenda.log_line(
            INFO, "%s: asking %s %s, %d s", guest.uuid, notification_type, event_type, seconds
        )
        self._agenda.wake_guest(guest, self.overdue_at(question))
        return question_id

    def put_question(self, guest: Guest, question_id: int, now: float) -> None:
        """Give the child a question, once, with the time that is left. It waits for a child that runs."""
        question = guest.questions[question_id]
        # Its time began with guestAgent's command: a child that comes later has the rest of it.
        left = round((question.deadline - now) * 1000)
        if guest.liveness.running and not question.given and left > 0:
            guest.questions[question_id] = question._replace(given=True)
            if session_types.is_silencing(question.notification_type, question.event_type):
                # The child's next RUNNING makes it true: only an answer that comes after the notice counts.
                guest.liveness.answered_since_notice = False
            ask = pipe_protocol.AskGuest(question_id, question.notification_type, question.event_type, left)
            self._agenda.add_effect(PutCommand(guest.uuid, ask))

    def put_all(self, guest: Guest, now: float) -> None:
        """The guest heartbeats: it can be asked."""
        for question_id in sorted(guest.questions):
            self.put_question(guest, question_id, now)

    def take_back_all(self, guest: Guest) -> None:
        """The child is gone, and what it was given with it."""
        guest.questions = {
            question_id: question._replace(given=False) for question_id, question in guest.questions.items()
        }

    # --- from the guest to the outcome -------------------------------------------------------------

    def resolve_question(self, guest: Guest, question_id: int, vote: str, reason: str, now: float) -> None:
        """This is the outcome."""
        question = guest.questions.pop(question_id, None)
        if question is None:
            return
        # The outcome of a notice counts here as in the session: the silence outlasts the child that heard it.
        self._change_silence(guest, question, vote, now)
        self._agenda.save_guest(guest)
        # The oldest go, so that there is room for the one below.
        for older in self._pending_outcomes(guest)[: 1 - OUTCOMES_MAX]:
            self._pending.withdraw_event(guest, older, "")
        result = self._make_outcome(guest.uuid, question, vote, reason)
        key, until = PendingKey(guest.uuid, OUTCOME, question_id), self._useful_until(question)
        if now < until:
            self._pending.report_event(guest, key, datagram.VOTE_NOTIFY, result, until=until)
        else:
            self._agenda.log_line(
                INFO, "%s: the outcome comes too late for the VIM and is not told", guest.uuid
            )

    def agree_silently(self, guest: Guest, question_id: int, reason: str, now: float) -> None:
        """Silent agreement to a question of which the child may know nothing."""
        vote = session_types.SILENT_AGREEMENT[guest.questions[question_id].notification_type]
        self.resolve_question(guest, question_id, vote, reason, now)

    def agree_to_all(self, guest: Guest, reason: str, now: float) -> None:
        """Nobody is left to answer."""
        for question_id in sorted(guest.questions):
            self.agree_silently(guest, question_id, reason, now)

    def agree_to_others(self, guest: Guest, question_id: int, now: float) -> None:
        """All but this one are overtaken: their child, which has them, goes."""
        for older in sorted(guest.questions):
            if older != question_id:
                self.agree_silently(guest, older, "overtaken by a new question", now)

    def agree_to_overdue(self, guest: Guest, now: float) -> None:
        """Nobody has resolved them in time."""
        for question_id, question in sorted(guest.questions.items()):
            if self.overdue_at(question) <= now:
                self.agree_silently(guest, question_id, "no answer in time", now)

    def _change_silence(self, guest: Guest, question: OpenQuestion, vote: str, now: float) -> None:
        asked = (question.notification_type, question.event_type)
        if session_types.ends_silence(*asked, vote):
            guest.liveness.silence_until = -NEVER
        elif session_types.agrees_to_silence(*asked, vote):
            guest.liveness.silence_until = now + self._settings.expected_silence
            if question.event_type == "pause":  # nobody challenges it from now on
                guest.liveness.note(liveness.EXCUSED)
                guest.liveness.answered_since_notice = False

    def _useful_until(self, question: OpenQuestion) -> float:
        return question.deadline + self._settings.outcome_valid

    def _pending_outcomes(self, guest: Guest) -> List[PendingKey]:
        return [key for key in guest.pending.events if key.kind == OUTCOME]

    def _make_outcome(self, uuid: str, question: OpenQuestion, vote: str, reason: str) -> datagram.VoteResult:
        """The event for guestAgent; the log has it, too."""
        asked, event_type = question.notification_type, question.event_type
        self._agenda.log_line(INFO, "%s: %s %s: %s %s", uuid, asked, event_type, vote, reason)
        return datagram.VoteResult(self._settings.hostname, uuid, asked, event_type, vote, reason)
