"""The question that is put to the guest, and the silence that a notice may bring.

docs/protocol/1-guest-channel.md#votes-and-notices
docs/protocol/1-guest-channel.md#expected-silence

One question (a vote or a notice) at a time is open, with a deadline of its own. It ends with the guest's
answer, with its deadline (silent agreement), or with the guest's going.

Expected silence is the bridge over what a notice announced: from the moment that a notice of an event that
silences a guest is put to it, until `expected_silence` s after it agreed. A refusal, `init`, `exit`, the
answer to any notice of a return (RETURNING) or the enabling of reporting ends it before its time.

Here stands what is open and until when; what its end changes in the heartbeat is the session's.
"""

from __future__ import annotations

from typing import List, Optional

from guestmtce.server.child.session_types import (
    NEVER,
    SILENT_AGREEMENT,
    Answered,
    Report,
    SessionQuestion,
    agrees_to_silence,
    ends_silence,
    is_silencing,
)
from guestmtce.wire.guest_channel import ActionResponse

# What the end of a question changes in the heartbeat.
NOTHING = "nothing"
RETURN = "return"  # the guest is back, or stays: it refused to go
PAUSE = "pause"  # it cannot answer from now on
SILENCE = "silence"  # it goes on until it is as silent as announced


class QuestionState:
    """`open` is the question that the guest has not answered yet.

    `answered_since_notice`: a right answer has come since the last silencing notice was put to the guest.
    `deadline` (s, monotonic) is when the question or the expected silence ends by itself: the session looks
    at this one number with each heartbeat.
    """

    __slots__ = ("_expected_silence", "_silence_until", "answered_since_notice", "deadline", "open")

    def __init__(self, expected_silence: float) -> None:
        self.open: Optional[SessionQuestion] = None
        self.answered_since_notice = False
        # Each heartbeat reads it. Made here, it lies beside this object, and costs a child no other page.
        self.deadline = float("inf")
        self._silence_until = NEVER  # NEVER: none was agreed to
        self._expected_silence = expected_silence

    def put_question(self, question: SessionQuestion) -> None:
        """It is open from now on."""
        self.open = question
        self._set_deadline()

    def matches(self, message: ActionResponse) -> bool:
        """Whether this answers the open question. Its id does not say so: it is the same for all."""
        question = self.open
        return (
            question is not None
            and question.event_type == message.event_type
            and question.notification_type == message.notification_type
        )

    def is_overdue(self, now: float) -> bool:
        """Whether the guest has not answered in its time."""
        return self.open is not None and now >= self.open.deadline

    def resolve(self, vote: str, reason: str, now: float, reports: List[Report]) -> str:
        """End the open question with this answer; returns what that changes. Without one: NOTHING."""
        question, self.open = self.open, None
        if question is None:
            return NOTHING
        reports.append(Answered(question.question_id, vote, reason))
        change = NOTHING
        # Only a notice changes the silence: a vote asks what the guest would agree to, and nothing has begun.
        if ends_silence(question.notification_type, question.event_type, vote):
            self._silence_until = NEVER
            change = RETURN
        elif agrees_to_silence(question.notification_type, question.event_type, vote):
            self._silence_until = now + self._expected_silence
            # A paused guest cannot answer from now on, and the VIM would read "enabled" until the misses are
            # counted.
            change = PAUSE if question.event_type == "pause" else SILENCE
        self._set_deadline()
        return change

    def resolve_silently(self, reason: str, now: float, reports: List[Report]) -> str:
        """The same, with the answer that a guest gives which says nothing."""
        agreement = SILENT_AGREEMENT[self.open.notification_type] if self.open is not None else ""
        return self.resolve(agreement, reason, now, reports)

    def withdraw(self, reason: str, reports: List[Report]) -> bool:
        """Whom the question was put to is gone: silent agreement, without what a notice would change.

        Returns whether there was a question.
        """
        question, self.open = self.open, None
        if question is None:
            return False
        reports.append(Answered(question.question_id, SILENT_AGREEMENT[question.notification_type], reason))
        self._set_deadline()
        return True

    # --- expected silence --------------------------------------------------------------------------

    def expect_silence(self, until: float) -> None:
        """It was agreed to on an earlier connection."""
        self._silence_until = until
        self._set_deadline()

    def end_silence(self) -> None:
        """Nothing is expected but answers."""
        self._silence_until = NEVER
        self._set_deadline()

    def is_silence_over(self, now: float) -> bool:
        """Whether its time has ended the silence that was agreed to."""
        return now >= self._silence_until

    def may_be_silent(self) -> bool:
        """Whether the guest may be silent: announced and agreed to, or announced and not yet answered."""
        question = self.open
        return self._silence_until < NEVER or (
            question is not None and is_silencing(question.notification_type, question.event_type)
        )

    def _set_deadline(self) -> None:
        question = self.open
        until = self._silence_until
        self.deadline = until if question is None else min(question.deadline, until)
