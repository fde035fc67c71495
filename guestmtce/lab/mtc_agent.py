"""An mtcAgent as far as guestAgent sees one: it answers MONITOR_READY with its hosts.

docs/protocol/2-datagrams.md#mtcagent
"""

from __future__ import annotations

import socket
import threading
from typing import Dict, List, Optional

from guestmtce.wire import datagram
from guestmtce.wire.datagram import HostRecord

DATAGRAM_MAX = 2048  # bytes; guestAgent's have datagram.FULL_SIZE at most


class MtcAgent:
    """Listens on `event_port`, speaks to guestAgent's `command_port`. `asked` counts MONITOR_READY.

    `hosts`: name → what it says of the host, which may change while it runs.
    """

    def __init__(self, hosts: List[HostRecord], address: str, event_port: int, command_port: int) -> None:
        self.hosts: Dict[str, HostRecord] = {host.hostname: host for host in hosts}
        self.asked = 0
        self._agent = (address, command_port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, event_port))
        self._thread: Optional[threading.Thread] = None
        self._stopping = False

    def start(self) -> None:
        """Answer from now on, in a thread of its own."""
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._stopping = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            # The thread waits in recvfrom() without a time-out.
            waker.sendto(b"", self._socket.getsockname())
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def say(self, cmd: int, host: HostRecord) -> None:
        """Send ADD_HOST, MOD_HOST or DEL_HOST, as `cmd` says, unasked."""
        if cmd == datagram.DEL_HOST:
            self.hosts.pop(host.hostname, None)
        else:
            self.hosts[host.hostname] = host
        self._socket.sendto(datagram.build_host(cmd, host), self._agent)

    def serve(self) -> None:
        """Answer, in this thread, until `stop` is called in another."""
        while True:
            data, _ = self._socket.recvfrom(DATAGRAM_MAX)
            if self._stopping:
                return
            if datagram.unpack(data).cmd == datagram.MONITOR_READY:
                self.asked += 1
                # A copy: `say` changes the table from another thread.
                for host in list(self.hosts.values()):
                    self._socket.sendto(datagram.build_host(datagram.ADD_HOST, host), self._agent)


def run(hosts: List[HostRecord], address: str, event_port: int, command_port: int) -> int:
    """The command `guestmtce lab mtcagent`: serve until a signal comes. Returns the exit status."""
    stand_in = MtcAgent(hosts, address, event_port, command_port)
    print("mtcAgent knows %d hosts" % len(hosts), flush=True)
    try:
        stand_in.serve()
    except KeyboardInterrupt:
        pass
    return 0
