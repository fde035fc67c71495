"""The guest's side of the heartbeat as a state machine: bytes and time in, messages and effects out.

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

- the guest's health (`set_health`): the next answer says so. An illness that lasts asks for its corrective
  action once per `action_repeat`, and for `none` in between.
- the open question (a vote or a notice), with its ballot and its deadline: `answer_margin` before the host
  ceases to wait, and at least after half of that time. It is put to the voters with `AskVoters` and is
  answered when they have decided or its time is up; `WithdrawQuestion` says that their answers do not count
  any more. The same question again while it is open is the same question; another one ends it without an
  answer, as it ended at the host.
"""

from typing import Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Union

from guestmtce.common import NEVER
from guestmtce.common.log_line import INFO, LogLine
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


class AskVoters(NamedTuple):
    """Put a question to the voters; they have `seconds`. `question_id` counts from 1."""

    question_id: int
    notification_type: str
    event_type: str
    seconds: float


class WithdrawQuestion(NamedTuple):
    """What the voters say to this question does not count any more; `expired`: its time is up."""

    question_id: int
    expired: bool = False


Effect = Union[AskVoters, WithdrawQuestion, LogLine]


class Output(NamedTuple):
    """What is to be written to the port, message by message, and what is to be done."""

    messages: List[bytes]
    effects: List[Effect]


class GuestQuestion(NamedTuple):
    """The question that is open, when it will be answered, and what was said to it."""

    question_id: int
    asked: ActionNotify
    deadline: float
    ballot: Ballot


class Client:
    """The heartbeat of this guest. See the module's text.

    `next_invocation_id` makes them, in 0 … 2³¹−1; `voters` says who is to be asked now.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        name: str,
        next_invocation_id: Callable[[], int],
        voters: Callable[[], FrozenSet[str]],
    ) -> None:
        self.state = ALONE
        self.answers = 0
        self._config = config
        self._settings = settings
        self._name = name
        self._next_invocation_id = next_invocation_id
        self._voters = voters
        self._lines = json_lines.LineBuffer()
        self._patience = max(2 * config.interval_ms / 1000, settings.patience)
        self._invocations: Tuple[int, ...] = ()
        self._sequence = 0
        self._due = NEVER
        self._illness: Optional[Illness] = None
        self._ill_told_at = -NEVER
        self._question: Optional[GuestQuestion] = None
        self._questions = 0
        self._messages: List[bytes] = []
        self._effects: List[Effect] = []

    # --- the ways in -------------------------------------------------------------------------------

    def note_opened(self, now: float) -> Output:
        """A host is at the port."""
        # Half a line of the host that hung up is no beginning of what the next one says.
        self._lines = json_lines.LineBuffer()
        self._apply_input(OPENED, None, now)
        return self._drain_output()

    def note_closed(self, now: float) -> Output:
        """The host hung up, or the port is gone."""
        self._apply_input(CLOSED, None, now)
        return self._drain_output()

    def receive(self, data: bytes, now: float) -> Output:
        """The host sent `data`."""
        overflows = self._lines.overflows
        for line in self._lines.feed(data):
            self._handle_line(line, now)
        if self._lines.overflows != overflows:
            self._log("overflow", "a line longer than %d bytes was dropped", json_lines.LINE_MAX)
        return self._drain_output()

    def tick(self, now: float) -> Output:
        """Time has passed; to be called at `deadline`, after the port was drained."""
        question = self._question
        # The answer goes out before an init that is due: an init ends the open question at the host.
        if question is not None and now >= question.deadline:
            self._resolve_question(*question.ballot.outcome_at_deadline(), expired=True)
        if now >= self._due:
            self._apply_input(DUE, None, now)
        return self._drain_output()

    def count_vote(self, question_id: int, voter: str, result: str, reason: str) -> Output:
        """`voter` answers this question. One that is not open any more is nobody's."""
        if self._question is not None and self._question.question_id == question_id:
            self._question.ballot.count_vote(voter, result, reason)
            self._resolve_if_decided()
        return self._drain_output()

    def remove_voter(self, voter: str) -> Output:
        """`voter` is gone."""
        if self._question is not None:
            self._question.ballot.remove_voter(voter)
            self._resolve_if_decided()
        return self._drain_output()

    def set_health(self, illness: Optional[Illness]) -> Output:
        """From now on the guest has this illness, or none."""
        before = self._illness
        # A new illness, or one that asks for another action, asks at once and not after `action_repeat`.
        if before is None or illness is None or before.corrective_action != illness.corrective_action:
            self._ill_told_at = -NEVER
        if illness != before:
            state = "healthy" if illness is None else "ill, corrective action %s: %s" % illness
            self._log("health", "the guest is %s", state)
        self._illness = illness
        return self._drain_output()

    def configure(self, config: Config, now: float) -> Output:
        """The configuration has changed. What the host is to know of it goes out with a new init."""
        before, self._config = self._config, config
        self._patience = max(2 * config.interval_ms / 1000, self._settings.patience)
        # Scripts and their intervals are this guest's own affair. An init for them would look like a restart
        # of the guest, which ends an open question and an expected silence at the host.
        # docs/protocol/1-guest-channel.md#a-guest-that-restarts
        if before.init(0, "") != config.init(0, ""):
            self._apply_input(CHANGE, None, now)
        return self._drain_output()

    def say_goodbye(self, why: str, now: float) -> Output:
        """Say goodbye."""
        self._apply_input(EXIT, Exit(why), now)
        return self._drain_output()

    @property
    def deadline(self) -> float:
        """When `tick` is to be called next."""
        return self._due if self._question is None else min(self._due, self._question.deadline)

    # --- a message ---------------------------------------------------------------------------------

    def _handle_line(self, line: bytes, now: float) -> None:
        try:
            message = guest_channel.parse(line, guest_channel.FROM_HOST)
        except (json_lines.NotAMessage, guest_channel.Refused) as error:
            self._log("garbage", "a line from the host was dropped: %s", error)
            return
        if isinstance(message, Challenge):
            self._apply_input(CHALLENGE, message, now)
        elif isinstance(message, InitAck):
            self._handle_ack(message, now)
        elif isinstance(message, ActionNotify):
            self._handle_question(message, now)
        elif isinstance(message, guest_channel.Nack):
            self._log("nack", "the host refused a message: %s", message.log_msg)

    def _handle_ack(self, message: InitAck, now: float) -> None:
        # The ack of an init may cross with the next init, so that of the one before counts, too.
        # docs/protocol/1-guest-channel.md#init-and-acknowledgement
        if message.invocation_id in self._invocations:
            self._apply_input(ACK, message, now)
        else:
            self._log("ack", "an init_ack of another init was ignored")

    def _apply_input(self, happened: str, message: Optional[guest_channel.Message], now: float) -> None:
        self.state, action = TRANSITIONS[self.state, happened]
        if action is not None:
            action(self, message, now)

    # --- actions of the table ----------------------------------------------------------------------

    def _announce_change(self, _message: object, now: float) -> None:
        self._invocations = ()  # the host has not forgotten us: this one is news
        self._introduce_guest(None, now)

    def _introduce_guest(self, _message: object, now: float) -> None:
        if self._invocations:
            self._log("again", "no host has acknowledged or challenged this guest: init again")
        # This one and the one before: the acks that count.
        self._invocations = (*self._invocations[-1:], self._next_invocation_id())
        self._send_message(self._config.init(self._invocations[-1], self._name))
        self._due = now + self._settings.init_period

    def _note_acknowledged(self, _message: object, now: float) -> None:
        self._log("enabled", "the host has acknowledged this guest")
        self._due = now + self._patience

    def _answer_challenge(self, message: Challenge, now: float) -> None:
        self._due = now + self._patience
        self.answers += 1
        if self._illness is None:
            # The deployed client sends the configured action with a healthy answer, too.
            said = (guest_channel.HEALTHY, self._config.corrective_action, "")
        else:
            said = (guest_channel.UNHEALTHY, self._choose_action(self._illness, now), self._illness.reason)
        self._send_message(ChallengeResponse(message.heartbeat_challenge, *said))

    def _choose_action(self, illness: Illness, now: float) -> str:
        """The corrective action to ask for now."""
        # With an action each unhealthy answer would be told to the VIM; `none` is only logged by the host.
        # docs/protocol/1-guest-channel.md#ill-health
        if now - self._ill_told_at < self._settings.action_repeat:
            return "none"
        self._ill_told_at = now
        return illness.corrective_action

    def _shorten_wait(self, _message: object, now: float) -> None:
        # A host that remembers this guest challenges as soon as it is back. What is left of the patience
        # stays an upper bound: a host that comes and goes does not keep the init away for ever.
        self._due = min(self._due, now + self._settings.return_patience)

    def _forget_host(self, _message: object, _now: float) -> None:
        self._invocations = ()
        self._due = NEVER

    def _send_goodbye(self, message: Exit, now: float) -> None:
        self._withdraw_question()
        self._send_message(message)
        self._due = NEVER

    def _end_silently(self, _message: object, now: float) -> None:
        self._withdraw_question()
        self._due = NEVER

    # --- votes and notices -------------------------------------------------------------------------

    def _handle_question(self, message: ActionNotify, now: float) -> None:
        if self.state == GONE:
            return
        seconds = message.timeout_ms / 1000
        # The host waits exactly as long as it said, and takes silence for agreement: a late `reject` is lost.
        # docs/protocol/1-guest-channel.md#votes-and-notices
        seconds = max(seconds - self._settings.answer_margin, seconds / 2)
        before = self._question
        # Fields 1 and 2 are the event and the kind. The new message is kept for its id and its time; the
        # voters are not asked twice.
        if before is not None and before.asked[1:3] == message[1:3]:
            self._question = before._replace(asked=message, deadline=now + seconds)
            return
        self._withdraw_question()
        self._questions += 1
        ballot = Ballot(message.notification_type, self._voters())
        self._question = GuestQuestion(self._questions, message, now + seconds, ballot)
        # A parser reads a word that the protocol does not have as UNKNOWN; no voter could make sense of it.
        if guest_channel.UNKNOWN in message[1:3]:
            self._resolve_question(ERROR, "unknown event_type or notification_type")
        else:
            self._ask_voters(message, seconds)

    def _ask_voters(self, message: ActionNotify, seconds: float) -> None:
        asked = (message.notification_type, message.event_type)
        self._log("question", "the host asks: %s %s, to be answered in %g s", *asked, seconds)
        self._effects.append(AskVoters(self._questions, *asked, seconds))
        self._resolve_if_decided()

    def _resolve_if_decided(self) -> None:
        """Answer the open question if it is decided."""
        outcome = self._question.ballot.outcome if self._question is not None else None
        if outcome is not None:
            self._resolve_question(*outcome)

    def _resolve_question(self, result: str, reason: str, expired: bool = False) -> None:
        """The open question has its answer; a host that is not there does not get it."""
        question = self._withdraw_question(expired)
        if question is None:
            return
        asked = question.asked
        named = (asked.notification_type, asked.event_type)
        self._log("answer", "answer to %s %s: %s %s", *named, result, reason)
        # In ENABLING, too: the host may ask before its init_ack has come.
        if self.state in (ENABLING, ENABLED):
            self._send_message(ActionResponse(asked.invocation_id, asked.event_type, asked.notification_type,
                                      result, reason))  # fmt: skip

    def _withdraw_question(self, expired: bool = False) -> Optional[GuestQuestion]:
        """End the open question without a word, and give it back."""
        question, self._question = self._question, None
        if question is not None:
            self._effects.append(WithdrawQuestion(question.question_id, expired))
        return question

    # --- what is sent, logged and to be done ---------------------------------------------------------

    def _send_message(self, message: guest_channel.Message) -> None:
        self._sequence = (self._sequence + 1) & guest_channel.INT32_MAX
        self._messages.append(guest_channel.build(message, self._sequence))

    def _log(self, subject: str, text: str, *values: object) -> None:
        self._effects.append(LogLine(INFO, text, values, subject))

    def _drain_output(self) -> Output:
        output = Output(self._messages, self._effects)
        self._messages = []
        self._effects = []
        return output


# The pairs are complete, so that no input is without an answer in any state
# (tests/unit/guest/test_client.py).
# (state, input) → the state that follows, and what is done.
TRANSITIONS: Dict[Tuple[str, str], Tuple[str, Optional[Callable[..., None]]]] = {
    (ALONE, OPENED): (ENABLING, Client._introduce_guest),
    (ALONE, CLOSED): (ALONE, None),
    (ALONE, ACK): (ALONE, None),
    (ALONE, CHALLENGE): (ALONE, None),
    (ALONE, DUE): (ALONE, None),
    (ALONE, EXIT): (GONE, Client._end_silently),
    (ALONE, CHANGE): (ALONE, None),
    (ENABLING, OPENED): (ENABLING, Client._introduce_guest),
    (ENABLING, CLOSED): (ALONE, Client._forget_host),
    (ENABLING, ACK): (ENABLED, Client._note_acknowledged),
    # As the deployed client does: docs/protocol/1-guest-channel.md#what-real-guests-do
    (ENABLING, CHALLENGE): (ENABLING, None),
    (ENABLING, DUE): (ENABLING, Client._introduce_guest),
    (ENABLING, EXIT): (GONE, Client._send_goodbye),
    (ENABLING, CHANGE): (ENABLING, Client._announce_change),
    (ENABLED, OPENED): (ENABLED, Client._shorten_wait),
    (ENABLED, CLOSED): (INTERRUPTED, None),
    (ENABLED, ACK): (ENABLED, None),
    (ENABLED, CHALLENGE): (ENABLED, Client._answer_challenge),
    (ENABLED, DUE): (ENABLING, Client._introduce_guest),
    (ENABLED, EXIT): (GONE, Client._send_goodbye),
    (ENABLED, CHANGE): (ENABLING, Client._announce_change),
    # Not ENABLING: an init would tell a host that remembers this guest that it restarted.
    (INTERRUPTED, OPENED): (ENABLED, Client._shorten_wait),
    (INTERRUPTED, CLOSED): (INTERRUPTED, None),
    (INTERRUPTED, ACK): (INTERRUPTED, None),
    (INTERRUPTED, CHALLENGE): (INTERRUPTED, None),
    (INTERRUPTED, DUE): (ALONE, Client._forget_host),
    (INTERRUPTED, EXIT): (GONE, Client._end_silently),
    # What the host remembers is not true any more: when it is back it gets an init.
    (INTERRUPTED, CHANGE): (ALONE, Client._forget_host),
    (GONE, OPENED): (GONE, None),
    (GONE, CLOSED): (GONE, None),
    (GONE, ACK): (GONE, None),
    (GONE, CHALLENGE): (GONE, None),
    (GONE, DUE): (GONE, None),
    (GONE, EXIT): (GONE, None),
    (GONE, CHANGE): (GONE, None),
}
