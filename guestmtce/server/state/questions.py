"""Votes and notices: what guestAgent asks of a guest, from the command to the outcome.

docs/protocol/1-guest-channel.md#votes-and-notices

A question is in the row until it is settled: by the child, who gives it to the guest and tells the answer or
its deadline, or here, where no child knows of it. It survives its child and this daemon. What the outcome of
a notice means for the guest's silence follows here from the outcome, whoever found it: a child may die before
it could say more.

An outcome is of use while the VIM waits for it: until the guest's time is over, and `outcome_valid` s more. A
later one would be taken for that of whatever the VIM does then.
"""

from __future__ import annotations

import itertools
import logging
from typing import List, Optional, Tuple

from guestmtce.daemon.log import Throttle, printable
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state.guest import NEVER, Guest, Put, Question
from guestmtce.server.state.pending_events import Outbox
from guestmtce.wire import datagram, guest_channel

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
        return next(self._numbers) & guest_channel.INT32_MAX

    def due(self, question: Question) -> float:
        """When a question is settled if nobody else has done it."""
        return question.deadline + self._settings.question_grace

    def recall(self, guest: Guest, questions: Tuple[Tuple[int, str, str, float], ...], now: float) -> None:
        """Take up what was open when a former guestServer ended."""
        for _, notification_type, event_type, deadline in questions:
            if deadline <= now + guest_channel.SECS_MAX:
                question = Question(notification_type, event_type, deadline, False)
                guest.questions[self.next_number()] = question

    def expected_silence(self, guest: Guest, now: float) -> float:
        """For how long, in s, the guest may be silent: as agreed, or as an open notice may bring about."""
        ends = [guest.silence_until]
        for question in guest.questions.values():
            if session_types.is_silencing(question.notification_type, question.event_type):
                ends.append(self.due(question) + self._settings.expected_silence)
        return max(0.0, max(ends) - now)

    def refuse(self, guest: Optional[Guest], command: datagram.Ask, why: str, now: float) -> None:
        """It cannot be asked. `guest` is None where the instance is not known."""
        self._throttle.warning("ask", "%s: question refused: %s", command.uuid, why)
        number = self.next_number()
        question = Question(command.notification_type, command.event, now, False)
        if guest is not None:
            guest.questions[number] = question
            self.settle(guest, number, "error", why, now)
        else:
            result = self._result(command.uuid, question, "error", why)
            key = (command.uuid, "vote %d" % number)
            self._outbox.tell_once(datagram.VOTE_NOTIFY, result, key, self._useful_until(question))

    def open(self, guest: Guest, command: datagram.Ask, now: float) -> int:
        """A new question; returns its number. Those that nobody was given are overtaken by it."""
        init = guest.init or guest_channel.DEFAULT_INIT
        seconds = guest_channel.timeout_secs(init, command.notification_type, command.event)
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
            if session_types.is_silencing(question.notification_type, question.event_type):
                guest.answered_since_notice = False
            ask = pipe_protocol.AskGuest(number, question.notification_type, question.event_type, left)
            self._outbox.add(Put(guest.uuid, ask))

    def put_all(self, guest: Guest, now: float) -> None:
        """The guest heartbeats: it can be asked."""
        for number in sorted(guest.questions):
            self.put(guest, number, now)

    def take_back(self, guest: Guest) -> None:
        """The child is gone, and what it was given with it."""
        guest.questions = {n: question._replace(given=False) for n, question in guest.questions.items()}

    def settle(self, guest: Guest, number: int, vote: str, reason: str, now: float) -> None:
        """This is the outcome."""
        question = guest.questions.pop(number, None)
        if question is None:
            return
        self._change_silence(guest, question, vote, now)
        self._outbox.save(guest)
        for older in self._told(guest)[: 1 - VOTES_MAX]:
            self._outbox.untell(guest, older, "")
        result = self._result(guest.uuid, question, vote, reason)
        kind, until = "vote %d" % number, self._useful_until(question)
        if now < until:
            self._outbox.tell(guest, kind, datagram.VOTE_NOTIFY, result, until=until)
        else:
            log.info("%s: the outcome comes too late for the VIM and is not told", guest.uuid)

    def _change_silence(self, guest: Guest, question: Question, vote: str, now: float) -> None:
        asked = (question.notification_type, question.event_type)
        if session_types.ends_silence(*asked, vote):
            guest.silence_until = -NEVER
        elif session_types.agrees_to_silence(*asked, vote):
            guest.silence_until = now + self._settings.expected_silence
            if question.event_type == "pause":  # nobody challenges it from now on
                guest.owes_answer = guest.answered_since_notice = False

    def _useful_until(self, question: Question) -> float:
        return question.deadline + self._settings.outcome_valid

    def agree(self, guest: Guest, number: int, reason: str, now: float) -> None:
        """Silent agreement to a question of which the child may know nothing."""
        vote = session_types.SILENT_AGREEMENT[guest.questions[number].notification_type]
        self.settle(guest, number, vote, reason, now)

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
