"""The threads that speak to the VIM (docs/protocol/3-vim-http.md#how-events-are-delivered).

Each sends one request at a time, on a connection of its own, and then asks the outbox for the next. No lock
is held while a thread speaks: the VIM may call us back before it answers.

What an answer means:

- 2xx: delivered.
- 408, 429, 5xx: not now (a proxy, a VIM that starts); 1xx, 3xx: not the VIM. It is told again after a while.
- Another 4xx: no, for good. Closed without a byte: so the real VIM takes a state or an outcome, and so it
  refuses. Both end a state and an outcome; an alarm is offered again, at most REFUSALS_MAX times.
- None in time, and the VIM's kernel has all of the request: an alarm is asked about, an outcome is done, a
  state is told again.
- Reset, or no connection: told again, and everything else waits, too. An alarm that was asked about is sent
  again.

To the question about an alarm every 2xx and 4xx (but 408 and 429) is the VIM's own answer, and proves that
the alarm was processed. A close without a byte is no answer: it is asked again.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Protocol

from guestmtce.agent import model, vim_call, vim_queue
from guestmtce.daemon.log import Throttle

log = logging.getLogger(__name__)

NOT_NOW = (408, 429)  # beside 5xx
HELD_MAX = 5.0  # s for which nothing is begun because of what may have to be read first
LISTENER_AGE = 1.0  # s for which a look at who listens is good enough for a note; it takes 0.2 ms


class Journal(Protocol):
    """Where the next guestAgent finds what became of what a guestServer told; called without the lock."""

    def add(self, origin: model.Origin) -> None:
        """The VIM has it."""

    def sending(self, origin: model.Origin, vim: int) -> None:
        """An alarm is about to be sent to this VIM (`vimcall.listener`)."""

    def unsent(self, origin: model.Origin) -> None:
        """The VIM does not have it after all."""


class Patience(NamedTuple):
    """How long, in s, an answer is waited for: to an alarm, and to anything else.

    An answer to an alarm that has begun ends after `other`, too.
    """

    alarm: float
    other: float


class Unwanted(Exception):
    """What was to be sent is no longer true, or nobody waits for it."""


class VimLink:
    """`outbox` is used under `lock` only. `on_reply(item, reply)` gets what a question brought, or None.

    `on_settled` is called under the lock, whenever the outbox may have settled something; before it the
    journal has what became of an item. Nothing is begun while `may_begin()` is false, for HELD_MAX s at most:
    what was not read yet may say that a failure is over.
    """

    def __init__(
        self,
        base: str,
        patience: Patience,
        lock: threading.Lock,
        outbox: vim_queue.Outbox,
        journal: Journal,
        on_reply: Callable[[vim_queue.Item, Any], None],
        on_settled: Callable[[], None] = lambda: None,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        self.reachable = True
        self._base = base
        self._patience = patience
        self._outbox = outbox
        self._journal = journal
        self._on_reply = on_reply
        self._on_settled = on_settled
        self._may_begin = may_begin
        self._held_since = vim_queue.NEVER  # s, monotonic
        self._more = threading.Condition(lock)
        self._stopping = False
        self._wakes_at = vim_queue.NEVER  # s, monotonic: when a thread that waits looks again by itself
        self._looked_at, self._vim = -vim_queue.NEVER, 0  # when, and who listened then
        self._throttle = Throttle(log)
        self._threads = [
            threading.Thread(target=self._run, name="vim-%d" % number, daemon=True)
            for number in range(vim_queue.CONNECTIONS)
        ]

    def start(self) -> None:
        """Begin to deliver."""
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """The outbox has something new; to be called under the lock."""
        self._more.notify()

    def release(self) -> None:
        """`may_begin()` has become true. Takes the lock only if something may wait for that."""
        if len(self._outbox):
            with self._more:
                self._more.notify()

    def close(self) -> None:
        """Stop; requests that are under way are not waited for."""
        with self._more:
            self._stopping = True
            self._more.notify_all()

    def _run(self) -> None:
        caller = vim_call.Caller(self._base)
        while True:
            with self._more:
                item = self._await_item()
            if item is None:
                return
            try:
                self._deliver(item, caller)
            except Exception:
                log.exception("a defect in guestmtce: delivering %s failed", item.path)
                self._note(self._outbox.unreached, item, time.monotonic())

    def _await_item(self) -> Optional[vim_queue.Item]:
        while not self._stopping:
            now = time.monotonic()
            held = self._is_held(now)
            item = None if held else self._outbox.next(now)
            self._on_settled()  # an outcome may have come to its end
            next_at = self._held_since + HELD_MAX if held else self._outbox.next_at()
            if item is not None:
                if next_at < self._wakes_at:
                    self._more.notify()  # another thread looks after what is next: this one may be away long
                return item
            self._wakes_at = min(self._wakes_at, next_at)
            self._more.wait(None if next_at == vim_queue.NEVER else max(0.001, next_at - now))
            self._wakes_at = vim_queue.NEVER
        return None

    def _is_held(self, now: float) -> bool:
        if not len(self._outbox) or self._may_begin():
            self._held_since = vim_queue.NEVER
            return False
        self._held_since = min(self._held_since, now)
        return now < self._held_since + HELD_MAX

    def _deliver(self, item: vim_queue.Item, caller: vim_call.Caller) -> None:
        """Send it, and note how that went."""
        if self._is_for_another(item):
            self._note_gone(item)
            return
        body, began = None, time.monotonic()
        try:
            reply = self._call(item, caller)
            self._note_reachable()
            self._log_answer(item, "status %d" % reply.status, began)
            body = self._note_reply(item, reply)
        except vim_call.Silent as error:
            self._note_reachable()
            self._log_answer(item, "closed without a byte", began)
            self._note_refusal(item, str(error))
        except Unwanted:
            self._note(self._outbox.unsent, item)
        except (vim_call.Unanswered, vim_call.Unreached) as error:
            self.reachable = False
            self._looked_at = -vim_queue.NEVER  # another one may listen next
            text = "%s %s: the VIM at %s %s: %s"
            how = "does not answer" if isinstance(error, vim_call.Unanswered) else "cannot be reached"
            self._throttle.warning(how, text, item.method, item.path, self._base, how, error)
            self._note_failure(item, error)
        if item.kind == vim_queue.QUESTION:
            self._on_reply(item, body)

    def _note_reachable(self) -> None:
        """It has answered. Under the lock, for several threads may see its return."""
        with self._more:
            returned, self.reachable = not self.reachable, True
        if returned:
            log.info("the VIM at %s answers again", self._base)

    def _log_answer(self, item: vim_queue.Item, answer: str, began: float) -> None:
        """What was told, to whom, the answer, and how long it took; a question, of every audit, as debug."""
        level = logging.DEBUG if item.kind == vim_queue.QUESTION else logging.INFO
        took = (time.monotonic() - began) * 1000
        values = (item.uuid, item.what, item.method, item.path, self._base, answer, took)
        log.log(level, "%s: %s: %s %s to the VIM at %s: %s after %d ms", *values)

    def _call(self, item: vim_queue.Item, caller: vim_call.Caller) -> vim_call.Reply:
        log.debug("%s %s %r", item.method, item.path, item.body)
        first = (
            self._patience.alarm if item.kind == vim_queue.ALARM and not item.asks else self._patience.other
        )
        wait = vim_call.Wait(first, self._patience.other)
        steps = vim_call.Steps(functools.partial(self._check_wanted, item))
        if item.kind == vim_queue.ALARM and item.origin is not None:
            steps = steps._replace(before_body=functools.partial(self._note_sending, item.origin))
        return caller.call(item.method, item.path, item.body, wait, steps)

    def _check_wanted(self, item: vim_queue.Item) -> None:
        """The last moment in which it can be called back. Raises Unwanted."""
        with self._more:
            if not self._outbox.wants(item, time.monotonic()):
                raise Unwanted

    def _note_sending(self, origin: model.Origin) -> None:
        """The connection is there: whoever listens has it."""
        now = time.monotonic()
        if now - self._looked_at > LISTENER_AGE:
            self._looked_at, self._vim = now, vim_call.listener(self._base)
        self._journal.sending(origin, self._vim)

    def _note_reply(self, item: vim_queue.Item, reply: vim_call.Reply) -> Any:
        """Returns the body that a question has brought."""
        status = reply.status
        if self._is_for_another(item):  # it may have been replaced before we were connected
            self._note_gone(item)
        elif 200 <= status < 300 or (item.asks and 400 <= status < 500 and status not in NOT_NOW):
            self._note_delivery(item)
            return reply.body
        elif 400 <= status < 500 and status not in NOT_NOW:
            self._note_refusal(item, "HTTP status %d" % status)
        else:
            text = "%s %s: the VIM at %s answers %d: again later"
            self._throttle.warning("status %d" % status, text, item.method, item.path, self._base, status)
            self._put_off(item)
        return None

    def _is_for_another(self, item: vim_queue.Item) -> bool:
        """Whether an alarm is asked about that another VIM than the one that listens now was told."""
        if not (item.asks and item.sent_to):
            return False
        return vim_call.listener(self._base) not in (0, item.sent_to)

    def _note_gone(self, item: vim_queue.Item) -> None:
        log.warning("%s: the VIM that was told of the failure is gone: told again", item.uuid)
        self._note_unsent(item)
        self._note(self._outbox.unsent, item)

    def _note_delivery(self, item: vim_queue.Item) -> None:
        if item.origin is not None:
            self._journal.add(item.origin)
        self._note(self._outbox.delivered, item)

    def _note_refusal(self, item: vim_queue.Item, why: str) -> None:
        level = logging.WARNING if item.kind == vim_queue.ALARM else logging.DEBUG
        log.log(level, "%s %s: %s", item.method, item.path, why)
        if item.kind != vim_queue.ALARM and item.origin is not None:
            self._journal.add(item.origin)
        elif not item.asks:
            self._note_unsent(item)
        self._note(self._outbox.refused, item, time.monotonic())

    def _note_failure(self, item: vim_queue.Item, error: Exception) -> None:
        """No answer, or no connection."""
        now = time.monotonic()
        if isinstance(error, vim_call.Unanswered) and not error.has_all and not item.asks:
            self._put_off(item)
        elif isinstance(error, vim_call.Unanswered) or (item.asks and isinstance(error, vim_call.NoRoom)):
            if item.kind == vim_queue.ACTION and item.origin is not None:
                self._journal.add(item.origin)
            # The connection lived until now: whoever listens has it.
            self._note(self._outbox.unanswered, item, now, vim_call.listener(self._base))
        else:
            self._note_unsent(item)
            self._note(self._outbox.unreached, item, now, isinstance(error, vim_call.Down))

    def _put_off(self, item: vim_queue.Item) -> None:
        if not item.asks:
            self._note_unsent(item)
        self._note(self._outbox.put_off, item, time.monotonic())

    def _note_unsent(self, item: vim_queue.Item) -> None:
        if item.kind == vim_queue.ALARM and item.origin is not None:
            self._journal.unsent(item.origin)

    def _note(self, end: Callable[..., None], *values: Any) -> None:
        with self._more:
            end(*values)
            self._on_settled()
