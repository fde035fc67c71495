"""A guest client on a bench: a clock that is a float, and both sides' messages as values.

Everything that the client writes is parsed as strictly as guestServer would, so every test that uses the
bench also checks the bytes.
"""

from __future__ import annotations

import itertools

from guestmtce.guest.client import ALONE, ENABLED, GONE, INTERRUPTED, Client
from guestmtce.guest.config import Config
from guestmtce.guest.settings import Settings
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import ActionNotify, Challenge, Init, InitAck

BEGIN = 1000.0


class Bench:
    """One client, its host's voice, and what both said."""

    def __init__(self, voters=(), **config):
        self.now = BEGIN
        self.voters = frozenset(voters)
        numbers = itertools.chain([0, guest_channel.INT32_MAX], itertools.count(10))
        self.client = Client(Config(**config), Settings(), "vm-1", lambda: next(numbers), lambda: self.voters)
        self.sent, self.effects = [], []

    def keep(self, output):
        for data in output.messages:
            assert data.startswith(b"\n") and data.endswith(b"\n") and data.count(b"\n") == 2
            assert len(data) <= guest_channel.MESSAGE_MAX
            self.sent.append(guest_channel.parse(data.strip()))
        self.effects += output.effects

    def say(self, message):
        """The host says `message`: a tuple of the channel's, or bytes as they are."""
        data = message if isinstance(message, bytes) else guest_channel.build(message, 1)
        self.keep(self.client.receive(data, self.now))

    def open(self):
        self.keep(self.client.note_opened(self.now))

    def close(self):
        self.keep(self.client.note_closed(self.now))

    def ack(self, back=0):
        """The host acknowledges the latest init, or the one so many before."""
        inits = self.wrote(Init)
        self.say(InitAck(inits[-1 - back].invocation_id))

    def challenge(self, number=7):
        self.say(Challenge(number))

    def ask(self, kind="revocable", event="stop", timeout_ms=9000, ident=5):
        self.say(ActionNotify(ident, event, kind, timeout_ms))

    def tick(self, at=None):
        """`tick` at the client's deadline, or at the time `at`."""
        self.now = max(self.now, self.client.deadline if at is None else at)
        self.keep(self.client.tick(self.now))

    def vote(self, number, voter, result="accept", reason=""):
        self.keep(self.client.count_vote(number, voter, result, reason))

    def wrote(self, kind):
        """The messages of that kind that the client sent, in order."""
        return [message for message in self.sent if isinstance(message, kind)]

    def told(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def forget(self):
        self.sent, self.effects = [], []

    def bring_to(self, state):
        """Into `state`, the way a real one gets there."""
        if state != ALONE:
            self.open()
        if state in (ENABLED, INTERRUPTED):
            self.ack()
        if state == INTERRUPTED:
            self.close()
        if state == GONE:
            self.keep(self.client.say_goodbye("bye", self.now))
        assert self.client.state == state
        return self

    def enabled(self):
        return self.bring_to(ENABLED)


def names(messages):
    return " ".join(type(message).__name__ for message in messages)
