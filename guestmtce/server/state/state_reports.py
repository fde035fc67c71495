"""RUNNING and STOPPED: when guestAgent hears whether a guest heartbeats.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/2-datagrams.md#late-and-out-of-order

What it is to believe follows from the row (`shown_state`). A guest that comes and goes is told at once, and
then as often as `state_changes` allows: its last state always.
"""

from __future__ import annotations

from typing import Optional

from guestmtce.common.log_line import INFO
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.guest import NEVER, STATE, Guest, PendingEvent, PendingKey, instance_info
from guestmtce.server.state.pending_events import PendingEvents
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import datagram


class StateReports:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, settings: TableSettings, agenda: Agenda, pending: PendingEvents) -> None:
        self._settings = settings
        self._agenda = agenda
        self._pending = pending

    def shown_state(self, guest: Guest) -> Optional[datagram.InstanceInfo]:
        """What guestAgent is to believe of a guest that heartbeats; None: that it does not."""
        if not guest.liveness.heartbeating:
            return None
        # Without `reporting`: guestAgent commanded it itself, so a change of it alone is no news.
        return instance_info(guest, self._settings.hostname)._replace(reporting=False)

    def report_if_changed(self, guest: Guest, now: float) -> None:
        """It shows something else than what was reported last."""
        guest.pending.state_due = NEVER
        if guest.pending.last_reported != self.shown_state(guest):
            self._report_state(guest, now)

    def recall_state(self, guest: Guest, key: PendingKey, event: PendingEvent) -> None:
        """It was not confirmed when a former guestServer ended."""
        if event.cmd == datagram.STOPPED:
            # A STOPPED was told, so it does not count as heartbeating; what it owes it still owes.
            guest.liveness.note(liveness.GRACE_OVER)
        elif isinstance(event.event, datagram.InstanceInfo):
            guest.pending.last_reported = event.event._replace(reporting=False)
        guest.pending.events[key] = event
        self._pending.resend_event(guest, key)

    def schedule_stopped(self, guest: Guest, now: float) -> None:
        """Nothing shows that it heartbeats: it has its grace to come back."""
        # Once: a connection that breaks again and again must not put STOPPED off for ever.
        if guest.liveness.heartbeating and guest.pending.stopped_due == NEVER:
            guest.pending.stopped_due = now + self._settings.stopped_grace
            self._agenda.wake_guest(guest, guest.pending.stopped_due)

    def report_stopped(
        self, guest: Guest, now: float, happening: str, sequence: Optional[int] = None
    ) -> None:
        """`happening`, of `liveness`, ends its heartbeating. Who knows that already is not told twice.

        `sequence` is that of a stop that was named before a loss: it is told at once.
        """
        shown = guest.liveness.heartbeating
        guest.liveness.note(happening)
        guest.pending.stopped_due = NEVER
        # A state that waits for its turn (`state_due`) gives way: the STOPPED of a loss is told at once.
        if shown or (sequence is not None and guest.pending.state_due != NEVER):
            self._report_state(guest, now, sequence)
        self._agenda.save_guest(guest)

    def _report_state(self, guest: Guest, now: float, sequence: Optional[int] = None) -> None:
        """At once, or, of one that comes and goes, soon."""
        pending = guest.pending
        pending.state_due = NEVER
        if sequence is None and not pending.state_changes.spend(now):
            pending.state_due = now + pending.state_changes.wait(now)
            self._agenda.wake_guest(guest, pending.state_due)
            return
        pending.last_reported = self.shown_state(guest)
        info = instance_info(guest, self._settings.hostname)
        key = PendingKey(guest.uuid, STATE)
        if guest.liveness.heartbeating:
            self._agenda.log_report(guest, now, INFO, "heartbeating")
            self._pending.report_event(guest, key, datagram.RUNNING, info)
        else:
            self._agenda.log_report(guest, now, INFO, "stopped heartbeating")
            self._pending.report_event(guest, key, datagram.STOPPED, info, sequence)
