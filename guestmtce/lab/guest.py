"""A simulated guest behind a UNIX socket: QEMU's end and the guest in one.

A guest here behaves like the deployed client (docs/protocol/1-guest-channel.md#what-real-guests-do): it
repeats `init` until it is acknowledged, answers challenges, goes back to `init` when challenges stop, and
does not notice when the host's side is closed and opened again. What it does beside that is switchable
while it runs, by the words at the end; `guestmtce.lab.crowd` has many guests in one process.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, Optional

from guestmtce.daemon.loop import Loop, Timer
from guestmtce.lab.guest_options import CrowdRecord, GuestOptions
from guestmtce.lab.qemu import Qemu
from guestmtce.wire import guest_channel, guest_channel_fast, json_lines

# docs/protocol/1-guest-channel.md#what-real-guests-do
INIT_PERIOD = 5.0  # s
PATIENCE = 5.0  # s without a challenge, at least; it is two intervals if these are more
PATIENCE_INTERVALS = 2
FIRST_INVOCATION = 1804289383  # every real guest starts with this one: glibc's first rand() without a seed
FLOOD_LINE = 1024  # random bytes in a line of garbage
FLOOD_LINES = 64  # in a write
FLOOD_PAUSE = 0.002  # s, when the host takes nothing
BYTES_PER_MB = 1_000_000
EXIT_REASON = "Exiting..."  # as the deployed client says
# How a challenge of guestServer begins. One that comes alone is read without the JSON parser.
PLAIN_CHALLENGE = guest_channel_fast.build_challenge(0, 0).partition(b"0,")[0]


def uuid_of(number: int) -> str:
    """The uuid of the lab's guest `number`."""
    return "00000000-0000-4000-8000-%012d" % number


def _make_answer_format(action: str) -> bytes:
    """A healthy answer with two %d, for its sequence and for its challenge."""
    text = guest_channel.build(
        guest_channel.ChallengeResponse(0, guest_channel.HEALTHY, action, ""), 0
    ).replace(b"%", b"%%")
    # Every % of the text itself is doubled by now, so that only these two are filled in.
    return text.replace(b'"sequence":0', b'"sequence":%d').replace(b'_response":0', b'_response":%d')


class LabGuest:
    """One guest. Times are s on the machine's monotonic clock.

    `facts` is its own view, a JSON object: counters, and times of the present connection, 0.0 before
    it has come to them; `mode` is the word that it was given, `state` that of its client.
    """

    def __init__(self, loop: Loop, number: int, options: GuestOptions, record: CrowdRecord) -> None:
        self.uuid = uuid_of(number)
        self.path = os.path.join(options.folder, "cgcs.heartbeat.%s.sock" % self.uuid)
        self.facts: Dict[str, Any] = {
            "uuid": self.uuid, "mode": "healthy", "state": "enabling", "inits": 0, "answers": 0, "nacks": 0,
            "links": 0, "last_beat": 0.0, "last_challenge": 0.0, "unanswered_since": 0.0, "asked": [],
        }  # fmt: skip
        self._record = record
        self._loop = loop
        self._number = number
        self._options = options
        self._sequence = 0
        self._invocation = FIRST_INVOCATION - 1
        self._answer = (guest_channel.HEALTHY, options.action, "")
        self._vote: Dict[str, Any] = {"result": "accept", "reason": "", "delay": 0.0}
        self._votes_each = 1
        self._plain_answer = _make_answer_format(options.action)
        self._forget_connection(0.0)
        self._qemu = Qemu(loop, self.path, self._note_connection, self._read_data)
        self._init_timer: Optional[Timer] = None
        self._patience_timer: Optional[Timer] = None
        self._boot_timer: Optional[Timer] = None
        self._loop_period = 0.0
        self._patient_until = 0.0
        self._flood_left = 0

    # --- the machine -------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Start QEMU, and boot."""
        self._qemu.start()
        self.boot()

    def power_off(self, unlink: bool = True) -> None:
        """The end of QEMU, with its socket or without."""
        self._cancel_init()
        self._cancel_boot()
        self._qemu.end(unlink)
        self.facts["state"] = "off"

    def _note_connection(self) -> None:
        self.facts["links"] += 1
        self._forget_connection(time.monotonic())
        # A client that is acknowledged does not notice that the host's side was closed and opened again.
        # docs/protocol/1-guest-channel.md#resuming-a-guest
        if self.facts["state"] == "enabling":
            self._send_init()

    def _forget_connection(self, now: float) -> None:
        """A new connection, made `now`: `linked_at` and `first_…` are about it alone."""
        self._lines = json_lines.LineBuffer()
        self._between_lines = True
        self._challenged_at = 0.0
        self.facts.update(linked_at=now, first_init=0.0, first_challenge=0.0, first_beat=0.0)

    def _read_data(self, data: bytes) -> None:
        # With a thousand guests in one process the JSON parser would be most of what the lab costs, and the
        # bench would measure it instead of guestServer.
        if not self._answer_plain_challenge(data):
            self._between_lines = data.endswith(b"\n")
            self._read_lines(data)

    def _read_lines(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            try:
                self._handle_message(guest_channel.parse(line, guest_channel.FROM_HOST))
            except (json_lines.NotAMessage, guest_channel.Refused):
                self.facts["bad_lines"] = self.facts.get("bad_lines", 0) + 1

    def _answer_plain_challenge(self, data: bytes) -> bool:
        """Answer one challenge to a healthy guest, which nearly all data are. False: other data."""
        if not (self._between_lines and self.facts["mode"] == "healthy" and self.facts["state"] == "enabled"):
            return False
        # One line alone. It begins with a newline, too, hence the 1.
        if not data.startswith(PLAIN_CHALLENGE) or data.find(b"\n", 1) != len(data) - 1:
            return False
        self._note_challenge()
        self._expect_challenge()
        self._sequence += 1
        self._send_answer(self._plain_answer % (self._sequence, int(data[data.rindex(b":") + 1 : -2])))
        return True

    # --- the guest's part --------------------------------------------------------------------------

    def boot(self) -> None:
        """The heartbeat client starts: everything from before is forgotten."""
        self.facts["state"] = "enabling"
        self._invocation = FIRST_INVOCATION - 1
        self._send_init()

    def _send(self, message: guest_channel.Message) -> None:
        self._sequence += 1
        self._qemu.write(guest_channel.build(message, self._sequence))

    def _send_init(self) -> None:
        self._cancel_init()
        # A timer of before: a machine that stands still sends nothing.
        if self.facts["mode"] == "hanging":
            return
        self.facts["state"] = "enabling"
        self._invocation += 1
        # An init into a port without a host is not counted: nobody could have read it.
        if self._qemu.has_client:
            self.facts["inits"] += 1
            self.facts["first_init"] = self.facts["first_init"] or time.monotonic()
        secs = self._options.secs
        name = "lab-%d" % self._number
        timeouts = (secs, secs, secs, secs, secs)
        self._send(
            guest_channel.Init(
                self._invocation, name, self._options.interval_ms, *timeouts, self._options.action
            )
        )
        self._init_timer = self._loop.after(INIT_PERIOD * self._options.scale, self._send_init)

    def _cancel_init(self) -> None:
        for timer in (self._init_timer, self._patience_timer):
            if timer is not None:
                timer.cancel()
        self._init_timer = self._patience_timer = None

    def _expect_challenge(self) -> None:
        wait = max(
            PATIENCE_INTERVALS * self._options.interval_ms / guest_channel.MS_PER_S,
            PATIENCE * self._options.scale,
        )
        self._patient_until = time.monotonic() + wait
        if self._patience_timer is None:
            self._cancel_init()
            self._patience_timer = self._loop.at(self._patient_until, self._lose_patience)

    def _lose_patience(self) -> None:
        """Go back to init, unless a challenge has come since the timer was set.

        A timer that runs on is cheaper than a new one for each challenge.
        """
        if time.monotonic() < self._patient_until:
            self._patience_timer = self._loop.at(self._patient_until, self._lose_patience)
        else:
            self._send_init()

    def _handle_message(self, message: guest_channel.Message) -> None:
        if isinstance(message, guest_channel.InitAck):
            # The latest init or the one before, as the client in the field.
            # docs/protocol/1-guest-channel.md#init-and-acknowledgement
            if message.invocation_id in (self._invocation, self._invocation - 1):
                self.facts["state"] = "enabled"
                self._expect_challenge()
                if self.facts["mode"] == "introducing":
                    self._loop.after(self._loop_period, self._introduce_again)
        elif isinstance(message, guest_channel.Challenge):
            self._note_challenge()
            if self.facts["state"] == "enabled":
                self._expect_challenge()
                self._answer_challenge(message.heartbeat_challenge)
        elif isinstance(message, guest_channel.ActionNotify):
            self.facts["asked"].append([message.notification_type, message.event_type, message.timeout_ms])
            self.facts["asked_as"] = (
                message.invocation_id
            )  # of the init that the host has, not of our last one
            if self._vote["result"] != "mute":
                self._loop.after(self._vote["delay"], lambda: self._send_vote(message))
        elif isinstance(message, guest_channel.Nack):
            self.facts["nacks"] += 1
            self.facts["nack"] = message.log_msg

    def _note_challenge(self) -> None:
        now = time.monotonic()
        # Of the first challenge of a connection nobody knows when it was due.
        if self._challenged_at:
            interval = self._options.interval_ms / guest_channel.MS_PER_S
            self._record.late.add(now - self._challenged_at - interval)
        else:
            self.facts["first_challenge"] = now
        self._challenged_at = self.facts["last_challenge"] = now

    def _answer_challenge(self, challenge: int) -> None:
        answer = guest_channel.ChallengeResponse(challenge, *self._answer)
        if self.facts["mode"] in ("mute", "introducing"):
            # Of the first unanswered challenge: from there a loss is due.
            self.facts["unanswered_since"] = self.facts["unanswered_since"] or self._challenged_at
            return
        self._sequence += 1
        text = guest_channel.build(answer, self._sequence)
        if self.facts["mode"] == "half":
            # The rest never comes: the host has to find the end of the line by the next message.
            self._qemu.write(text[: len(text) // 2])
        else:
            self._send_answer(text)
            if self.facts["mode"] == "leaving":
                self._leave_host()

    def _leave_host(self) -> None:
        """The answer was the last of this client; the next one starts after the loop's period."""
        self._send(guest_channel.Exit(EXIT_REASON))
        self._cancel_init()
        self.facts["state"] = "ended"
        self._loop.after(self._loop_period, self._introduce_again)

    def _introduce_again(self) -> None:
        # Another word may have been said since the timer was set.
        if self.facts["mode"] in ("introducing", "leaving"):
            self._send_init()

    def _send_answer(self, text: bytes) -> None:
        self._qemu.write(text)
        self._record.answers += 1
        self.facts["answers"] += 1
        self.facts["last_beat"] = time.monotonic()
        self.facts["first_beat"] = self.facts["first_beat"] or self.facts["last_beat"]

    def _send_vote(self, question: guest_channel.ActionNotify) -> None:
        for _ in range(0 if self.facts["mode"] == "hanging" else self._votes_each):
            self._send(
                guest_channel.ActionResponse(
                    question.invocation_id,
                    question.event_type,
                    question.notification_type,
                    self._vote["result"],
                    self._vote["reason"],
                )
            )

    # --- the words ---------------------------------------------------------------------------------

    def healthy(self) -> None:
        """Be well; a guest that hung finds the challenges that piled up."""
        hung = self.facts["mode"] == "hanging"
        self._answer = (guest_channel.HEALTHY, self._options.action, "")
        self.facts.update(mode="healthy", unanswered_since=0.0)
        self._qemu.resume()
        # Its timers were cancelled when it hung.
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
        self._cancel_boot()
        self._qemu.pause()

    def ill(self, action: str = "reboot", *words: str) -> None:
        """Answer `unhealthy` with this corrective action and log_msg."""
        self.healthy()
        self.facts["mode"] = "ill"
        self._answer = (guest_channel.UNHEALTHY, action, " ".join(words))

    def vote(self, result: str, delay: str = "0", *words: str) -> None:
        """Answer questions with `result` after `delay` s; `mute` answers none. The words are the reason."""
        self._vote = {"result": result, "delay": float(delay), "reason": " ".join(words)}

    def votes_each(self, times: str) -> None:
        """Answer every question so many times."""
        self._votes_each = int(times)

    def restart(self) -> None:
        """The client ends gracefully and starts again."""
        self._send(guest_channel.Exit(EXIT_REASON))
        self.boot()

    def reset(self, seconds: str = "0") -> None:
        """The machine starts again without a word, its socket kept; its client starts after so many s."""
        # Until then the machine boots: what is sent to it piles up.
        if float(seconds):
            self.hang()
            self._boot_timer = self._loop.after(float(seconds), self._finish_boot)
        else:
            self.boot()

    def _finish_boot(self) -> None:
        self.facts["state"] = "booting"  # what has piled up is read, and answered by nobody
        self.healthy()
        self.boot()

    def _cancel_boot(self) -> None:
        if self._boot_timer is not None:
            self._boot_timer.cancel()
            self._boot_timer = None

    def introduce(self, period: str = "0") -> None:
        """Send `init` so many s after every acknowledgement, and answer no challenge."""
        self.healthy()
        self.facts["mode"] = "introducing"
        self._loop_period = float(period)
        self._send_init()

    def leave(self, period: str = "0") -> None:
        """Answer one challenge, exit, and send `init` so many s later: again and again."""
        self.healthy()
        self.facts["mode"] = "leaving"
        self._loop_period = float(period)

    def bye(self) -> None:
        """The client ends gracefully."""
        self._send(guest_channel.Exit(EXIT_REASON))
        self.facts["state"] = "ended"
        self._cancel_init()

    def flood(self, megabytes: str = "100") -> None:
        """Write so many MB of garbage as fast as the host takes it."""
        self._flood_left = int(float(megabytes) * BYTES_PER_MB)
        self.facts["mode"] = "flooding"
        self._write_flood()

    def half(self) -> None:
        """Answer challenges with half messages."""
        self.facts["mode"] = "half"

    def send(self, *words: str) -> None:
        """Write the words, which are a JSON string, as they are."""
        # Lone surrogates are bytes that are no UTF-8: a test may send any byte.
        self._qemu.write(json.loads(" ".join(words)).encode("utf-8", "surrogateescape"))

    def off(self) -> None:
        """QEMU ends and its socket goes."""
        self.power_off()

    def crash(self) -> None:
        """QEMU ends and leaves its socket behind."""
        self.power_off(unlink=False)

    def on(self, seconds: str = "0") -> None:
        """QEMU starts (again); the client in it after so many s."""
        if not self._qemu.runs:
            self.facts["mode"] = "healthy"
            self._qemu.start()
            self.reset(seconds)

    def restored(self) -> None:
        """QEMU starts with the machine as it was when it ended: paused until `healthy`."""
        if not self._qemu.runs:
            # The client in it was acknowledged when the machine was saved, and sends no init when it goes on.
            self.facts.update(mode="hanging", state="enabled")
            self._qemu.start(paused=True)

    def _write_flood(self) -> None:
        chunk = (os.urandom(FLOOD_LINE) + b"}{\n") * FLOOD_LINES
        taken = self._qemu.write(chunk[: max(1, self._flood_left)])
        self._flood_left -= taken
        self.facts["flood_left"] = max(0, self._flood_left)
        if self._flood_left > 0 and self.facts["mode"] == "flooding":
            # Through the loop even without a pause: other guests of this process go on heartbeating.
            self._loop.after(0 if taken else FLOOD_PAUSE, self._write_flood)
