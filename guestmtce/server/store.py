"""What guestServer remembers over its own restart: one small file per guest in the run folder.

A file is written atomically and checked when it is read; one that is damaged, or from another boot, is
ignored. `alive` is a mark of when the daemon last lived: what an old memory says of a guest's parameters
still holds, what it says of a guest's health does not.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from guestmtce.daemon import files
from guestmtce.wire import channel, datagram

log = logging.getLogger(__name__)

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
FILE_MAX = 64 * 1024  # bytes
ALIVE = "alive"
HOST = "host"
SENDER = "sender"


class Memory(NamedTuple):
    """What is remembered of a guest. Times in s on the machine's monotonic clock.

    `ident` tells its socket from one that was made anew in the meantime. `outcomes_until` says for a kind of
    `untold` until when it is of use.
    """

    uuid: str
    provisioned: bool
    reporting: bool
    init: Optional[channel.Init]
    heartbeating: bool
    owes_answer: bool
    silence_until: float
    ident: Optional[Tuple[int, ...]] = None
    untold: Tuple[Tuple[str, int, int, Dict[str, Any]], ...] = ()  # kind, number, cmd, the event's JSON
    questions: Tuple[Tuple[int, str, str, float], ...] = ()  # number, notification type, event, deadline
    answered_since_notice: bool = False
    patience_until: float = -float("inf")
    outcomes_until: Dict[str, float] = {}


def boot_id() -> str:
    """What tells this boot of the machine from another."""
    with open(BOOT_ID_FILE, encoding="ascii") as file:
        return file.read().strip()


class Store:
    """The folder. Raises OSError only from the constructor; later trouble is logged, never fatal."""

    def __init__(self, run_dir: str, name: str) -> None:
        self._folder = os.path.join(run_dir, name + ".guests")
        self._boot = boot_id()
        self._numbers: Optional[Tuple[int, int]] = None  # sender, its next number
        os.makedirs(self._folder, mode=0o700, exist_ok=True)

    def save(self, memory: Memory) -> None:
        """Remember this of the guest."""
        init = list(memory.init) if memory.init is not None else None
        self._write(memory.uuid, {**memory._asdict(), "init": init})

    def forget(self, uuid: str) -> None:
        """Remember nothing of the guest."""
        self._remove(uuid)

    def mark_alive(self, now: float) -> None:
        """Note that the daemon lives at `now`."""
        self._write(ALIVE, {"at": now})

    def alive_at(self) -> float:
        """When the daemon last noted that it lives; before all time if it never did in this boot."""
        mark = self._read(ALIVE)
        try:
            return float(mark["at"]) if mark else -float("inf")
        except (KeyError, ValueError, TypeError, OverflowError):
            return -float("inf")

    def save_host(self, reporting: bool) -> None:
        """Remember whether this host's failures are to be reported."""
        self._write(HOST, {"reporting": reporting})

    def host_reporting(self) -> bool:
        """What is remembered of that; enabled by default."""
        return (self._read(HOST) or {}).get("reporting") is not False

    def sender(self) -> int:
        """Who we are to guestAgent: the same over restarts, as long as the numbers below are known."""
        return self._sender()[0]

    def reserve(self, count: int) -> int:
        """The first of `count` numbers that no one gets again under the present `sender`."""
        sender, first = self._sender()
        self._numbers = sender, first + count
        if not self._write(SENDER, {"sender": sender, "next": first + count}):
            self._remove(SENDER)  # the next daemon must not give them again: it is to be another sender
        return first

    def _sender(self) -> Tuple[int, int]:
        if self._numbers is None:
            self._numbers = self._read_sender()
        return self._numbers

    def _read_sender(self) -> Tuple[int, int]:
        values = self._read(SENDER) or {}
        sender, first = values.get("sender"), values.get("next")
        if isinstance(sender, int) and isinstance(first, int) and 0 < sender < 2**32 and first > 0:
            return sender, first
        sender = int.from_bytes(os.urandom(4), "little") | 1
        first = int.from_bytes(os.urandom(3), "little") + 1  # what is remembered still bears older numbers
        self._write(SENDER, {"sender": sender, "next": first})
        return sender, first

    def load(self) -> List[Memory]:
        """All that is remembered and sound."""
        memories = []
        for name in self._names():
            if datagram.UUID.fullmatch(name):
                memory = self._memory(name)
                if memory is not None:
                    memories.append(memory)
                else:
                    self._remove(name)
        return memories

    def _names(self) -> List[str]:
        try:
            return sorted(os.listdir(self._folder))
        except OSError as error:
            log.error("cannot read %s: %s", self._folder, error)
            return []

    def _memory(self, uuid: str) -> Optional[Memory]:
        try:
            values = self._read(uuid)
            if values is None or values["uuid"] != uuid or uuid != uuid.lower():
                return None  # an upper-case one is of a release that took it for another instance
            init = values["init"]
            if init is not None:
                _, takes = channel.FROM_GUEST["init"]
                init = channel.Init(*[take(value) for (_, take), value in zip(takes, init)])
            return Memory(
                uuid=uuid,
                provisioned=values["provisioned"] is True,
                reporting=values["reporting"] is True,
                init=init,
                heartbeating=values["heartbeating"] is True,
                owes_answer=values["owes_answer"] is True,
                silence_until=float(values["silence_until"]),
                ident=tuple(map(int, values["ident"])) if values.get("ident") is not None else None,
                untold=tuple(_untold(*entry) for entry in values.get("untold", ())),
                questions=tuple(_question(*entry) for entry in values.get("questions", ())),
                answered_since_notice=values.get("answered_since_notice") is True,
                patience_until=float(values.get("patience_until", -float("inf"))),
                outcomes_until={
                    str(kind): float(until) for kind, until in values.get("outcomes_until", {}).items()
                },
            )
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            log.warning("the memory of %s is damaged and ignored: %r", uuid, error)
            return None

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _remove(self, name: str) -> None:
        try:
            files.remove(self._path(name))
        except OSError as error:
            log.error("cannot remove %s: %s", self._path(name), error)

    def _write(self, name: str, values: Dict[str, Any]) -> bool:
        text = json.dumps({"boot": self._boot, **values})
        try:
            files.write_atomically(self._path(name), "%08x %s\n" % (zlib.crc32(text.encode()), text), 0o600)
        except OSError as error:
            log.error("cannot write %s: %s", self._path(name), error)
            return False
        return True

    def _read(self, name: str) -> Optional[Dict[str, Any]]:
        """The values in a file, if it is whole and from this boot."""
        try:
            with open(self._path(name), encoding="utf-8", opener=_open_file) as file:
                crc, _, text = file.read(FILE_MAX).rstrip("\n").partition(" ")
            values = json.loads(text)
            sound = int(crc, 16) == zlib.crc32(text.encode()) and isinstance(values, dict)
        except (OSError, ValueError, RecursionError):
            sound = False
        return values if sound and values.get("boot") == self._boot else None


def _untold(kind: Any, number: Any, cmd: Any, body: Any) -> Tuple[str, int, int, Dict[str, Any]]:
    datagram.event_of(int(cmd), body)  # raises a ValueError for what is no event
    return str(kind), int(number), int(cmd), body


def _question(number: Any, kind: Any, event: Any, deadline: Any) -> Tuple[int, str, str, float]:
    if kind not in channel.NOTIFICATION_TYPES or event not in channel.EVENT_TYPES:
        raise ValueError("no question")
    return int(number), kind, event, float(deadline)


def _open_file(path: str, flags: int) -> int:
    """No link is followed, and a pipe does not block us."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
