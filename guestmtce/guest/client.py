"""The guest's side of the heartbeat as a state machine: bytes and time in, messages and reports out.

docs/protocol/1-guest-channel.md#what-real-guests-do

Nothing here reads a clock, a port or a file. `now` is seconds on any monotonic clock.

The states:

ALONE        There is no host at the port, and none that remembers us. We say nothing.
ENABLING     A host is there. We introduce ourselves with `init`, again every `init_period` with a fresh id,
             until it acknowledges the latest or the one before. Challenges are not for us yet.
ENABLED      Acknowledged: every challenge is answered at once. When none comes for twice the interval, or
             `patience` if that is longer, the host has forgotten us: we introduce ourselves again.
INTERRUPTED  We were acknowledged and the host hung up. A host that restarted and remembers us challenges
             as soon as it is back, and goes on as if nothing had been: so we wait, as long as our patience
             lasts, and for `return_patience` once the host is there. To introduce ourselves would tell it
             that this guest restarted, which ends an open question and an expected silence.
GONE         We said `exit`. Nothing more is said.

What can happen is an *input*: the port is `OPENED` or `CLOSED`, the host's `ACK` of one of our two latest
inits or its `CHALLENGE` comes, the state's time is `DUE`, we are told to `EXIT`, or there is a `CHANGE` of
the configuration that the host knows. TRANSITIONS holds every pair of state and input, the state that
follows, and the one method that does what is to be done.

Beside the state a client carries two facts that cross it:

- how the guest feels (`feel`): the next answer says so. An illness that lasts asks for its corrective action
  once per `action_repeat`, and for `none` in between.
- the open question (a vote or a notice), with its ballot and its deadline: `answer_margin` before the host
  ceases to wait, and at least after half of that time. It is put to the voters with `Put` and is answered
  when they have decided or its time is up; `Withdrawn` says that nobody waits for them any more. The same
  question again while it is open is the same question; another one ends it without an answer, as it ended
  at the host.
"""

from typing import Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Union

from guestmtce.common import NEVER
from guestmtce.guest.ballot import ERROR, Ballot
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.settings import Settings
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import (
    ActionNotify,
    ActionResponse,
    Challenge,
    ChallengeResponse,
    Exit,
    InitAck,
)

ALONE = "alone"
ENABLING = "enabling"
ENABLED = "enabled"
INTERRUPTED = "interrupted"
GONE = "gone"
STATES = (ALONE, ENABLING, ENABLED, INTERRUPTED, GONE)

OPENED = "opened"
CLOSED = "closed"
ACK = "ack"
CHALLENGE = "challenge"
DUE = "due"
EXIT = "exit"
CHANGE = "change"
INPUTS = (OPENED, CLOSED, ACK, CHALLENGE, DUE, EXIT, CHANGE)


class Put(NamedTuple):
    """Put the question `number` to the voters; they have `seconds`."""

    number: int
    notification_type: str
    event_type: str
    seconds: float


class Withdrawn(NamedTuple):
    """Nobody waits for what the voters say to question `number` any more; `expired`: its time is up."""

    number: int
    expired: bool = False


class Note(NamedTuple):
    """A line for the log; lines with the same `about` need not all be kept."""

    about: str
    text: str


Report = Union[Put, Withdrawn, Note]


class Output(NamedTuple):
    """What is to be written to the port, message by message, and what is to be done."""

    messages: List[bytes]
    reports: List[Report]


class Question(NamedTuple):
    """The question that is open, when it will be answered, and what was said to it."""

    number: int
    asked: ActionNotify
    deadline: float
    ballot: Ballot


class Client:
    """The heartbeat of this guest. See the module's text.

    `number` makes invocation ids, in 0 … 2³¹−1; `voters` says who is to be asked now.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        name: str,
        number: Callable[[], int],
        voters: Callable[[], FrozenSet[str]],
    ) -> None:
        self.state = ALONE
        self.answers = 0
        self._config = config
        self._settings = settings
        self._name = name
        self._number = number
        self._voters = voters
        self._lines = json_lines.LineBuffer()
        self._patience = max(2 * config.interval_ms / 1000, settings.patience)
        self._invocations: Tuple[int, ...] = ()
        self._sequence = 0
        self._due = NEVER
        self._illness: Optional[Illness] = None
        self._ill_told_at = -NEVER
        self._question: Optional[Question] = None
        self._questions = 0
        self._messages: List[bytes] = []
        self._reports: List[Report] = []

    # --- the ways in -------------------------------------------------------------------------------

    def opened(self, now: float) -> Output:
        """A host is at the port."""
        self._lines = json_lines.LineBuffer()
        self._input(OPENED, None, now)
        return self._output()

    def closed(self, now: float) -> Output:
        """The host hung up, or the port is gone."""
        self._input(CLOSED, None, now)
        return self._output()

    def receive(self, data: bytes, now: float) -> Output:
        """The host sent `data`."""
        overflows = self._lines.overflows
        for line in self._lines.feed(data):
            self._take(line, now)
        if self._lines.overflows != overflows:
            self._note("overflow", "a line longer than %d bytes was dropped" % json_lines.LINE_MAX)
        return self._output()

    def tick(self, now: float) -> Output:
        """Time has passed; to be called at `deadline`, after the port was drained."""
        question = self._question
        if question is not None and now >= question.deadline:
            self._settle(*question.ballot.time_is_up(), expired=True)
        if now >= self._due:
            self._input(DUE, None, now)
        return self._output()

    def vote(self, number: int, voter: str, result: str, reason: str) -> Output:
        """`voter` answers question `number`. One that is not open any more is nobody's."""
        if self._question is not None and self._question.number == number:
            self._question.ballot.vote(voter, result, reason)
            self._count()
        return self._output()

    def leave(self, voter: str) -> Output:
        """`voter` is gone."""
        if self._question is not None:
            self._question.ballot.leave(voter)
            self._count()
        return self._output()

    def feel(self, illness: Optional[Illness]) -> Output:
        """From now on the guest has this illness, or none."""
        before = self._illness
        if before is None or illness is None or before.corrective_action != illness.corrective_action:
            self._ill_told_at = -NEVER
        if illness != before:
            text = "healthy" if illness is None else "ill, corrective action %s: %s" % illness
            self._note("health", "the guest is " + text)
        self._illness = illness
        return self._output()

    def configure(self, config: Config, now: float) -> Output:
        """The configuration has changed. What the host is to know of it goes out with a new init."""
        before, self._config = self._config, config
        self._patience = max(2 * config.interval_ms / 1000, self._settings.patience)
        if before.init(0, "") != config.init(0, ""):
            self._input(CHANGE, None, now)
        return self._output()

    def exit(self, why: str, now: float) -> Output:
        """Say goodbye."""
        self._input(EXIT, Exit(why), now)
        return self._output()

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next."""
        return self._due if self._question is None else min(self._due, self._question.deadline)

    # --- a message ---------------------------------------------------------------------------------

    def _take(self, line: bytes, now: float) -> None:
        try:
            message = guest_channel.parse(line, guest_channel.FROM_HOST)
        except (json_lines.NotAMessage, guest_channel.Refused) as error:
            self._note("garbage", "a line from the host was dropped: %s" % error)
            return
        if isinstance(message, Challenge):
            self._input(CHALLENGE, message, now)
        elif isinstance(message, InitAck):
            self._take_ack(message, now)
        elif isinstance(message, ActionNotify):
            self._take_question(message, now)
        elif isinstance(message, guest_channel.Nack):
            self._note("nack", "the host refused a message: " + message.log_msg)

    def _take_ack(self, message: InitAck, now: float) -> None:
        if message.invocation_id in self._invocations:
            self._input(ACK, message, now)
        else:
            self._note("ack", "an init_ack of another init was ignored")

    def _input(self, what: str, message: Optional[guest_channel.Message], now: float) -> None:
        self.state, action = TRANSITIONS[self.state, what]
        if action is not None:
            action(self, message, now)

    # --- actions of the table ----------------------------------------------------------------------

    def _change(self, _message: object, now: float) -> None:
        self._invocations = ()  # the host has not forgotten us: this one is news
        self._introduce(None, now)

    def _introduce(self, _message: object, now: float) -> None:
        if self._invocations:
            self._note("again", "no host has acknowledged or challenged this guest: init again")
        self._invocations = (*self._invocations[-1:], self._number())
        self._send(self._config.init(self._invocations[-1], self._name))
        self._due = now + self._settings.init_period

    def _acknowledged(self, _message: object, now: float) -> None:
        self._note("enabled", "the host has acknowledged this guest")
        self._due = now + self._patience

    def _answer(self, message: Challenge, now: float) -> None:
        self._due = now + self._patience
        self.answers += 1
        if self._illness is None:
            said = (guest_channel.HEALTHY, self._config.corrective_action, "")
        else:
            said = (guest_channel.UNHEALTHY, self._remedy(self._illness, now), self._illness.reason)
        self._send(ChallengeResponse(message.heartbeat_challenge, *said))

    def _remedy(self, illness: Illness, now: float) -> str:
        """The corrective action to ask for now."""
        if now - self._ill_told_at < self._settings.action_repeat:
            return "none"
        self._ill_told_at = now
        return illness.corrective_action

    def _returned(self, _message: object, now: float) -> None:
        self._due = min(self._due, now + self._settings.return_patience)

    def _rest(self, _message: object, _now: float) -> None:
        self._invocations = ()
        self._due = NEVER

    def _goodbye(self, message: Exit, now: float) -> None:
        self._withdraw()
        self._send(message)
        self._due = NEVER

    def _vanish(self, _message: object, now: float) -> None:
        self._withdraw()
        self._due = NEVER

    # --- votes and notices -------------------------------------------------------------------------

    def _take_question(self, message: ActionNotify, now: float) -> None:
        if self.state == GONE:
            return
        seconds = message.timeout_ms / 1000
        seconds = max(seconds - self._settings.answer_margin, seconds / 2)
        before = self._question
        if before is not None and before.asked[1:3] == message[1:3]:
            self._question = before._replace(asked=message, deadline=now + seconds)
            return
        self._withdraw()
        self._questions += 1
        ballot = Ballot(message.notification_type, self._voters())
        self._question = Question(self._questions, message, now + seconds, ballot)
        if guest_channel.UNKNOWN in message[1:3]:
            self._settle(ERROR, "unknown event_type or notification_type")
        else:
            self._put(message, seconds)

    def _put(self, message: ActionNotify, seconds: float) -> None:
        what = (message.notification_type, message.event_type)
        self._note("question", "the host asks: %s %s, to be answered in %g s" % (*what, seconds))
        self._reports.append(Put(self._questions, *what, seconds))
        self._count()

    def _count(self) -> None:
        """Answer the open question if it is decided."""
        outcome = self._question.ballot.outcome if self._question is not None else None
        if outcome is not None:
            self._settle(*outcome)

    def _settle(self, result: str, reason: str, expired: bool = False) -> None:
        """The open question has its answer; a host that is not there does not get it."""
        question = self._withdraw(expired)
        if question is None:
            return
        asked = question.asked
        what = (asked.notification_type, asked.event_type)
        self._note("answer", "answer to %s %s: %s %s" % (*what, result, reason))
        if self.state in (ENABLING, ENABLED):
            self._send(ActionResponse(asked.invocation_id, asked.event_type, asked.notification_type,
                                      result, reason))  # fmt: skip

    def _withdraw(self, expired: bool = False) -> Optional[Question]:
        """End the open question without a word, and give it back."""
        question, self._question = self._question, None
        if question is not None:
            self._reports.append(Withdrawn(question.number, expired))
        return question

    # --- words -------------------------------------------------------------------------------------

    def _send(self, message: guest_channel.Message) -> None:
        self._sequence = (self._sequence + 1) & guest_channel.INT32_MAX
        self._messages.append(guest_channel.build(message, self._sequence))

    def _note(self, about: str, text: str) -> None:
        self._reports.append(Note(about, text))

    def _output(self) -> Output:
        output = Output(self._messages, self._reports)
        self._messages = []
        self._reports = []
        return output


# (state, input) → the state that follows, and what is done.
TRANSITIONS: Dict[Tuple[str, str], Tuple[str, Optional[Callable[..., None]]]] = {
    (ALONE, OPENED): (ENABLING, Client._introduce),
    (ALONE, CLOSED): (ALONE, None),
    (ALONE, ACK): (ALONE, None),
    (ALONE, CHALLENGE): (ALONE, None),
    (ALONE, DUE): (ALONE, None),
    (ALONE, EXIT): (GONE, Client._vanish),
    (ALONE, CHANGE): (ALONE, None),
    (ENABLING, OPENED): (ENABLING, Client._introduce),
    (ENABLING, CLOSED): (ALONE, Client._rest),
    (ENABLING, ACK): (ENABLED, Client._acknowledged),
    (ENABLING, CHALLENGE): (ENABLING, None),
    (ENABLING, DUE): (ENABLING, Client._introduce),
    (ENABLING, EXIT): (GONE, Client._goodbye),
    (ENABLING, CHANGE): (ENABLING, Client._change),
    (ENABLED, OPENED): (ENABLED, Client._returned),
    (ENABLED, CLOSED): (INTERRUPTED, None),
    (ENABLED, ACK): (ENABLED, None),
    (ENABLED, CHALLENGE): (ENABLED, Client._answer),
    (ENABLED, DUE): (ENABLING, Client._introduce),
    (ENABLED, EXIT): (GONE, Client._goodbye),
    (ENABLED, CHANGE): (ENABLING, Client._change),
    (INTERRUPTED, OPENED): (ENABLED, Client._returned),
    (INTERRUPTED, CLOSED): (INTERRUPTED, None),
    (INTERRUPTED, ACK): (INTERRUPTED, None),
    (INTERRUPTED, CHALLENGE): (INTERRUPTED, None),
    (INTERRUPTED, DUE): (ALONE, Client._rest),
    (INTERRUPTED, EXIT): (GONE, Client._vanish),
    (INTERRUPTED, CHANGE): (ALONE, Client._rest),
    (GONE, OPENED): (GONE, None),
    (GONE, CLOSED): (GONE, None),
    (GONE, ACK): (GONE, None),
    (GONE, CHALLENGE): (GONE, None),
    (GONE, DUE): (GONE, None),
    (GONE, EXIT): (GONE, None),
    (GONE, CHANGE): (GONE, None),
}
