"""Names and their addresses, looked up beside the loop: a name service that hangs must hold up nothing else.

One thread asks the system, one name after the other. The loop only reads what is known already. A name is
watched because it stands in the configuration, never because of what a stranger sends.
"""

from __future__ import annotations

import functools
import logging
import queue
import socket
import threading
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from guestmtce.common.back_off import BackOff
from guestmtce.daemon.log import printable
from guestmtce.daemon.loop import Loop, Timer

log = logging.getLogger(__name__)

NAMES_MAX = 256  # that wait for the thread at once
ADDRESSES_MAX = 64  # kept of one name
IPV4_MAPPED = "::ffff:"

LookUp = Callable[[str], Sequence[str]]


def look_up(name: str) -> List[str]:
    """All addresses of `name`, the best first, as a socket spells them. Waits.

    Raises OSError and UnicodeError.
    """
    # One type, else each address would come once for each kind of socket.
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(plain(str(entry[4][0])) for entry in found))


def is_address(text: str) -> bool:
    """Whether a socket takes it without a look-up. Only an address of IPv6 has an interface, after a "%"."""
    try:
        if ":" in text:
            socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
        else:
            socket.inet_pton(socket.AF_INET, text)
        return True
    except (OSError, ValueError):
        return False


def plain(address: str) -> str:
    """An IPv4 address is always spelled as one."""
    return address[len(IPV4_MAPPED) :] if address.startswith(IPV4_MAPPED) else address


class _Name:
    """What is known of one name. `quiet`: that it does not exist is not logged."""

    def __init__(self, quiet: bool, first: float, period: float) -> None:
        self.addresses: Tuple[str, ...] = ()
        self.quiet = quiet
        self.back_off = BackOff(first, period)  # until an unknown one is asked for again
        self.failing = False
        self.answered: List[Callable[[], None]] = []
        self.timer: Optional[Timer] = None


class Resolver:
    """See the module's text.

    A known name is looked up again every `period` s, an unknown one after `first` s, doubling up to `period`.
    A look-up that fails takes nothing away: the addresses of before stay. It costs one line in the log until
    the name is found again.
    """

    def __init__(self, loop: Loop, first: float, period: float, ask: LookUp = look_up) -> None:
        self._loop = loop
        self._first, self._period = first, period
        self._look_up = ask
        # Changed in the loop only. The thread sees names in the queue, and answers through
        # `call_from_thread`.
        self._names: Dict[str, _Name] = {}
        self._queue: queue.Queue[str] = queue.Queue(NAMES_MAX)
        self._thread: Optional[threading.Thread] = None
        self._closed = False

    def watch(self, name: str, answered: Optional[Callable[[], None]] = None, quiet: bool = False) -> None:
        """Know the addresses of `name` from now on. `answered` is called in the loop after each look-up that
        found some; never for what is an address itself, which needs none.
        """
        entry = self._names.get(name)
        if entry is None:
            entry = self._names[name] = _Name(quiet, self._first, self._period)
            if is_address(name):
                entry.addresses = (spelled(name),)
            else:
                self._ask(name)
        if answered is not None:
            entry.answered.append(answered)

    def addresses(self, name: str) -> Tuple[str, ...]:
        """What is known now of a watched name, the best first. Does not wait."""
        entry = self._names.get(name)
        return entry.addresses if entry is not None else ()

    def close(self) -> None:
        """Look nothing up any more. The thread is not waited for: it may hang."""
        self._closed = True
        for entry in self._names.values():
            if entry.timer is not None:
                entry.timer.cancel()

    def _ask(self, name: str) -> None:
        if self._thread is None:
            # Made with the first name: a daemon without names has no such thread. A daemon thread, as a
            # look-up that hangs must not hold up the end of the process.
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(name)
        except queue.Full:
            self._ask_later(name, self._period)

    def _ask_later(self, name: str, seconds: float) -> None:
        if not self._closed:
            self._names[name].timer = self._loop.after(seconds, functools.partial(self._ask, name))

    def _run(self) -> None:
        """The thread's life."""
        while True:
            name = self._queue.get()
            found: Tuple[str, ...] = ()
            why = "it has no address"
            try:
                # An answer's length is another's choice.
                found = tuple(self._look_up(name))[:ADDRESSES_MAX]
            except (OSError, UnicodeError) as error:
                why = str(error)
            # The loop may be gone.
            if self._closed:
                return
            self._loop.call_from_thread(functools.partial(self._note_answer, name, found, why))

    def _note_answer(self, name: str, found: Tuple[str, ...], why: str) -> None:
        """An answer has come; in the loop."""
        entry = self._names[name]
        if found:
            self._learn(name, entry, found)
            self._ask_later(name, self._period)
        else:
            self._complain(name, entry, why)
            delay = entry.back_off.next_delay()
            # Where old addresses stay in use there is no hurry.
            self._ask_later(name, self._period if entry.addresses else delay)

    def _learn(self, name: str, entry: _Name, found: Tuple[str, ...]) -> None:
        # As sets: name servers turn the order with each answer, which is no news.
        if set(found) != set(entry.addresses):
            log.info("%s is at %s", name, ", ".join(found))
        entry.addresses, entry.failing = found, False
        entry.back_off.reset()
        for answered in entry.answered:
            self._loop.call(answered)

    def _complain(self, name: str, entry: _Name, why: str) -> None:
        if not entry.failing and not entry.quiet:
            kept = "; what it was stays: " + ", ".join(entry.addresses) if entry.addresses else ""
            text = "cannot resolve %s: %s; it is looked up again every %g s%s"
            log.warning(text, printable(name), printable(why), self._period, kept)
        # Until a look-up finds the name again, so a name that fails for a day costs one line.
        entry.failing = True


def spelled(address: str) -> str:
    """As a socket spells it: compared as text."""
    try:
        entry = socket.getaddrinfo(address, None, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
    except OSError:
        return address
    return plain(str(entry[4][0]))
