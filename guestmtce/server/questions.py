"""Votes and notices: what guestAgent asks of a guest, from the command to the outcome (spec 1 and 2).

A question is in the row until it is settled: by the child, who gives it to the guest and tells the answer or
its deadline, or here, where no child knows of it. It survives its child and this daemon.
"""

from __future__ import annotations

import itertools
import logging
from typing import List, Optional, Tuple

from guestmtce.daemon.log import Throttle, printable
from guestmtce.server import pipe, reports
from guestmtce.server.guest import Guest, Put, Question
from guestmtce.server.outbox import Outbox
from guestmtce.server.session import SILENCING
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import channel, datagram

log = logging.getLogger(__name__)

VOTES_MAX = 16  # outcomes kept for guestAgent, per guest


class Questions:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, settings: ServerSettings, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._numbers = itertools.count(1)
        self._throttle = Throttle(log)

    def next_number(self) -> int:
        """A number for a question or its outcome, 0 … 2³¹−1."""
        return next(self._numbers) & channel.INT32_MAX

    def due(self, question: Question) -> float:
        """When a question is settled if nobody else has done it."""
        return question.deadline + self._settings.question_grace

    def recall(self, guest: Guest, questions: Tuple[Tuple[int, str, str, float], ...], now: float) -> None:
        """Take up what was open when a former guestServer ended."""
        for _, notification_type, event_type, deadline in questions:
            if deadline <= now + channel.SECS_MAX:
                question = Question(notification_type, event_type, deadline, False)
                guest.questions[self.next_number()] = question

    def refuse(self, guest: Optional[Guest], command: datagram.Ask, why: str) -> None:
        """It cannot be asked. `guest` is None where the instance is not known."""
        self._throttle.warning("ask", "%s: question refused: %s", command.uuid, why)
        number = self.next_number()
        question = Question(command.notification_type, command.event, 0.0, False)
        if guest is not None:
            guest.questions[number] = question
            self.settle(guest, number, "error", why)
        else:
            result = self._result(command.uuid, question, "error", why)
            self._outbox.tell_once(datagram.VOTE_NOTIFY, result, (command.uuid, "vote %d" % number))

    def open(self, guest: Guest, command: datagram.Ask, now: float) -> int:
        """A new question; returns its number. Those that nobody was given are overtaken by it."""
        init = guest.init or channel.DEFAULT_INIT
        seconds = channel.timeout_secs(init, command.notification_type, command.event)
        for older, question in sorted(guest.questions.items()):
            if not question.given:  # of one that it has, the child tells the end
                self.agree(guest, older, "overtaken by a new question", now)
        number = self.next_number()
        guest.questions[number] = Question(command.notification_type, command.event, now + seconds, False)
        log.info("%s: asking %s %s, %d s", guest.uuid, command.notification_type, command.event, seconds)
        return number

    def put(self, guest: Guest, number: int, now: float) -> None:
        """Give the child a question, once, with the time that is left. It waits for one that is running."""
        question = guest.questions[number]
        left = round((question.deadline - now) * 1000)
        if guest.running and not question.given and left > 0:
            guest.questions[number] = question._replace(given=True)
            ask = pipe.Ask(number, question.notification_type, question.event_type, left)
            self._outbox.add(Put(guest.uuid, ask))

    def put_all(self, guest: Guest, now: float) -> None:
        """The guest heartbeats: it can be asked."""
        for number in sorted(guest.questions):
            self.put(guest, number, now)

    def take_back(self, guest: Guest) -> None:
        """The child is gone, and what it was given with it."""
        guest.questions = {n: question._replace(given=False) for n, question in guest.questions.items()}

    def settle(self, guest: Guest, number: int, vote: str, reason: str) -> None:
        """This is the outcome."""
        question = guest.questions.pop(number, None)
        if question is None:
            return
        for older in self._told(guest)[: 1 - VOTES_MAX]:
            self._outbox.untell(guest, older, "")
        result = self._result(guest.uuid, question, vote, reason)
        self._outbox.tell(guest, "vote %d" % number, datagram.VOTE_NOTIFY, result)

    def agree(self, guest: Guest, number: int, reason: str, now: float) -> None:
        """Silent agreement to a question of which the child may know nothing, nor of what follows from it."""
        question = guest.questions[number]
        if question.notification_type == channel.NOTICE and question.event_type in SILENCING:
            guest.silence_until = now + self._settings.expected_silence
        self.settle(guest, number, reports.SILENT_AGREEMENT[question.notification_type], reason)

    def agree_all(self, guest: Guest, reason: str, now: float) -> None:
        """Nobody is left to answer."""
        for number in sorted(guest.questions):
            self.agree(guest, number, reason, now)

    def agree_overdue(self, guest: Guest, now: float) -> None:
        """Nobody has settled them in time."""
        for number, question in sorted(guest.questions.items()):
            if self.due(question) <= now:
                self.agree(guest, number, "no answer in time", now)

    def _told(self, guest: Guest) -> List[str]:
        return [kind for kind in guest.untold if kind.startswith("vote")]

    def _result(self, uuid: str, question: Question, vote: str, reason: str) -> datagram.VoteResult:
        asked, event_type = question.notification_type, question.event_type
        log.info("%s: %s %s: %s %s", uuid, asked, printable(event_type), vote, printable(reason))
        return datagram.VoteResult(self._settings.hostname, uuid, asked, event_type, vote, reason)
