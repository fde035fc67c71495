"""The master's table: what is known of every guest of this host, and what follows from what happens.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/2-datagrams.md#commands

Pure: events and `now` (s, monotonic) go in, effects come out through `drain_effects`, in order. The table
decides when to connect and what guestAgent hears; the master carries it out.

What guestAgent provisioned (that we know the instance, its reporting) outlives the connection until DEL_INST;
a guest that nobody provisioned is forgotten with its socket.

Each part of a row has its class: `Connections` (sockets, children), `StateReports` (RUNNING, STOPPED),
`Failures` (LOSS, ILLHEALTH), `Questions` (votes, notices), and below them `PendingEvents` (what is not
confirmed) and `Agenda` (effects, times). What a child says is taken by `ChildReports`, and what a guest's
silence means is in `liveness`. This class has guestAgent's commands and what is recalled after a restart.

Whenever reporting becomes enabled the guest owes nothing until it has answered anew: it may be booting
(docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled). Its child is told
(`pipe_protocol.EnableReporting`) and says when it has taken note; what it reported before that, on its way
through the pipe, makes no loss (`enablings`).

Failures that are remembered from before a restart are held back until a living guest would have shown itself.
"""

from __future__ import annotations

import errno
import itertools
from typing import Callable, Dict, List, Optional

from guestmtce.common.log_line import INFO, WARNING, printable
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.child_reports import ChildReports
from guestmtce.server.state.connections import Connections
from guestmtce.server.state.effects import DropChild, Effect, LookForSocket, PutCommand, ReportEvent, SaveHost
from guestmtce.server.state.failures import Failures
from guestmtce.server.state.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    FAILURES,
    LOSS,
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
        self._child_reports = ChildReports(
            self._agenda, self._state_reports, self._failures, self._questions, self._connections
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
        if self._pending.confirm_event(guest, key) and guest is not None:
            self._forget_if_over(guest)

    def find_report(self, key: PendingKey) -> Optional[ReportEvent]:
        """What guestAgent is to hear under this key now; None: nothing any more."""
        return self._pending.find_report(self.guests.get(key.uuid), key)

    def _do_due(self, guest: Guest, now: float) -> None:
        """Whatever of this guest has fallen due."""
        self._questions.agree_to_overdue(guest, now)
        self._connections.connect_if_due(guest, now)
        if guest.pending.stopped_due <= now:
            self._state_reports.report_stopped(guest, now, liveness.GRACE_OVER)
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
        # In its grace a guest still counts as heartbeating: its STOPPED is told before it is forgotten.
        if guest.connection.state == ABSENT and not known:
            self._forget(guest, "forgotten: it has no socket and is not provisioned")

    def _forget(self, guest: Guest, why: str) -> None:
        del self.guests[guest.uuid]
        self._agenda.log_line(INFO, "%s: " + why, guest.uuid)
        self._pending.withdraw_all(guest)
        self._agenda.forget_guest(guest.uuid)
        self._agenda.add_effect(DropChild(guest.uuid))

    # --- after a restart ---------------------------------------------------------------------------

    def recall_host(self, reporting: bool) -> None:
        """Take up what was remembered of the host."""
        self._failures.host_reporting = reporting

    def recall_guest(self, memory: GuestMemory, alive_at: float, now: float) -> None:
        """Take up what a former guestServer of this boot remembered; it last lived at `alive_at`."""
        guest, absence = self._add_guest(memory.uuid), now - alive_at
        guest.provisioned, guest.reporting, guest.init = memory.provisioned, memory.reporting, memory.init
        guest.connection.socket_identity = memory.socket_identity
        # No time from a file lies further ahead than it could now: a wrong one must not silence a guest, or
        # hide its illness, for ever.
        guest.pending.ill_reported_at = min(memory.ill_reported_at, now)
        guest.liveness.silence_until = min(memory.silence_until, now + self._settings.expected_silence)
        guest.liveness.answered_since_notice = memory.answered_since_notice
        # To be forgotten then, if nothing is found.
        self._agenda.wake_guest(guest, now + self._settings.stopped_grace)
        # A mark ahead of the clock is not believed, nor is any health after `memory_valid`
        # (docs/protocol/1-guest-channel.md#resuming-a-guest).
        if 0 <= absence <= self._settings.memory_valid:
            guest.liveness.state = liveness.recalled_state(memory.heartbeating, memory.owes_answer)
            self._recall_patience(guest, memory.patience_until, absence, now)
        # After the state above: what is still to be told of a guest depends on whether it counts as
        # heartbeating.
        for key, event in memory.pending:
            self._recall_event(guest, key, event, absence, now)
        self._failures.withdraw_unwanted(guest)
        self._state_reports.schedule_stopped(guest, now)
        self._questions.recall_questions(guest, memory.questions, now)
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
            self._state_reports.recall_state(guest, key, event)

    def _recall_failure(
        self, guest: Guest, key: PendingKey, event: PendingEvent, absence: float, now: float
    ) -> None:
        """It is told when the guest has had the time to show that it lives; after an absence, to restart."""
        if not 0 <= absence <= self._settings.memory_valid:
            return
        patience = answer_patience(guest, self._settings.guest_patience)
        if absence > self._settings.short_absence:
            patience = max(patience, guest.known_init.restart_secs)
        self._pending.hold_failure(guest, key, event, now + patience + self._settings.stopped_grace)
        if key.kind == LOSS and guest.liveness.state == liveness.SILENT:
            guest.liveness.note(liveness.JUDGED_LOST)  # before the restart; for people, who look at the dump

    # --- sockets and children ----------------------------------------------------------------------

    def socket_found(self, uuid: str, path: str, identity: SocketIdentity, fresh: bool, now: float) -> None:
        """The guest's socket exists; `fresh`: it was just made. One that we have already is left alone."""
        self._connections.take_socket(self._add_guest(uuid), path, identity, fresh, now)

    def socket_gone(self, uuid: str, path: str, now: float) -> None:
        """The guest's socket is no more."""
        guest = self.guests.get(uuid)
        if guest is not None:
            self._connections.lose_socket(guest, path, now)

    def child_started(self, uuid: str, now: float) -> None:
        """A child serves the guest."""
        self._connections.note_child_started(self.guests[uuid], now)

    def child_ended(self, uuid: str, why: str, detail: str, now: float) -> None:
        """The guest's child has ended: PEER_CLOSED, GAVE_UP, DIED or FORK_FAILED."""
        self._connections.note_child_ended(self.guests[uuid], why, detail, now)

    def connect_failed(self, uuid: str, error: OSError, now: float) -> None:
        """The guest's socket let nobody connect."""
        guest = self.guests.get(uuid)
        if guest is None or guest.connection.state != CONNECTING:
            return
        # No socket is no refusal: the guest is gone, and inotify says when there is another.
        if error.errno == errno.ENOENT:
            self._connections.disconnect_guest(guest, now)
            return
        text = "%s: cannot connect: %s"
        self._agenda.log_line(WARNING, text, uuid, error.strerror or error, subject="connect")
        # EAGAIN is a full backlog: QEMU has the socket and accepts nobody
        # (docs/protocol/1-guest-channel.md#connection-upkeep). Any other error says nothing of the guest.
        if error.errno == errno.EAGAIN and guest.liveness.owes_answer:
            self._treat_refused_connect_as_loss(guest, now)
        self._connections.retry_later(guest, now)

    def _treat_refused_connect_as_loss(self, guest: Guest, now: float) -> None:
        """A guest that was heartbeating and whose QEMU refuses our connections for its patience is lost.

        Only the waits that we planned count: if this host stood still, the guest's may have, too.
        """
        connection = guest.connection
        if connection.refused_for > answer_patience(guest, self._settings.guest_patience):
            self._child_reports.judge_loss(guest, now)  # there is no child that could be replaced
        connection.refused_for += connection.back_off.delay

    def handle_report(self, uuid: str, report: session_types.Report, now: float) -> None:
        """The guest's child says this."""
        self._child_reports.handle_report(self.guests[uuid], report, now)

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
        # A bound for commands alone: a guest whose socket is on this host is always taken.
        if command.uuid not in self.guests and len(self.guests) >= self._settings.max_guests:
            text = "%s: not taken: %d guests are known already, [supervision] max_guests"
            values = (command.uuid, self._settings.max_guests)
            self._agenda.log_line(WARNING, text, *values, subject="max_guests")
            return
        guest = self._add_guest(command.uuid)
        if (guest.provisioned, guest.reporting) != (True, command.reporting):
            self._agenda.log_line(
                INFO, "%s: reporting %s", guest.uuid, datagram.state_word(command.reporting)
            )
            wanted = self._failures.are_wanted(guest)
            guest.provisioned, guest.reporting = True, command.reporting
            self._change_reporting(guest, wanted)
            self._agenda.save_guest(guest)
        if guest.connection.state == ABSENT:
            self._agenda.add_effect(LookForSocket(guest.uuid))
        # guestAgent's word is a reason to try at once, but not to fork children that die in a row.
        elif guest.connection.state == RETRYING and not guest.crashes.crash_looping:
            self._connections.retry_at(guest, now, now)

    def _delete_instance(self, uuid: str) -> None:
        guest = self.guests.get(uuid)
        if guest is not None:
            self._connections.keep_init(guest)
            self._forget(guest, "deleted")

    def _set_host(self, reporting: bool) -> None:
        if self._failures.host_reporting == reporting:
            return
        self._agenda.log_line(INFO, "reporting of this host: %s", datagram.state_word(reporting))
        # Before the change: whoever was wanted already is not enabled anew, which would excuse its silence.
        wanted = {uuid: self._failures.are_wanted(guest) for uuid, guest in self.guests.items()}
        self._failures.host_reporting = reporting
        self._agenda.add_effect(SaveHost(reporting))
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
        guest.liveness.note(liveness.EXCUSED)
        guest.liveness.answered_since_notice = False
        guest.liveness.silence_until = guest.liveness.patience_until = -NEVER
        guest.pending.ill_reported_at = -NEVER  # who is ill now is to be told
        if guest.connection.state in (CONNECTING, CONNECTED):
            guest.liveness.enablings += 1
        if guest.connection.state == CONNECTED:
            self._agenda.add_effect(PutCommand(guest.uuid, pipe_protocol.EnableReporting()))
        self._agenda.save_guest(guest)

    def _ask_guest(self, command: datagram.Ask, now: float) -> None:
        guest = self.guests.get(command.uuid)
        if guest is None:
            self._questions.refuse_question(None, command, "unknown instance", now)
        elif command.event not in guest_channel.EVENT_TYPES:
            why = "unknown event type %s" % printable(command.event)
            self._questions.refuse_question(guest, command, why, now)
        else:
            question_id = self._questions.open_question(guest, command, now)
            self._put_or_agree(guest, question_id, now)
            self._agenda.save_guest(guest)

    def _put_or_agree(self, guest: Guest, question_id: int, now: float) -> None:
        question = guest.questions[question_id]
        asked = (question.notification_type, question.event_type)
        if guest.liveness.running:
            self._questions.put_question(guest, question_id, now)
        # A guest that comes back from a suspend is connected anew first
        # (docs/protocol/1-guest-channel.md#votes-and-notices): it may heartbeat in time to be asked.
        elif asked == (guest_channel.NOTICE, "resume") and guest.connection.path:
            guest.crashes.crash_looping = False
            self._questions.agree_to_others(guest, question_id, now)
            self._connections.replace_child(guest, now)
        # A guest in its grace is left: the question waits for its next child, or its deadline.
        elif not guest.liveness.heartbeating:
            self._questions.agree_silently(guest, question_id, "the guest is not heartbeating", now)
