"""What a guest's child says of it, and what follows.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#expected-silence

A report that was on its way through the pipe while the table changed is judged by what the table knows now: a
loss that was found before reporting became enabled, or before a notice was agreed to, is none.
"""

from __future__ import annotations

from typing import Any, Callable, Dict

from guestmtce.common.log_line import INFO, WARNING
from guestmtce.server.child import session_types
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.connections import Connections
from guestmtce.server.state.failures import Failures
from guestmtce.server.state.guest import NEVER, Guest
from guestmtce.server.state.questions import Questions
from guestmtce.server.state.state_reports import StateReports


class ChildReports:
    """See the module's text. Times in s, monotonic."""

    def __init__(
        self,
        agenda: Agenda,
        state_reports: StateReports,
        failures: Failures,
        questions: Questions,
        connections: Connections,
    ) -> None:
        self._agenda = agenda
        self._state_reports = state_reports
        self._failures = failures
        self._questions = questions
        self._connections = connections

    def handle_report(self, guest: Guest, report: session_types.Report, now: float) -> None:
        """The guest's child says this."""
        _REPORT_HANDLERS[type(report)](self, guest, report, now)

    def _handle_acknowledged(self, guest: Guest, report: session_types.Acknowledged, now: float) -> None:
        init = guest.init = report.init
        if self._questions.expected_silence(guest, now) > 0:
            guest.liveness.note(liveness.EXCUSED)  # it was told to restart
        guest.liveness.ill = False
        guest.liveness.silence_until = guest.liveness.patience_until = -NEVER
        guest.pending.ill_reported_at = -NEVER
        self._failures.end_illness(guest, "the guest has restarted")
        self._agenda.log_report(guest, now, INFO, "init of %s, every %d ms, %s", init.name,
                                init.heartbeat_interval_ms, init.corrective_action)  # fmt: skip
        self._agenda.save_guest(guest)

    def _handle_running(self, guest: Guest, report: session_types.Running, now: float) -> None:
        early = guest.liveness.enablings > 0
        guest.liveness.note(liveness.ANSWERED_TOO_EARLY if early else liveness.ANSWERED)
        guest.liveness.answered_since_notice = True
        guest.liveness.patience_until = -NEVER
        guest.crashes.crash_looping = False
        guest.pending.stopped_due = NEVER
        # A loss that still waits goes before RUNNING is told: nobody is to hear it of a guest that lives.
        self._failures.end_loss(guest, "the guest heartbeats again")
        self._state_reports.report_if_changed(guest, now)
        self._questions.put_all(guest, now)
        self._agenda.save_guest(guest)

    def _handle_stopped(self, guest: Guest, report: session_types.Stopped, now: float) -> None:
        guest.liveness.ill = False
        # A stop without `gone` leaves the debt: whoever has answered since the notice may still be lost at
        # the end of its silence.
        if report.gone or not guest.liveness.answered_since_notice:
            guest.liveness.note(liveness.EXCUSED)
        if report.gone:
            guest.liveness.silence_until = -NEVER
        self._failures.end_illness(guest, "the guest has stopped")
        self._state_reports.report_stopped(guest, now, liveness.SAID_STOPPED)

    def _handle_lost(self, guest: Guest, report: session_types.Lost, now: float) -> None:
        if self.judge_loss(guest, now):
            self._connections.replace_child(guest, now)

    def judge_loss(self, guest: Guest, now: float) -> bool:
        """Whether the guest is to be asked once more, on a new connection, or it is judged already."""
        if guest.liveness.enablings or self._questions.expected_silence(guest, now) > 0:
            # Reporting has become enabled, or a notice was agreed to, and the child has not heard of it yet.
            # The next child knows of the silence, and judges at its end.
            self._handle_stopped(guest, session_types.Stopped(), now)
            return guest.liveness.owes_answer
        if now - guest.liveness.previous_miss_at < guest.interval / 2:
            # We heard of two misses at once, an interval apart: this host had no time for us, and may have
            # had none for the guest either. It gets a new connection, and its patience to answer.
            text = "heartbeat lost on a host that is overloaded: asking once more"
            self._agenda.log_report(guest, now, WARNING, text)
            return True
        self._note_loss(guest, now)
        return False

    def _note_loss(self, guest: Guest, now: float) -> None:
        guest.liveness.losses += 1
        guest.liveness.ill = False
        stopped = self._failures.report_loss(guest, now)
        self._failures.end_illness(guest, "the guest is lost")
        self._state_reports.report_stopped(guest, now, liveness.JUDGED_LOST, stopped)

    def _handle_ill(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        guest.liveness.note(liveness.SAID_HEALTH)
        guest.liveness.ill = True
        self._failures.note_illness(guest, report, now)

    def _handle_well(self, guest: Guest, report: session_types.Well, now: float) -> None:
        self._agenda.log_report(guest, now, INFO, "healthy again")
        guest.liveness.note(liveness.SAID_HEALTH)
        guest.liveness.ill = False
        self._failures.end_illness(guest, "the guest is healthy again")
        if guest.pending.ill_reported_at != -NEVER:
            guest.pending.ill_reported_at = -NEVER
            self._agenda.save_guest(guest)

    def _handle_missed(self, guest: Guest, report: session_types.Missed, now: float) -> None:
        guest.liveness.misses += 1
        guest.liveness.previous_miss_at, guest.liveness.missed_at = guest.liveness.missed_at, now
        self._agenda.log_report(guest, now, INFO, "missed %d in a row", report.in_a_row)

    def _handle_reporting_enabled(
        self, guest: Guest, report: session_types.ReportingEnabled, now: float
    ) -> None:
        # Not below 0: a child is not trusted, and may say this more often than it was told.
        guest.liveness.enablings = max(0, guest.liveness.enablings - 1)

    def _handle_answered(self, guest: Guest, report: session_types.Answered, now: float) -> None:
        self._questions.resolve_question(guest, report.question_id, report.vote, report.reason, now)

    def _handle_late(self, guest: Guest, report: session_types.Late, now: float) -> None:
        guest.liveness.late += 1
        text = "%s: this host was %d ms late; not the guest's fault"
        self._agenda.log_line(WARNING, text, guest.uuid, report.seconds * 1000, subject="late")

    def _handle_reconnect(self, guest: Guest, report: session_types.Reconnect, now: float) -> None:
        self._agenda.log_report(guest, now, INFO, "reconnecting: %s", report.why)

    def _handle_note(self, guest: Guest, report: session_types.Note, now: float) -> None:
        more = " (and %d more like it)" % report.held_back if report.held_back else ""
        self._agenda.log_report(guest, now, WARNING, "%s" + more, report.text)


_REPORT_HANDLERS: Dict[Any, Callable[[ChildReports, Guest, Any, float], None]] = {
    session_types.Acknowledged: ChildReports._handle_acknowledged,
    session_types.Running: ChildReports._handle_running,
    session_types.Stopped: ChildReports._handle_stopped,
    session_types.Lost: ChildReports._handle_lost,
    session_types.Missed: ChildReports._handle_missed,
    session_types.Ill: ChildReports._handle_ill,
    session_types.Well: ChildReports._handle_well,
    session_types.ReportingEnabled: ChildReports._handle_reporting_enabled,
    session_types.Answered: ChildReports._handle_answered,
    session_types.Late: ChildReports._handle_late,
    session_types.Reconnect: ChildReports._handle_reconnect,
    session_types.Note: ChildReports._handle_note,
}
