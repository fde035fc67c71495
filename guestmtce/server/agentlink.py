"""UDP between this guestServer and its guestAgent (spec 2, `docs/datagrams.md`).

We speak to the controller's address until an agent has spoken to us, and from then on to whoever spoke
last, so that a switch of controllers is seen. Always to the agent's port, whatever port it sent from.

An agent that speaks our extension confirms what it is told, and is told it again until it does. To an old
one everything is said once: it would act on every repetition.
"""

from __future__ import annotations

import collections
import logging
import time
from typing import Callable, Deque, Dict, List, NamedTuple, Optional, Tuple

from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.daemon.peers import Allowed, Speaker
from guestmtce.daemon.reliable import SEEN_MAX, Outgoing, Seen
from guestmtce.daemon.udp import Port
from guestmtce.server.guest import Key, Tell
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram, extension
from guestmtce.wire.extension import Tag

log = logging.getLogger(__name__)

# Answers to a query are paced: an old agent's buffer holds about 92 full datagrams.
ANSWERS_A_TURN = 16
REPEATED = extension.WANTS_ACK | extension.TAKES_MARKS  # flags of an event


class Handlers(NamedTuple):
    """Whom to call: with a command, with the key of what was confirmed, and for a guest's present state."""

    command: Callable[[datagram.Command], None]
    told: Callable[[Key], None]
    info: Callable[[str], Optional[datagram.InstanceInfo]]


class _Said:
    """`once`: there was an address to say it to. `vim`: the VIM to which an agent is telling it; 0: none."""

    __slots__ = ("once", "tell", "vim")

    def __init__(self, tell: Tell, once: bool) -> None:
        self.tell = tell
        self.once = once
        self.vim = 0


class AgentLink:
    """The socket. `sender` names this guestServer, over restarts too; `number` makes numbers."""

    def __init__(
        self,
        loop: Loop,
        settings: ServerSettings,
        sender: int,
        number: Callable[[], int],
        handlers: Handlers,
    ) -> None:
        self.refused = 0
        self.agent = ""
        self._loop = loop
        self._settings = settings
        self._number = number
        self._handlers = handlers
        self._heard = False
        self._outgoing = Outgoing()
        self._repeat: Optional[Timer] = None
        self._seen = Seen()
        self._latest: Dict[str, Tuple[int, int]] = {}  # what is commanded → by whom, number
        self._answers: Deque[str] = collections.deque()
        self._pacing = False
        self._throttle = Throttle(log)
        self._speaker = Speaker(settings.key(), sender)
        self._route_in = b"agent>" + settings.hostname.encode()
        self._route_out = b"server>" + settings.hostname.encode()
        self.port = Port(loop, settings.bind, settings.rx_port, self._serve)
        self._allowed = Allowed(self.port, settings.agent_names())

    @property
    def waiting(self) -> int:
        """How much the agent has not confirmed yet."""
        return len(self._outgoing)

    def start(self) -> None:
        """Say that we are there, again and again until an agent answers."""
        if not self._heard:
            # A name service that hangs blocks us here, but only while no agent has spoken to us: there is
            # nobody to report to, and the guests' heartbeats are the children's.
            self.agent = self.port.resolve(self._settings.controller)
            self._say_ready(self.agent)
            self._loop.after(self._settings.ready_repeat, self.start)

    def tell(self, tell: Tell) -> None:
        """Tell the agent, until it has confirmed or `untell` says that it is no longer true."""
        if self._speaker.spoken is False:
            self._say(tell, 0)
            self._handlers.told(tell.key)
            return
        said = _Said(tell, bool(self.agent))
        self._say(tell, REPEATED)
        self._outgoing.add(tell.key, tell.number, said, time.monotonic())
        self._schedule()

    def untell(self, key: Key) -> None:
        """It is no longer true."""
        self._outgoing.drop(key)

    def answer(self, uuids: List[str]) -> None:
        """Answer a query about these, at a pace that the far side's buffer bears, with what is then true."""
        self._answers = collections.deque(uuids)
        if not self._pacing:
            self._send_answers()

    def close(self) -> None:
        """Close the socket."""
        self.port.close()

    # --- out ---------------------------------------------------------------------------------------

    def _say(self, tell: Tell, flags: int, vim: int = 0) -> None:
        event = tell.event
        if (
            isinstance(event, datagram.InstanceInfo)
            and tell.cmd == datagram.LOSS
            and not self._speaker.spoken
        ):
            event = datagram.Loss(event.hostname, event.uuid)  # spec 2: no more than who it is
        data = datagram.build_event(tell.cmd, event, full=not self._speaker.spoken)
        self._send(data, Tag(flags, number=tell.number, vim=vim))

    def _send(self, data: bytes, tag: Tag, address: str = "") -> None:
        address = address or self.agent
        if address:
            data = self._speaker.dress(data, tag, self._route_out)
            self.port.send(data, address, self._settings.agent_port)
        else:
            self._throttle.warning("agent", "no address of guestAgent: not told")

    def _say_ready(self, address: str) -> None:
        ready = datagram.Ready(self._settings.hostname)
        self._send(datagram.build_event(datagram.MONITOR_READY, ready), Tag(), address)

    def _send_answers(self) -> None:
        for _ in range(min(ANSWERS_A_TURN, len(self._answers))):
            info = self._handlers.info(self._answers.popleft())
            if info is not None:
                data = datagram.build_event(datagram.QRY_INST, info, full=not self._speaker.spoken)
                self._send(data, Tag(number=self._number()))
        self._pacing = bool(self._answers)
        if self._pacing:
            self._loop.after(self._settings.answer_pace, self._send_answers)

    def _schedule(self) -> None:
        due = self._outgoing.next_due
        if self._repeat is None and due != float("inf"):
            self._repeat = self._loop.at(due, self._send_again)

    def _send_again(self) -> None:
        self._repeat = None
        # Only who has shown that he speaks the extension bears a repetition.
        if self._speaker.spoken:
            for message in self._outgoing.due(time.monotonic()):
                self._say(message.content.tell, REPEATED, message.content.vim)
            self._schedule()

    # --- in ----------------------------------------------------------------------------------------

    def _serve(self, data: bytes, address: str) -> None:
        try:
            frame = datagram.unpack(data)
            if frame.signature != datagram.AGENT_SIGNATURE:
                raise datagram.BadDatagram("signature %r" % frame.signature)
            self._speaker.check(data, frame, self._route_in)
            if not self._speaker.sealed and address not in self._allowed:
                raise datagram.BadDatagram("the address is none of a controller")
            tag = extension.read(frame)
            of_event = frame.cmd in (extension.ACK, extension.MARK)
            if tag is None and of_event:
                raise datagram.BadDatagram("a confirmation of nothing")
            command = None if of_event else datagram.parse_command(frame)
        except (datagram.BadDatagram, extension.Refused) as bad:
            self.refused += 1
            self._throttle.warning(address, "a datagram from %s was dropped: %s", address, bad)
            return
        if not self._speaker.introduced(tag):
            if tag is not None and tag.echo:
                self.refused += 1
                self._throttle.warning(address, "a datagram from %s was not for this process", address)
            self._say_ready(address)  # it must learn who we are before we believe it
            return
        self._heard_from(address, tag)
        if frame.cmd == extension.MARK:
            self._mark(tag)
        elif command is None:
            self._confirmed(tag)
        elif self._wanted(command, tag):
            log.debug("%s from %s: %r", datagram.NAMES[frame.cmd], address, command)
            self._handlers.command(command)
        if tag is not None and tag.wants_ack:
            self._send(extension.build_ack(datagram.NO_SIGNATURE), extension.ack_tag(tag))

    def _heard_from(self, address: str, tag: Optional[Tag]) -> None:
        if self.agent != address or not self._heard:
            log.info("guestAgent is at %s", address)
        spoke = self._speaker.spoken
        another = self._speaker.heard(tag) or self.agent != address
        self.agent, self._heard = address, True
        if tag is None:
            for message in self._outgoing.drain():
                # Said once is enough for an old one, but not if it was said to one of ours before it.
                if spoke or not message.content.once:
                    self._say(message.content.tell, 0)
                self._handlers.told(message.content.tell.key)
        elif another:
            self._outgoing.again(time.monotonic())
            if self._repeat is not None:
                self._repeat.cancel()
                self._repeat = None
            self._schedule()

    def _mark(self, tag: Optional[Tag]) -> None:
        """The next agent must know to which VIM this one is telling an event."""
        if tag is not None and tag.acked_sender == self._speaker.sender:
            message = self._outgoing.find(tag.number)
            if message is not None:
                message.content.vim = tag.vim

    def _confirmed(self, tag: Optional[Tag]) -> None:
        if tag is not None and tag.acked_sender == self._speaker.sender:
            message = self._outgoing.acked(tag.number)
            if message is not None:
                self._handlers.told(message.content.tell.key)

    def _wanted(self, command: datagram.Command, tag: Optional[Tag]) -> bool:
        """Whether the command is to be obeyed: it is no repetition, and no newer one overtook it."""
        if tag is None or not tag.wants_ack:
            return True
        if not self._seen.add(tag.sender, tag.number):
            return False
        if isinstance(command, (datagram.SetInstance, datagram.DeleteInstance, datagram.SetHost)):
            about = command.uuid
            sender, number = self._latest.get(about, (0, 0))
            if sender == tag.sender and not extension.newer(tag.number, number):
                return False
            self._latest.pop(about, None)
            if len(self._latest) >= SEEN_MAX:
                del self._latest[next(iter(self._latest))]
            self._latest[about] = (tag.sender, tag.number)
        return True
