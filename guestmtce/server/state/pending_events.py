"""What guestAgent must hear: kept in the row until it is confirmed, and withdrawn when no longer true.

docs/protocol/2-datagrams.md#confirmed-and-repeated
"""

from __future__ import annotations

from typing import Callable, Dict, Optional

from guestmtce.common.log_line import WARNING
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.effects import ReportEvent, WithdrawEvent
from guestmtce.server.state.guest import FAILURES, ILLNESS, NEVER, Guest, PendingEvent, PendingKey
from guestmtce.wire import datagram


class PendingEvents:
    """See the module's text. `next_sequence` gives 1 … 2³²−1; it names an event for ever."""

    def __init__(self, agenda: Agenda, next_sequence: Callable[[], int]) -> None:
        self.next_sequence = next_sequence
        self._agenda = agenda
        self._delivered: Dict[PendingKey, ReportEvent] = {}  # failures that were confirmed and are still true
        self._of_unknown: Dict[PendingKey, ReportEvent] = {}  # of instances without a row; each expires soon

    def report_event(
        self,
        guest: Guest,
        key: PendingKey,
        cmd: int,
        event: datagram.Event,
        sequence: Optional[int] = None,
        until: float = NEVER,
    ) -> None:
        """guestAgent is to hear this, until it has it or nobody wants it any more, at `until` (s, monotonic).

        A newer one of the same key takes its place. `sequence`: it was named before.
        """
        guest.pending.events[key] = PendingEvent(sequence or self.next_sequence(), cmd, event, until=until)
        # A newer event of the key is pending: the delivered one must not come up again.
        self._delivered.pop(key, None)
        self.resend_event(guest, key)
        self._agenda.save_guest(guest)

    def resend_event(self, guest: Guest, key: PendingKey) -> None:
        """guestAgent is to hear this of the row, under the sequence number that it has."""
        one = guest.pending.events[key]
        # A RUNNING without flag 32 voids an ILLHEALTH that waits
        # (docs/protocol/2-datagrams.md#late-and-out-of-order).
        # Decided once: every repetition under the same number says the same.
        still_ill = one.cmd == datagram.RUNNING and PendingKey(guest.uuid, ILLNESS) in guest.pending.events
        guest.pending.events[key] = one._replace(still_ill=still_ill)
        self._agenda.add_effect(self._make_report(guest, key))

    def report_once(self, key: PendingKey, cmd: int, event: datagram.Event, until: float) -> None:
        """guestAgent is to hear this of an instance that we do not know."""
        report = self._of_unknown[key] = ReportEvent(cmd, event, self.next_sequence(), key, until)
        self._agenda.add_effect(report)

    def find_report(self, guest: Optional[Guest], key: PendingKey) -> Optional[ReportEvent]:
        """What is to be sent under this key now; None: nothing. `guest`: its row, if there is one.

        A failure that was delivered is found while it is true: it may be the next agent's to hear.
        """
        if guest is not None and key in guest.pending.events:
            return self._make_report(guest, key)
        return self._delivered.get(key) or self._of_unknown.get(key)

    def withdraw_event(self, guest: Guest, key: PendingKey, why: str) -> None:
        """This is no longer true."""
        if not self._remove_event(guest, key):
            self._withdraw_delivered(key)
            return
        self._agenda.add_effect(WithdrawEvent(key))
        if key.kind == ILLNESS:
            guest.pending.ill_reported_at = -NEVER  # nobody knows of it: whoever finds it ill anew tells that
        if key.kind in FAILURES:
            guest.pending.withdrawn += 1
            text = "%s: %s withdrawn, over before the VIM was told: %s"
            self._agenda.log_line(WARNING, text, guest.uuid, key.kind, why)
        self._agenda.save_guest(guest)

    def withdraw_all(self, guest: Guest) -> None:
        """The guest is forgotten."""
        for key in guest.pending.events:
            self._agenda.add_effect(WithdrawEvent(key))
        for kind in FAILURES:
            self._withdraw_delivered(PendingKey(guest.uuid, kind))

    def hold_failure(self, guest: Guest, key: PendingKey, event: PendingEvent, until: float) -> None:
        """A failure of before a restart is not told before `until` (s, monotonic)."""
        guest.pending.events[key] = event._replace(held=True)
        guest.pending.report_failures_after = until
        self._agenda.wake_guest(guest, until)

    def release_held(self, guest: Guest) -> None:
        """Failures of before a restart are told now: a guest that lives would have shown it."""
        guest.pending.report_failures_after = NEVER
        for key, one in guest.pending.events.items():
            if one.held:
                guest.pending.events[key] = one._replace(held=False)
                self.resend_event(guest, key)

    def confirm_event(self, guest: Optional[Guest], key: PendingKey) -> bool:
        """guestAgent has it; whether it was pending.

        If that is an old agent, the next one is to hear of a failure while it is true: it may be withdrawn.
        """
        self._of_unknown.pop(key, None)
        if guest is None or key not in guest.pending.events:
            return False
        if key.kind in FAILURES:
            self._delivered[key] = self._make_report(guest, key)
        self._remove_event(guest, key)
        self._agenda.save_guest(guest)
        return True

    def _make_report(self, guest: Guest, key: PendingKey) -> ReportEvent:
        one = guest.pending.events[key]
        return ReportEvent(one.cmd, one.event, one.sequence, key, one.until, one.still_ill)

    def _remove_event(self, guest: Guest, key: PendingKey) -> bool:
        """Whether it was pending."""
        removed = guest.pending.events.pop(key, None) is not None
        if not guest.pending.events:
            guest.pending.events = {}  # a dictionary that had something in it keeps 168 bytes for more
        return removed

    def _withdraw_delivered(self, key: PendingKey) -> None:
        if self._delivered.pop(key, None) is not None:
            self._agenda.add_effect(WithdrawEvent(key))
