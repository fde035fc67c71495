"""What guestServer remembers over its own restart: one small file per guest in the run folder.

A file is written atomically and checked when it is read; one that is damaged, or from another boot, is
ignored. `alive` is a mark of when the daemon last lived: what an old memory says of a guest's parameters
still holds, what it says of a guest's health does not.

What stands in a file is true, or the file is gone. A write that fails, as on a full file system, is made
again over the old file's own blocks. Where that fails, too, the old file is removed, although the guest's
parameters and what guestAgent has not heard of it are lost with it if this daemon is killed before the next
attempt: guestAgent tells the parameters again, but nobody could tell an old file's false loss from a true
one. The latest is kept in `unsaved` and written as soon as it can be.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import zlib
from typing import Any, Dict, Iterable, List, Optional, Tuple

from guestmtce.daemon import atomic_file
from guestmtce.daemon.log import Throttle
from guestmtce.server.state.guest import (
    ILLNESS,
    LOSS,
    NEVER,
    OUTCOME,
    STATE,
    GuestMemory,
    PendingEvent,
    PendingKey,
)
from guestmtce.wire import datagram, guest_channel

log = logging.getLogger(__name__)

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
STATISTICS_FILE = "/proc/stat"
BOOT_TIME = "btime "  # in it, s since 1970
SAVED_A_TURN = 100  # files that `save_again` writes in one turn of the loop
FILE_MAX = 64 * 1024  # bytes
ALIVE = "alive"
HOST = "host"
AGENT = "agent"
SENDER = "sender"

# Kinds of pending events as files have them; that of an outcome is followed by its question's id.
KINDS = {"state": STATE, "failure": LOSS, "illness": ILLNESS}
KIND_OF_OUTCOME = "vote"


def boot_id() -> str:
    """What tells this boot of the machine from another.

    Where the kernel does not say it: when the machine was booted. Where not even that can be read, each
    daemon has a boot of its own, and believes no memory of another.
    """
    try:
        with open(BOOT_ID_FILE, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        log.warning("cannot read %s: %s: told by %s", BOOT_ID_FILE, error.strerror, STATISTICS_FILE)
    try:
        with open(STATISTICS_FILE, encoding="ascii") as file:
            return next(line.strip() for line in file if line.startswith(BOOT_TIME))
    except (OSError, StopIteration) as error:
        log.warning("cannot read when this host was booted: %r: no memory of before is believed", error)
    return os.urandom(16).hex()


class Store:
    """The folder. Raises OSError only from the constructor; later trouble is logged, never fatal.

    `unsaved`: what could not be written, or (None) removed, by the file's name; at most a file per guest.
    """

    def __init__(self, run_dir: str, name: str) -> None:
        self.unsaved: Dict[str, Optional[Dict[str, Any]]] = {}
        self._folder = os.path.join(run_dir, name + ".guests")
        self._boot = boot_id()
        self._numbers: Optional[Tuple[int, int]] = None  # sender, its next number
        self._host_reporting: Optional[bool] = None  # None: it was never saved
        self._agent: Optional[str] = None
        self._marked = False  # there is, or was, a mark that we live
        self._cleaned = False  # it was not there any more at the last look
        self._throttle = Throttle(log)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        atomic_file.remove_leftovers(self._folder)

    def save_guest(self, memory: GuestMemory) -> None:
        """Remember this of the guest."""
        self._write_file(memory.uuid, _values(memory))

    def forget_guest(self, uuid: str) -> None:
        """Remember nothing of the guest."""
        self._remove_file(uuid)

    def mark_alive(self, now: float) -> None:
        """Note that the daemon lives at `now`."""
        self._marked |= self._write_file(ALIVE, {"at": now})

    def was_cleaned(self) -> bool:
        """Whether somebody has removed our files; to be called before each `mark_alive`.

        It says so twice: who cleans may be at it still, and remove what is written now.
        """
        gone = self._marked and ALIVE not in self.unsaved and not os.path.exists(self._path_of(ALIVE))
        before, self._cleaned = self._cleaned, gone or not os.path.isdir(self._folder)
        return self._cleaned or before

    def save_anew(self, memories: Iterable[GuestMemory]) -> None:
        """The files are gone: have all of them written by `save_again`."""
        self._throttle.warning("clean", "%s was cleaned away: all of it is written anew", self._folder)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as error:
            self._log_failed_write(error)
        self.unsaved.update((memory.uuid, _values(memory)) for memory in memories)
        if self._numbers is not None:
            self.unsaved[SENDER] = self._sender_values()
        if self._host_reporting is not None:
            self.unsaved[HOST] = {"reporting": self._host_reporting}
        if self._agent is not None:
            self.unsaved[AGENT] = {"address": self._agent}

    def save_again(self) -> bool:
        """Write some of what is not saved; whether more of it can be written. The first failure ends it."""
        if not self.unsaved:
            return False
        for name, values in list(itertools.islice(self.unsaved.items(), SAVED_A_TURN)):
            # The first failure ends the turn: where one file has no room, the next has none.
            if not (self._remove_file(name) if values is None else self._write_file(name, values)):
                return False
        if not self.unsaved:
            log.info("all is saved in %s", self._folder)
        return bool(self.unsaved)

    def alive_at(self) -> float:
        """When the daemon last noted that it lives; before all time if it never did in this boot."""
        mark = self._read_file(ALIVE)
        try:
            return float(mark["at"]) if mark else -NEVER
        except (KeyError, ValueError, TypeError, OverflowError):
            return -NEVER

    def save_host(self, reporting: bool) -> None:
        """Remember whether this host's failures are to be reported."""
        self._host_reporting = reporting
        self._write_file(HOST, {"reporting": reporting})

    def host_reporting(self) -> bool:
        """What is remembered of that; enabled by default."""
        return (self._read_file(HOST) or {}).get("reporting") is not False

    def save_agent(self, address: str) -> None:
        """Remember which guestAgent is followed; empty: none."""
        self._agent = address
        self._write_file(AGENT, {"address": address})

    def followed_agent(self) -> str:
        """What is remembered of that."""
        address = (self._read_file(AGENT) or {}).get("address")
        return address if isinstance(address, str) else ""

    def sender(self) -> int:
        """Who we are to guestAgent: the same over restarts, as long as the numbers below are known."""
        return self._known_sender()[0]

    def reserve_sequences(self, count: int) -> int:
        """The first of `count` numbers that no one gets again under the present `sender`."""
        sender, first = self._known_sender()
        self._numbers = sender, first + count
        # If it cannot be written it is gone: the next daemon does not give them again, but is another sender.
        self._write_file(SENDER, self._sender_values())
        return first

    def _sender_values(self) -> Dict[str, Any]:
        sender, following = self._known_sender()
        return {"sender": sender, "next": following}

    def _known_sender(self) -> Tuple[int, int]:
        if self._numbers is None:
            self._numbers = self._read_sender()
        return self._numbers

    def _read_sender(self) -> Tuple[int, int]:
        values = self._read_file(SENDER) or {}
        sender, first = values.get("sender"), values.get("next")
        if isinstance(sender, int) and isinstance(first, int) and 0 < sender < 2**32 and first > 0:
            return sender, first
        # Another sender: numbers of the lost one may be used already, and new events would pass for
        # repetitions.
        sender = int.from_bytes(os.urandom(4), "little") | 1
        first = int.from_bytes(os.urandom(3), "little") + 1  # what is remembered still bears older numbers
        self._write_file(SENDER, {"sender": sender, "next": first})
        return sender, first

    def load_guests(self) -> List[GuestMemory]:
        """All that is remembered and sound."""
        memories = []
        for name in self._file_names():
            if datagram.UUID.fullmatch(name):
                memory = self._load_guest(name)
                if memory is not None:
                    memories.append(memory)
                else:
                    self._remove_file(name)
        return memories

    def _file_names(self) -> List[str]:
        try:
            return sorted(os.listdir(self._folder))
        except OSError as error:
            log.error("cannot read %s: %s", self._folder, error)
            return []

    def _load_guest(self, uuid: str) -> Optional[GuestMemory]:
        try:
            values = self._read_file(uuid)
            if values is None or values["uuid"] != uuid or uuid != uuid.lower():
                return None  # an upper-case one is of a release that took it for another instance
            return _memory_of(values)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            log.warning("the memory of %s is damaged and ignored: %r", uuid, error)
            return None

    def _path_of(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _remove_file(self, name: str) -> bool:
        self.unsaved.pop(name, None)
        try:
            atomic_file.remove(self._path_of(name))
        except OSError as error:
            self.unsaved[name] = None
            self._throttle.warning("remove", "cannot remove a file, trying again: %s", error)
            return False
        return True

    def _write_file(self, name: str, values: Dict[str, Any]) -> bool:
        text = json.dumps({"boot": self._boot, **values})
        path = self._path_of(name)
        self.unsaved.pop(name, None)
        try:
            atomic_file.write_or_overwrite(path, "%08x %s\n" % (zlib.crc32(text.encode()), text), 0o600)
        except OSError as error:
            self._log_failed_write(error)
            # An old text is worse than none: what it says of a guest is not true any more.
            self._remove_file(name)
            self.unsaved[name] = values
            return False
        return True

    def _log_failed_write(self, error: OSError) -> None:
        text = "cannot write, trying again: %s: is there room in %s?"
        self._throttle.warning("write", text, error, self._folder)

    def _read_file(self, name: str) -> Optional[Dict[str, Any]]:
        """The values in a file, if it is whole and from this boot."""
        try:
            with open(self._path_of(name), encoding="utf-8", opener=_open_file) as file:
                crc, _, text = file.read(FILE_MAX).rstrip("\n").partition(" ")
            values = json.loads(text)
            # The checksum finds a mixture: where there is no room for a second file one is overwritten.
            sound = int(crc, 16) == zlib.crc32(text.encode()) and isinstance(values, dict)
        except (OSError, ValueError, RecursionError):
            sound = False
        return values if sound and values.get("boot") == self._boot else None


# The keys of a file, and the words in it, are those of its first release: a daemon reads what another left.


def _values(memory: GuestMemory) -> Dict[str, Any]:
    pending = [(_kind_in_file(key), one) for key, one in memory.pending]
    return {
        "uuid": memory.uuid,
        "provisioned": memory.provisioned,
        "reporting": memory.reporting,
        "init": list(memory.init) if memory.init is not None else None,
        "heartbeating": memory.heartbeating,
        "owes_answer": memory.owes_answer,
        "silence_until": memory.silence_until,
        "ident": memory.socket_identity,
        "untold": [(kind, one.sequence, one.cmd, datagram.event_body(one.event)) for kind, one in pending],
        "questions": memory.questions,
        "answered_since_notice": memory.answered_since_notice,
        "patience_until": memory.patience_until,
        "ill_told_at": memory.ill_reported_at,
        "outcomes_until": {kind: one.until for kind, one in pending if one.until != NEVER},
    }


def _memory_of(values: Dict[str, Any]) -> GuestMemory:
    """Raises KeyError, ValueError, TypeError, AttributeError or OverflowError for what is damaged."""
    init, identity = values["init"], values.get("ident")
    if init is not None:
        _, takes = guest_channel.FROM_GUEST["init"]
        init = guest_channel.Init(*[take(value) for (_, take), value in zip(takes, init)])
    until = {str(kind): float(when) for kind, when in values.get("outcomes_until", {}).items()}
    return GuestMemory(
        uuid=values["uuid"],
        provisioned=values["provisioned"] is True,
        reporting=values["reporting"] is True,
        init=init,
        heartbeating=values["heartbeating"] is True,
        owes_answer=values["owes_answer"] is True,
        silence_until=float(values["silence_until"]),
        socket_identity=tuple(map(int, identity)) if identity is not None else None,
        pending=tuple(_pending(values["uuid"], until, *entry) for entry in values.get("untold", ())),
        questions=tuple(_question(*entry) for entry in values.get("questions", ())),
        answered_since_notice=values.get("answered_since_notice") is True,
        patience_until=float(values.get("patience_until", -NEVER)),
        ill_reported_at=float(values.get("ill_told_at", -NEVER)),
    )


def _kind_in_file(key: PendingKey) -> str:
    if key.kind == OUTCOME:
        return "%s %d" % (KIND_OF_OUTCOME, key.question_id)
    return next(word for word, kind in KINDS.items() if kind == key.kind)


def _key_of(uuid: str, kind: str) -> PendingKey:
    """Raises ValueError for a kind that there is not."""
    if kind in KINDS:
        return PendingKey(uuid, KINDS[kind])
    return PendingKey(uuid, OUTCOME, int(kind.partition(" ")[2] or 0))


# What a later release has added to an entry is ignored.


def _pending(
    uuid: str, until: Dict[str, float], kind: Any, sequence: Any, cmd: Any, body: Any, *_: Any
) -> Tuple[PendingKey, PendingEvent]:
    event = datagram.event_of(int(cmd), body)  # raises a ValueError for what is no event
    key, expiry = _key_of(uuid, str(kind)), until.get(str(kind), NEVER)
    return key, PendingEvent(int(sequence), int(cmd), event, until=expiry)


def _question(question_id: Any, kind: Any, event: Any, deadline: Any, *_: Any) -> Tuple[int, str, str, float]:
    if kind not in guest_channel.NOTIFICATION_TYPES or event not in guest_channel.EVENT_TYPES:
        raise ValueError("no question")
    return int(question_id), kind, event, float(deadline)


def _open_file(path: str, flags: int) -> int:
    """No link is followed, and a pipe does not block us."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
