"""The master's table: what is known of every guest of this host, and what follows from what happens.

Pure: events and `now` (s, monotonic) go in, `Effect`s come out through `take_effects`, in order. The
table decides when to connect and what guestAgent hears; the master carries it out.

A guest's link is ABSENT (no socket), RETRYING (to be connected at `retry_at`), CONNECTING (a child is
being forked) or CONNECTED. What guestAgent provisioned (that we know the instance, its reporting) outlives
the link until DEL_INST; a guest that nobody provisioned is forgotten with its socket.

Two facts about a guest's life are easily confused. `heartbeating` is what the world is told. `owes_answer`
is what we know: it did heartbeat, and nothing has explained its silence since. A broken link leaves both
alone: if the guest resumes within `stopped_grace`, nobody hears of it. Only the session can find that a
guest which owes an answer gives none, and that is a loss.

Whenever reporting becomes enabled the guest owes nothing until it has answered anew: it may be booting
(docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled). Its child is told
(`pipe.EnableReporting`) and says when it has taken note; what it reported before that, on its way through
the pipe, makes no loss (`enablings`).

A guest that comes and goes is told at once, and then as often as `state_changes` allows: its last state
always.

What guestAgent must hear (`outbox`) is dropped when it stops being true: a failure is over when the guest
heartbeats again, or when nobody wants it reported. Failures that are remembered from before a restart are
held back until a living guest would have shown itself.
"""

from __future__ import annotations

import errno
import logging
from logging import INFO, WARNING
from typing import Any, Callable, Dict, Optional

from guestmtce.daemon.log import printable
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.state.connections import Links
from guestmtce.server.state.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    FAILURE,
    ILL,
    ILLNESS,
    LOST,
    NEVER,
    RETRYING,
    STATE,
    Guest,
    Key,
    Look,
    Put,
    SaveHost,
    Untold,
)
from guestmtce.server.state_store import Memory
from guestmtce.wire import datagram, guest_channel

log = logging.getLogger(__name__)


class Guests(Links):
    """The table. See the module's text."""

    def recall(self, memory: Memory, alive_at: float, now: float) -> None:
        """Take up what a former guestServer of this boot remembered; it last lived at `alive_at`."""
        guest = self._guest(memory.uuid)
        guest.provisioned, guest.reporting, guest.init = memory.provisioned, memory.reporting, memory.init
        guest.ident = memory.ident
        guest.ill_told_at = min(memory.ill_told_at, now)
        guest.silence_until = min(memory.silence_until, now + self._settings.expected_silence)
        guest.answered_since_notice = memory.answered_since_notice
        self._schedule(guest, now + self._settings.stopped_grace)  # to be forgotten, if nothing is found
        if 0 <= now - alive_at <= self._settings.memory_valid:
            guest.heartbeating, guest.owes_answer = memory.heartbeating, memory.owes_answer
            self._recall_patience(guest, memory.patience_until, now - alive_at, now)
        for kind, number, cmd, body in memory.untold:
            until = memory.outcomes_until.get(kind, NEVER)
            event = datagram.event_of(cmd, body)
            one = Untold(number, cmd, event, until=until)
            if kind in (FAILURE, ILLNESS):
                self._recall_failure(guest, kind, one, now - alive_at, now)
            else:
                self._recall_untold(guest, kind, one, now)
        self._unreport(guest)
        self._schedule_stopped(guest, now)
        self._questions.recall(guest, memory.questions, now)
        for question in guest.questions.values():
            self._schedule(guest, self._questions.due(question))
        if guest.memory() != memory:
            self.outbox.save(guest)  # what is not believed now is not to be believed after the next restart

    def _recall_patience(self, guest: Guest, patience_until: float, absence: float, now: float) -> None:
        """A guest may have restarted in our absence, and its socket does not show that: it gets the time."""
        restart = now + (guest.init or guest_channel.DEFAULT_INIT).restart_secs
        guest.patience_until = min(patience_until, restart)
        if guest.owes_answer and absence > self._settings.short_absence:
            guest.patience_until = restart

    def _recall_untold(self, guest: Guest, kind: str, one: Untold, now: float) -> None:
        if kind == STATE:
            if one.cmd == datagram.STOPPED:
                guest.heartbeating = False
            elif not guest.heartbeating:
                return  # it did heartbeat, and we do not know that it still does
            elif isinstance(one.event, datagram.InstanceInfo):
                guest.told = one.event._replace(reporting=False)
        else:
            kind = "vote %d" % self._questions.next_number()  # they are counted anew
            one = one._replace(until=min(one.until, now + self._settings.outcome_valid))
            if one.until <= now:
                return
        guest.untold[kind] = one
        self.outbox.tell_again(guest, kind)

    def _recall_failure(self, guest: Guest, kind: str, one: Untold, absence: float, now: float) -> None:
        """It is told when the guest has had the time to show that it lives; after an absence, to restart."""
        if not 0 <= absence <= self._settings.memory_valid:
            return
        patience = self._patience(guest)
        if absence > self._settings.short_absence:
            patience = max(patience, (guest.init or guest_channel.DEFAULT_INIT).restart_secs)
        guest.untold[kind] = one._replace(held=True)
        guest.hold_until = now + patience + self._settings.stopped_grace
        self._schedule(guest, guest.hold_until)

    def recall_host(self, reporting: bool) -> None:
        """Take up what was remembered of the host."""
        self.host_reporting = reporting

    # --- what guestAgent hears ---------------------------------------------------------------------

    def told(self, key: Key) -> None:
        """guestAgent has confirmed what was told under this key."""
        guest = self.table.get(key[0])
        if guest is not None and guest.untold.pop(key[1], None) is not None:
            self.outbox.note_delivered(key)
            self.outbox.save(guest)
            self._forget_if_over(guest)

    # --- reports of children -----------------------------------------------------------------------

    def reported(self, uuid: str, report: session_types.Report, now: float) -> None:
        """The guest's child says this."""
        guest = self.table[uuid]
        _REPORTED[type(report)](self, guest, report, now)

    def _acknowledged(self, guest: Guest, report: session_types.Acknowledged, now: float) -> None:
        guest.init = report.init
        if self._questions.expected_silence(guest, now) > 0:
            guest.owes_answer = False  # it was told to restart
        guest.late_illness = None
        guest.failure = "" if guest.failure == ILL else guest.failure
        guest.silence_until = guest.patience_until = guest.ill_told_at = -NEVER
        self.outbox.untell(guest, ILLNESS, "the guest has restarted")
        self._say(guest, now, INFO, "init of %s, every %d ms, %s", printable(report.init.name),
                  report.init.heartbeat_interval_ms, report.init.corrective_action)  # fmt: skip
        self.outbox.save(guest)

    def _running(self, guest: Guest, report: session_types.Running, now: float) -> None:
        guest.running = guest.heartbeating = guest.answered_since_notice = True
        guest.owes_answer = guest.enablings == 0
        guest.resting = False
        guest.failure = "" if guest.failure == LOST else guest.failure
        guest.stopped_due = NEVER
        guest.patience_until = -NEVER
        self.outbox.untell(guest, FAILURE, "the guest heartbeats again")
        guest.state_due = NEVER
        if guest.told != self._shown(guest):
            self._tell_state(guest, now)
        self._questions.put_all(guest, now)
        self.outbox.save(guest)

    def _stopped(self, guest: Guest, report: session_types.Stopped, now: float) -> None:
        guest.running, guest.failure = False, ""
        guest.late_illness = None
        guest.owes_answer = guest.owes_answer and guest.answered_since_notice and not report.gone
        if report.gone:
            guest.silence_until = -NEVER
        self.outbox.untell(guest, ILLNESS, "the guest has stopped")
        self._stop(guest, now)

    def _reporting_enabled(self, guest: Guest, report: session_types.ReportingEnabled, now: float) -> None:
        guest.enablings = max(0, guest.enablings - 1)

    def _lost(self, guest: Guest, report: session_types.Lost, now: float) -> None:
        if guest.enablings or self._questions.expected_silence(guest, now) > 0:
            # Reporting has become enabled, or a notice was agreed to, and the child has not heard of it yet.
            self._stopped(guest, session_types.Stopped(), now)
            if guest.owes_answer:
                self._replace_child(guest, now)  # one that knows of the silence, and judges at its end
            return
        if now - guest.missed_before < self._interval(guest) / 2:
            self._ask_again(guest, now)
            return
        guest.losses += 1
        guest.failure = LOST
        guest.running = guest.owes_answer = False
        guest.late_illness = None
        # The stop is named before the loss, though told after it: whoever hears of a stop that was named
        # after a loss knows that the guest ran again in between.
        stopped = self.outbox.number()
        wanted = self._wants_failures(guest)
        self._say(guest, now, WARNING, "heartbeat lost" + ("" if wanted else " (reporting is disabled)"))
        if wanted:
            info = self.info(guest)._replace(heartbeating=False)
            self.outbox.tell(guest, FAILURE, datagram.LOSS, info)
        self.outbox.untell(guest, ILLNESS, "the guest is lost")
        self._stop(guest, now, stopped)

    def _ask_again(self, guest: Guest, now: float) -> None:
        """We heard of two misses at once, an interval apart: this host had no time for us.

        Then it may have had none for the guest either. It gets a new connection, and its patience to answer.
        """
        self._say(guest, now, WARNING, "heartbeat lost on a host that is overloaded: asking once more")
        self._replace_child(guest, now)

    def _ill(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        guest.failure = ILL
        if now - guest.ill_told_at < self._settings.ill_repeat * 0.99:
            return  # a new child found out what the one before had told
        self._say(guest, now, WARNING, "ill, wants %s: %s", report.action, printable(report.log_msg))
        if not self._wants_failures(guest):
            return
        untold = guest.untold.get(ILLNESS)
        if untold is not None and untold.event == self.info(guest)._replace(repair_action=report.action):
            return  # the VIM is being told, or is still to be: twice would restart its repair
        if guest.illnesses.spend(now):
            self._tell_illness(guest, report, now)
        else:
            guest.late_illness, guest.late_illness_due = report, now + guest.illnesses.wait(now)
            self._schedule(guest, guest.late_illness_due)

    def _well(self, guest: Guest, report: session_types.Well, now: float) -> None:
        self._say(guest, now, INFO, "healthy again")
        guest.late_illness, guest.failure = None, ""
        self.outbox.untell(guest, ILLNESS, "the guest is healthy again")
        if guest.ill_told_at != -NEVER:
            guest.ill_told_at = -NEVER
            self.outbox.save(guest)

    def _missed(self, guest: Guest, report: session_types.Missed, now: float) -> None:
        guest.misses += 1
        guest.missed_before, guest.missed_at = guest.missed_at, now
        self._say(guest, now, INFO, "missed %d in a row", report.in_a_row)

    def _answered(self, guest: Guest, report: session_types.Answered, now: float) -> None:
        self._questions.settle(guest, report.question_id, report.vote, report.reason, now)

    def _late(self, guest: Guest, report: session_types.Late, now: float) -> None:
        guest.late += 1
        self._throttle.warning("late", "%s: this host was %d ms late; not the guest's fault", guest.uuid,
                               report.seconds * 1000)  # fmt: skip

    def _reconnect(self, guest: Guest, report: session_types.Reconnect, now: float) -> None:
        self._say(guest, now, INFO, "reconnecting: %s", printable(report.why))

    def _note(self, guest: Guest, report: session_types.Note, now: float) -> None:
        more = " (and %d more like it)" % report.held_back if report.held_back else ""
        self._say(guest, now, WARNING, "%s%s", printable(report.text), more)

    def connect_failed(self, uuid: str, error: OSError, now: float) -> None:
        """No connection could be made."""
        guest = self.table.get(uuid)
        if guest is None or guest.link != CONNECTING:
            return
        if error.errno == errno.ENOENT:
            self._unlink(guest, now)
        else:
            self._throttle.warning("connect", "%s: cannot connect: %s", uuid, error.strerror or error)
            if error.errno == errno.EAGAIN and guest.owes_answer:
                self._turned_away(guest, now)
            self._back_off(guest, now)

    def _turned_away(self, guest: Guest, now: float) -> None:
        """A guest that heartbeated, and whose machine does not even accept us any more, is as lost as a mute.

        Only the waits that we planned count: if this host stood still, the guest's may have, too.
        """
        if guest.turned_away > self._patience(guest):
            self._lost(guest, session_types.Lost(0), now)
        guest.turned_away += guest.backoff

    # --- commands of guestAgent --------------------------------------------------------------------

    def command(self, command: datagram.Command, now: float) -> None:
        """guestAgent wants this (docs/protocol/2-datagrams.md#commands); not for `Query` and `Loopback`."""
        if isinstance(command, datagram.SetInstance):
            self._set(command, now)
        elif isinstance(command, datagram.DeleteInstance):
            self._part_with(command.uuid)
        elif isinstance(command, datagram.SetHost):
            self._set_host(command.reporting, now)
        elif isinstance(command, datagram.Ask):
            self._ask(command, now)

    def info_of(self, uuid: str) -> Optional[datagram.InstanceInfo]:
        """The answer to a query about this instance, if it is known."""
        guest = self.table.get(uuid)
        return self.info(guest) if guest is not None else None

    def _set(self, command: datagram.SetInstance, now: float) -> None:
        if command.uuid not in self.table and len(self.table) >= self._settings.max_guests:
            text = "%s: not taken: %d guests are known already, [supervision] max_guests"
            self._throttle.warning("max_guests", text, command.uuid, self._settings.max_guests)
            return
        guest = self._guest(command.uuid)
        if (guest.provisioned, guest.reporting) != (True, command.reporting):
            log.info("%s: reporting %s", guest.uuid, datagram.state_word(command.reporting))
            wanted = self._wants_failures(guest)
            guest.provisioned, guest.reporting = True, command.reporting
            self._change_reporting(guest, wanted, now)
            self.outbox.save(guest)
        if guest.link == ABSENT:
            self.outbox.add(Look(guest.uuid))
        elif guest.link == RETRYING and not guest.resting:
            self._retry(guest, now, now)

    def _set_host(self, reporting: bool, now: float) -> None:
        if self.host_reporting == reporting:
            return
        log.info("reporting of this host: %s", datagram.state_word(reporting))
        wanted = {uuid: self._wants_failures(guest) for uuid, guest in self.table.items()}
        self.host_reporting = reporting
        self.outbox.add(SaveHost(reporting))
        for guest in self.table.values():
            self._change_reporting(guest, wanted[guest.uuid], now)

    def _wants_failures(self, guest: Guest) -> bool:
        """Whether guestAgent is to hear of this guest's failures."""
        return guest.reporting and self.host_reporting

    def _change_reporting(self, guest: Guest, wanted: bool, now: float) -> None:
        """Failures were `wanted` until now."""
        if self._wants_failures(guest):
            if not wanted:
                self._enable_reporting(guest)
        elif wanted:
            guest.silence_until = -NEVER
            guest.answered_since_notice = False
            if guest.link == CONNECTING:
                guest.enablings = 0  # the child that is being made need not hear of one that is over
            self._unreport(guest)

    def _enable_reporting(self, guest: Guest) -> None:
        """The guest owes nothing until it has answered anew. A child that is being made hears it later."""
        guest.owes_answer = guest.answered_since_notice = False
        guest.silence_until = guest.patience_until = -NEVER
        guest.ill_told_at = -NEVER  # who is ill now is to be told
        if guest.link in (CONNECTING, CONNECTED):
            guest.enablings += 1
        if guest.link == CONNECTED:
            self.outbox.add(Put(guest.uuid, pipe_protocol.EnableReporting()))
        self.outbox.save(guest)

    def _unreport(self, guest: Guest) -> None:
        """Where reporting is disabled nobody wants to hear of failures, those of before either."""
        if not self._wants_failures(guest):
            guest.late_illness = None
            for kind in (FAILURE, ILLNESS):
                self.outbox.untell(guest, kind, "reporting was disabled")

    def _ask(self, command: datagram.Ask, now: float) -> None:
        guest = self.table.get(command.uuid)
        if guest is None:
            self._questions.refuse(None, command, "unknown instance", now)
        elif command.event not in guest_channel.EVENT_TYPES:
            why = "unknown event type %s" % printable(command.event)
            self._questions.refuse(guest, command, why, now)
        else:
            number = self._questions.open(guest, command, now)
            self._schedule(guest, self._questions.due(guest.questions[number]))
            self._put_or_agree(guest, number, now)
            self.outbox.save(guest)

    def _put_or_agree(self, guest: Guest, number: int, now: float) -> None:
        question = guest.questions[number]
        if guest.running:
            self._questions.put(guest, number, now)
        elif (question.notification_type, question.event_type) == (
            guest_channel.NOTICE,
            "resume",
        ) and guest.path:
            guest.resting = False
            for older in sorted(guest.questions):
                if older != number:  # its child, which had it, goes
                    self._questions.agree(guest, older, "overtaken by a new question", now)
            self._replace_child(guest, now)
        elif not guest.heartbeating:
            self._questions.agree(guest, number, "the guest is not heartbeating", now)


_REPORTED: Dict[Any, Callable[[Guests, Guest, Any, float], None]] = {
    session_types.Acknowledged: Guests._acknowledged,
    session_types.Running: Guests._running,
    session_types.Stopped: Guests._stopped,
    session_types.Lost: Guests._lost,
    session_types.Missed: Guests._missed,
    session_types.Ill: Guests._ill,
    session_types.Well: Guests._well,
    session_types.ReportingEnabled: Guests._reporting_enabled,
    session_types.Answered: Guests._answered,
    session_types.Late: Guests._late,
    session_types.Reconnect: Guests._reconnect,
    session_types.Note: Guests._note,
}
