"""Simulated guests behind UNIX sockets: QEMU's end and the guest in one, many in one process.

A guest here behaves like the deployed client (spec 1, "What real guests and real QEMU do"): it repeats
`init` until it is acknowledged, answers challenges, goes back to `init` when challenges stop, and does not
notice when the host's side is closed and opened again. What it does beside that is switchable while it
runs; `COMMANDS` lists the words.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import Any, Callable, Dict, List, Optional

from guestmtce.daemon.loop import Loop, Timer
from guestmtce.wire import channel

INIT_PERIOD = 5.0  # s
PATIENCE = 5.0  # s without a challenge, at least
FLOOD_CHUNK = 64 * 1024  # bytes
HANG_UP_POLL = 0.02  # s
FIRST_INVOCATION = 1804289383  # every real guest starts with this one


def uuid_of(number: int) -> str:
    """The uuid of the lab's guest `number`."""
    return "00000000-0000-4000-8000-%012d" % number


class Options:
    """What all guests of a process have in common."""

    def __init__(self, folder: str, interval_ms: int, action: str, secs: int, scale: float = 1.0) -> None:
        self.folder = folder
        self.interval_ms = interval_ms
        self.action = action
        self.secs = secs
        self.scale = scale  # of the guest's own timers, to run faster than life


class Guest:
    """One guest. Times are s on the machine's monotonic clock."""

    def __init__(self, loop: Loop, number: int, options: Options) -> None:
        self.uuid = uuid_of(number)
        self.path = os.path.join(options.folder, "cgcs.heartbeat.%s.sock" % self.uuid)
        self.facts: Dict[str, Any] = {
            "uuid": self.uuid, "mode": "healthy", "state": "enabling", "inits": 0, "answers": 0, "nacks": 0,
            "links": 0, "last_beat": 0.0, "last_challenge": 0.0, "unanswered_since": 0.0, "asked": [],
        }  # fmt: skip
        self._loop = loop
        self._number = number
        self._options = options
        self._sequence = 0
        self._invocation = FIRST_INVOCATION - 1
        self._answer = (channel.HEALTHY, options.action, "")
        self._vote: Dict[str, Any] = {"result": "accept", "reason": "", "delay": 0.0}
        self._lines = channel.LineBuffer()
        self._conn: Optional[socket.socket] = None
        self._listener: Optional[socket.socket] = None
        self._init_timer: Optional[Timer] = None
        self._flood_left = 0

    # --- QEMU's part -------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Make the socket, as QEMU does, and boot."""
        temporary = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary.bind(self.path)
        temporary.listen(1)
        temporary.setblocking(False)
        self._listener = temporary
        self._loop.watch(temporary, self._accept)
        self.boot()

    def power_off(self, unlink: bool = True) -> None:
        """The end of QEMU; without `unlink` the stale file stays, as after a kill -9 without libvirt."""
        self._cancel_init()
        self._hang_up()
        if self._listener is not None:
            self._loop.unwatch(self._listener)
            self._listener.close()
            self._listener = None
            if unlink:
                os.unlink(self.path)
        self.facts["state"] = "off"

    def _accept(self) -> None:
        assert self._listener is not None
        if self._conn is not None:
            return  # one client at a time; the next waits in the backlog
        try:
            self._conn, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._conn.setblocking(False)
        self._loop.unwatch(self._listener)
        self.facts["links"] += 1
        self._lines = channel.LineBuffer()
        if self.facts["mode"] != "hanging":
            self._loop.watch(self._conn, self._read)
        else:
            self._watch_hang_up()
        if self.facts["state"] == "enabling":
            self._send_init()

    def _hang_up(self) -> None:
        if self._conn is not None:
            self._loop.unwatch(self._conn)
            self._conn.close()
            self._conn = None
            if self._listener is not None:
                self._loop.watch(self._listener, self._accept)

    def _read(self) -> None:
        assert self._conn is not None
        try:
            data = self._conn.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        for line in self._lines.feed(data):
            try:
                self._take(channel.parse(line, channel.FROM_HOST))
            except (channel.NotAMessage, channel.Refused):
                self.facts["bad_lines"] = self.facts.get("bad_lines", 0) + 1

    def _write(self, data: bytes) -> int:
        try:
            return self._conn.send(data) if self._conn is not None else 0
        except BlockingIOError:
            return 0
        except OSError:
            self._hang_up()
            return 0

    # --- the guest's part --------------------------------------------------------------------------

    def boot(self) -> None:
        """The heartbeat client starts: everything from before is forgotten."""
        self.facts["state"] = "enabling"
        self._invocation = FIRST_INVOCATION - 1
        self._send_init()

    def _send(self, message: channel.Message) -> None:
        self._sequence += 1
        self._write(channel.build(message, self._sequence))

    def _send_init(self) -> None:
        self._cancel_init()
        if self.facts["mode"] == "hanging":
            return
        self.facts["state"] = "enabling"
        self._invocation += 1
        self.facts["invocation"] = self._invocation
        if self._conn is not None:
            self.facts["inits"] += 1
        secs = self._options.secs
        name = "lab-%d" % self._number
        self._send(channel.Init(self._invocation, name, self._options.interval_ms, secs, secs, secs, secs,
                                secs, self._options.action))  # fmt: skip
        self._init_timer = self._loop.after(INIT_PERIOD * self._options.scale, self._send_init)

    def _cancel_init(self) -> None:
        if self._init_timer is not None:
            self._init_timer.cancel()
            self._init_timer = None

    def _expect_challenge(self) -> None:
        self._cancel_init()
        wait = max(2 * self._options.interval_ms / 1000, PATIENCE * self._options.scale)
        self._init_timer = self._loop.after(wait, self._send_init)

    def _take(self, message: channel.Message) -> None:
        if isinstance(message, channel.InitAck):
            if message.invocation_id in (self._invocation, self._invocation - 1):
                self.facts["state"] = "enabled"
                self._expect_challenge()
        elif isinstance(message, channel.Challenge):
            self.facts["last_challenge"] = time.monotonic()
            if self.facts["state"] == "enabled":
                self._expect_challenge()
                self._beat(message.heartbeat_challenge)
        elif isinstance(message, channel.ActionNotify):
            self.facts["asked"].append([message.notification_type, message.event_type, message.timeout_ms])
            if self._vote["result"] != "mute":
                self._loop.after(self._vote["delay"], lambda: self._send_vote(message))
        elif isinstance(message, channel.Nack):
            self.facts["nacks"] += 1
            self.facts["nack"] = message.log_msg

    def _beat(self, number: int) -> None:
        answer = channel.ChallengeResponse(number, *self._answer)
        if self.facts["mode"] == "mute":
            self.facts["unanswered_since"] = self.facts["unanswered_since"] or time.monotonic()
        elif self.facts["mode"] == "half":
            half = channel.build(answer, self._sequence)
            self._write(half[: len(half) // 2])
        else:
            self._send(answer)
            self.facts["answers"] += 1
            self.facts["last_beat"] = time.monotonic()

    def _send_vote(self, question: channel.ActionNotify) -> None:
        if self.facts["mode"] != "hanging":
            self._send(channel.ActionResponse(question.invocation_id, question.event_type,
                                              question.notification_type, self._vote["result"],
                                              self._vote["reason"]))  # fmt: skip

    # --- the words ---------------------------------------------------------------------------------

    def healthy(self) -> None:
        """Be well; a guest that hung finds the challenges that piled up."""
        hung = self.facts["mode"] == "hanging"
        self._answer = (channel.HEALTHY, self._options.action, "")
        self.facts.update(mode="healthy", unanswered_since=0.0)
        if hung and self._conn is not None:
            self._loop.watch(self._conn, self._read)
        if hung and self.facts["state"] == "enabling":
            self._send_init()
        elif hung and self.facts["state"] == "enabled":
            self._expect_challenge()

    def mute(self) -> None:
        """Read everything, answer no challenge: `unanswered_since` is when the first one came."""
        self.facts.update(mode="mute", unanswered_since=0.0)

    def hang(self) -> None:
        """Do nothing at all, like a stopped virtual machine."""
        self.facts["mode"] = "hanging"
        self._cancel_init()
        if self._conn is not None:
            self._loop.unwatch(self._conn)
            self._watch_hang_up()

    def _watch_hang_up(self) -> None:
        """QEMU notices the end of a connection even if its guest does not."""
        if self.facts["mode"] == "hanging" and self._conn is not None:
            watched = select.poll()
            watched.register(self._conn, select.POLLRDHUP)
            if watched.poll(0):
                self._hang_up()
            else:
                self._loop.after(HANG_UP_POLL, self._watch_hang_up)

    def ill(self, action: str = "reboot", *words: str) -> None:
        """Answer `unhealthy` with this corrective action and log_msg."""
        self.healthy()
        self.facts["mode"] = "ill"
        self._answer = (channel.UNHEALTHY, action, " ".join(words))

    def vote(self, result: str, delay: str = "0", *words: str) -> None:
        """Answer questions with `result` after `delay` s; `mute` answers none. The words are the reason."""
        self._vote = {"result": result, "delay": float(delay), "reason": " ".join(words)}

    def restart(self) -> None:
        """The client ends gracefully and starts again."""
        self._send(channel.Exit("Exiting..."))
        self.boot()

    def reset(self) -> None:
        """The client starts again without a word."""
        self.boot()

    def bye(self) -> None:
        """The client ends gracefully."""
        self._send(channel.Exit("Exiting..."))
        self.facts["state"] = "ended"
        self._cancel_init()

    def flood(self, megabytes: str = "100") -> None:
        """Write so much garbage as fast as the host takes it."""
        self._flood_left = int(float(megabytes) * 1_000_000)
        self.facts["mode"] = "flooding"
        self._flood()

    def half(self) -> None:
        """Answer challenges with half messages."""
        self.facts["mode"] = "half"

    def send(self, *words: str) -> None:
        """Write the words, which are a JSON string, as they are."""
        self._write(json.loads(" ".join(words)).encode("utf-8", "surrogateescape"))

    def off(self) -> None:
        """QEMU ends and its socket goes."""
        self.power_off()

    def crash(self) -> None:
        """QEMU ends and leaves its socket behind."""
        self.power_off(unlink=False)

    def on(self) -> None:
        """QEMU starts (again)."""
        if self._listener is None:
            if os.path.exists(self.path):
                os.unlink(self.path)
            self.facts["mode"] = "healthy"
            self.power_on()

    def _flood(self) -> None:
        chunk = (os.urandom(FLOOD_CHUNK // 64) + b"}{\n") * 64
        taken = self._write(chunk[: max(1, self._flood_left)])
        self._flood_left -= taken
        self.facts["flood_left"] = max(0, self._flood_left)
        if self._flood_left > 0 and self.facts["mode"] == "flooding":
            self._loop.after(0 if taken else 0.002, self._flood)


COMMANDS = (
    "healthy", "mute", "hang", "ill", "vote", "restart", "reset", "bye", "flood", "half", "send", "off",
    "crash", "on",
)  # fmt: skip


class Guests:
    """N guests and the words that switch them: `WHO WORD [ARGUMENT …]`, WHO a number, a uuid or `all`."""

    def __init__(self, loop: Loop, options: Options, count: int, first: int = 1) -> None:
        self.guests = {number: Guest(loop, number, options) for number in range(first, first + count)}

    def power_on(self) -> None:
        """All of them."""
        for guest in self.guests.values():
            guest.power_on()

    def power_off(self) -> None:
        """All of them."""
        for guest in self.guests.values():
            guest.power_off()

    def obey(self, line: str) -> Any:
        """Do what `line` says; returns the answer. Raises ValueError for what nobody understands."""
        words = line.split()
        if words == ["status"]:
            return [guest.facts for guest in self.guests.values()]
        if len(words) < 2 or words[1] not in COMMANDS:
            raise ValueError("WHO WORD expected, or status; the words: " + " ".join(COMMANDS))
        for guest in self._who(words[0]):
            word: Callable[..., None] = getattr(guest, words[1])
            word(*words[2:])
        return "ok"

    def _who(self, who: str) -> List[Guest]:
        chosen = [guest for number, guest in self.guests.items() if who in ("all", str(number), guest.uuid)]
        if not chosen:
            raise ValueError("no guest %s" % who)
        return chosen


def run(options: Options, count: int, first: int) -> int:
    """The command `guestmtce lab guests`: obey lines from standard input until it ends."""
    loop = Loop()
    guests = Guests(loop, options, count, first)
    os.makedirs(options.folder, exist_ok=True)
    guests.power_on()
    rest = b""

    def read() -> None:
        nonlocal rest
        data = os.read(0, 65536)
        if not data:
            loop.stop()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                answer = guests.obey(line.decode())
            except (ValueError, TypeError) as error:
                answer = {"error": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    for number in (2, 15):
        loop.on_signal(number, loop.stop)
    loop.watch(0, read)
    sys.stdout.write(json.dumps("ready") + "\n")
    sys.stdout.flush()
    try:
        loop.run()
    finally:
        guests.power_off()
        loop.close()
    return 0
