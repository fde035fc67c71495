"""A VIM that behaves like the real one on the wire, and its client.

docs/protocol/3-vim-http.md#how-the-vims-server-behaves
docs/protocol/3-vim-http.md#how-the-vims-client-behaves

The server is serial and speaks HTTP/1.0: one request at a time, in the order of the connections, and the
reply ends with the connection. For `service` and `action` events, and for all that it refuses, it closes
without a single byte. A request whose client has given up is processed all the same.
"""

from __future__ import annotations

import http.client
import http.server
import json
import signal
import socket
import struct
import threading
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from guestmtce.wire import vim_http

Listing = List[Tuple[str, str, bool]]  # uuid, hostname, reporting
SERVE_POLL = 0.02  # s at most until `stop` is noticed
STALL_POLL = 0.01  # s between two looks whether it is to go on
COMMAND_TIMEOUT = 20.0  # s; the VIM's own (docs/protocol/3-vim-http.md#how-the-vims-client-behaves)
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER (socket(7)): a close resets the connection


class Vim:
    """The stand-in. `arrived` has every request that it has read, `record` those that it processed.

    Switches, to be thrown while it runs:

    - `delay`: s before a request is looked at
    - `hang`: never answer; `hang_at`: hang from the next event of this type on
    - `reset`: answer with a reset
    - `status`: answer with this status and process nothing (0: off); `turned_down` has these requests
    - `drip`: s between two bytes of the answer to a PATCH, which holds up no other one (0.0: off); `drips`
      says what drips: "body", "head" or "status"
    - `known`: the uuids of the instances that it knows (None: all)
    - `hosts`: uuid → reporting; `instances`: host's uuid → list
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0, record_file: str = "") -> None:
        self.arrived: List[Dict[str, Any]] = []
        self.record: List[Dict[str, Any]] = []
        self.delay = 0.0
        self.hang = False
        self.hang_at = ""
        self.reset = False
        self.status = 0
        self.turned_down: List[Dict[str, Any]] = []
        self.drip = 0.0
        self.drips = "body"
        self.dead = False
        self.stalled_until = 0.0  # s, monotonic
        self.known: Optional[List[str]] = None
        self.hosts: Dict[str, bool] = {}
        self.instances: Dict[str, Listing] = {}
        self.changed = threading.Condition()
        self._record_file = record_file
        self._address = address
        self.port = port
        self._server: Optional[http.server.HTTPServer] = None
        self._thread: Optional[threading.Thread] = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return "http://%s:%d" % (self._address, self.port)

    def start(self) -> None:
        """Come up, after `stop` on the same port again."""
        stand_in = self

        class Handler(_Handler):
            vim = stand_in

        self.dead = False
        self._server = _Server((self._address, self.port), Handler)
        # Kept: whoever comes up again is found at the same URL.
        self.port = self._server.server_address[1]
        # HTTPServer and not ThreadingHTTPServer: the VIM serves one request at a time.
        # docs/protocol/3-vim-http.md#how-the-vims-server-behaves
        self._thread = threading.Thread(target=self._server.serve_forever, args=(SERVE_POLL,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Go down: connections are refused."""
        if self._server is not None and self._thread is not None:
            # A handler that hangs would keep the server's thread from ending.
            self.hang = False
            self.stalled_until = 0.0
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def stall(self, seconds: float) -> None:
        """Stand still, then go on with all that has come, in its order."""
        self.stalled_until = time.monotonic() + seconds

    def die(self) -> None:
        """Go down at once: what has come and was not processed is reset."""
        # Before `stop`, which waits for the handler: one that is under way sees it and resets its connection.
        self.dead = True
        self.stop()

    def serves(self, server: http.server.HTTPServer) -> bool:
        """Whether `server` is its server: it is up and has not been started anew."""
        return self._server is server and not self.dead

    def wait_while_stalled(self) -> None:
        """Wait until it goes on, or dies."""
        while not self.dead and (self.hang or time.monotonic() < self.stalled_until):
            time.sleep(STALL_POLL)

    def note(self, entry: Dict[str, Any]) -> None:
        """Record that the request `entry` was processed, and write it to the file, if there is one."""
        # In the server's thread; `changed` lets a test in another thread wait for it.
        entry["processed"] = time.monotonic()
        with self.changed:
            self.record.append(entry)
            self.changed.notify_all()
        if self._record_file:
            with open(self._record_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def events(self, event_type: str = "", uuid: str = "") -> List[Dict[str, Any]]:
        """The events processed so far, of this type and instance.

        `at` is when it was looked at, `processed` when its work was done (s, monotonic).
        """
        with self.changed:
            record = list(self.record)
        return [
            entry
            for entry in record
            if entry["method"] == "PATCH"
            and event_type in ("", entry["body"]["event-type"])
            and uuid in ("", entry["body"]["uuid"])
        ]

    def answer(self, method: str, path: str, body: Any) -> Optional[Dict[str, Any]]:
        """The JSON object that the real VIM would reply with; None: it would close without a byte."""
        if method == "PATCH":
            if self.known is not None and body.get("uuid") not in self.known:
                return None
            # An empty close is success to `service` and `action`: only an alarm gets a body.
            # docs/protocol/3-vim-http.md#how-the-vims-server-behaves
            return {"uuid": body.get("uuid"), "services": []} if body.get("event-type") == "alarm" else None
        host = path.rpartition("=")[2] if "host_uuid=" in path else path.rpartition("/")[2]
        if path.startswith(vim_http.EVENT_PATH + "instances/?"):
            if host not in self.instances:
                return None
            return {"instances": [_make_entry(*entry) for entry in self.instances[host]]}
        if path.startswith(vim_http.EVENT_PATH + "instances"):
            return self._answer_instance(host)
        if host not in self.hosts or "hostname" not in body:  # it takes the name from the body
            return None
        return vim_http.host_reply(host, body["hostname"], self.hosts[host])

    def _answer_instance(self, uuid: str) -> Optional[Dict[str, Any]]:
        if self.known is not None and uuid not in self.known:
            return None
        entries = [entry for listing in self.instances.values() for entry in listing if entry[0] == uuid]
        return _make_entry(*(entries[0] if entries else (uuid, "", True)))


def _make_entry(uuid: str, hostname: str, reporting: bool) -> Dict[str, Any]:
    """docs/protocol/3-vim-http.md#questions-to-the-vim"""
    state = "enabled" if reporting else "disabled"
    return {"uuid": uuid, "hostname": hostname, "services": [{"service": "heartbeat", "state": state}]}


class _Server(http.server.HTTPServer):
    # A VIM that is stopped and started gets its port back at once, whatever connections are in TIME_WAIT.
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dripping: Set[Any] = set()  # connections that a thread of their own answers

    def shutdown_request(self, request: Any) -> None:
        """The request is served, unless its answer drips."""
        if request not in self.dripping:
            super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """A client that gave up waiting is no event."""


# What a dripping answer begins with, and goes on with for ever.
_DRIPS = {
    "body": (b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "head": (b"HTTP/1.0 200 OK\r\n", b"X-More: 1\r\n"),
    "status": (b"HTTP/1.0 ", b" "),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    vim: Vim
    server: _Server

    def _serve(self) -> None:
        stand_in = self.vim
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            return  # the client has gone
        body = json.loads(data) if data else {}
        entry = {"at": time.monotonic(), "method": self.command, "path": self.path, "body": body}
        entry["headers"] = dict(self.headers.items())
        # Before any switch is looked at: a request counts as arrived though nothing ever comes of it.
        stand_in.arrived.append(entry)
        if stand_in.hang_at and body.get("event-type") == stand_in.hang_at:
            # This event is the first that gets no answer.
            stand_in.hang_at, stand_in.hang = "", True
        # The server has one thread, so a request that waits here holds up all behind it, as in the VIM.
        if stand_in.delay:
            time.sleep(stand_in.delay)
        stand_in.wait_while_stalled()
        if stand_in.status:
            stand_in.turned_down.append(entry)
            self.send_error(stand_in.status)
            return
        if stand_in.reset or stand_in.dead:
            # The client sees ECONNRESET, as from a VIM that was killed, and not the empty reply of a success.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.connection.close()
            return
        # Before the reply: the real VIM processes a request whose client has gone, too.
        entry["processed"] = time.monotonic()
        stand_in.note(entry)
        reply = stand_in.answer(self.command, self.path, body)
        if reply is not None and stand_in.drip and self.command == "PATCH":
            # From now on the thread closes the connection, and the server goes on with the next one.
            self.server.dripping.add(self.connection)
            threading.Thread(target=self._drip, daemon=True).start()
        elif reply is not None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

    def _drip(self) -> None:
        """Answer a byte at a time, until the client has had enough."""
        begun, drop = _DRIPS[self.vim.drips]
        seconds = self.vim.drip
        try:
            self.connection.sendall(begun)
            # `hang` and `stalled_until` do not hold up what drips: it has begun.
            while self.vim.serves(self.server):
                self.connection.sendall(drop)
                time.sleep(seconds)
        except OSError:
            pass
        self.connection.close()
        self.server.dripping.discard(self.connection)

    do_GET = do_PATCH = _serve

    def log_message(self, *_: Any) -> None:
        pass


class CommandClient:
    """Sends the VIM's commands to guestAgent as the VIM sends them (docs/protocol/3-vim-http.md#commands).

    Every method returns the status and the JSON body of the reply, None for an empty body.
    """

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._port = port

    def command(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Optional[Dict[str, str]] = None,
        data: Optional[bytes] = None,
    ) -> Tuple[int, Any]:
        """A request under /v1/ with a JSON `body`, or with the bytes `data` in its place.

        `headers` are added to the VIM's own, or take their places; an empty one is left out.
        """
        # A connection for each command, as the VIM makes them.
        connection = http.client.HTTPConnection(self._address, self._port, timeout=COMMAND_TIMEOUT)
        if data is None and body is not None:
            data = json.dumps(body).encode()
        sent = {
            "User-Agent": vim_http.VIM_USER_AGENT,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "X-Auth-Token": "lab",
            "Connection": "close",
            **(headers or {}),
        }
        try:
            connection.request(method, "/v1/" + path, data, {key: sent[key] for key in sent if sent[key]})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def host(self, method: str, uuid: str, hostname: str, word: str = "") -> Tuple[int, Any]:
        """A host command; `word` is enable, disable or nothing."""
        path = "hosts/%s%s" % (uuid, "/" + word if word else "")
        body = None if method == "DELETE" else {"uuid": uuid, "hostname": hostname}
        return self.command(method, path, body)

    def create(self, uuid: str, hostname: str) -> Tuple[int, Any]:
        """Instance create."""
        body = {"uuid": uuid, "hostname": hostname, "services": ["heartbeat"]}
        return self.command("POST", "instances/" + uuid, body)

    def set(self, uuid: str, hostname: str, state: str) -> Tuple[int, Any]:
        """Instance set: `state` is enabled or disabled."""
        services = [{"service": "heartbeat", "state": state}]
        body = {"uuid": uuid, "hostname": hostname, "services": services}
        return self.command("PATCH", "instances/" + uuid, body)

    def query(self, uuid: str) -> Tuple[int, Any]:
        """Instance query."""
        return self.command("GET", "instances/" + uuid)

    def delete(self, uuid: str) -> Tuple[int, Any]:
        """Instance delete."""
        return self.command("DELETE", "instances/" + uuid)

    def ask(self, word: str, uuid: str, hostname: str, action: str) -> Tuple[int, Any]:
        """`word` is vote or notify."""
        body = {"uuid": uuid, "hostname": hostname, "action": action}
        return self.command("POST", "instances/%s/%s" % (uuid, word), body)


def run(port: int, record_file: str) -> int:
    """The command `guestmtce lab vim`: serve until a signal comes. Returns the exit status."""
    stand_in = Vim(port=port, record_file=record_file)
    stand_in.start()
    print("the VIM listens at %s" % stand_in.url, flush=True)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        stand_in.stop()
