"""The VIM's commands: CherryPy on one side, the inventory on the other (spec 3, "Commands").

A request passes four gates (who asks, for what, how, with which body), each with the answer that the
deployed VIM survives: always a JSON object, never a 401. Behind the gates is a table of handlers, which
never wait: what a command sets off is sent from elsewhere.

CherryPy's bus is not started: it would take our signals. Its server runs in a thread of its own.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import Any, Callable, Dict, Optional, Tuple

import cherrypy
from cherrypy import _cprequest, _cpserver

from guestmtce.daemon.log import Throttle
from guestmtce.wire import channel, vim
from guestmtce.wire.vim import Failure

log = logging.getLogger(__name__)

PATH = re.compile(r"/v1/(hosts|instances)/([^/]+)(?:/([^/]+))?/?")
WITH_BODY = ("POST", "PUT", "PATCH")
START_WAIT = 5.0  # s
BACKLOG = 128  # connections that wait to be accepted; one too many costs its client a second
DRAIN_MAX = 1024 * 1024  # bytes of a refused body that are still read, so that the answer arrives

# handler(inventory, uuid, body) → the reply; None is answered with 204
Handler = Callable[[Any, str, bytes], Optional[Dict[str, Any]]]
Apply = Callable[[Callable[[Any], Any]], Any]


# --- the handlers ----------------------------------------------------------------------------------


def _host_create(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    inventory.host(uuid)
    return vim.PASS


def _host_enable(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    vim.parse_named(uuid, body)
    inventory.host_reporting(uuid, True)
    return vim.PASS


def _host_disable(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    vim.parse_named(uuid, body)
    inventory.host_reporting(uuid, False)
    return vim.PASS


def _host_query(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    host = inventory.host(uuid)
    return vim.host_reply(uuid, host.name, inventory.host_enabled(host))


def _host_delete(inventory: Any, uuid: str, body: bytes) -> None:
    return None  # hosts are mtcAgent's


def _create(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    inventory.create(vim.parse_create(uuid, body))
    return vim.PASS


def _set(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    return dict(inventory.set(*vim.parse_set(uuid, body)))


def _query(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    return dict(inventory.reply(uuid))


def _delete(inventory: Any, uuid: str, body: bytes) -> None:
    inventory.delete(uuid)


def _vote(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    named, event = vim.parse_action(uuid, body)
    return dict(inventory.ask(named, channel.VOTE, event, time.monotonic()))


def _notify(inventory: Any, uuid: str, body: bytes) -> Dict[str, Any]:
    named, event = vim.parse_action(uuid, body)
    return dict(inventory.ask(named, channel.NOTICE, event, time.monotonic()))


ROUTES: Dict[Tuple[str, Optional[str]], Dict[str, Handler]] = {
    ("hosts", None): {"POST": _host_create, "GET": _host_query, "DELETE": _host_delete},
    ("hosts", "enable"): {"PUT": _host_enable},
    ("hosts", "disable"): {"PUT": _host_disable, "GET": _host_query},  # the VIM queries by this path
    ("instances", None): {"POST": _create, "PATCH": _set, "GET": _query, "DELETE": _delete},
    ("instances", "vote"): {"POST": _vote},
    ("instances", "notify"): {"POST": _notify},
}


# --- the gates -------------------------------------------------------------------------------------


def route(method: str, path: str, user_agent: Optional[str]) -> Tuple[Handler, str]:
    """The handler of a request, and the uuid in its path. Raises Failure 403, 405."""
    if user_agent is not None and user_agent != vim.VIM_USER_AGENT:
        raise Failure(403, vim.PARSE_ERROR, "User-Agent %s" % user_agent)
    match = PATH.fullmatch(path)
    methods = ROUTES.get((match.group(1), match.group(3))) if match else None
    if match is None or methods is None:
        raise Failure(403, vim.PARSE_ERROR, "unknown path")
    if method not in methods:
        raise Failure(405, vim.UNSUPPORTED, "unsupported method")
    return methods[method], match.group(2)


def read_body(request: Any, handler: Handler) -> bytes:
    """The request's body. Raises Failure 411 where one is needed and there is none, 413 for a large one."""
    length = request.headers.get("Content-Length")
    chunked = "Transfer-Encoding" in request.headers
    if not chunked and (length is None or length.strip() == "0"):
        if request.method in WITH_BODY and handler is not _host_create:
            raise Failure(411, vim.NO_BUFFER, "no body")
        return b""
    size = int(length) if length is not None and not chunked else DRAIN_MAX
    try:
        data = bytes(request.rfile.read(min(size, DRAIN_MAX)))
    except (OSError, ValueError) as error:
        raise Failure(400, vim.PARSE_ERROR, "the body breaks off: %s" % error) from None
    if max(len(data), 0 if chunked else size) > vim.BODY_MAX:
        raise Failure(413, vim.NO_BUFFER, "a body of more than %d bytes" % vim.BODY_MAX)
    return data


class Commands:
    """The HTTP server. `apply(f)` calls f(inventory) under the lock and carries out what follows from it."""

    def __init__(self, address: str, port: int, threads: int, apply: Apply) -> None:
        self.served = self.refused = 0
        self._apply = apply
        self._throttle = Throttle(log)
        self._error: Optional[BaseException] = None
        config = {"/": {"request.dispatch": self._dispatch, "error_page.default": _error_page}}
        cherrypy.config.update({"log.screen": False, "log.access_file": "", "log.error_file": ""})
        cherrypy.config.update({"checker.on": False})
        application = cherrypy.Application(None, "", config)
        application.request_class = _Request
        application.log.access_log.disabled = True
        server = _cpserver.Server()
        server.socket_host, server.socket_port, server.thread_pool = address, port, threads
        server.socket_queue_size = BACKLOG
        server.max_request_body_size = 0  # the gate below answers as the VIM understands
        server.max_request_header_size = vim.BODY_MAX
        self._server, _ = server.httpserver_from_self()
        self._server.wsgi_app = application
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    def start(self) -> None:
        """Listen. Raises OSError when that cannot be."""
        self._thread.start()
        until = time.monotonic() + START_WAIT
        while not self._server.ready and self._error is None and time.monotonic() < until:
            self._thread.join(0.005)
        if not self._server.ready:
            raise OSError(
                "cannot listen for the VIM on %s port %d: %s" % (*self._server.bind_addr, self._error)
            )

    def close(self) -> None:
        """Stop listening, without waiting for requests that are under way."""
        if self._server.ready:
            threading.Thread(target=self._server.stop, daemon=True).start()
            self._thread.join(1.0)

    def _serve(self) -> None:
        try:
            self._server.start()
        except (OSError, SystemExit, KeyboardInterrupt) as error:
            self._error = error

    def _dispatch(self, path: str) -> None:
        request = cherrypy.serving.request
        request.config = dict(cherrypy.config, **request.app.config["/"])
        request.process_request_body = False
        request.handler = self._handle

    def _handle(self) -> bytes:
        request, response = cherrypy.serving.request, cherrypy.serving.response
        try:
            status, reply = self._answer(request)
            self.served += 1
        except Failure as failure:
            self.refused += 1
            status, reply = failure.status, failure.body()
            self._throttle.warning(
                "%d %s" % (status, failure.detail[:40]), "%s %s refused with %d: %s", request.method,
                request.path_info, status, failure.detail or failure.reason,
            )  # fmt: skip
        except Exception:
            log.exception("a defect in guestmtce: %s %s failed", request.method, request.path_info)
            status, reply = 500, {"status": "fail", "reason": vim.BAD_STATE}
        response.status = status
        if reply is None:
            response.headers.pop("Content-Type", None)
            return b""
        response.headers["Content-Type"] = "application/json"
        return json.dumps(reply).encode("ascii")

    def _answer(self, request: Any) -> Tuple[int, Optional[Dict[str, Any]]]:
        handler, uuid = route(request.method, request.path_info, request.headers.get("User-Agent"))
        body = read_body(request, handler)
        log.debug("%s %s %r", request.method, request.path_info, body)
        reply = self._apply(lambda inventory: handler(inventory, uuid, body))
        return (204 if reply is None else 200), reply


class _Request(_cprequest.Request):  # type: ignore[misc]
    """What is refused before the request has found its configuration is answered like all."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.error_page = {"default": _error_page}


def _error_page(status: str, message: str, traceback: str, version: str) -> str:
    """For what CherryPy refuses before our gates: an object, like every answer."""
    cherrypy.serving.response.headers["Content-Type"] = "application/json"
    return json.dumps(Failure(400, vim.PARSE_ERROR).body())
