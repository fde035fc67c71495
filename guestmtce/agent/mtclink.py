"""UDP between guestAgent and mtcAgent, who knows the hosts (spec 2, "mtcAgent ↔ guestAgent")."""

from __future__ import annotations

import ipaddress
import logging
import time
from typing import Callable

from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.udp import Port
from guestmtce.wire import datagram

log = logging.getLogger(__name__)


class MtcLink:
    """`on_host(cmd, record)` gets what mtcAgent says. `ask` is repeated until it has said something."""

    def __init__(
        self, loop: Loop, settings: AgentSettings, on_host: Callable[[int, datagram.HostRecord], None]
    ) -> None:
        self.refused = 0
        self.heard = False
        self._loop = loop
        self._settings = settings
        self._on_host = on_host
        self._asked_at = -float("inf")
        self._throttle = Throttle(log)
        self.port = Port(loop, settings.bind, settings.mtc_cmd_port, self._serve)

    def start(self) -> None:
        """Say that we are there, again and again until mtcAgent has named a host."""
        if not self.heard:
            self.ask()
            self._loop.after(self._settings.mtc_ask_period, self.start)

    def ask(self) -> None:
        """Ask for the hosts, at most once per `mtc_ask_period`."""
        now = time.monotonic()
        if now - self._asked_at >= self._settings.mtc_ask_period * 0.99:
            self._asked_at = now
            address = self.port.resolve(self._settings.mtc_address)
            if address:
                self.port.send(datagram.build_agent_ready(), address, self._settings.mtc_event_port)

    def close(self) -> None:
        """Close the socket."""
        self.port.close()

    def _serve(self, data: bytes, address: str) -> None:
        try:
            frame = datagram.unpack(data)
            record = datagram.parse_host(frame)
            record = record._replace(ip=_address(record.ip))
        except datagram.BadDatagram as bad:
            self.refused += 1
            self._throttle.warning(address, "mtcAgent's datagram from %s was dropped: %s", address, bad)
            return
        self.heard = True
        self._on_host(frame.cmd, record)


def _address(ip: str) -> str:
    """As a socket spells it. A name would be looked up whenever something is sent there, and block us.

    DEL_HOST bears none.
    """
    try:
        return str(ipaddress.ip_address(ip)) if ip else ""
    except ValueError:
        raise datagram.BadDatagram("'ip' is no address but %r" % ip) from None
