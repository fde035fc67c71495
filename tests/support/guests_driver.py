"""Drives the master's table by hand, with a clock that only moves when it is told."""

from __future__ import annotations

import errno
import logging
import os

from guestmtce.common.log_line import LogLine
from guestmtce.daemon.log import Throttle
from guestmtce.server.child import session_types
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state import guest as row
from guestmtce.server.state import guest_table as g
from guestmtce.server.state.effects import Connect, ReportEvent
from guestmtce.wire import datagram, guest_channel

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
PATH = "/q/cgcs.heartbeat.%s.sock" % UUID
NOW = 123456.789
INIT = guest_channel.Init(1804289383, "guest", 1000, 8, 9, 11, 13, 120, "reboot")
SETTINGS = ServerSettings(hostname="host-0")
MISSING, REFUSED, BUSY = (
    OSError(number, os.strerror(number)) for number in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
)


class Bench:
    """A table with one guest in view. `take` gives the effects since the last time."""

    def __init__(self):
        self.table = g.GuestTable(SETTINGS)
        self.log = Throttle(logging.getLogger("table"))
        self.now = NOW

    @property
    def guest(self):
        return self.table.guests[UUID]

    def take(self):
        """The effects but for lines of the log, which are written as the master writes them."""
        effects = self.table.drain_effects()
        for effect in effects:
            if isinstance(effect, LogLine):
                self.log.write(effect)
        return [effect for effect in effects if not isinstance(effect, LogLine)]

    def take_kinds(self):
        return [type(effect).__name__ for effect in self.take()]

    def tells(self):
        return [effect for effect in self.take() if isinstance(effect, ReportEvent)]

    def told(self):
        return [tell.cmd for tell in self.tells()]

    def votes(self):
        events = [tell.event for tell in self.tells() if isinstance(tell.event, datagram.VoteResult)]
        return [(event.event_type, event.vote, event.reason) for event in events]

    def confirm(self, *kinds):
        """guestAgent has these, or everything that it is to have."""
        for key in list(self.guest.pending.events):
            if not kinds or str(key) in kinds:
                self.table.confirm_event(key)

    @property
    def pending(self):
        """What is not confirmed, by kind; that of an outcome has its question's id."""
        return {str(key): event for key, event in self.guest.pending.events.items()}

    def infos(self):
        return [self.table.instance_info(uuid) for uuid in self.table.guests]

    def saved(self):
        """What is remembered at last."""
        return self.guest.memory()

    def found(self, path=PATH, ident=1, fresh=False):
        self.table.socket_found(UUID, path, ident, fresh, self.now)

    def gone(self, path=PATH):
        self.table.socket_gone(UUID, path, self.now)

    def connect(self):
        """The child that is being made is there."""
        assert self.guest.connection.state == row.CONNECTING
        self.table.child_started(UUID, self.now)
        self.note_enabling()

    def note_enabling(self):
        """The child has been told that reporting became enabled, and says so."""
        self.report(*[session_types.ReportingEnabled()] * self.guest.liveness.enablings)

    def report(self, *told):
        for one in told:
            self.table.handle_report(UUID, one, self.now)

    def end(self, why):
        self.table.child_ended(UUID, why, "", self.now)

    def set(self, reporting):
        self.table.handle_command(datagram.SetInstance(UUID, reporting), self.now)

    def ask(self, event="reboot", kind=guest_channel.VOTE, uuid=UUID):
        self.table.handle_command(datagram.Ask(uuid, kind, event), self.now)

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


def resumes(effects):
    """What new children are given to resume with."""
    return [effect.resume for effect in effects if isinstance(effect, Connect)]


def recalled(memory, age=0.0):
    """The table after a restart at NOW, `age` s after the last sign of life."""
    bench = Bench()
    bench.table.recall_guest(memory, NOW - age, NOW)
    return bench


def heartbeating(provisioned=True, reporting=False):
    bench = connected(provisioned, reporting)
    bench.report(session_types.Acknowledged(INIT), session_types.Running())
    bench.confirm()
    bench.take()
    return bench


def lost():
    """A guest whose failure nobody has confirmed."""
    bench = heartbeating(reporting=True)
    bench.report(session_types.Lost(2))
    return bench


def ill():
    bench = heartbeating(reporting=True)
    bench.report(session_types.Ill("reboot", "disk"))
    bench.take()
    return bench


# --- how failures end --------------------------------------------------------------------------


def runs_again(bench):
    bench.report(session_types.Acknowledged(INIT), session_types.Running())


def is_not_reported(bench):
    bench.set(False)


def host_is_not_reported(bench):
    bench.table.handle_command(datagram.SetHost("h", False), bench.now)


def is_replaced(bench):
    bench.found(ident=2)


def is_made_anew_and_looks_the_same(bench):
    bench.found(ident=1, fresh=True)


def goes_and_is_created(bench):
    bench.gone()
    bench.run(1)
    bench.found(ident=2, fresh=True)


def goes_and_is_found(bench):
    bench.gone()
    bench.found(ident=2)


def is_created_when_it_is_gone(bench):
    bench.gone()
    bench.found(ident=1, fresh=True)


ENDS = [
    runs_again, is_not_reported, host_is_not_reported, is_replaced, is_made_anew_and_looks_the_same,
    goes_and_is_created, goes_and_is_found, is_created_when_it_is_gone,
]  # fmt: skip
