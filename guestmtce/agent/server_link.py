"""UDP between guestAgent and the guestServers of all hosts.

docs/protocol/2-datagrams.md#confirmed-and-repeated

A guestServer that speaks our extension confirms a command, and gets it again until it does; a newer command
about the same takes the place of the older. An old one gets each command once; the audit repairs the rest.
A query is repeated until it is confirmed, too, or the next audit asks anew: who hears nothing of us for long
follows another.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Dict, NamedTuple, Optional, Protocol

from guestmtce.agent.command_rules import (
    CommandKey,
    RepeatedCommand,
    choose_expiry,
    enables_reporting,
    hides_disabling,
    key_command,
    key_query,
    tells_disabling,
)
from guestmtce.agent.effects import Send
from guestmtce.agent.model import Origin
from guestmtce.common import NEVER
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.daemon.resolver import Resolver
from guestmtce.daemon.udp_port import UdpPort
from guestmtce.peer.authentication import NO_KEYS, Keys, Speaker, new_nonce
from guestmtce.peer.retransmit import BLOCK, Message, Outgoing, Sequences
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import GOODBYE, Seal, SealRefused, Tag

log = logging.getLogger(__name__)

# For so long an unconfirmed command with ANEW keeps failures of its instance out
# (docs/protocol/2-datagrams.md#confirmed-and-repeated). A server that never confirms is heard after that.
ENABLING_MAX = 10.0  # s
IN_FLIGHT = 0.5  # s; and what was sent before the confirmation may arrive so much later than it
PEERS_MAX = 8192  # addresses to which we speak; more than hosts in any cloud
STRANGERS_MAX = 512  # other addresses remembered: servers of hosts that mtcAgent has not named yet


class ReceivedEvent(NamedTuple):
    """An event, from where, and what to confirm (None: nothing). `sealed`: the key counts, no address.

    `vim`: the VIM to which an agent was telling it, 0: none is known. `still_ill`: it is a RUNNING, and an
    illness of before goes on.
    """

    cmd: int
    event: datagram.Event
    address: str
    origin: Optional[Origin]
    wants_ack: bool
    sealed: bool
    vim: int = 0
    still_ill: bool = False


class ServerListener(Protocol):
    """Whoever wants to hear what the guestServers say."""

    def server_said(self, received: ReceivedEvent) -> None:
        """A believed event; called in the loop, without the lock."""

    def disabling_sent(self, uuid: str) -> None:
        """A command goes out that tells its server that reporting is disabled, or was; under the lock."""

    def disabling_heard(self, uuid: str) -> None:
        """The server has heard of it, or needs not any more; under the lock."""


class Endpoint(NamedTuple):
    """Where this agent listens (`address` empty: everywhere), and the port of every guestServer."""

    address: str
    rx_port: int
    server_port: int


class _Peer:
    def __init__(self, hostname: str, speaker: Speaker) -> None:
        self.hostname = hostname
        self.speaker = speaker
        self.outgoing = Outgoing()
        self.takes_marks = False


class ServerLink:
    """The socket. Its methods are called under `lock`, or take it.

    Raises OSError from the constructor.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        lock: threading.Lock,
        listener: ServerListener,
        keys: Keys = NO_KEYS,
        resolver: Optional[Resolver] = None,
    ) -> None:
        self.refused = 0
        self._loop = loop
        self._server_port = endpoint.server_port
        self._lock = lock
        self._listener = listener
        self._seal = Seal(*keys)
        # One number is sender and nonce: unlike a guestServer's, an agent's sender need not outlive its
        # process.
        self._sender = new_nonce()
        self._speaker = Speaker(self._seal, self._sender, self._sender)
        blocks = itertools.count(1, BLOCK)
        self._sequences = Sequences(lambda _: next(blocks))
        self._questions = itertools.count(1)
        self._queries = Outgoing()  # to all; apart from commands, which keep a peer from being forgotten
        self._disabling_heard: Dict[str, float] = {}  # uuid → when that was confirmed, the first one first
        self._peers: Dict[str, _Peer] = {}
        self._strangers: Dict[str, _Peer] = {}
        self._repeat: Optional[Timer] = None
        self._scheduling = False
        self._throttle = Throttle(log)
        self.port = UdpPort(loop, endpoint.address, endpoint.rx_port, self._serve_datagram, resolver)

    @property
    def unconfirmed(self) -> int:
        """How many commands no server has confirmed yet."""
        return sum(len(peer.outgoing) for peer in self._peers.values())

    def send_command(self, send: Send) -> None:
        """Send a command, again and again until it is confirmed; under the lock. Does not block."""
        peer = self._peer_at(send.ip, send.hostname)
        log.debug("%s to %s: %r", datagram.NAMES[send.cmd], send.ip, send.command)
        # An old server confirms nothing and acts on every repetition: it is told once, and audited.
        key = key_command(send, next(self._questions))
        if key is None or peer.speaker.speaks_extension is False:
            self._send_tagged(send, peer, Tag())
            return
        sequence = self._sequences.next_sequence()
        flags = datagram_ext.WANTS_ACK
        # A command that takes the place of an unconfirmed one must not hide that reporting was off between.
        if send.anew or (enables_reporting(send.command) and hides_disabling(peer.outgoing.pending(key))):
            flags |= datagram_ext.ANEW
        # Before it is sent: this process may end at any moment.
        self._note_disabling(send.command, flags)
        if self._send_tagged(send, peer, Tag(flags, number=sequence)):
            now = time.monotonic()
            outgoing = self._queries if isinstance(send.command, datagram.Query) else peer.outgoing
            outgoing.add(key, sequence, RepeatedCommand(send, flags), now, choose_expiry(send, now))
            self._schedule_soon()

    def enables_anew(self, ip: str, uuid: str) -> bool:
        """Whether this server may not know yet that reporting was disabled, and is enabled again.

        What it tells of the instance's failures is from before, and it withdraws that when it hears. One that
        does not confirm for ENABLING_MAX s is heard all the same, and one that has after IN_FLIGHT s. To be
        called under the lock.
        """
        now = time.monotonic()
        if now < self._disabling_heard.get(uuid, -NEVER) + IN_FLIGHT:
            return True
        peer = self._peers.get(ip)
        message = peer.outgoing.pending(CommandKey("instance", uuid)) if peer is not None else None
        return (
            message is not None
            and bool(message.content.flags & datagram_ext.ANEW)
            and now - message.since < ENABLING_MAX
        )

    def confirm_event(self, origin: Origin) -> None:
        """The server need not tell us that again; under the lock."""
        # Not _peer_at: whoever is only confirmed takes no place among the peers.
        peer = self._speaker_at(origin.ip)
        tag = datagram_ext.ack_tag(Tag(sender=origin.sender, number=origin.sequence))
        self._seal_and_send(datagram_ext.build_ack(datagram.AGENT_SIGNATURE), tag, origin.ip, peer)

    def mark_event(self, origin: Origin, vim: int) -> None:
        """The event is under way to this VIM (0: no more), should another agent ask; under the lock."""
        # A mark is not repeated: the server shows what it has with the event's next repetition.
        peer = self._peers.get(origin.ip)
        if peer is not None and peer.takes_marks:
            tag = datagram_ext.mark_tag(Tag(sender=origin.sender, number=origin.sequence), vim)
            self._seal_and_send(datagram_ext.build_mark(datagram.AGENT_SIGNATURE), tag, origin.ip, peer)

    def drop_server(self, ip: str) -> None:
        """Nothing more is to be said to this server; under the lock."""
        peer = self._peers.pop(ip, None)
        if peer is not None:
            self._drain_commands(peer)
        self._queries.drop(key_query(ip))

    def reload_keys(self, keys: Keys) -> None:
        """Take the keys as they are now; under the lock."""
        if self._seal.change_keys(*keys):
            log.info("the key shared with guestServers was changed")
            if not self._seal:
                log.warning("no [security] key_file any more: guestServers are believed by their addresses")

    def close(self) -> None:
        """Say goodbye to every server, so that it follows the next agent at once, and close the socket."""
        with self._lock:
            for ip, peer in self._peers.items():
                # An old server ignores a LOOPBACK.
                goodbye = Send(peer.hostname, ip, datagram.LOOPBACK, datagram.Loopback())
                self._send_tagged(goodbye, peer, Tag(GOODBYE))
        self.port.close()

    # --- out ---------------------------------------------------------------------------------------

    def _peer_at(self, ip: str, hostname: str) -> _Peer:
        """The server at `ip`, to which we speak."""
        peer = self._peers.get(ip)
        if peer is None:
            if len(self._peers) >= PEERS_MAX:
                # One with nothing to confirm is made anew at no cost when it speaks again.
                idle = (one for one, known in self._peers.items() if not known.outgoing)
                del self._peers[next(idle, next(iter(self._peers)))]
            peer = self._peers[ip] = self._speaker_at(ip)
            self._strangers.pop(ip, None)
        peer.hostname = hostname or peer.hostname
        return peer

    def _speaker_at(self, address: str) -> _Peer:
        """Whoever speaks from `address`. A stranger pushes out strangers only."""
        return self._peers.get(address) or self._strangers.get(address) or self._new_peer()

    def _remember_peer(self, address: str, peer: _Peer, hostname: str) -> None:
        peer.hostname = hostname or peer.hostname
        if address not in self._peers and address not in self._strangers:
            if len(self._strangers) >= STRANGERS_MAX:
                del self._strangers[next(iter(self._strangers))]
            self._strangers[address] = peer

    def _new_peer(self) -> _Peer:
        return _Peer("", self._speaker.for_another())

    def _send_tagged(self, send: Send, peer: _Peer, tag: Tag) -> bool:
        try:
            source = self.port.address or self.port.own_address(send.ip)
            self._seal_and_send(datagram.build_command(send.cmd, source, send.command), tag, send.ip, peer)
            return True
        except ValueError as error:  # a command too long, or an address that is none
            text = "%s cannot be sent to the guestServer at %s: %s"
            self._throttle.warning("send", text, datagram.NAMES[send.cmd], send.ip, error)
            return False

    def _seal_and_send(self, data: bytes, tag: Tag, ip: str, peer: _Peer) -> None:
        route = b"agent>" + peer.hostname.encode()
        self.port.send(peer.speaker.tag_and_seal(data, tag, route), ip, self._server_port)

    def _schedule_soon(self) -> None:
        if not self._scheduling:  # once for all that is sent in a burst: it looks at every host
            self._scheduling = True
            # A timer is set in the loop's thread alone; commands come from those of the VIM.
            self._loop.call_from_thread(self._schedule_resend)

    def _schedule_resend(self) -> None:
        with self._lock:
            self._scheduling = False
            waiting = [peer.outgoing for peer in self._peers.values() if peer.outgoing] + [self._queries]
            due = min((outgoing.next_due for outgoing in waiting), default=NEVER)
        if due == NEVER or (self._repeat is not None and self._repeat.when <= due):
            return
        if self._repeat is not None:
            self._repeat.cancel()
        self._repeat = self._loop.at(due, self._resend_due)

    def _resend_due(self) -> None:
        self._repeat = None
        now = time.monotonic()
        with self._lock:
            for message in self._queries.due(now):
                self._resend(message, self._speaker_at(message.content.send.ip))
            for peer in self._peers.values():
                # A server that has not shown yet which kind it is gets it once: it may be an old one.
                for message in peer.outgoing.due(now):
                    if peer.speaker.speaks_extension:
                        self._resend(message, peer)
        self._schedule_resend()

    def _resend(self, message: Message, peer: _Peer) -> None:
        self._send_tagged(message.content.send, peer, Tag(message.content.flags, number=message.sequence))

    # --- in ----------------------------------------------------------------------------------------

    def _serve_datagram(self, data: bytes, address: str) -> None:
        try:
            # Nothing is noted of a sender before its seal has passed.
            frame = datagram.unpack(data)
            tag = datagram_ext.read_tag(frame)
            event: Optional[datagram.Event] = (
                None if frame.cmd == datagram_ext.ACK else datagram.parse_event(frame)
            )
            with self._lock:
                peer = self._speaker_at(address)
                # A confirmation names no host: it was sealed for the host that last spoke from there.
                hostname = event.hostname if event is not None else peer.hostname
                peer.speaker.check(data, frame, b"server>" + hostname.encode())
                self._remember_peer(address, peer, hostname)
                believed = self._is_believed(peer, address, frame.cmd, tag)
        except (datagram.BadDatagram, SealRefused) as bad:
            self.refused += 1
            self._throttle.warning("dropped", "a datagram from %s was dropped: %s", address, bad)
            return
        if believed and event is not None:
            log.debug("%s from %s: %r", datagram.NAMES[frame.cmd], address, event)
            origin = Origin(address, tag.sender, tag.number) if tag is not None and tag.number else None
            wants_ack = tag is not None and tag.wants_ack
            vim, still_ill = (tag.vim, tag.is_still_ill) if tag is not None else (0, False)
            self._listener.server_said(
                ReceivedEvent(frame.cmd, event, address, origin, wants_ack, bool(self._seal), vim, still_ill)
            )

    def _is_believed(self, peer: _Peer, address: str, cmd: int, tag: Optional[Tag]) -> bool:
        """Note what the datagram says of its sender; whether it is to be listened to."""
        if not peer.speaker.knows_this_process(tag):
            if cmd == datagram.MONITOR_READY:
                return True  # it cannot know us yet, and asks for no more than our state
            # The query echoes the sender's nonce and bears ours: what it repeats then, it repeats to us
            # (docs/protocol/2-datagrams.md#the-seal).
            self._send_tagged(Send(peer.hostname, address, datagram.QRY_INST, datagram.Query()), peer, Tag())
            return False
        # Only what is repeated bears the flag (docs/protocol/2-datagrams.md#marks): a confirmation or an
        # answer without it takes nothing back.
        if tag is None or tag.wants_ack:
            peer.takes_marks = tag is not None and bool(tag.flags & datagram_ext.TAKES_MARKS)
        if peer.speaker.note_peer(tag):
            if tag is None:
                # An old server confirms nothing and acts on every repetition.
                self._drain_commands(peer)
                self._queries.drop(key_query(address))
            else:
                # Its first word, or another process: that one has heard nothing yet.
                peer.outgoing.again(time.monotonic())
                self._schedule_soon()
        # An ACK of what the agent before this one sent bears that one's sender, and perhaps a number of ours.
        if cmd == datagram_ext.ACK and tag is not None and tag.acked_sender == self._sender:
            self._note_confirmation(peer, address, tag.number)
        return True

    def _note_confirmation(self, peer: _Peer, address: str, sequence: int) -> None:
        message = peer.outgoing.confirm(sequence)
        if message is not None:
            self._note_heard(message)
        query = self._queries.find(sequence)
        # One host cannot confirm for another.
        if query is not None and query.key == key_query(address):
            self._queries.confirm(sequence)

    def _drain_commands(self, peer: _Peer) -> None:
        for message in peer.outgoing.drain():
            self._note_heard(message)

    def _note_disabling(self, command: datagram.Command, flags: int) -> None:
        if isinstance(command, datagram.SetInstance) and tells_disabling(command, flags):
            self._listener.disabling_sent(command.uuid)
        elif isinstance(command, datagram.DeleteInstance):
            self._listener.disabling_heard(command.uuid)

    def _note_heard(self, message: Message) -> None:
        command, now = message.content.send.command, time.monotonic()
        if not (
            isinstance(command, datagram.SetInstance) and tells_disabling(command, message.content.flags)
        ):
            return
        self._listener.disabling_heard(command.uuid)
        self._disabling_heard.pop(command.uuid, None)
        self._disabling_heard[command.uuid] = now
        while self._disabling_heard[next(iter(self._disabling_heard))] < now - IN_FLIGHT:
            del self._disabling_heard[next(iter(self._disabling_heard))]
