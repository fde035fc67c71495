"""The VIM's commands as an application of CherryPy: a dispatcher, a tool, error pages.

A request passes gates (who asks, for what, how, with which body), each with the answer that the deployed
VIM survives: always a JSON object, never a 401. All is configured for this application alone. CherryPy's
bus, which would take our signals, is not started: `http_server` calls the application.
"""

from __future__ import annotations

import functools
import json
import logging
from typing import Any, Callable, Mapping, Protocol, TypeVar

import cherrypy

from guestmtce.agent.http.command_routes import Handler, create_host, find_route
from guestmtce.agent.inventory import Inventory
from guestmtce.daemon.log import Throttle
from guestmtce.wire import vim_http
from guestmtce.wire.vim_http import Failure

log = logging.getLogger(__name__)

WITH_BODY = ("POST", "PUT", "PATCH")

Result = TypeVar("Result")


class Apply(Protocol):
    """The one way to the inventory."""

    def __call__(self, act: Callable[[Inventory], Result]) -> Result:
        """Call act(inventory) under the lock, and carry out what follows from it."""


_throttle = Throttle(log)


def make_application(apply: Apply) -> cherrypy.Application:
    """The WSGI application.

    `apply(f)` calls f(inventory) under the lock and carries out what follows from it.
    """
    config = {
        # The `cherrypy.serving` below is each thread's own: workers share nothing but the application.
        "request.dispatch": Dispatcher(apply),
        "request.error_response": answer_defect,
        "tools.check_user_agent.on": True,
    }
    application = cherrypy.Application(None, "", {"/": config})
    application.request_class = CommandRequest
    application.log.access = lambda: None  # a line for each command would be a quarter of its cost
    application.wsgiapp.pipeline = []  # no redirections; what is raised is answered by our server
    return application


class Refusal(cherrypy.HTTPError):  # type: ignore[misc]
    """A refused command, as CherryPy raises and answers it."""

    def __init__(self, failure: Failure) -> None:
        # A subclass of HTTPError: CherryPy calls its set_response(), whichever gate has raised it.
        super().__init__(failure.status, failure.reason)
        self._failure = failure

    def set_response(self) -> None:
        """The object that the VIM expects, in place of a page."""
        failure, request = self._failure, cherrypy.serving.request
        what = (request.method, request.path_info, failure.status, failure.detail or failure.reason)
        _throttle.warning("%d %s" % (failure.status, failure.reason), "%s %s refused with %d: %s", *what)
        _set_json(failure.status, failure.body())


class Dispatcher:
    """CherryPy's `request.dispatch`: sets the handler of a request, and its configuration."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply

    def __call__(self, path_info: str) -> None:
        """A handler that cannot be found is one that raises, so that the gates before it come first."""
        request = cherrypy.serving.request
        # CherryPy's own dispatchers set it, too: the tool is switched on by it.
        request.config = request.app.config["/"]
        try:
            request.handler = functools.partial(self._handle, *find_route(request.method, path_info))
        except Failure as failure:
            request.handler = Refusal(failure)

    def _handle(self, handler: Handler, uuid: str) -> bytes:
        request, response = cherrypy.serving.request, cherrypy.serving.response
        try:
            body = _read_body(request, handler)
            log.debug("%s %s %r", request.method, request.path_info, body)
            reply = self._apply(lambda inventory: handler(inventory, uuid, body))
        except Failure as failure:
            raise Refusal(failure) from None
        if reply is None:
            # The answer to a DELETE (docs/protocol/3-vim-http.md#commands). CherryPy would name the type of a
            # body that is not there.
            response.status = 204
            response.headers.pop("Content-Type", None)
            return b""
        response.headers["Content-Type"] = "application/json"
        return json.dumps(reply).encode("ascii")


def _read_body(request: Any, handler: Handler) -> bytes:
    """The request's body. Raises Failure 411 where one is needed and there is none."""
    # All of it is in memory: our server hands over whole requests only.
    body: bytes = request.rfile.read()
    if not body and request.method in WITH_BODY and handler is not create_host:
        raise Failure(411, vim_http.NO_BUFFER, "no body")
    return body


def _check_user_agent() -> None:
    """The gate before all others. Raises Refusal."""
    user_agent = cherrypy.serving.request.headers.get("User-Agent")
    # Who names itself nothing is let in (docs/protocol/3-vim-http.md#requests-and-their-limits).
    if user_agent is not None and user_agent != vim_http.VIM_USER_AGENT:
        raise Refusal(Failure(403, vim_http.PARSE_ERROR, "User-Agent %s" % user_agent))


cherrypy.tools.check_user_agent = cherrypy.Tool("on_start_resource", _check_user_agent)


# --- what CherryPy refuses, and what breaks --------------------------------------------------------


def show_error(status: str, message: str, **_: str) -> str:
    """An object, like every answer."""
    _throttle.warning("cherrypy " + status[:3], "a command was refused with %s: %s", status, message)
    failure = (
        Failure(500, vim_http.BAD_STATE) if status.startswith("5") else Failure(400, vim_http.PARSE_ERROR)
    )
    cherrypy.serving.response.headers["Content-Type"] = "application/json"
    return json.dumps(failure.body())


def answer_defect() -> None:
    """For what a handler raises that is no refusal."""
    request = cherrypy.serving.request
    log.exception("a defect in guestmtce: %s %s failed", request.method, request.path_info)
    _set_json(500, Failure(500, vim_http.BAD_STATE).body())


def _set_json(status: int, reply: Mapping[str, object]) -> None:
    response = cherrypy.serving.response
    response.status = status
    response.headers["Content-Type"] = "application/json"
    response.body = json.dumps(reply).encode("ascii")


class CommandRequest(cherrypy.Application.request_class):  # type: ignore[misc]
    """Holds what must be so before a request has found its configuration, too."""

    error_page = {"default": show_error}
    process_request_body = False  # it is JSON, whatever Content-Type says
