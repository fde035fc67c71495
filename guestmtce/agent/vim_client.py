"""The threads that speak to the VIM (docs/protocol/3-vim-http.md#how-events-are-delivered).

Each sends one request at a time, on a connection of its own, and then asks the queue for the next. No lock
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

To the query about an alarm every 2xx and 4xx (but 408 and 429) is the VIM's own answer, and proves that
the alarm was processed. A close without a byte is no answer: it is asked again.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import Callable, NamedTuple, Optional, Protocol

from guestmtce.agent import vim_call, vim_listener
from guestmtce.agent.effects import NEVER
from guestmtce.agent.model import Origin
from guestmtce.agent.vim_pace import CONNECTIONS
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import ACTION, ALARM, VIM_QUERY, VimRequest
from guestmtce.daemon.log import Throttle

log = logging.getLogger(__name__)

NOT_NOW = (408, 429)  # beside 5xx
WAIT_MIN = 0.001  # s; a wait that rounds to none would spin
HELD_MAX = 5.0  # s for which nothing is begun because of what may have to be read first
LISTENER_AGE = 1.0  # s for which a look at who listens is good enough for a note; it takes 0.2 ms


class Journal(Protocol):
    """Where the next guestAgent finds what became of what a guestServer told; called without the lock."""

    def note_delivered(self, origin: Origin) -> None:
        """The VIM has it."""

    def note_sending(self, origin: Origin, vim: int) -> None:
        """An alarm is about to be sent to this VIM (`vim_listener.identify_listener`)."""

    def note_unsent(self, origin: Origin) -> None:
        """The VIM does not have it after all."""


class VimListener(Protocol):
    """Whoever wants to hear what the VIM answers."""

    def vim_answered(self, query: VimRequest, body: object) -> None:
        """A query brought this JSON value, or None; called without the lock."""

    def confirm_events(self) -> None:
        """The queue may have something to confirm or to log; called under the lock, after the journal."""

    def may_deliver(self) -> bool:
        """Whether all that has come was read: what was not may say that a failure is over."""


class Patience(NamedTuple):
    """How long, in s, an answer is waited for: to an alarm, and to anything else.

    An answer to an alarm that has begun ends after `other`, too.
    """

    alarm: float
    other: float


class Unwanted(Exception):
    """What was to be sent is no longer true, or nobody waits for it."""


class VimClient:
    """Threads that empty `queue`, which is used under `lock` only.

    Nothing is begun while `listener.may_deliver()` is false, for HELD_MAX s at most. `base` is the VIM's URL.
    """

    def __init__(
        self,
        base: str,
        patience: Patience,
        lock: threading.Lock,
        queue: VimQueue,
        journal: Journal,
        listener: VimListener,
    ) -> None:
        self.reachable = True
        self._base = base
        self._patience = patience
        self._queue = queue
        self._journal = journal
        self._listener = listener
        self._held_since = NEVER  # s, monotonic
        self._more = threading.Condition(lock)
        self._stopping = False
        self._wakes_at = NEVER  # s, monotonic: when a thread that waits looks again by itself
        self._listening = (-NEVER, 0)  # s, monotonic, and who listened then; one value: threads share it
        self._throttle = Throttle(log)
        self._threads = [
            threading.Thread(target=self._run, name="vim-%d" % number, daemon=True)
            for number in range(CONNECTIONS)
        ]

    def start(self) -> None:
        """Begin to deliver."""
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """The queue has something new; to be called under the lock."""
        self._more.notify()

    def resume(self) -> None:
        """`may_deliver()` has become true. Takes the lock only if something may wait for that."""
        if len(self._queue):
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
                request = self._await_request()
            if request is None:
                return
            try:
                self._deliver_request(request, caller)
            except Exception:
                log.exception("a defect in guestmtce: delivering %s failed", request.path)
                # It must end: nothing else of its instance is begun while it is under way.
                self._note_end(self._queue.note_unreached, request, time.monotonic())

    def _await_request(self) -> Optional[VimRequest]:
        while not self._stopping:
            now = time.monotonic()
            held = self._is_held(now)
            request = None if held else self._queue.next_request(now)
            self._listener.confirm_events()  # an outcome may have come to its end
            next_due = self._held_since + HELD_MAX if held else self._queue.next_due()
            if request is not None:
                if next_due < self._wakes_at:
                    self._more.notify()  # another thread looks after what is next: this one may be away long
                return request
            # All idle threads wait here, one of them until the next time at which something is due.
            self._wakes_at = min(self._wakes_at, next_due)
            self._more.wait(None if next_due == NEVER else max(WAIT_MIN, next_due - now))
            # Whoever has waited looks for what is due itself, and says anew until when it waits.
            self._wakes_at = NEVER
        return None

    def _is_held(self, now: float) -> bool:
        if not len(self._queue) or self._listener.may_deliver():
            self._held_since = NEVER
            return False
        self._held_since = min(self._held_since, now)
        return now < self._held_since + HELD_MAX

    def _deliver_request(self, request: VimRequest, caller: vim_call.Caller) -> None:
        """Send it, and note how that went."""
        # Before it is asked, and again after the answer: a VIM that never had the alarm answers, too, and its
        # answer would pass for a proof.
        if self._is_for_another(request):
            self._note_gone(request)
            return
        body, began = None, time.monotonic()
        try:
            reply = self._send_request(request, caller)
            self._note_reachable()
            self._log_answer(request, "status %d" % reply.status, began)
            body = self._note_reply(request, reply)
        except vim_call.Silent as error:
            self._note_reachable()
            self._log_answer(request, "closed without a byte", began)
            self._note_refusal(request, str(error))
        except Unwanted:
            self._note_end(self._queue.note_unsent, request)
        except (vim_call.Unanswered, vim_call.Unreached) as error:
            self.reachable = False
            self._listening = (-NEVER, 0)  # another one may listen next
            text = (
                "%s %s: the VIM at %s %s: %s: again later; see whether it runs there ([guest-rest-api] in"
                " its config.ini)"
            )
            how = "does not answer" if isinstance(error, vim_call.Unanswered) else "cannot be reached"
            self._throttle.warning(how, text, request.method, request.path, self._base, how, error)
            self._note_failure(request, error)
        # Whatever became of it: the inventory counts audits that brought no list.
        if request.kind == VIM_QUERY:
            self._listener.vim_answered(request, body)

    def _note_reachable(self) -> None:
        """It has answered. Under the lock, for several threads may see its return."""
        with self._more:
            returned, self.reachable = not self.reachable, True
        if returned:
            log.info("the VIM at %s answers again", self._base)

    def _log_answer(self, request: VimRequest, answer: str, began: float) -> None:
        """What was told, to whom, the answer, and how long it took; a query, of every audit, as debug."""
        level = logging.DEBUG if request.kind == VIM_QUERY else logging.INFO
        took = (time.monotonic() - began) * 1000
        values = (request.uuid, request.topic, request.method, request.path, self._base, answer, took)
        log.log(level, "%s: %s: %s %s to the VIM at %s: %s after %d ms", *values)

    def _send_request(self, request: VimRequest, caller: vim_call.Caller) -> vim_call.Reply:
        log.debug("%s %s %r", request.method, request.path, request.body)
        first = self._patience.alarm if request.kind == ALARM and not request.asks else self._patience.other
        wait = vim_call.Wait(first, self._patience.other)
        steps = vim_call.Steps(functools.partial(self._check_wanted, request))
        # An old server's alarm has no number by which the next agent could know it again.
        if request.kind == ALARM and request.origin is not None:
            steps = steps._replace(before_body=functools.partial(self._note_sending, request.origin))
        return caller.call(request.method, request.path, request.body, wait, steps)

    def _check_wanted(self, request: VimRequest) -> None:
        """The last moment in which it can be called back. Raises Unwanted."""
        with self._more:
            if not self._queue.is_wanted(request, time.monotonic()):
                raise Unwanted

    def _note_sending(self, origin: Origin) -> None:
        """The connection is there: whoever listens has it."""
        now, (looked_at, vim) = time.monotonic(), self._listening
        if now - looked_at > LISTENER_AGE:
            vim = vim_listener.identify_listener(self._base)
            self._listening = (now, vim)
        self._journal.note_sending(origin, vim)

    def _note_reply(self, request: VimRequest, reply: vim_call.Reply) -> object:
        """Returns the body that a query has brought."""
        status = reply.status
        if self._is_for_another(request):  # it may have been replaced before we were connected
            self._note_gone(request)
        elif 200 <= status < 300 or (request.asks and 400 <= status < 500 and status not in NOT_NOW):
            self._note_delivery(request)
            return reply.body
        elif 400 <= status < 500 and status not in NOT_NOW:
            self._note_refusal(request, "HTTP status %d" % status)
        else:
            text = "%s %s: the VIM at %s answers %d: again later"
            self._throttle.warning(
                "status %d" % status, text, request.method, request.path, self._base, status
            )
            self._put_off(request)
        return None

    def _is_for_another(self, request: VimRequest) -> bool:
        """Whether an alarm is asked about that another VIM than the one that listens now was told."""
        if not (request.asks and request.sent_to):
            return False
        return vim_listener.identify_listener(self._base) not in (0, request.sent_to)

    def _note_gone(self, request: VimRequest) -> None:
        log.warning("%s: the VIM that was sent the alarm is gone: the alarm is sent again", request.uuid)
        self._note_unsent(request)
        self._note_end(self._queue.note_unsent, request)

    def _note_delivery(self, request: VimRequest) -> None:
        # First the file, then the confirmation: who is killed in between tells no alarm twice.
        if request.origin is not None:
            self._journal.note_delivered(request.origin)
        self._note_end(self._queue.note_delivered, request)

    def _note_refusal(self, request: VimRequest, why: str) -> None:
        level = logging.WARNING if request.kind == ALARM else logging.DEBUG
        log.log(level, "%s %s: %s", request.method, request.path, why)
        # A state or outcome that was refused is done: the next agent must not tell it again.
        if request.kind != ALARM and request.origin is not None:
            self._journal.note_delivered(request.origin)
        elif not request.asks:
            self._note_unsent(request)
        self._note_end(self._queue.note_refused, request, time.monotonic())

    def _note_failure(self, request: VimRequest, error: Exception) -> None:
        """No answer, or no connection."""
        now = time.monotonic()
        # Sent in part and reset: the VIM cannot have all of it, but somebody listens there.
        if isinstance(error, vim_call.Unanswered) and not error.has_all and not request.asks:
            self._put_off(request)
        # No room while it is asked: the VIM that has the alarm still listens, and stands still. It is asked
        # again.
        elif isinstance(error, vim_call.Unanswered) or (request.asks and isinstance(error, vim_call.NoRoom)):
            # A second outcome would meet another action of the VIM's: the next agent must not send it either.
            if request.kind == ACTION and request.origin is not None:
                self._journal.note_delivered(request.origin)
            # The connection lived until now: whoever listens has it.
            self._note_end(
                self._queue.note_unanswered, request, now, vim_listener.identify_listener(self._base)
            )
        else:
            self._note_unsent(request)
            self._note_end(self._queue.note_unreached, request, now, isinstance(error, vim_call.Down))

    def _put_off(self, request: VimRequest) -> None:
        # A query that brought nothing leaves the note: the VIM may have the alarm.
        if not request.asks:
            self._note_unsent(request)
        self._note_end(self._queue.note_put_off, request, time.monotonic())

    def _note_unsent(self, request: VimRequest) -> None:
        if request.kind == ALARM and request.origin is not None:
            self._journal.note_unsent(request.origin)

    def _note_end(self, end: Callable[..., None], *values: object) -> None:
        with self._more:
            end(*values)
            self._listener.confirm_events()
