"""The master's table: what is known of every guest of this host, and what follows from what happens.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/2-datagrams.md#commands

Pure: events and `now` (s, monotonic) go in, effects come out through `drain_effects`, in order. The table
decides when to connect and what guestAgent hears; the master carries it out.

What guestAgent provisioned (that we know the instance, its reporting) outlives the connection until DEL_INST;
a guest that nobody provisioned is forgotten with its socket.

Each part of a row has its class: `Connections` (sockets, children), `StateReports` (RUNNING, STOPPED),
`Failures` (LOSS, ILLHEALTH), `Questions` (votes, notices), and below them `PendingEvents` (what is not
confirmed) and `Agenda` (effects, times). This class has what concerns several of them: a child's reports,
guestAgent's commands, what is recalled after a restart. What a guest's silence means is in `liveness`.

Whenever reporting becomes enabled the guest owes nothing until it has answered anew: it may be booting
(docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled). Its child is told
(`pipe_protocol.EnableReporting`) and says when it has taken note; what it reported before that, on its way
through the pipe, makes no loss (`enablings`).

Failures that are remembered from before a restart are held back until a living guest would have shown itself.
"""

from __future__ import annotations

import errno
import itertools
from typing import Any, Callable, Dict, List, Optional

from guestmtce.common.log_line import INFO, WARNING, printable
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.connections import Connections
from guestmtce.server.state.effects import DropChild, Effect, LookForSocket, PutCommand, SaveHost
from guestmtce.server.state.failures import Failures
from guestmtce.server.state.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    FAILURES,
    NEVER,
    RETRYING,
    STATE,
    Guest,
    GuestMemory,
    PendingEvent,
    PendingKey,
    SocketIdentity,
    answer_patience,
    instance_info,
)
from guestmtce.server.state.pending_events import PendingEvents
from guestmtce.server.state.questions import Questions
from guestmtce.server.state.state_reports import StateReports
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import datagram, guest_channel


class GuestTable:
    """See the module's text. `guests`: the rows, by uuid. `next_sequence` gives numbers that no event of this
    host, also of before a restart, has had.
    """

    def __init__(self, settings: TableSettings, next_sequence: Optional[Callable[[], int]] = None) -> None:
        self.guests: Dict[str, Guest] = {}
        self._settings = settings
        self._agenda = Agenda()
        self._pending = PendingEvents(self._agenda, next_sequence or itertools.count(1).__next__)
        self._state_reports = StateReports(settings, self._agenda, self._pending)
        self._failures = Failures(settings, self._agenda, self._pending)
        self._questions = Questions(settings, self._agenda, self._pending)
        self._connections = Connections(
            settings, self._agenda, self._state_reports, self._failures, self._questions
        )

    def drain_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        return self._agenda.drain_effects()

    @property
    def next_due(self) -> float:
        """When `tick` is to be called next."""
        return self._agenda.next_due

    @property
    def host_reporting(self) -> bool:
        """Whether failures of this host's guests are to be reported at all."""
        return self._failures.host_reporting

    def tick(self, now: float) -> None:
        """Do what has fallen due."""
        uuid = self._agenda.pop_due(now)
        while uuid is not None:
            guest = self.guests.get(uuid)
            if guest is not None:
                self._do_due(guest, now)
            uuid = self._agenda.pop_due(now)

    def instance_info(self, uuid: str) -> Optional[datagram.InstanceInfo]:
        """The answer to a query about this instance, if it is known."""
        guest = self.guests.get(uuid)
        return instance_info(guest, self._settings.hostname) if guest is not None else None

    def child_patience(self, uuid: str) -> float:
        """Within how many seconds the guest's child must have woken up and gone to sleep again."""
        return self._connections.child_patience(self.guests.get(uuid))

    def confirm_event(self, key: PendingKey) -> None:
        """guestAgent has confirmed what was reported under this key, or nobody waits for it any more."""
        guest = self.guests.get(key.uuid)
        if guest is not None and self._pending.confirm(guest, key):
            self._forget_if_over(guest)

    def _do_due(self, guest: Guest, now: float) -> None:
        """Whatever of this guest has fallen due."""
        self._questions.agree_overdue(guest, now)
        self._connections.connect_if_due(guest, now)
        if guest.pending.stopped_due <= now:
            self._state_reports.stop(guest, now, liveness.GRACE_OVER)
        if guest.pending.state_due <= now:
            self._state_reports.report_if_changed(guest, now)
        self._failures.report_late_illness(guest, now)
        if guest.pending.report_failures_after <= now:
            self._pending.release_held(guest)
        self._forget_if_over(guest)

    def _add_guest(self, uuid: str) -> Guest:
        guest = self.guests.get(uuid)
        if guest is None:
            guest = self.guests[uuid] = Guest(uuid, self._settings)
        return guest

    def _forget_if_over(self, guest: Guest) -> None:
        """Nobody provisioned it, it is gone, and there is nothing left to tell of it."""
        known = guest.provisioned or guest.liveness.heartbeating or guest.pending.events
        if guest.connection.state == ABSENT and not known:
            self._forget(guest, "forgotten: it has no socket and is not provisioned")

    def _forget(self, guest: Guest, why: str) -> None:
        del self.guests[guest.uuid]
        self._agenda.log(INFO, "%s: " + why, guest.uuid)
        self._pending.withdraw_all(guest)
        self._agenda.forget_guest(guest.uuid)
        self._agenda.add(DropChild(guest.uuid))

    # --- after a restart ---------------------------------------------------------------------------

    def recall_host(self, reporting: bool) -> None:
        """Take up what was remembered of the host."""
        self._failures.host_reporting = reporting

    def recall_guest(self, memory: GuestMemory, alive_at: float, now: float) -> None:
        """Take up what a former guestServer of this boot remembered; it last lived at `alive_at`."""
        guest, absence = self._add_guest(memory.uuid), now - alive_at
        guest.provisioned, guest.reporting, guest.init = memory.provisioned, memory.reporting, memory.init
        guest.connection.socket_identity = memory.socket_identity
        guest.pending.ill_reported_at = min(memory.ill_reported_at, now)
        guest.liveness.silence_until = min(memory.silence_until, now + self._settings.expected_silence)
        guest.liveness.answered_since_notice = memory.answered_since_notice
        self._agenda.wake(guest, now + self._settings.stopped_grace)  # to be forgotten, if nothing is found
        if 0 <= absence <= self._settings.memory_valid:
            guest.liveness.state = liveness.recalled_state(memory.heartbeating, memory.owes_answer)
            self._recall_patience(guest, memory.patience_until, absence, now)
        for key, event in memory.pending:
            self._recall_event(guest, key, event, absence, now)
        self._failures.withdraw_unwanted(guest)
        self._state_reports.schedule_stopped(guest, now)
        self._questions.recall(guest, memory.questions, now)
        if guest.memory() != memory:
            self._agenda.save_guest(guest)  # what is not believed now is not to be believed after the next

    def _recall_patience(self, guest: Guest, patience_until: float, absence: float, now: float) -> None:
        """A guest may have restarted in our absence, and its socket does not show that: it gets the time."""
        restart = now + guest.known_init.restart_secs
        guest.liveness.patience_until = min(patience_until, restart)
        if guest.liveness.owes_answer and absence > self._settings.short_absence:
            guest.liveness.patience_until = restart

    def _recall_event(
        self, guest: Guest, key: PendingKey, event: PendingEvent, absence: float, now: float
    ) -> None:
        if key.kind in FAILURES:
            self._recall_failure(guest, key, event, absence, now)
        elif key.kind != STATE:
            self._questions.recall_outcome(guest, event, now)
        elif event.cmd == datagram.STOPPED or guest.liveness.heartbeating:
            # If it did heartbeat, and we do not know that it still does, nobody is told that it does.
            self._state_reports.recall(guest, key, event)

    def _recall_failure(
        self, guest: Guest, key: PendingKey, event: PendingEvent, absence: float, now: float
    ) -> None:
        """It is told when the guest has had the time to show that it lives; after an absence, to restart."""
        if not 0 <= absence <= self._settings.memory_valid:
            return
        patience = answer_patience(guest, self._settings.guest_patience)
        if absence > self._settings.short_absence:
            patience = max(patience, guest.known_init.restart_secs)
        self._pending.hold(guest, key, event, now + patience + self._settings.stopped_grace)

    # --- sockets and children ----------------------------------------------------------------------

    def socket_found(self, uuid: str, path: str, identity: SocketIdentity, fresh: bool, now: float) -> None:
        """The guest's socket exists; `fresh`: it was just made. One that we have already is left alone."""
        self._connections.found(self._add_guest(uuid), path, identity, fresh, now)

    def socket_gone(self, uuid: str, path: str, now: float) -> None:
        """The guest's socket is no more."""
        guest = self.guests.get(uuid)
        if guest is not None:
            self._connections.gone(guest, path, now)

    def child_started(self, uuid: str, now: float) -> None:
        """A child serves the guest."""
        self._connections.child_started(self.guests[uuid], now)

    def child_ended(self, uuid: str, why: str, detail: str, now: float) -> None:
        """The guest's child has ended: PEER_CLOSED, GAVE_UP, DIED or FORK_FAILED."""
        self._connections.child_ended(self.guests[uuid], why, detail, now)

    def connect_failed(self, uuid: str, error: OSError, now: float) -> None:
        """The guest's socket let nobody connect."""
        guest = self.guests.get(uuid)
        if guest is None or guest.connection.state != CONNECTING:
            return
        if error.errno == errno.ENOENT:
            self._connections.disconnect(guest, now)
            return
        text = "%s: cannot connect: %s"
        self._agenda.log(WARNING, text, uuid, error.strerror or error, subject="connect")
        if error.errno == errno.EAGAIN and guest.liveness.owes_answer:
            self._treat_refused_connect_as_loss(guest, now)
        self._connections.back_off(guest, now)

    def _treat_refused_connect_as_loss(self, guest: Guest, now: float) -> None:
        """A guest that was heartbeating and whose QEMU refuses our connections for its patience is lost.

        Only the waits that we planned count: if this host stood still, the guest's may have, too.
        """
        connection = guest.connection
        if connection.refused_for > answer_patience(guest, self._settings.guest_patience):
            self._judge_loss(guest, now)  # there is no child that could be replaced
        connection.refused_for += connection.back_off.delay

    # --- reports of children -----------------------------------------------------------------------

    def handle_report(self, uuid: str, report: session_types.Report, now: float) -> None:
        """The guest's child says this."""
        _REPORT_HANDLERS[type(report)](self, self.guests[uuid], report, now)

    def _handle_acknowledged(self, guest: Guest, report: session_types.Acknowledged, now: float) -> None:
        init = guest.init = report.init
        if self._questions.expected_silence(guest, now) > 0:
            guest.liveness.change(liveness.EXCUSED)  # it was told to restart
        guest.liveness.ill = False
        guest.liveness.silence_until = guest.liveness.patience_until = -NEVER
        guest.pending.ill_reported_at = -NEVER
        self._failures.end_illness(guest, "the guest has restarted")
        self._agenda.log_report(guest, now, INFO, "init of %s, every %d ms, %s", init.name,
                                init.heartbeat_interval_ms, init.corrective_action)  # fmt: skip
        self._agenda.save_guest(guest)

    def _handle_running(self, guest: Guest, report: session_types.Running, now: float) -> None:
        early = guest.liveness.enablings > 0
        guest.liveness.change(liveness.ANSWERED_TOO_EARLY if early else liveness.ANSWERED)
        guest.liveness.answered_since_notice = True
        guest.liveness.patience_until = -NEVER
        guest.crashes.crash_looping = False
        guest.pending.stopped_due = NEVER
        self._failures.end_loss(guest, "the guest heartbeats again")
        self._state_reports.report_if_changed(guest, now)
        self._questions.put_all(guest, now)
        self._agenda.save_guest(guest)

    def _handle_stopped(self, guest: Guest, report: session_types.Stopped, now: float) -> None:
        guest.liveness.ill = False
        if report.gone or not guest.liveness.answered_since_notice:
            guest.liveness.change(liveness.EXCUSED)
        if report.gone:
            guest.liveness.silence_until = -NEVER
        self._failures.end_illness(guest, "the guest has stopped")
        self._state_reports.stop(guest, now, liveness.SAID_STOPPED)

    def _handle_lost(self, guest: Guest, report: session_types.Lost, now: float) -> None:
        if self._judge_loss(guest, now):
            self._connections.replace_child(guest, now)

    def _judge_loss(self, guest: Guest, now: float) -> bool:
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
        # STOPPED takes its sequence number before LOSS although it is sent second: guestAgent reads a STOPPED
        # that is newer than a LOSS as "ran again in between"
        # (docs/protocol/2-datagrams.md#late-and-out-of-order).
        stopped = self._pending.next_sequence()
        self._failures.report_loss(guest, now)
        self._failures.end_illness(guest, "the guest is lost")
        self._state_reports.stop(guest, now, liveness.JUDGED_LOST, stopped)

    def _handle_ill(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        guest.liveness.change(liveness.SAID_HEALTH)
        guest.liveness.ill = True
        self._failures.note_illness(guest, report, now)

    def _handle_well(self, guest: Guest, report: session_types.Well, now: float) -> None:
        self._agenda.log_report(guest, now, INFO, "healthy again")
        guest.liveness.change(liveness.SAID_HEALTH)
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
        guest.liveness.enablings = max(0, guest.liveness.enablings - 1)

    def _handle_answered(self, guest: Guest, report: session_types.Answered, now: float) -> None:
        self._questions.resolve(guest, report.number, report.vote, report.reason, now)

    def _handle_late(self, guest: Guest, report: session_types.Late, now: float) -> None:
        guest.liveness.late += 1
        text = "%s: this host was %d ms late; not the guest's fault"
        self._agenda.log(WARNING, text, guest.uuid, report.seconds * 1000, subject="late")

    def _handle_reconnect(self, guest: Guest, report: session_types.Reconnect, now: float) -> None:
        self._agenda.log_report(guest, now, INFO, "reconnecting: %s", report.why)

    def _handle_note(self, guest: Guest, report: session_types.Note, now: float) -> None:
        more = " (and %d more like it)" % report.more if report.more else ""
        self._agenda.log_report(guest, now, WARNING, "%s" + more, report.text)

    # --- commands of guestAgent --------------------------------------------------------------------

    def handle_command(self, command: datagram.Command, now: float) -> None:
        """guestAgent wants this (docs/protocol/2-datagrams.md#commands); not for `Query` and `Loopback`."""
        if isinstance(command, datagram.SetInstance):
            self._set_instance(command, now)
        elif isinstance(command, datagram.DeleteInstance):
            self._delete_instance(command.uuid)
        elif isinstance(command, datagram.SetHost):
            self._set_host(command.reporting)
        elif isinstance(command, datagram.Ask):
            self._ask_guest(command, now)

    def _set_instance(self, command: datagram.SetInstance, now: float) -> None:
        if command.uuid not in self.guests and len(self.guests) >= self._settings.max_guests:
            text = "%s: not taken: %d guests are known already, [supervision] max_guests"
            values = (command.uuid, self._settings.max_guests)
            self._agenda.log(WARNING, text, *values, subject="max_guests")
            return
        guest = self._add_guest(command.uuid)
        if (guest.provisioned, guest.reporting) != (True, command.reporting):
            self._agenda.log(INFO, "%s: reporting %s", guest.uuid, datagram.state_word(command.reporting))
            wanted = self._failures.are_wanted(guest)
            guest.provisioned, guest.reporting = True, command.reporting
            self._change_reporting(guest, wanted)
            self._agenda.save_guest(guest)
        if guest.connection.state == ABSENT:
            self._agenda.add(LookForSocket(guest.uuid))
        elif guest.connection.state == RETRYING and not guest.crashes.crash_looping:
            self._connections.retry(guest, now, now)

    def _delete_instance(self, uuid: str) -> None:
        guest = self.guests.get(uuid)
        if guest is not None:
            self._connections.keep_init(guest)
            self._forget(guest, "deleted")

    def _set_host(self, reporting: bool) -> None:
        if self._failures.host_reporting == reporting:
            return
        self._agenda.log(INFO, "reporting of this host: %s", datagram.state_word(reporting))
        wanted = {uuid: self._failures.are_wanted(guest) for uuid, guest in self.guests.items()}
        self._failures.host_reporting = reporting
        self._agenda.add(SaveHost(reporting))
        for guest in self.guests.values():
            self._change_reporting(guest, wanted[guest.uuid])

    def _change_reporting(self, guest: Guest, wanted: bool) -> None:
        """Failures were `wanted` until now."""
        if self._failures.are_wanted(guest):
            if not wanted:
                self._enable_reporting(guest)
        elif wanted:
            guest.liveness.silence_until = -NEVER
            guest.liveness.answered_since_notice = False
            if guest.connection.state == CONNECTING:
                guest.liveness.enablings = 0  # the child that is being made need not hear of one that is over
            self._failures.withdraw_unwanted(guest)

    def _enable_reporting(self, guest: Guest) -> None:
        """The guest owes nothing until it has answered anew. A child that is being made hears it later."""
        guest.liveness.change(liveness.EXCUSED)
        guest.liveness.answered_since_notice = False
        guest.liveness.silence_until = guest.liveness.patience_until = -NEVER
        guest.pending.ill_reported_at = -NEVER  # who is ill now is to be told
        if guest.connection.state in (CONNECTING, CONNECTED):
            guest.liveness.enablings += 1
        if guest.connection.state == CONNECTED:
            self._agenda.add(PutCommand(guest.uuid, pipe_protocol.EnableReporting()))
        self._agenda.save_guest(guest)

    def _ask_guest(self, command: datagram.Ask, now: float) -> None:
        guest = self.guests.get(command.uuid)
        if guest is None:
            self._questions.refuse(None, command, "unknown instance", now)
        elif command.event not in guest_channel.EVENT_TYPES:
            why = "unknown event type %s" % printable(command.event)
            self._questions.refuse(guest, command, why, now)
        else:
            question_id = self._questions.open(guest, command, now)
            self._put_or_agree(guest, question_id, now)
            self._agenda.save_guest(guest)

    def _put_or_agree(self, guest: Guest, question_id: int, now: float) -> None:
        question = guest.questions[question_id]
        asked = (question.notification_type, question.event_type)
        if guest.liveness.running:
            self._questions.put(guest, question_id, now)
        elif asked == (guest_channel.NOTICE, "resume") and guest.connection.path:
            guest.crashes.crash_looping = False
            self._questions.agree_others(guest, question_id, now)
            self._connections.replace_child(guest, now)
        elif not guest.liveness.heartbeating:
            self._questions.agree(guest, question_id, "the guest is not heartbeating", now)


_REPORT_HANDLERS: Dict[Any, Callable[[GuestTable, Guest, Any, float], None]] = {
    session_types.Acknowledged: GuestTable._handle_acknowledged,
    session_types.Running: GuestTable._handle_running,
    session_types.Stopped: GuestTable._handle_stopped,
    session_types.Lost: GuestTable._handle_lost,
    session_types.Missed: GuestTable._handle_missed,
    session_types.Ill: GuestTable._handle_ill,
    session_types.Well: GuestTable._handle_well,
    session_types.ReportingEnabled: GuestTable._handle_reporting_enabled,
    session_types.Answered: GuestTable._handle_answered,
    session_types.Late: GuestTable._handle_late,
    session_types.Reconnect: GuestTable._handle_reconnect,
    session_types.Note: GuestTable._handle_note,
}
