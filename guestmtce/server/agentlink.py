"""UDP between this guestServer and its guestAgent (spec 2).

We speak to the controller's address until an agent has spoken to us, and from then on to whoever spoke
last, so that a switch of controllers is seen. Always to the agent's port, whatever port it sent from.
"""

from __future__ import annotations

import collections
import logging
from typing import Callable, Deque, List

from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.udp import Port
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram

log = logging.getLogger(__name__)

# Answers to a query are paced: an old agent's buffer holds about 92 full datagrams.
ANSWERS_A_TURN = 16
ANSWERS_MAX = 20_000  # queued at most; a new query starts anew


class AgentLink:
    """The socket. `on_command` gets what an agent wants; `Query` too, answered by `answer`."""

    def __init__(
        self, loop: Loop, settings: ServerSettings, on_command: Callable[[datagram.Command], None]
    ) -> None:
        self.refused = 0
        self.agent = ""
        self._loop = loop
        self._settings = settings
        self._on_command = on_command
        self._answers: Deque[bytes] = collections.deque(maxlen=ANSWERS_MAX)
        self._pacing = False
        self._heard = False
        self._throttle = Throttle(log)
        self.port = Port(loop, settings.bind, settings.rx_port, self._serve)

    def start(self) -> None:
        """Say that we are there, again and again until an agent answers."""
        if not self._heard:
            # A name service that hangs blocks us here, but only while no agent has spoken to us: there is
            # nobody to report to, and the guests' heartbeats are the children's.
            self.agent = self.port.resolve(self._settings.controller)
            self.tell(datagram.MONITOR_READY, datagram.Ready(self._settings.hostname))
            self._loop.after(self._settings.ready_repeat, self.start)

    def tell(self, cmd: int, event: datagram.Event) -> None:
        """Send an event now."""
        self._send(datagram.build_event(cmd, event))

    def answer(self, infos: List[datagram.InstanceInfo]) -> None:
        """Answer a query, at a pace that the far side's buffer bears."""
        self._answers.clear()
        self._answers.extend(datagram.build_event(datagram.QRY_INST, info) for info in infos)
        if not self._pacing:
            self._send_answers()

    def close(self) -> None:
        """Close the socket."""
        self.port.close()

    def _send_answers(self) -> None:
        for _ in range(min(ANSWERS_A_TURN, len(self._answers))):
            self._send(self._answers.popleft())
        self._pacing = bool(self._answers)
        if self._pacing:
            self._loop.after(self._settings.answer_pace, self._send_answers)

    def _send(self, data: bytes) -> None:
        if self.agent:
            self.port.send(data, self.agent, self._settings.agent_port)
        else:
            text = "an event is lost: no agent has spoken to us, and %s has no address"
            self._throttle.warning("nobody", text, self._settings.controller)

    def _serve(self, data: bytes, address: str) -> None:
        try:
            frame = datagram.unpack(data)
            if frame.signature != datagram.AGENT_SIGNATURE:
                raise datagram.BadDatagram("signature %r" % frame.signature)
            command = datagram.parse_command(frame)
        except datagram.BadDatagram as bad:
            self.refused += 1
            self._throttle.warning(address, "a datagram from %s was dropped: %s", address, bad)
            return
        if self.agent != address or not self._heard:
            log.info("guestAgent is at %s", address)
        self.agent = address
        self._heard = True
        log.debug("%s from %s: %r", datagram.NAMES[frame.cmd], address, command)
        self._on_command(command)
