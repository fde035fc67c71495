"""The master's table: what is known of every guest of this host, and what follows from what happens.

Pure: events and `now` (s, monotonic) go in, `Effect`s come out through `take_effects`, in order. The
table decides when to connect and what guestAgent hears; the master carries it out.

A guest's link is ABSENT (no socket), RETRYING (to be connected at `retry_at`), CONNECTING (a child is
being forked) or CONNECTED. What guestAgent provisioned (that we know the instance, its reporting) outlives
the link until DEL_INST; a guest that nobody provisioned is forgotten with its socket.

Two facts about a guest's life are easily confused. `heartbeating` is what the world was told. `owes_answer`
is what we know: it did heartbeat, and nothing has explained its silence since. A broken link leaves both
alone: if the guest resumes within `stopped_grace`, nobody hears of it. Only the session can find that a
guest which owes an answer gives none, and that is a loss.

What guestAgent must hear is kept in the row (`untold`) until it has confirmed it, and dropped when it stops
being true: a failure is over when the guest heartbeats again, or when nobody wants it reported. Failures
that are remembered from before a restart are held back until a living guest would have shown itself.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from typing import Any, Callable, Dict, List, Optional, Tuple

from guestmtce.daemon.log import Throttle, printable
from guestmtce.server import pipe, reports
from guestmtce.server.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    DIED,
    FAILURE,
    ILLNESS,
    NEVER,
    PEER_CLOSED,
    RETRYING,
    STATE,
    Connect,
    Drop,
    Effect,
    Forget,
    Guest,
    Key,
    Look,
    Put,
    Question,
    Save,
    SaveHost,
    Tell,
    Untell,
    Untold,
)
from guestmtce.server.session import SILENCING
from guestmtce.server.settings import ServerSettings
from guestmtce.server.store import Memory
from guestmtce.wire import channel, datagram

log = logging.getLogger(__name__)

VOTES_MAX = 16  # outcomes of questions kept for guestAgent, per guest


class Guests:
    """The table. See the module's text."""

    def __init__(self, settings: ServerSettings) -> None:
        self.table: Dict[str, Guest] = {}
        self.host_reporting = True
        self._settings = settings
        self._effects: List[Effect] = []
        self._due: List[Tuple[float, str]] = []
        self._questions = itertools.count(1)
        self.number: Callable[[], int] = itertools.count(1).__next__  # names what is told
        self._throttle = Throttle(log)

    def take_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def next_due(self) -> float:
        """When `tick` is to be called next."""
        return self._due[0][0] if self._due else NEVER

    def tick(self, now: float) -> None:
        """Do what has fallen due."""
        while self._due and self._due[0][0] <= now:
            guest = self.table.get(heapq.heappop(self._due)[1])
            if guest is not None:
                self._check(guest, now)

    def recall(self, memory: Memory, alive_at: float, now: float) -> None:
        """Take up what a former guestServer of this boot remembered; it last lived at `alive_at`."""
        guest = self._guest(memory.uuid)
        guest.provisioned, guest.reporting, guest.init = memory.provisioned, memory.reporting, memory.init
        guest.ident = memory.ident
        guest.silence_until = min(memory.silence_until, now + self._settings.expected_silence)
        self._schedule(guest, now + self._settings.stopped_grace)  # to be forgotten, if nothing is found
        if memory.owes_answer and 0 <= now - alive_at <= self._settings.memory_valid:
            guest.heartbeating = guest.owes_answer = True
        for kind, number, cmd, body in memory.untold:
            self._recall_untold(guest, kind, Untold(number, cmd, datagram.event_of(cmd, body)), now)
        self._unreport(guest)
        self._schedule_stopped(guest, now)
        for _, notification_type, event_type, deadline in memory.questions:
            if deadline <= now + channel.SECS_MAX:
                question = Question(notification_type, event_type, deadline, False)
                guest.questions[self._next_question()] = question
                self._schedule(guest, deadline + self._settings.question_grace)
        if guest.memory() != memory:
            self._save(guest)  # what is not believed now is not to be believed after the next restart

    def _recall_untold(self, guest: Guest, kind: str, one: Untold, now: float) -> None:
        if kind in (FAILURE, ILLNESS):
            guest.untold[kind] = one._replace(held=True)
            patience = max(2 * _interval(guest), self._settings.guest_patience)
            guest.hold_until = now + patience + self._settings.stopped_grace
            self._schedule(guest, guest.hold_until)
            return
        if kind == STATE:
            if one.cmd == datagram.STOPPED:
                guest.heartbeating = False
            elif not guest.heartbeating:
                return  # it did heartbeat, and we do not know that it still does
            elif isinstance(one.event, datagram.InstanceInfo):
                guest.told = one.event._replace(reporting=False)
        else:
            kind = "vote %d" % self._next_question()  # questions are counted anew
        guest.untold[kind] = one
        self._effects.append(Tell(one.cmd, one.event, one.number, (guest.uuid, kind)))

    def recall_host(self, reporting: bool) -> None:
        """Take up what was remembered of the host."""
        self.host_reporting = reporting

    # --- what guestAgent hears ---------------------------------------------------------------------

    def told(self, key: Key) -> None:
        """guestAgent has confirmed what was told under this key."""
        guest = self.table.get(key[0])
        if guest is not None and guest.untold.pop(key[1], None) is not None:
            self._save(guest)
            self._forget_if_over(guest)

    def _tell(self, guest: Guest, kind: str, cmd: int, event: datagram.Event, now: float) -> None:
        number = self.number()
        guest.untold[kind] = Untold(number, cmd, event)
        self._effects.append(Tell(cmd, event, number, (guest.uuid, kind)))
        self._save(guest)

    def _untell(self, guest: Guest, kind: str, why: str) -> None:
        if guest.untold.pop(kind, None) is not None:
            self._effects.append(Untell((guest.uuid, kind)))
            if kind == ILLNESS:
                guest.ill_told_at = -NEVER  # nobody knows of it: whoever finds it ill anew tells that
            if kind in (FAILURE, ILLNESS):
                guest.withdrawn += 1
                log.warning("%s: an untold %s is over: %s", guest.uuid, kind, why)
            self._save(guest)

    # --- channels ----------------------------------------------------------------------------------

    def channel_found(self, uuid: str, path: str, ident: Any, fresh: bool, now: float) -> None:
        """The guest's socket exists; `fresh`: it was just made. One that we have already is left alone."""
        guest = self._guest(uuid)
        if guest.link != ABSENT:
            if not fresh and (guest.path != path or guest.ident == ident):
                return  # ours already, or its other name (spec 1 knows two)
            self._unlink(guest, now)
        if fresh or guest.ident not in (None, ident):  # made anew, perhaps while we did not run
            guest.owes_answer = False
            guest.silence_until = -NEVER
            for kind in (FAILURE, ILLNESS):
                self._untell(guest, kind, "the instance was created anew")
        guest.path, guest.ident = path, ident
        guest.backoff = self._settings.reconnect_first
        self._retry(guest, now, now)

    def channel_gone(self, uuid: str, path: str, now: float) -> None:
        """The guest's socket is no more."""
        guest = self.table.get(uuid)
        if guest is not None and guest.path == path:
            self._unlink(guest, now)
            self._effects.append(Look(uuid))  # it may be there under its other name

    def connected(self, uuid: str, now: float) -> None:
        """A child serves the guest."""
        guest = self.table[uuid]
        guest.link = CONNECTED
        guest.linked_at = now
        guest.links += 1

    def connect_failed(self, uuid: str, missing: bool, why: str, now: float) -> None:
        """No connection could be made. `missing`: there is no such socket."""
        guest = self.table.get(uuid)
        if guest is None or guest.link != CONNECTING:
            return
        if missing:
            self._unlink(guest, now)
        else:
            self._throttle.warning(uuid, "%s: cannot connect: %s", uuid, why)
            self._back_off(guest, now)

    def child_ended(self, uuid: str, why: str, detail: str, now: float) -> None:
        """The guest's child has ended: PEER_CLOSED, GAVE_UP or DIED."""
        guest = self.table[uuid]
        log.log(logging.WARNING if why == DIED else logging.INFO, "%s: %s%s", uuid, why, detail)
        if why == DIED:
            guest.deaths += 1
        guest.running = False
        guest.questions = {n: question._replace(given=False) for n, question in guest.questions.items()}
        if why == PEER_CLOSED:
            guest.owes_answer = False
            self._untell(guest, ILLNESS, "the guest is gone")
            self._settle_all(guest, "the guest is gone", now)
        self._schedule_stopped(guest, now)
        if guest.link == CONNECTING or now - guest.linked_at < self._settings.settled:
            self._back_off(guest, now)
        else:
            guest.backoff = self._settings.reconnect_first
            self._retry(guest, now, now)
        self._save(guest)

    # --- reports of children -----------------------------------------------------------------------

    def reported(self, uuid: str, report: reports.Report, now: float) -> None:
        """The guest's child says this."""
        guest = self.table[uuid]
        _REPORTED[type(report)](self, guest, report, now)

    def _acknowledged(self, guest: Guest, report: reports.Acknowledged, now: float) -> None:
        guest.init = report.init
        guest.silence_until = guest.ill_told_at = -NEVER
        log.info("%s: init of %s, every %d ms, %s", guest.uuid, printable(report.init.name),
                 report.init.heartbeat_interval_ms, report.init.corrective_action)  # fmt: skip
        self._save(guest)

    def _running(self, guest: Guest, report: reports.Running, now: float) -> None:
        guest.running = guest.heartbeating = guest.owes_answer = True
        guest.stopped_due = NEVER
        self._untell(guest, FAILURE, "the guest heartbeats again")
        self._untell(guest, ILLNESS, "the guest heartbeats anew")
        info = self.info(guest)
        if guest.told != info._replace(reporting=False):
            guest.told = info._replace(reporting=False)
            log.info("%s: heartbeating", guest.uuid)
            self._tell(guest, STATE, datagram.RUNNING, info, now)
        for number in sorted(guest.questions):
            self._put(guest, number, now)
        self._save(guest)

    def _stopped(self, guest: Guest, report: reports.Stopped, now: float) -> None:
        guest.running = guest.owes_answer = False
        self._untell(guest, ILLNESS, "the guest has exited")
        self._stop(guest, now)

    def _quiet(self, guest: Guest, report: reports.Quiet, now: float) -> None:
        log.info("%s: quiet, as announced", guest.uuid)
        guest.running = guest.heartbeating = guest.owes_answer = False
        guest.stopped_due = NEVER
        guest.told = None
        if STATE in guest.untold and guest.untold[STATE].cmd == datagram.RUNNING:
            self._untell(guest, STATE, "")
        self._untell(guest, ILLNESS, "the guest went quiet")
        self._save(guest)

    def _lost(self, guest: Guest, report: reports.Lost, now: float) -> None:
        if now < guest.silence_until:
            # A notice was agreed to that the child never heard of.
            self._quiet(guest, reports.Quiet(), now)
            return
        guest.losses += 1
        guest.running = guest.owes_answer = False
        reporting = guest.reporting and self.host_reporting
        log.warning("%s: heartbeat lost%s", guest.uuid, "" if reporting else " (reporting is disabled)")
        if reporting:
            info = self.info(guest)._replace(heartbeating=False)
            self._tell(guest, FAILURE, datagram.LOSS, info, now)
        self._untell(guest, ILLNESS, "the guest is lost")
        self._stop(guest, now)

    def _ill(self, guest: Guest, report: reports.Ill, now: float) -> None:
        if now - guest.ill_told_at < self._settings.ill_repeat * 0.99:
            return  # a new child found out what the one before had told
        guest.ill_told_at = now
        log.warning("%s: ill, wants %s: %s", guest.uuid, report.action, printable(report.log_msg))
        info = self.info(guest)._replace(repair_action=report.action)
        self._tell(guest, ILLNESS, datagram.ILLHEALTH, info, now)

    def _well(self, guest: Guest, report: reports.Well, now: float) -> None:
        log.info("%s: healthy again", guest.uuid)
        guest.ill_told_at = -NEVER
        self._untell(guest, ILLNESS, "the guest is healthy again")

    def _missed(self, guest: Guest, report: reports.Missed, now: float) -> None:
        guest.misses += 1
        log.info("%s: missed %d in a row", guest.uuid, report.in_a_row)

    def _silence(self, guest: Guest, report: reports.Silence, now: float) -> None:
        seconds = min(report.seconds, self._settings.expected_silence)
        guest.silence_until = now + seconds if seconds else -NEVER
        self._save(guest)

    def _answered(self, guest: Guest, report: reports.Answered, now: float) -> None:
        self._settle(guest, report.number, report.vote, report.reason, now)

    def _late(self, guest: Guest, report: reports.Late, now: float) -> None:
        guest.late += 1
        self._throttle.warning("late", "%s: this host was %d ms late; not the guest's fault", guest.uuid,
                               report.seconds * 1000)  # fmt: skip

    def _reconnect(self, guest: Guest, report: reports.Reconnect, now: float) -> None:
        log.info("%s: reconnecting: %s", guest.uuid, printable(report.why))

    def _note(self, guest: Guest, report: reports.Note, now: float) -> None:
        guest.last_note = printable(report.text)
        more = " (and %d more like it)" % report.more if report.more else ""
        log.warning("%s: %s%s", guest.uuid, guest.last_note, more)

    # --- commands of guestAgent --------------------------------------------------------------------

    def command(self, command: datagram.Command, now: float) -> None:
        """guestAgent wants this (spec 2, "Commands"). `Query` and `Loopback` are none of ours."""
        if isinstance(command, datagram.SetInstance):
            self._set(command, now)
        elif isinstance(command, datagram.DeleteInstance):
            self._delete(command.uuid)
        elif isinstance(command, datagram.SetHost):
            if self.host_reporting != command.reporting:
                log.info("reporting of this host: %s", datagram.state_word(command.reporting))
                self.host_reporting = command.reporting
                self._effects.append(SaveHost(command.reporting))
            for guest in self.table.values():
                self._unreport(guest)
        elif isinstance(command, datagram.Ask):
            self._ask(command, now)

    def info_of(self, uuid: str) -> Optional[datagram.InstanceInfo]:
        """The answer to a query about this instance, if it is known."""
        guest = self.table.get(uuid)
        return self.info(guest) if guest is not None else None

    def info(self, guest: Guest) -> datagram.InstanceInfo:
        """The guest's state as guestAgent is told."""
        init = guest.init or channel.DEFAULT_INIT
        return datagram.InstanceInfo(
            hostname=self._settings.hostname,
            uuid=guest.uuid,
            reporting=guest.reporting,
            heartbeating=guest.heartbeating,
            repair_action=init.corrective_action,
            restart_to=init.restart_secs,
            shutdown_to=init.shutdown_notice_secs,
            suspend_to=init.suspend_notice_secs,
            resume_to=init.resume_notice_secs,
            vote_to=init.vote_secs,
        )

    def _set(self, command: datagram.SetInstance, now: float) -> None:
        guest = self._guest(command.uuid)
        if (guest.provisioned, guest.reporting) != (True, command.reporting):
            guest.provisioned, guest.reporting = True, command.reporting
            log.info("%s: reporting %s", guest.uuid, datagram.state_word(command.reporting))
            self._unreport(guest)
            self._save(guest)
        if guest.link == ABSENT:
            self._effects.append(Look(guest.uuid))
        elif guest.link == RETRYING:
            self._retry(guest, now, now)

    def _unreport(self, guest: Guest) -> None:
        """Where reporting is disabled nobody wants to hear of failures, those of before either."""
        if not (guest.reporting and self.host_reporting):
            for kind in (FAILURE, ILLNESS):
                self._untell(guest, kind, "reporting was disabled")

    def _delete(self, uuid: str) -> None:
        guest = self.table.pop(uuid, None)
        if guest is not None:
            log.info("%s: deleted", uuid)
            self._effects += [Untell((uuid, kind)) for kind in guest.untold]
            self._effects += [Drop(uuid), Forget(uuid)]

    # --- votes and notices -------------------------------------------------------------------------

    def _ask(self, command: datagram.Ask, now: float) -> None:
        guest = self.table.get(command.uuid)
        refusal = ""
        if guest is None:
            refusal = "unknown instance"
        elif command.event not in channel.EVENT_TYPES:
            refusal = "unknown event type %s" % printable(command.event)
        if guest is None or refusal:
            self._throttle.warning("ask", "%s: question refused: %s", command.uuid, refusal)
            question = Question(command.notification_type, command.event, now, False)
            self._tell_vote(guest, command.uuid, self._next_question(), question, "error", refusal, now)
            return
        init = guest.init or channel.DEFAULT_INIT
        seconds = channel.timeout_secs(init, command.notification_type, command.event)
        for older, question in sorted(guest.questions.items()):
            if not question.given:  # of one that it has, the child tells the end
                self._agree(guest, older, "overtaken by a new question", now)
        number = self._next_question()
        guest.questions[number] = Question(command.notification_type, command.event, now + seconds, False)
        self._schedule(guest, now + seconds + self._settings.question_grace)
        log.info("%s: asking %s %s, %d s", guest.uuid, command.notification_type, command.event, seconds)
        if guest.running:
            self._put(guest, number, now)
        elif command.notification_type == channel.NOTICE and command.event == "resume" and guest.path:
            self._effects.append(Drop(guest.uuid))
            self._retry(guest, now, now)
        elif not guest.heartbeating:
            self._agree(guest, number, "the guest is not heartbeating", now)
        self._save(guest)

    def _next_question(self) -> int:
        return next(self._questions) & channel.INT32_MAX

    def _put(self, guest: Guest, number: int, now: float) -> None:
        """Give the child a question, once, with the time that is left. It waits for one that is running."""
        question = guest.questions[number]
        left = round((question.deadline - now) * 1000)
        if guest.running and not question.given and left > 0:
            guest.questions[number] = question._replace(given=True)
            ask = pipe.Ask(number, question.notification_type, question.event_type, left)
            self._effects.append(Put(guest.uuid, ask))

    def _settle(self, guest: Guest, number: int, vote: str, reason: str, now: float) -> None:
        question = guest.questions.pop(number, None)
        if question is not None:
            self._tell_vote(guest, guest.uuid, number, question, vote, reason, now)

    def _agree(self, guest: Guest, number: int, reason: str, now: float) -> None:
        """Silent agreement to a question of which the child may know nothing, nor of what follows from it."""
        question = guest.questions[number]
        if question.notification_type == channel.NOTICE and question.event_type in SILENCING:
            guest.silence_until = now + self._settings.expected_silence
        self._settle(guest, number, reports.SILENT_AGREEMENT[question.notification_type], reason, now)

    def _settle_all(self, guest: Guest, reason: str, now: float) -> None:
        for number in sorted(guest.questions):
            self._agree(guest, number, reason, now)

    def _tell_vote(
        self,
        guest: Optional[Guest],
        uuid: str,
        number: int,
        question: Question,
        vote: str,
        reason: str,
        now: float,
    ) -> None:
        asked, event_type = question.notification_type, question.event_type
        log.info("%s: %s %s: %s %s", uuid, asked, printable(event_type), vote, printable(reason))
        result = datagram.VoteResult(self._settings.hostname, uuid, asked, event_type, vote, reason)
        key = "vote %d" % number
        if guest is not None:
            for older in [kind for kind in guest.untold if kind.startswith("vote")][: 1 - VOTES_MAX]:
                self._untell(guest, older, "")
            self._tell(guest, key, datagram.VOTE_NOTIFY, result, now)
        else:
            self._effects.append(Tell(datagram.VOTE_NOTIFY, result, self.number(), (uuid, key)))

    # --- links and time ----------------------------------------------------------------------------

    def _guest(self, uuid: str) -> Guest:
        guest = self.table.get(uuid)
        if guest is None:
            guest = self.table[uuid] = Guest(uuid, self._settings.reconnect_first)
        return guest

    def _schedule(self, guest: Guest, when: float) -> None:
        heapq.heappush(self._due, (when, guest.uuid))

    def _check(self, guest: Guest, now: float) -> None:
        """Whatever of this guest has fallen due."""
        if guest.link == RETRYING and guest.retry_at <= now:
            guest.link = CONNECTING
            assert guest.path is not None
            self._effects.append(Connect(guest.uuid, guest.path, self._resume(guest, now)))
        if guest.stopped_due <= now:
            self._tell_stopped(guest, now)
        if guest.hold_until <= now:
            guest.hold_until = NEVER
            for kind, one in guest.untold.items():
                if one.held:
                    guest.untold[kind] = one._replace(held=False)
                    self._effects.append(Tell(one.cmd, one.event, one.number, (guest.uuid, kind)))
        for number, question in sorted(guest.questions.items()):
            if question.deadline + self._settings.question_grace <= now:
                self._agree(guest, number, "no answer in time", now)
        self._forget_if_over(guest)

    def _forget_if_over(self, guest: Guest) -> None:
        """Nobody provisioned it, it is gone, and there is nothing left to tell of it."""
        known = guest.provisioned or guest.heartbeating or guest.untold
        if guest.link == ABSENT and not known:
            self._delete(guest.uuid)

    def _resume(self, guest: Guest, now: float) -> Optional[reports.Resume]:
        if guest.init is None:
            return None
        return reports.Resume(guest.init, guest.owes_answer, max(0.0, guest.silence_until - now))

    def _retry(self, guest: Guest, when: float, now: float) -> None:
        guest.link, guest.retry_at = RETRYING, when
        if when <= now:
            self._check(guest, now)
        else:
            self._schedule(guest, when)

    def _back_off(self, guest: Guest, now: float) -> None:
        delay = guest.backoff
        guest.backoff = min(2 * delay, self._settings.reconnect_max)
        self._retry(guest, now + delay, now)

    def _unlink(self, guest: Guest, now: float) -> None:
        """The channel is gone, and with it the guest that was behind it."""
        self._effects.append(Drop(guest.uuid))
        guest.link, guest.path = ABSENT, None
        guest.running = guest.owes_answer = False
        self._untell(guest, ILLNESS, "the guest is gone")
        self._settle_all(guest, "the guest is gone", now)
        guest.silence_until = -NEVER
        self._schedule_stopped(guest, now)
        self._save(guest)
        self._schedule(guest, now)

    def _schedule_stopped(self, guest: Guest, now: float) -> None:
        if guest.heartbeating and guest.stopped_due == NEVER:
            guest.stopped_due = now + self._settings.stopped_grace
            self._schedule(guest, guest.stopped_due)

    def _stop(self, guest: Guest, now: float) -> None:
        """It does not heartbeat any more; who knows that already is not told twice."""
        if guest.heartbeating:
            self._tell_stopped(guest, now)
        else:
            self._save(guest)

    def _tell_stopped(self, guest: Guest, now: float) -> None:
        guest.stopped_due = NEVER
        guest.told = None
        guest.heartbeating = False
        log.info("%s: stopped heartbeating", guest.uuid)
        self._tell(guest, STATE, datagram.STOPPED, self.info(guest), now)

    def _save(self, guest: Guest) -> None:
        if not (self._effects and isinstance(self._effects[-1], Save) and
                self._effects[-1].memory.uuid == guest.uuid):  # fmt: skip
            self._effects.append(Save(guest.memory()))
        else:
            self._effects[-1] = Save(guest.memory())


def _interval(guest: Guest) -> float:
    return (guest.init or channel.DEFAULT_INIT).heartbeat_interval_ms / 1000


_REPORTED: Dict[Any, Callable[[Guests, Guest, Any, float], None]] = {
    reports.Acknowledged: Guests._acknowledged,
    reports.Running: Guests._running,
    reports.Stopped: Guests._stopped,
    reports.Quiet: Guests._quiet,
    reports.Lost: Guests._lost,
    reports.Missed: Guests._missed,
    reports.Ill: Guests._ill,
    reports.Well: Guests._well,
    reports.Silence: Guests._silence,
    reports.Answered: Guests._answered,
    reports.Late: Guests._late,
    reports.Reconnect: Guests._reconnect,
    reports.Note: Guests._note,
}
