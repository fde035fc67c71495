"""What the next guestAgent must know: what became of events, and of which disabling no server has heard.

docs/protocol/2-datagrams.md#an-agent-that-has-just-started
docs/protocol/2-datagrams.md#marks

One file in the run folder. `SENDER SEQUENCE` is written when the VIM has an event, before the confirmation is
sent: it lets no alarm reach the VIM twice when this process is killed between the two. `SENDER SEQUENCE
sending VIM` is written before the body of an alarm goes out, and `SENDER SEQUENCE unsent` when the VIM
has turned it down: the next guestAgent asks about an alarm that was under way, and does not repeat it.
A guestServer that was not confirmed repeats its events.

`off UUID` is written before a command that disables an instance's reporting goes out, and `on UUID` when its
guestServer has confirmed it. A guestAgent that finds `off` knows no more than that: what it enables may be
enabled anew.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Dict, Optional, Tuple

from guestmtce.agent.model import Origin
from guestmtce.daemon import atomic_file
from guestmtce.daemon.log import Throttle
from guestmtce.wire import datagram

log = logging.getLogger(__name__)

SUFFIX = ".told"
KEPT = 4096  # events; no more than that wait for their confirmation at any moment
LINE_MAX = 42  # bytes: three numbers of 32 bits, a word, three spaces, a newline; or a word and a uuid
SENDING, UNSENT = "sending", "unsent"
OFF, ON = "off", "on"

EventId = Tuple[int, int]  # sender and sequence


class DeliveredLog:
    """The file, for any thread. Trouble with it is logged, never fatal."""

    def __init__(self, run_dir: str, name: str) -> None:
        self._path = os.path.join(run_dir, name + SUFFIX)
        self._throttle = Throttle(log)
        self._lock = threading.Lock()
        self._lines = 0  # in the file
        # A descriptor, open from the first note on: nothing may come between a note and what it notes.
        self._file = -1
        self._fates: Dict[EventId, str] = {}  # the rest of the last line of an event
        self._unheard: Dict[str, None] = {}  # uuids, the one that was disabled first goes first
        self._read_file()
        # What was turned down is as if it had never been sent: nobody is asked about it.
        self._before = {event: fate for event, fate in self._fates.items() if fate != UNSENT}
        self.unheard_before = set(self._unheard)  # uuids: disabled by an agent before this one

    def __contains__(self, origin: Origin) -> bool:
        """Whether a guestAgent before this one told the VIM of it."""
        return self._before.get((origin.sender, origin.sequence)) == ""

    def sent_to(self, origin: Optional[Origin]) -> Optional[int]:
        """The VIM to which an agent before this one was sending the alarm, if any.

        A VIM is a number of `vim_listener.identify_listener`.
        """
        if origin is None:
            return None
        word, _, vim = self._before.get((origin.sender, origin.sequence), "").partition(" ")
        return int(vim) if word == SENDING else None

    def under_way(self, origin: Origin) -> int:
        """The VIM to which the alarm is being sent now; 0: to none, or to one that cannot be told."""
        word, _, vim = self._fates.get((origin.sender, origin.sequence), "").partition(" ")
        return int(vim) if word == SENDING else 0

    def note_sending_elsewhere(self, origin: Origin, vim: int) -> None:
        """Another agent was sending it to this VIM."""
        event = (origin.sender, origin.sequence)
        # The bound is for a guestServer that marks without end.
        if event not in self._before and len(self._before) < 3 * KEPT:
            self.note_sending(origin, vim)
            self._before[event] = "%s %d" % (SENDING, vim)

    def note_delivered(self, origin: Origin) -> None:
        """The VIM has it."""
        self._note_fate(origin, "")

    def note_sending(self, origin: Origin, vim: int) -> None:
        """It is about to be sent to this VIM."""
        self._note_fate(origin, "%s %d" % (SENDING, vim))

    def note_unsent(self, origin: Origin) -> None:
        """The VIM does not have it after all."""
        if (origin.sender, origin.sequence) in self._fates:
            self._note_fate(origin, UNSENT)

    def note_disabling(self, uuid: str) -> None:
        """Its guestServer is to hear that reporting is disabled, or was."""
        with self._lock:
            if uuid in self._unheard:
                return
            # Hosts that are off never confirm: the oldest makes room.
            if len(self._unheard) >= KEPT:
                self._forget_disabling(next(iter(self._unheard)))
            self._unheard[uuid] = None
            self._write_line(_format_disabling(OFF, uuid))

    def note_disabling_heard(self, uuid: str) -> None:
        """It has, or the instance is no more."""
        with self._lock:
            if uuid in self._unheard:
                self._forget_disabling(uuid)

    def _forget_disabling(self, uuid: str) -> None:
        del self._unheard[uuid]
        self._write_line(_format_disabling(ON, uuid))

    def _note_fate(self, origin: Origin, fate: str) -> None:
        event = (origin.sender, origin.sequence)
        with self._lock:
            self._fates.pop(event, None)
            self._fates[event] = fate  # the last one goes last
            self._write_line(_format_line(event, fate))

    def _write_line(self, line: str) -> None:
        self._lines += 1
        try:
            # A third at least is void then, so that writing anew costs each note a constant share.
            if self._lines > 3 * KEPT or not self._append_line(line):
                self._write_anew()
        except OSError as error:
            text = (
                "cannot write %s: %s: after a restart the VIM may hear an alarm twice, or one of before a"
                " repair; see the folder's owner and its free space"
            )
            self._throttle.warning("delivered log", text, self._path, error)

    def _write_anew(self) -> None:
        kept = [(event, fate) for event, fate in self._fates.items() if fate != UNSENT][-KEPT:]
        self._fates = dict(kept)
        lines = [_format_line(*one) for one in kept]
        lines += [_format_disabling(OFF, uuid) for uuid in self._unheard]
        self._lines = len(lines)
        self._close_file()
        # On a full file system over the old file's own blocks. A note "sending" that outlived its "unsent"
        # would have the next agent take the VIM's answer for a proof, and the alarm would be lost.
        atomic_file.write_or_overwrite(self._path, "".join(lines), 0o600)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def _append_line(self, line: str) -> bool:
        """Whether the line is in the file; not if somebody has removed that, or the disk is full."""
        # No link: a line would go into a file that the next agent does not find.
        if self._file < 0 or not os.fstat(self._file).st_nlink:
            return False
        try:
            written = os.write(self._file, line.encode("ascii"))
        except OSError:
            written = 0
        if written != len(line):
            self._close_file()  # half a line may stand there
        return written == len(line)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read_file(self) -> None:
        try:
            # O_NONBLOCK: to open a pipe of that name must not wait for its writer.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, encoding="ascii", errors="replace") as file:
                text = file.read(4 * KEPT * LINE_MAX)
        except FileNotFoundError:
            return
        except OSError as error:
            text = "cannot read %s: %s: the VIM may hear an alarm twice that it had before this start"
            log.warning(text, self._path, error)
            return
        for line in text.splitlines(keepends=True):
            self._lines += 1
            word, _, uuid = line.rstrip("\n").partition(" ")
            if word in (OFF, ON):
                self._read_disabling(word, uuid)
                continue
            entry = _parse_line(line)
            if entry is not None:
                self._fates.pop(entry[0], None)
                self._fates[entry[0]] = entry[1]

    def _read_disabling(self, word: str, uuid: str) -> None:
        self._unheard.pop(uuid, None)
        # A line that was cut names no instance.
        if word == OFF and datagram.UUID.fullmatch(uuid):
            self._unheard[uuid] = None


def _format_disabling(word: str, uuid: str) -> str:
    return "%s %s\n" % (word, uuid)


def _format_line(event: EventId, fate: str) -> str:
    return " ".join(["%d %d" % event, *([fate] if fate else [])]) + "\n"


def _parse_line(line: str) -> Optional[Tuple[EventId, str]]:
    """The event and the rest of a whole line. What is not understood is left out."""
    try:
        sender, sequence, *rest = line.split(" ")
        event, fate = (int(sender), int(sequence)), " ".join(rest).rstrip("\n")
        # A line without its newline was cut: its last number may be the beginning of another.
        if not line.endswith("\n") or (rest and fate != UNSENT and rest[0] != SENDING):
            return None
        if rest and rest[0] == SENDING:
            fate = "%s %d" % (SENDING, int(rest[1]))
        return event, fate
    except (ValueError, IndexError):
        return None
