"""Drives the master's table by hand, with a clock that only moves when it is told."""

from __future__ import annotations

from guestmtce.server import guests as g
from guestmtce.server import reports
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import channel, datagram

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
PATH = "/q/cgcs.heartbeat.%s.sock" % UUID
NOW = 123456.789
INIT = channel.Init(1804289383, "guest", 1000, 8, 9, 11, 13, 120, "reboot")
SETTINGS = ServerSettings(hostname="host-0")


class Bench:
    """A table with one guest in view. `take` gives the effects since the last time."""

    def __init__(self):
        self.table = g.Guests(SETTINGS)
        self.now = NOW

    @property
    def guest(self):
        return self.table.table[UUID]

    def take(self):
        return self.table.take_effects()

    def take_kinds(self):
        return [type(effect).__name__ for effect in self.take()]

    def told(self):
        return [effect.cmd for effect in self.take() if isinstance(effect, g.Tell)]

    def votes(self):
        tells = [effect.event for effect in self.take() if isinstance(effect, g.Tell)]
        return [(e.event_type, e.vote, e.reason) for e in tells if isinstance(e, datagram.VoteResult)]

    def found(self, path=PATH, ident=1, fresh=False):
        self.table.channel_found(UUID, path, ident, fresh, self.now)

    def gone(self, path=PATH):
        self.table.channel_gone(UUID, path, self.now)

    def connect(self):
        """The child that is being made is there."""
        assert self.guest.link == g.CONNECTING
        self.table.connected(UUID, self.now)

    def report(self, *told):
        for one in told:
            self.table.reported(UUID, one, self.now)

    def end(self, why):
        self.table.child_ended(UUID, why, "", self.now)

    def set(self, reporting):
        self.table.command(datagram.SetInstance(UUID, reporting), self.now)

    def ask(self, event="reboot", kind=channel.VOTE, uuid=UUID):
        self.table.command(datagram.Ask(uuid, kind, event), self.now)

    def run(self, seconds):
        """Let time pass, serving what falls due when it does."""
        until = self.now + seconds
        while self.table.next_due <= until:
            self.now = max(self.now, self.table.next_due)
            self.table.tick(self.now)
        self.now = until


def connected(provisioned=True, reporting=False):
    bench = Bench()
    bench.found()
    if provisioned:
        bench.set(reporting)
    bench.connect()
    bench.take()
    return bench


def heartbeating(provisioned=True, reporting=False):
    bench = connected(provisioned, reporting)
    bench.report(reports.Acknowledged(INIT), reports.Running())
    bench.take()
    return bench
