"""UDP between guestAgent and the guestServers of all hosts (spec 2)."""

from __future__ import annotations

import logging
from typing import Callable

from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.udp import Port
from guestmtce.wire import datagram

log = logging.getLogger(__name__)


class ServerLink:
    """The socket. `on_event(cmd, event)` gets what the servers tell. Raises OSError from the constructor."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        rx_port: int,
        server_port: int,
        on_event: Callable[[int, datagram.Event], None],
    ) -> None:
        self.refused = 0
        self.port = Port(loop, address, rx_port, self._serve)
        self._address = address
        self._server_port = server_port
        self._on_event = on_event
        self._throttle = Throttle(log)

    def send(self, ip: str, cmd: int, command: datagram.Command) -> None:
        """Send a command to the guestServer at `ip`. Does not block; any thread may call it."""
        log.debug("%s to %s: %r", datagram.NAMES[cmd], ip, command)
        try:
            source = self._address or self.port.own_address(ip)
            self.port.send(datagram.build_command(cmd, source, command), ip, self._server_port)
        except ValueError as error:  # a command too long, or an address that is none
            self._throttle.warning(ip, "%s cannot be sent to %s: %s", datagram.NAMES[cmd], ip, error)

    def close(self) -> None:
        """Close the socket."""
        self.port.close()

    def _serve(self, data: bytes, address: str) -> None:
        try:
            frame = datagram.unpack(data)
            event = datagram.parse_event(frame)
        except datagram.BadDatagram as bad:
            self.refused += 1
            self._throttle.warning(address, "a datagram from %s was dropped: %s", address, bad)
            return
        log.debug("%s from %s: %r", datagram.NAMES[frame.cmd], address, event)
        self._on_event(frame.cmd, event)
