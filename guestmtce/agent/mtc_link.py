"""UDP between guestAgent and mtcAgent, who knows the hosts (docs/protocol/2-datagrams.md#mtcagent).

mtcAgent knows no key: it is believed by its address alone.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from guestmtce.agent.model import LONG_AGO
from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import Resolver, is_address, spelled
from guestmtce.daemon.udp_port import UdpPort
from guestmtce.peer.authentication import Allowed, Candidates
from guestmtce.wire import datagram

log = logging.getLogger(__name__)

CONTROLLER = "controller"
CONTROLLERS = (CONTROLLER, "controller-0", "controller-1")  # the floating address and the hosts' own


# A timer may fire a little early: an interval that is this much of the period has passed.
TIMER_TOLERANCE = 0.99


class HostListener(Protocol):
    """Whoever wants to hear which hosts there are."""

    def host_named(self, cmd: int, record: datagram.HostRecord) -> None:
        """mtcAgent has said ADD_HOST, MOD_HOST or DEL_HOST."""


class MtcLink:
    """The socket.

    mtcAgent is asked often until it has said something, and seldom from then on: of 2,000 hosts in a burst
    some are lost.
    """

    def __init__(
        self,
        loop: Loop,
        settings: AgentSettings,
        listener: HostListener,
        resolver: Resolver,
    ) -> None:
        self.refused = 0
        self.heard = False
        self._loop = loop
        self._settings = settings
        self._listener = listener
        self._asked_at = LONG_AGO
        # True at first: only a question without an answer makes it the next address's turn.
        self._answered = True  # mtcAgent has spoken since it was last asked
        self._throttle = Throttle(log)
        names = [settings.mtc_address, *(name for name in CONTROLLERS if name != settings.mtc_address)]
        for name in names:
            # The controllers' names may not exist here: only the setting's own is worth a line in the log.
            resolver.watch(name, self._address_known, quiet=name != settings.mtc_address)
        self._allowed = Allowed(resolver, names)
        self.port = UdpPort(loop, settings.bind, settings.mtc_cmd_port, self._serve_datagram, resolver)
        self._candidates = Candidates(resolver, settings.mtc_address, self.port)

    def start(self) -> None:
        """Say that we are there, again and again."""
        self.ask_hosts()
        period = self._settings.mtc_refresh if self.heard else self._settings.mtc_ask_period
        self._loop.after(period, self.start)

    def ask_hosts(self) -> None:
        """Ask for the hosts, at most once per `mtc_ask_period`, if mtcAgent's address is known."""
        now = time.monotonic()
        if (
            not self._candidates.current()
            or now - self._asked_at < self._settings.mtc_ask_period * TIMER_TOLERANCE
        ):
            return
        self._asked_at = now
        if not self._answered:
            # Where the name has several addresses one after the other is asked
            # (docs/protocol/2-datagrams.md#addresses-and-names).
            self._candidates.advance()
        self._answered = False
        self.port.send(
            datagram.build_agent_ready(), self._candidates.current(), self._settings.mtc_event_port
        )

    def close(self) -> None:
        """Close the socket."""
        self.port.close()

    def _address_known(self) -> None:
        # What start() could not send without an address goes out now, and not a period later.
        if not self.heard:
            self.ask_hosts()

    def _serve_datagram(self, data: bytes, address: str) -> None:
        # Before a byte is read: a stranger's DEL_HOST would make every guest of the host forgotten.
        if address not in self._allowed:
            self.refused += 1
            text = (
                "a datagram from %s was dropped: no address of mtcAgent; if it is one, write its name or"
                " address into [agent] mtc_address (now %s)"
            )
            self._throttle.warning("stranger", text, address, self._settings.mtc_address)
            return
        try:
            frame = datagram.unpack(data)
            record = datagram.parse_host(frame)
            record = record._replace(ip=_spell_address(record.ip))
        except datagram.BadDatagram as bad:
            self.refused += 1
            self._throttle.warning("bad", "mtcAgent's datagram from %s was dropped: %s", address, bad)
            return
        self.heard = self._answered = True
        self._listener.host_named(frame.cmd, record)


def _spell_address(ip: str) -> str:
    """As a socket spells it. A name would be looked up whenever something is sent there, and block us.

    DEL_HOST bears none. Raises BadDatagram.
    """
    if not ip:
        return ""
    if not is_address(ip):
        raise datagram.BadDatagram("'ip' is no address but %r" % ip)
    return spelled(ip)
