"""The VIM's commands, served: CherryPy's application under our HTTP server, for those who may command."""

from __future__ import annotations

from typing import List

from guestmtce.agent.http import wsgi
from guestmtce.agent.http.callers import Callers
from guestmtce.agent.http.command_app import Apply, make_application
from guestmtce.agent.http.http_server import HttpServer
from guestmtce.agent.settings import AgentSettings
from guestmtce.wire.http_request import Request


class Commands:
    """`apply(f)` calls f(inventory) under the lock and carries out what follows from it."""

    def __init__(self, settings: AgentSettings, apply: Apply) -> None:
        self._address = settings.http_address
        self._port = settings.http_port
        self._application = make_application(apply)
        self._callers = Callers(settings.vim_users)
        self._server = HttpServer(
            settings.http_threads, settings.command_timeout, self._answer, self._callers.identify
        )

    @property
    def served(self) -> int:
        """Commands that were carried out."""
        return self._server.served

    @property
    def refused(self) -> int:
        """Commands, and what was none, that got another answer than 2xx."""
        return self._server.refused

    @property
    def connections(self) -> int:
        """All that were accepted."""
        return self._server.accepted

    def start(self) -> None:
        """Listen. Raises OSError when that cannot be."""
        try:
            self._server.start(self._address, self._port)
        except OSError as error:
            text = "cannot listen for the VIM on %s port %d: %s"
            raise OSError(text % (self._address, self._port, error)) from None

    def close(self) -> None:
        """Stop listening, without waiting for requests that are under way."""
        self._server.close()
        self._callers.close()

    def health(self) -> List[str]:
        """The lines of the health report."""
        return [self._server.describe(), self._callers.describe()]

    def _answer(self, request: Request, client: str) -> bytes:
        return wsgi.call_application(self._application, request, client, (self._address, self._port))
