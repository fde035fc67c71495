"""LOSS and ILLHEALTH: which failures guestAgent hears of, when, and until when.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#ill-health

A failure is wanted while reporting is enabled for the host and for the instance; whether it is, is decided
here alone. A loss is over when the guest heartbeats again, an illness when the guest is healthy, lost or
gone, and both when nobody wants them.
"""

from __future__ import annotations

from guestmtce.common.log_line import WARNING
from guestmtce.server.child import session_types
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.guest import ILLNESS, LOSS, Guest, PendingKey, instance_info
from guestmtce.server.state.pending_events import PendingEvents
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import datagram

TIMER_TOLERANCE = 0.99  # of a period, from which on it counts as over


class Failures:
    """See the module's text. Times in s, monotonic. `host_reporting`: as guestAgent has commanded it."""

    def __init__(self, settings: TableSettings, agenda: Agenda, pending: PendingEvents) -> None:
        self.host_reporting = True
        self._settings = settings
        self._agenda = agenda
        self._pending = pending

    def are_wanted(self, guest: Guest) -> bool:
        """Whether guestAgent is to hear of this guest's failures."""
        return guest.reporting and self.host_reporting

    def withdraw_unwanted(self, guest: Guest) -> None:
        """Where reporting is disabled nobody wants to hear of failures, those of before either."""
        if not self.are_wanted(guest):
            self.withdraw_both(guest, "reporting was disabled")

    def withdraw_both(self, guest: Guest, why: str) -> None:
        """Its loss and its illness are no longer true, or nobody wants them."""
        self.end_loss(guest, why)
        self.end_illness(guest, why)

    # --- losses ------------------------------------------------------------------------------------

    def report_loss(self, guest: Guest, now: float) -> int:
        """Its session has found a loss. Returns the sequence number of the STOPPED that belongs to it.

        STOPPED takes its number before LOSS although it is sent second: guestAgent reads a STOPPED that is
        newer than a LOSS as "ran again in between" (docs/protocol/2-datagrams.md#late-and-out-of-order).
        """
        stopped = self._pending.next_sequence()
        wanted = self.are_wanted(guest)
        text = "heartbeat lost" + ("" if wanted else " (reporting is disabled)")
        self._agenda.log_report(guest, now, WARNING, text)
        if wanted:
            # The row says it heartbeats until STOPPED is reported, after this: the loss must not.
            info = instance_info(guest, self._settings.hostname)._replace(heartbeating=False)
            self._pending.report_event(guest, PendingKey(guest.uuid, LOSS), datagram.LOSS, info)
        return stopped

    def end_loss(self, guest: Guest, why: str) -> None:
        """It is not lost."""
        self._pending.withdraw_event(guest, PendingKey(guest.uuid, LOSS), why)

    # --- illnesses ---------------------------------------------------------------------------------

    def note_illness(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        """Its child says that it is ill; that is reported if it is news, and if not too often, at once."""
        pending = guest.pending
        if now - pending.ill_reported_at < self._settings.ill_repeat * TIMER_TOLERANCE:
            return  # a new child found out what the one before had told
        self._agenda.log_report(guest, now, WARNING, "ill, wants %s: %s", report.action, report.log_msg)
        if not self.are_wanted(guest):
            return
        told = pending.events.get(PendingKey(guest.uuid, ILLNESS))
        if told is not None and told.event == self._illness_info(guest, report):
            return  # the VIM is being told, or is still to be: twice would restart its repair
        # Of a guest that is ill and well in turn, what comes too soon is told later, if it is still ill then.
        if pending.illnesses.spend(now):
            self._report_illness(guest, report, now)
        else:
            pending.late_illness, pending.late_illness_due = report, now + pending.illnesses.wait(now)
            self._agenda.wake_guest(guest, pending.late_illness_due)

    def report_late_illness(self, guest: Guest, now: float) -> None:
        """One that came too soon after another is due now, if it goes on."""
        report = guest.pending.late_illness
        if report is not None and guest.pending.late_illness_due <= now:
            guest.pending.illnesses.spend(now)
            self._report_illness(guest, report, now)

    def end_illness(self, guest: Guest, why: str) -> None:
        """It is not ill, or nobody is there who could be."""
        guest.pending.late_illness = None
        self._pending.withdraw_event(guest, PendingKey(guest.uuid, ILLNESS), why)

    def _report_illness(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        guest.pending.late_illness = None
        guest.pending.ill_reported_at = now
        key = PendingKey(guest.uuid, ILLNESS)
        self._pending.report_event(guest, key, datagram.ILLHEALTH, self._illness_info(guest, report))

    def _illness_info(self, guest: Guest, report: session_types.Ill) -> datagram.InstanceInfo:
        info = instance_info(guest, self._settings.hostname)
        return info._replace(repair_action=report.action)
