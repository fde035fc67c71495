"""A session on a bench: a clock that is a float, and both sides' messages as values.

Everything that the session writes is parsed as strictly as a guest would, so every test that uses the
bench also checks the bytes: framing, sizes, and integers within 0 … 2³¹−1.
"""

from __future__ import annotations

import itertools
from typing import Any, List, Optional

from guestmtce.server.child.session import Session
from guestmtce.server.child.session_states import CHALLENGED, RESUMING
from guestmtce.server.child.session_types import Output, Resume, SessionSettings
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ActionResponse, Challenge, ChallengeResponse, Exit, Init

BEGIN = 1000.0
TICKS_MAX = 5000
GUEST = Init(1804289383, "vm-1", 1000, 9, 9, 9, 14, 601, "reboot")


class Bench:
    """One session, its guest's voice, and what both said."""

    def __init__(self, settings: Optional[SessionSettings] = None, resume: Optional[Resume] = None) -> None:
        self.now = BEGIN
        numbers = itertools.chain([0, guest_channel.INT32_MAX], itertools.count(2))
        self.session = Session(settings or SessionSettings(), lambda: next(numbers))
        self.reports: List[Any] = []
        self.sent: List[Any] = []
        self.challenge = -1
        self.answered = True
        self.first_bytes = self._keep(self.session.start(resume, self.now))

    def _keep(self, output: Output) -> bytes:
        data, reports = output
        for line in json_lines.LineBuffer().feed(data):
            assert len(line) + 2 <= guest_channel.MESSAGE_MAX
            message = guest_channel.parse(line, guest_channel.FROM_HOST)
            self.sent.append(message)
            if isinstance(message, Challenge):
                self.challenge, self.answered = message.heartbeat_challenge, False
        assert data == b"" or data.endswith(b"\n")
        self.reports += reports
        return data

    def say(self, message: Any) -> None:
        """The guest says `message`: a tuple of the channel's, or bytes as they are."""
        data = message if isinstance(message, bytes) else guest_channel.build(message, 1)
        self._keep(self.session.receive(data, self.now))

    def init(self, **fields: Any) -> None:
        self.say(GUEST._replace(**fields))

    def answer(self, health: str = "healthy", action: str = "reboot", text: str = "", off: int = 0) -> None:
        """The guest answers the latest challenge, `off` by so much."""
        self.answered = self.answered or not off
        self.say(ChallengeResponse((self.challenge + off) & guest_channel.INT32_MAX, health, action, text))

    def exit(self) -> None:
        self.say(Exit("Exiting..."))

    def respond(self, event: str, kind: str, result: str, ident: int = GUEST.invocation_id) -> None:
        """The guest answers a vote or notice."""
        self.say(ActionResponse(ident, event, kind, result, "why"))

    def ask(self, number: int, kind: str, event: str, timeout_ms: int = 9000) -> None:
        self._keep(self.session.ask(number, kind, event, timeout_ms, self.now))

    def tick(self, at: Optional[float] = None) -> None:
        """`tick` at the session's deadline, or at the time `at`."""
        self.now = max(self.now, self.session.deadline if at is None else at)
        self._keep(self.session.tick(self.now))

    def run(self, seconds: float, answers: bool) -> None:
        """So much time passes, with every tick on time; a guest that `answers` does so at once."""
        until = self.now + seconds
        if answers:
            self._answer_open()
        for _ in range(TICKS_MAX):
            if self.session.deadline > until:
                break
            self.tick()
            if answers:
                self._answer_open()
        assert self.session.deadline > until, "the session asks for ticks without end"
        self.now = until

    def _answer_open(self) -> None:
        if not self.answered and self.session.heartbeat.state in (CHALLENGED, RESUMING):
            self.answer()

    def heartbeat(self, **fields: Any) -> Bench:
        """Introduce the guest and let it answer once; forget what was said so far."""
        self.init(**fields)
        self.answer()
        self.forget()
        return self

    def forget(self) -> None:
        self.reports, self.sent = [], []

    def kinds(self) -> List[str]:
        return [type(report).__name__ for report in self.reports]

    def told(self, kind: Any) -> List[Any]:
        """The reports of that kind, in order."""
        return [report for report in self.reports if isinstance(report, kind)]

    def wrote(self, kind: Any) -> List[Any]:
        """The messages of that kind that the guest was sent, in order."""
        return [message for message in self.sent if isinstance(message, kind)]
