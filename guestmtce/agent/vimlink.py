"""The one thread that speaks to the VIM (spec 3, "Events" and "How the real VIM behaves").

One request at a time, each on a connection of its own. No lock is held while it speaks: the VIM may call
us back before it answers.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import threading
import time
from typing import Any, Callable, Optional

import requests

from guestmtce.agent import events, rows
from guestmtce.daemon.log import Throttle
from guestmtce.wire import vim

log = logging.getLogger(__name__)


class Refused(Exception):
    """The VIM closed the connection without a byte, or said no."""


class Unreached(Exception):
    """The VIM does not have the request."""


class Down(Unreached):
    """The VIM does not even listen."""


class VimLink:
    """`outbox` is used under `lock` only. `on_reply(item, reply)` gets what a question brought, or None.

    `on_settled` is called under the lock, whenever the outbox may have settled something, and before it
    `on_told`, without the lock, with the origin of what the VIM has now.
    """

    def __init__(
        self,
        base: str,
        timeout: float,
        lock: threading.Lock,
        outbox: events.Outbox,
        on_reply: Callable[[events.Item, Any], None],
        on_settled: Callable[[], None] = lambda: None,
        on_told: Callable[[rows.Origin], None] = lambda _: None,
    ) -> None:
        self.reachable = True
        self._base = base
        self._timeout = timeout
        self._outbox = outbox
        self._on_reply = on_reply
        self._on_settled = on_settled
        self._on_told = on_told
        self._more = threading.Condition(lock)
        self._stopping = False
        self._throttle = Throttle(log)
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between us and the VIM
        self._thread = threading.Thread(target=self._run, name="vim", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def notify(self) -> None:
        """The outbox has something new; to be called under the lock."""
        self._more.notify()

    def close(self) -> None:
        """Stop; a request that is under way is not waited for."""
        with self._more:
            self._stopping = True
            self._more.notify()

    def _run(self) -> None:
        while True:
            with self._more:
                item = self._await_item()
            if item is None:
                return
            try:
                self._deliver(item)
            except Exception:
                log.exception("a defect in guestmtce: delivering %s failed", item.path)
                with self._more:
                    self._outbox.unreached(item, time.monotonic())

    def _await_item(self) -> Optional[events.Item]:
        while not self._stopping:
            now = time.monotonic()
            item = self._outbox.next(now)
            if item is not None:
                return item
            wait = self._outbox.next_at() - now
            self._more.wait(None if wait == float("inf") else max(0.001, wait))
        return None

    def _deliver(self, item: events.Item) -> None:
        reply = None
        try:
            reply = self._call(item)
            self.reachable = True
            self._remember(item)
            self._note(self._outbox.delivered, item)
        except Refused as refusal:
            self.reachable = True
            level = logging.WARNING if item.kind == events.ALARM else logging.DEBUG
            log.log(level, "%s %s: %s", item.method, item.path, refusal)
            if item.kind != events.ALARM:
                self._remember(item)
            self._note(self._outbox.refused, item, time.monotonic())
        except Unreached as error:
            self.reachable = False
            self._throttle.warning("unreached", "the VIM at %s cannot be reached: %s", self._base, error)
            self._note(self._outbox.unreached, item, time.monotonic(), isinstance(error, Down))
        if item.kind == events.QUESTION:
            self._on_reply(item, reply)

    def _remember(self, item: events.Item) -> None:
        if item.origin is not None:
            self._on_told(item.origin)

    def _note(self, outcome: Callable[..., None], *values: Any) -> None:
        with self._more:
            outcome(*values)
            self._on_settled()

    def _call(self, item: events.Item) -> Any:
        """One request. Raises Refused, Unreached."""
        headers = {
            "User-Agent": vim.AGENT_USER_AGENT,
            "Content-Type": "application/json",
            "Connection": "close",
        }
        log.debug("%s %s %r", item.method, item.path, item.body)
        try:
            response = self._session.request(
                item.method,
                self._base + item.path,
                data=json.dumps(item.body) if item.body else None,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except requests.RequestException as error:
            raise _classified(error) from None
        with response:
            if not 200 <= response.status_code < 300:
                raise Refused("HTTP status %d" % response.status_code)
            return _body(response)


def _body(response: requests.Response) -> Any:
    """The reply's JSON, or None. The VIM has said yes: a body that breaks off must not repeat an alarm."""
    try:
        return json.loads(response.content)
    except (requests.RequestException, ValueError, RecursionError):
        return None


def _classified(error: requests.RequestException) -> Exception:
    """Whether the VIM closed without a byte, which means that it has the request, or never got it."""
    cause: Any = error
    for _ in range(8):
        if isinstance(cause, http.client.RemoteDisconnected):
            return Refused("closed without an answer")
        args = [one for one in getattr(cause, "args", ()) if isinstance(one, BaseException)]
        cause = args[-1] if args else getattr(cause, "reason", None)
        if cause is None:
            break
    text = " ".join(str(error).split())
    kind = Down if "[Errno %d]" % errno.ECONNREFUSED in text else Unreached
    return kind(text[:200])
