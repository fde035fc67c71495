"""UDP between this guestServer and its guestAgent (docs/protocol/2-datagrams.md#confirmed-and-repeated).

We speak to the controller's address until an agent has spoken to us, and from then on to the one that is
followed (`following`), so that a switch of controllers is seen. Always to the agent's port, whatever port it
sent from.

An agent that speaks our extension confirms what it is told, and is told it again until it does. To an old
one everything is said once, because it would act on every repetition (`old_agent`). One that has just started
hears of a failure when it names the instance, or, if it names none, after a while.
"""

from __future__ import annotations

import logging
import time
from typing import Callable, Dict, List, NamedTuple, Optional

from guestmtce.common import NEVER
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.daemon.resolver import LookUp, Resolver, look_up
from guestmtce.daemon.udp_port import UdpPort
from guestmtce.peer.authentication import Allowed, Candidates, Keys, Speaker
from guestmtce.peer.retransmit import Outgoing
from guestmtce.server.answers import Answers
from guestmtce.server.following import CommandOrder, Following, Identity, ReceivedDatagram
from guestmtce.server.old_agent import OldAgent
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state.effects import ReportEvent
from guestmtce.server.state.guest import FAILURES, PendingKey
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Seal, SealRefused, Tag

log = logging.getLogger(__name__)

OTHERS_MAX = 16  # addresses of agents that are not followed, remembered
UNCONFIRMED_PERIOD = 300.0  # s between two complaints about the same agent
REPEATED = datagram_ext.WANTS_ACK | datagram_ext.TAKES_MARKS  # flags of an event


class Handlers(NamedTuple):
    """Whom to call: with a command, with the key of an event that was confirmed, for a guest's present state,
    for what is to be sent under a key (None: nothing any more), and with the address of the agent that is
    followed from now on, empty if none is.
    """

    command: Callable[[datagram.Command], None]
    confirmed: Callable[[PendingKey], None]
    info: Callable[[str], Optional[datagram.InstanceInfo]]
    report: Callable[[PendingKey], Optional[ReportEvent]]
    followed: Callable[[str], None] = lambda _: None


class _SentEvent:
    """What the link knows of an event that is to be confirmed. What is to be sent stands in the table alone.

    `address`: where it was sent first; nowhere if nobody was there. `vim`: the VIM to which an agent is
    telling it; 0: none.
    """

    __slots__ = ("address", "key", "vim")

    def __init__(self, key: PendingKey, address: str) -> None:
        self.key = key
        self.address = address
        self.vim = 0


class AgentLink:
    """The socket. `sender` names this guestServer, over restarts too; `next_sequence` makes numbers.
    `followed_before` is what `Handlers.followed` was called with at last before a restart.

    Raises OSError from the constructor.
    """

    def __init__(
        self,
        loop: Loop,
        settings: ServerSettings,
        sender: int,
        next_sequence: Callable[[], int],
        handlers: Handlers,
        ask_names: LookUp = look_up,
        followed_before: str = "",
    ) -> None:
        self.refused = self.not_followed = 0
        self.agent = ""
        self._loop = loop
        self._settings = settings
        self._next_sequence = next_sequence
        self._handlers = handlers
        self._outgoing = Outgoing()
        self._old_agent = OldAgent(
            lambda report: self._send_event(report, 0), next_sequence, handlers.info, handlers.report
        )
        self._grace: Optional[Timer] = None  # of an old agent that may have just started
        self._repeat: Optional[Timer] = None
        self._order = CommandOrder()
        self._answers = Answers(loop, settings.answer_pace, self._send_info)
        self._asker = ""  # whose query was served last
        self._throttle = Throttle(log)
        self._complaints = Throttle(log, UNCONFIRMED_PERIOD)
        self._followed = followed_before
        self._following = Following(settings.agent_silence, followed_before, time.monotonic())
        self._stood_still = loop.stood_still  # s, of which the agent's silence is excused
        self._others: Dict[str, Speaker] = {}  # by address: those that are not followed
        self._named: Dict[str, None] = {}  # of these, in the log
        self._seal = Seal(*settings.keys())
        self._speaker = Speaker(self._seal, sender)  # with the agent that is followed
        self._route_in = b"agent>" + settings.hostname.encode()
        self._route_out = b"server>" + settings.hostname.encode()
        self._resolver = Resolver(loop, settings.resolve_first, settings.resolve_period, ask_names)
        self._allowed = Allowed(self._resolver, settings.agent_names())
        self.port = UdpPort(loop, settings.bind, settings.rx_port, self._serve_datagram, self._resolver)
        self._candidates = Candidates(self._resolver, settings.controller, self.port)
        self._resolver.watch(settings.controller, self._controller_known)
        for name in settings.agent_names():
            self._resolver.watch(name, quiet=name in settings.controller_hosts())

    @property
    def waiting(self) -> int:
        """How much the agent has not confirmed yet."""
        return len(self._outgoing)

    def start(self) -> None:
        """Say that we are there, again and again until an agent answers."""
        self._loop.after(self._settings.unconfirmed_warn, self._check_unconfirmed)
        self._send_ready_again()

    def report_event(self, report: ReportEvent) -> None:
        """Send the agent this until it has confirmed it, or `withdraw_event` says that it is over."""
        # Something newer is to be said under this key: what the old agent heard of it is not true any more.
        self._old_agent.withdraw_event(report.key)
        old = self._speaker.speaks_extension is False
        # A failure waits while an old agent may have just started: it drops what it hears of an instance
        # before it has named it.
        if old and not (self._grace is not None and report.key.kind in FAILURES):
            self._report_to_old(report)
            return
        if not old:
            self._send_event(report, REPEATED)
        nobody = old or self._following.said_goodbye
        sent = _SentEvent(report.key, "" if nobody else self.agent)
        self._outgoing.add(report.key, report.sequence, sent, time.monotonic(), report.until)
        self._schedule_repeat()

    def withdraw_event(self, key: PendingKey) -> None:
        """It is no longer true."""
        self._outgoing.drop(key)
        self._old_agent.withdraw_event(key)

    def answer_query(self, uuids: List[str]) -> None:
        """Answer the query that is being served about these, with what is then true."""
        # The query may be another agent's: the answer goes to the asker, and changes nothing of who is
        # followed.
        self._answers.answer_query(uuids, self._asker or self.agent)

    def reload_keys(self, keys: Keys) -> None:
        """Take the keys as they are now."""
        if self._seal.change_keys(*keys):
            log.info("the key shared with guestAgent was changed")
            if not self._seal:
                log.warning("no [security] key_file any more: guestAgent is believed by its address")

    def complaint(self) -> str:
        """What is wrong with the agent, for people; empty if nothing is."""
        age = time.monotonic() - self._outgoing.since
        if age < self._settings.unconfirmed_warn:
            return ""
        unconfirmed = "(%d unconfirmed since %d s ago)" % (self.waiting, age)
        if self._following.current is None:
            text = "no guestAgent has spoken to us %s: --controller %s"
            return text % (unconfirmed, self._settings.controller)
        text = "guestAgent does not take our events %s: its log says why, if it knows this host as %s"
        return text % (unconfirmed, self._settings.hostname)

    def close(self) -> None:
        """Close the socket."""
        self._resolver.close()
        self.port.close()

    # --- out ---------------------------------------------------------------------------------------

    def _send_event(self, report: ReportEvent, flags: int, vim: int = 0) -> None:
        event = report.event
        # An old agent takes the repair action from the state: who may be one gets the instance's whole state.
        full = not self._speaker.speaks_extension
        if full and report.cmd == datagram.LOSS and isinstance(event, datagram.InstanceInfo):
            event = datagram.Loss(event.hostname, event.uuid)  # as in docs/protocol/2-datagrams.md#events
        if report.still_ill:
            flags |= datagram_ext.STILL_ILL
        data = datagram.build_event(report.cmd, event, full=full)
        self._send_datagram(data, Tag(flags, number=report.sequence, vim=vim), self._speaker, self.agent)

    def _send_datagram(self, data: bytes, tag: Tag, speaker: Speaker, address: str) -> None:
        if address:
            data = speaker.tag_and_seal(data, tag, self._route_out)
            self.port.send(data, address, self._settings.agent_port)
        elif self._resolver.addresses(self._settings.controller):  # if it has none, that has been said once
            text = "guestAgent is not told: --bind %s reaches no address of --controller %s"
            bind = self._settings.bind or "(all)"
            self._throttle.warning("agent", text, bind, self._settings.controller)

    def _send_ready(self, address: str, speaker: Speaker) -> None:
        ready = datagram.Ready(self._settings.hostname)
        self._send_datagram(datagram.build_event(datagram.MONITOR_READY, ready), Tag(), speaker, address)

    def _send_ready_again(self) -> None:
        if self._following.current is None:
            self._try_controller()
            self._loop.after(self._settings.ready_repeat, self._send_ready_again)

    def _try_controller(self) -> None:
        """Say that we are there to one of the controller's addresses, another one each time."""
        address = self._candidates.current()
        if address:
            self.agent = address
            self._candidates.advance()
            self._send_ready(address, self._speaker)

    def _controller_known(self) -> None:
        if self._following.current is None and not self.agent:
            self._try_controller()

    def _send_info(self, uuid: str, address: str) -> None:
        """The answer to a query about this instance, if it is still known."""
        info = self._handlers.info(uuid)
        if info is not None:
            speaker = self._speaker if address == self.agent else self._others.get(address, self._speaker)
            data = datagram.build_event(datagram.QRY_INST, info, full=not speaker.speaks_extension)
            self._send_datagram(data, Tag(number=self._next_sequence()), speaker, address)

    def _schedule_repeat(self) -> None:
        """Have `_send_again` called when the first message is due or has expired."""
        # Without repetitions an event still expires, and is then to be forgotten.
        due = self._outgoing.next_due if self._repeats else self._outgoing.next_end
        if self._repeat is not None:
            if self._repeat.when <= due:
                return
            self._repeat.cancel()
            self._repeat = None
        if due != NEVER:
            self._repeat = self._loop.at(due, self._send_again)

    @property
    def _repeats(self) -> bool:
        """Only who has shown that he speaks the extension, and is there, bears a repetition."""
        return bool(self._speaker.speaks_extension) and not self._following.said_goodbye

    def _send_again(self) -> None:
        self._repeat = None
        now = time.monotonic()
        for message in self._outgoing.expire(now):
            key = message.content.key
            log.info("%s: nobody waits for its %s any more", key.uuid, key)
            self._handlers.confirmed(key)
        if self._repeats:
            for message in self._outgoing.due(now):
                self._repeat_event(message.content)
        self._schedule_repeat()

    def _repeat_event(self, sent: _SentEvent) -> None:
        # State, not news: what is sent is what the table says now, not what it said when it was first sent.
        report = self._handlers.report(sent.key)
        if report is not None:
            self._send_event(report, REPEATED, sent.vim)
        else:
            self._outgoing.drop(sent.key)

    def _check_unconfirmed(self) -> None:
        self._loop.after(self._settings.unconfirmed_warn, self._check_unconfirmed)
        complaint = self.complaint()
        if complaint:
            self._complaints.warning("unconfirmed", "%s", complaint)

    # --- out, to old agents ------------------------------------------------------------------------

    def _report_to_old(self, report: ReportEvent) -> None:
        """Once, if somebody still wants it."""
        if report.until > time.monotonic():
            self._old_agent.report_event(report)
        self._handlers.confirmed(report.key)

    def _report_waiting_to_old(self, uuid: str = "") -> None:
        """To an old agent: what it has not heard yet, of one instance or of all."""
        for message in self._outgoing.messages():
            key = message.content.key
            if not uuid or key.uuid == uuid:
                self._hand_to_old(key)

    def _hand_to_old(self, key: PendingKey) -> None:
        self._outgoing.drop(key)
        report = self._handlers.report(key)
        if report is not None:
            self._report_to_old(report)

    def _end_grace(self) -> None:
        self._grace = None
        if self._speaker.speaks_extension is False:
            self._report_waiting_to_old()

    # --- in ----------------------------------------------------------------------------------------

    def _serve_datagram(self, data: bytes, address: str) -> None:
        try:
            received = self._read_datagram(data, address)
        except (datagram.BadDatagram, SealRefused) as bad:
            self.refused += 1
            self._throttle.warning("dropped", "a datagram from %s was dropped: %s", address, bad)
            return
        identity = received.identity
        speaker = self._speaker_with(identity)
        if not speaker.knows_this_process(received.tag):
            # An echo of a nonce that is not ours: it was said to a process before us, or is a replay.
            if received.tag is not None and received.tag.echo:
                self.refused += 1
                self._throttle.warning("nonce", "a datagram from %s was not for this process", address)
            self._send_ready(address, speaker)  # it must learn who we are before we believe it
        elif self._admits_sender(identity):
            # Followed before it is obeyed: its command's effects go to it already.
            self._follow_sender(received, speaker)
            self._obey_sender(received)
        else:
            speaker.note_peer(received.tag)
            self._answer_other(received)

    def _read_datagram(self, data: bytes, address: str) -> ReceivedDatagram:
        """Raises BadDatagram or SealRefused for what cannot be believed."""
        frame = datagram.unpack(data)
        if frame.signature != datagram.AGENT_SIGNATURE:
            raise datagram.BadDatagram("signature %r" % frame.signature)
        # The seal before the address: whoever has the key may speak from any address.
        self._speaker.check(data, frame, self._route_in)
        if not self._speaker.sealed and address not in self._allowed:
            text = "it is no address of --controller %s or of [security] agents, as far as they are known"
            raise datagram.BadDatagram(text % self._settings.controller)
        tag = datagram_ext.read_tag(frame)
        of_event = frame.cmd in (datagram_ext.ACK, datagram_ext.MARK)
        if tag is None and of_event:
            raise datagram.BadDatagram("an ACK or mark without our extension: it names no event")
        command = None if of_event else datagram.parse_command(frame)
        return ReceivedDatagram(frame.cmd, command, tag, address)

    def _admits_sender(self, identity: Identity) -> bool:
        now = time.monotonic()
        # Each stretch in which this host stood still is excused once.
        self._following.excuse_silence(self._loop.stood_still - self._stood_still)
        self._stood_still = self._loop.stood_still
        return self._following.admit_speaker(identity, now)

    def _speaker_with(self, identity: Identity) -> Speaker:
        if self._following.is_current(identity):
            return self._speaker
        if identity.address not in self._others:
            if len(self._others) >= OTHERS_MAX:
                del self._others[next(iter(self._others))]
            self._others[identity.address] = self._speaker.for_another()
        return self._others[identity.address]

    def _follow_sender(self, received: ReceivedDatagram, speaker: Speaker) -> None:
        """The sender is the agent that is followed; it may be a new one."""
        spoke = self._speaker.speaks_extension
        moved = speaker is not self._speaker or self.agent != received.address
        another = speaker.note_peer(received.tag) or moved
        if moved:
            if self.agent != received.address or spoke is None:
                log.info("guestAgent is at %s", received.address)
            self._others.pop(received.address, None)
            self._named.pop(received.address, None)
        self._speaker, self.agent = speaker, received.address
        self._note_followed(received.address)
        if another and received.tag is None:
            self._meet_old(spoke)
        elif another:
            self._meet_ours()

    def _note_followed(self, address: str) -> None:
        if address != self._followed:
            self._followed = address
            self._handlers.followed(address)

    def _meet_ours(self) -> None:
        """One that confirms: it hears all that nobody confirmed, at once."""
        now = time.monotonic()
        for report in self._old_agent.pop_failures():
            sent = _SentEvent(report.key, self.agent)
            self._outgoing.add(report.key, report.sequence, sent, now, report.until)
        # The waits between repetitions have grown with its predecessor's silence, not with its own.
        self._outgoing.again(now)
        self._schedule_repeat()

    def _meet_old(self, spoke: Optional[bool]) -> None:
        """One that confirms nothing; `spoke`: whether the agent before it spoke our extension."""
        for message in self._outgoing.messages():
            key = message.content.key
            if spoke is None and self._was_heard(message.content):
                # Said once is enough for an old one, but not if it was said to one of ours before it.
                self._outgoing.drop(key)
                self._old_agent.note_said(key)
                self._handlers.confirmed(key)
            # A failure waits until this agent has named the instance, or until the grace below is over.
            elif key.kind not in FAILURES:
                self._hand_to_old(key)
        if self._grace is not None:
            self._grace.cancel()
        self._grace = self._loop.after(self._settings.old_agent_grace, self._end_grace)

    def _was_heard(self, sent: _SentEvent) -> bool:
        """Whether the old agent that has begun to speak got what was said to the controller before.

        It may speak from another address than the one that it listens to. But of several addresses of the
        controller only one may be listened to.
        """
        several = len(self._candidates.addresses()) > 1
        return sent.address == self.agent or bool(sent.address and not several)

    def _obey_sender(self, received: ReceivedDatagram) -> None:
        """Serve what the agent that is followed has sent."""
        tag, command = received.tag, received.command
        if tag is not None and tag.is_goodbye:
            log.info("guestAgent at %s stops", received.address)
            self._following.note_goodbye()
            self._note_followed("")
        elif received.cmd == datagram_ext.MARK:
            self._note_mark(tag)
        elif command is None:
            self._note_confirmation(tag)
        elif self._order.admit_command(command, tag):
            log.debug("%s from %s: %r", datagram.NAMES[received.cmd], received.address, command)
            self._asker = received.address
            self._carry_out_command(received, command)
        # After it was carried out (docs/protocol/2-datagrams.md#confirmed-and-repeated). One that was obeyed
        # before is confirmed again: its ACK was lost.
        if tag is not None and tag.wants_ack:
            ack = datagram_ext.build_ack(datagram.NO_SIGNATURE)
            self._send_datagram(ack, datagram_ext.ack_tag(tag), self._speaker, self.agent)

    def _carry_out_command(self, received: ReceivedDatagram, command: datagram.Command) -> None:
        # Flag 16: without the disabling in between, this enabling would change nothing, and answers of before
        # would count.
        if received.tag is not None and received.tag.is_anew:
            self._disable_first(command)
        if received.tag is not None or not isinstance(command, datagram.SetInstance):
            self._handlers.command(command)
            return
        known = self._handlers.info(command.uuid) is not None
        self._handlers.command(command)
        if known and received.cmd == datagram.ADD_INST:
            self._old_agent.introduce_instance(command.uuid)
        # It knows the instance from now on, and so takes what is said of it.
        self._report_waiting_to_old(command.uuid)

    def _disable_first(self, command: datagram.Command) -> None:
        """That reporting was disabled before this has not come, or later than this."""
        if isinstance(command, (datagram.SetInstance, datagram.SetHost)) and command.reporting:
            self._handlers.command(command._replace(reporting=False))

    def _answer_other(self, received: ReceivedDatagram) -> None:
        """Another agent than the one that is followed: it may ask, and changes nothing."""
        self.not_followed += 1
        address, current = received.address, self._following.current
        if address not in self._named and len(self._named) < OTHERS_MAX:
            self._named[address] = None
            followed = current.address if current is not None else "the one of before our restart"
            text = "another guestAgent at %s is not obeyed: %s is, until it stops or is silent for %g s"
            log.warning(text, address, followed, self._settings.agent_silence)
        if isinstance(received.command, datagram.Query):
            self._asker = address
            self._handlers.command(received.command)

    def _note_mark(self, tag: Optional[Tag]) -> None:
        """The next agent must know to which VIM this one is telling an event."""
        if tag is not None and tag.acked_sender == self._speaker.sender:
            message = self._outgoing.find(tag.number)
            if message is not None:
                message.content.vim = tag.vim

    def _note_confirmation(self, tag: Optional[Tag]) -> None:
        if tag is not None and tag.acked_sender == self._speaker.sender:
            message = self._outgoing.confirm(tag.number)
            if message is not None:
                self._handlers.confirmed(message.content.key)
