"""An mtcAgent as far as guestAgent sees one: it answers MONITOR_READY with its hosts.

docs/protocol/2-datagrams.md#mtcagent
"""

from __future__ import annotations

import socket
import threading
from typing import Dict, List, Optional

from guestmtce.wire import datagram
from guestmtce.wire.datagram import HostRecord


class MtcAgent:
    """Listens on `event_port`, speaks to guestAgent's `command_port`. `hosts` may change while it runs."""

    def __init__(self, hosts: List[HostRecord], address: str, event_port: int, command_port: int) -> None:
        self.hosts: Dict[str, HostRecord] = {host.hostname: host for host in hosts}
        self.asked = 0
        self._agent = (address, command_port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, event_port))
        self._thread: Optional[threading.Thread] = None
        self._stopping = False

    def start(self) -> None:
        """Answer from now on."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._stopping = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def say(self, cmd: int, host: HostRecord) -> None:
        """ADD_HOST, MOD_HOST or DEL_HOST, unasked."""
        if cmd == datagram.DEL_HOST:
            self.hosts.pop(host.hostname, None)
        else:
            self.hosts[host.hostname] = host
        self._socket.sendto(datagram.build_host(cmd, host), self._agent)

    def _serve(self) -> None:
        while True:
            data, _ = self._socket.recvfrom(2048)
            if self._stopping:
                return
            if datagram.unpack(data).cmd == datagram.MONITOR_READY:
                self.asked += 1
                for host in list(self.hosts.values()):
                    self._socket.sendto(datagram.build_host(datagram.ADD_HOST, host), self._agent)


def run(hosts: List[HostRecord], address: str, event_port: int, command_port: int) -> int:
    """The command `guestmtce lab mtcagent`: until a signal comes."""
    stand_in = MtcAgent(hosts, address, event_port, command_port)
    print("mtcAgent knows %d hosts" % len(hosts), flush=True)
    try:
        stand_in._serve()
    except KeyboardInterrupt:
        pass
    return 0
