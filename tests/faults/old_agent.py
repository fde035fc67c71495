"""A guestAgent of the deployed kind, as a guestServer and the VIM see it.

docs/protocol/2-datagrams.md#an-old-guestagent

It speaks no extension and confirms nothing; the repair action of an alarm is what a state or an answer told
it before, else `log`; each event becomes a request to the VIM, one after the other.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any, Dict, List, Tuple

from guestmtce.wire import datagram, vim_http

Host = Tuple[str, List[str]]  # its address as the agent sees it, its instances


class OldAgent:
    """A context manager: it lives while the context lasts. `period` is its audit's, in s."""

    def __init__(
        self, address: Tuple[str, int], server_port: int, vim_port: int, hosts: List[Host], period: float
    ) -> None:
        self._address = address
        self._server_port = server_port
        self._vim_port = vim_port
        self._hosts = hosts
        self._period = period
        self._actions: Dict[str, str] = {}
        self._beating: Dict[str, bool] = {}
        self._ended = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> OldAgent:
        self._socket.bind(self._address)
        self._socket.settimeout(0.02)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()

    def report(self, uuid: str, reporting: bool, cmd: int = datagram.MOD_INST) -> None:
        """The VIM sets the reporting of an instance."""
        for address, instances in self._hosts:
            if uuid in instances:
                self._send(address, cmd, datagram.SetInstance(uuid, reporting))

    def _live(self) -> None:
        for _, instances in self._hosts:
            for uuid in instances:
                self.report(uuid, True, datagram.ADD_INST)
        next_audit = time.monotonic()
        while not self._ended:
            if time.monotonic() >= next_audit:
                next_audit += self._period
                for address, _ in self._hosts:
                    self._send(address, datagram.QRY_INST, datagram.Query())
            try:
                data, _ = self._socket.recvfrom(2048)
            except OSError:
                continue  # nothing came, or a server that is down said so
            received = datagram.unpack(data)
            self._hear(received.cmd, datagram.parse_event(received))

    def _send(self, address: str, cmd: int, command: datagram.Command) -> None:
        try:
            built = datagram.build_command(cmd, self._address[0], command)
            self._socket.sendto(built, (address, self._server_port))
        except OSError:
            pass

    def _hear(self, cmd: int, event: Any) -> None:
        if isinstance(event, datagram.VoteResult):
            body = vim_http.action_event(
                event.uuid, event.notification_type, event.event_type, event.vote, event.reason
            )
            self._tell(body)
        elif cmd == datagram.LOSS:
            action = self._actions.get(event.uuid, "log")
            self._tell(vim_http.alarm_event(event.uuid, event.hostname, "failed", action))
        elif cmd == datagram.ILLHEALTH:
            self._tell(vim_http.alarm_event(event.uuid, event.hostname, "unhealthy", event.repair_action))
        elif isinstance(event, datagram.InstanceInfo):
            self._hear_state(cmd, event)

    def _hear_state(self, cmd: int, info: datagram.InstanceInfo) -> None:
        beating = info.heartbeating if cmd == datagram.QRY_INST else cmd == datagram.RUNNING
        self._actions[info.uuid] = info.repair_action
        if cmd != datagram.QRY_INST or self._beating.get(info.uuid, False) != beating:
            self._tell(vim_http.service_event(info.uuid, info.hostname, True, beating, info.restart_to))
        self._beating[info.uuid] = beating

    def _tell(self, body: Dict[str, Any]) -> None:
        link = http.client.HTTPConnection("127.0.0.1", self._vim_port, timeout=60)
        try:
            path = vim_http.EVENT_PATH + "instances/" + body["uuid"]
            link.request("PATCH", path, json.dumps(body), {"Content-Type": "application/json"})
            link.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass  # a close without a byte is how success looks; the rest is lost with this kind
        finally:
            link.close()
