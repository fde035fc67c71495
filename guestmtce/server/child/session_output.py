"""What a session has to say and has not handed out yet: bytes for its guest, reports for the master.

docs/protocol/1-guest-channel.md#errors

A hostile guest decides how often there is something to say. So notes and nacks are limited here, each by a
period; the reports that follow from the guest's state are limited where they are made.
"""

from __future__ import annotations

from typing import List

from guestmtce.common.throttle import Throttle
from guestmtce.server.child.session_types import NEVER, Note, Report, SessionSettings
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import INT32_MAX, Nack

NOTE_SUBJECTS_MAX = 16  # more than a session has


class SessionOutput:
    """`data` (bytes) and `reports`, in the order in which they came up; the session takes both out.

    They are plain fields because a heartbeat writes and reads them: a call each would show in its cost.
    """

    __slots__ = ("_nack_period", "_nacked_at", "_notes", "_sequence", "data", "reports")

    def __init__(self, settings: SessionSettings) -> None:
        self.data = b""
        self.reports: List[Report] = []
        self._sequence = 0
        self._notes = Throttle(settings.note_period, NOTE_SUBJECTS_MAX)
        self._nack_period = settings.nack_period
        self._nacked_at = -NEVER

    def next_sequence(self) -> int:
        """The sequence number of the next message to the guest, 0 … 2³¹−1."""
        self._sequence = (self._sequence + 1) & INT32_MAX
        return self._sequence

    def send_message(self, message: guest_channel.Message) -> None:
        """To the guest."""
        self.data += guest_channel.build(message, self.next_sequence())

    def refuse_message(self, why: str, invocation_id: int, now: float) -> None:
        """Say that a message of the guest's cannot be taken: in the log, and with a nack to the guest."""
        self.note("refused", "refused a message: " + why, now)
        if now - self._nacked_at >= self._nack_period:
            self._nacked_at = now
            self.send_message(Nack(invocation_id, why))

    def note(self, subject: str, text: str, now: float) -> None:
        """A line for the log; one per subject and `note_period` is reported."""
        held_back = self._notes.admit(subject, now)
        if held_back is not None:
            self.reports.append(Note(text, held_back))
