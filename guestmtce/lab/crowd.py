"""N simulated guests in one process, and the words that switch and measure them.

A line on standard input is `WHO WORD [ARGUMENT …]`, WHO being a number, a uuid or `all`; or one of
`status`, `stats`, `stats reset`, `clock`, `stalls`. Every line is answered by one line of JSON. Times are s
on the machine's monotonic clock.

`stalls` is answered with the begin and the end of each time in which this process did not run, though it had
something to do, since `stalls` was said first: no guest here lived in that time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from guestmtce.daemon.loop import Loop
from guestmtce.lab.guest import LabGuest
from guestmtce.lab.guest_options import CrowdRecord, GuestOptions

COMMANDS = (
    "healthy", "mute", "hang", "ill", "vote", "votes_each", "restart", "reset", "introduce", "leave", "bye",
    "flood", "half", "send", "off", "crash", "on", "restored",
)  # fmt: skip


STALLS_KEPT = 1000
STALL_MIN = 0.05  # s
STALL_LOOK = 0.02  # s between two looks
READ_SIZE = 65536  # bytes


class Stalls:
    """When this process did not run, though it had something to do: `found` has begins and ends (s)."""

    def __init__(self, loop: Loop) -> None:
        self.found: List[Tuple[float, float]] = []
        self._loop = loop
        self._looked_at = time.monotonic()
        self._check_clock()

    def _check_clock(self) -> None:
        now = time.monotonic()
        # A look every STALL_LOOK s that comes later than STALL_MIN: the process got no processor.
        if now - self._looked_at > STALL_MIN:
            self.found = [*self.found[1 - STALLS_KEPT :], (self._looked_at, now)]
        self._looked_at = now
        self._loop.after(STALL_LOOK, self._check_clock)


class Crowd:
    """The guests `first` … `first + count - 1`. See the module's text."""

    def __init__(self, loop: Loop, options: GuestOptions, count: int, first: int = 1) -> None:
        self.record = CrowdRecord()
        self._loop = loop
        self._stalls: Optional[Stalls] = None
        numbers = range(first, first + count)
        self.guests = {number: LabGuest(loop, number, options, self.record) for number in numbers}
        self._by_name = {str(number): guest for number, guest in self.guests.items()}
        self._by_name.update({guest.uuid: guest for guest in self.guests.values()})

    def power_on(self) -> None:
        """Start all guests."""
        for guest in self.guests.values():
            guest.power_on()

    def power_off(self) -> None:
        """End all guests."""
        for guest in self.guests.values():
            guest.power_off()

    def obey_line(self, line: str) -> Any:
        """Do what `line` says; returns the answer, a value of JSON. Raises ValueError for any other line."""
        words = line.split()
        if " ".join(words) in self._answers:
            return self._answers[" ".join(words)](self)
        if words[1:] == ["status"]:
            return [guest.facts for guest in self._select(words[0])]
        if len(words) < 2 or words[1] not in COMMANDS:
            raise ValueError("WHO WORD expected, or status; the words: " + " ".join(COMMANDS))
        for guest in self._select(words[0]):
            word: Callable[..., None] = getattr(guest, words[1])
            word(*words[2:])
        return "ok"

    def _select(self, who: str) -> List[LabGuest]:
        if who == "all":
            return list(self.guests.values())
        if who not in self._by_name:
            raise ValueError("no guest %s" % who)
        return [self._by_name[who]]

    def _answer_status(self) -> List[Dict[str, Any]]:
        return [guest.facts for guest in self.guests.values()]

    def _answer_stats(self) -> Dict[str, Any]:
        beating = sum(guest.facts["first_beat"] > 0 for guest in self.guests.values())
        late = self.record.late
        return {"answers": self.record.answers, "beating": beating, "late": late.steps, "max": late.largest}

    def _reset_stats(self) -> str:
        self.record.reset()
        return "ok"

    def _answer_stalls(self) -> List[Tuple[float, float]]:
        # Only when it is asked for: looking costs a wake-up every STALL_LOOK s, which a bench would measure.
        self._stalls = self._stalls or Stalls(self._loop)
        return self._stalls.found

    _answers: Dict[str, Callable[[Crowd], Any]] = {
        "status": _answer_status,
        "stats": _answer_stats,
        "stats reset": _reset_stats,
        "clock": lambda _: time.monotonic(),
        "stalls": _answer_stalls,
    }


def _raise_descriptor_limit() -> None:
    """A guest is two descriptors, its listener and its connection: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(options: GuestOptions, count: int, first: int) -> int:
    """The command `guestmtce lab guests`: obey lines from standard input until it ends.

    Returns the exit status.
    """
    _raise_descriptor_limit()
    loop = Loop()
    guests = Crowd(loop, options, count, first)
    os.makedirs(options.folder, exist_ok=True)
    guests.power_on()
    partial = b""  # of a line whose end has not come

    def read_lines() -> None:
        nonlocal partial
        data = os.read(sys.stdin.fileno(), READ_SIZE)
        # The end of standard input: whoever started this process has gone, or has had enough.
        if not data:
            loop.stop()
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            try:
                answer = guests.obey_line(line.decode())
            # TypeError: the word is known, and its arguments are too many or too few.
            except (ValueError, TypeError) as error:
                answer = {"error": str(error)}
            # An answer to each line, in order: the other side waits for one before it says the next.
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.on_signal(signum, loop.stop)
    loop.watch(sys.stdin.fileno(), read_lines)
    # Only now: whoever started this process waits for the line, and may connect to every socket then.
    sys.stdout.write(json.dumps("ready") + "\n")
    sys.stdout.flush()
    try:
        loop.run()
    finally:
        guests.power_off()
        loop.close()
    return 0
