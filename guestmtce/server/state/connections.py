"""Each guest's link to this host: its socket and its child, what becomes of them, and what is due when.

`guests` builds on this, and has the whole of it in words.
"""

from __future__ import annotations

import heapq
import logging
from typing import Any, Dict, List, Optional, Tuple

from guestmtce.daemon.log import Throttle
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.settings import ServerSettings
from guestmtce.server.state.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    DIED,
    FAILURE,
    FORK_FAILED,
    ILL,
    ILLNESS,
    NEVER,
    PEER_CLOSED,
    RETRYING,
    STATE,
    Connect,
    Drop,
    Effect,
    Guest,
    Look,
    Put,
)
from guestmtce.server.state.pending_events import Outbox
from guestmtce.server.state.questions import Questions
from guestmtce.wire import datagram, guest_channel

log = logging.getLogger(__name__)

REST_DOUBLINGS_MAX = 16  # of a rest of 1 s; the setting ends it long before
PARTED_MAX = 4096  # guests whose init is kept after DEL_INST
DEATHS_WINDOW = 60.0  # s in which the deaths of a guest's children are counted


class Links:
    """See the module's text. Times in s, monotonic."""

    def __init__(self, settings: ServerSettings) -> None:
        self.table: Dict[str, Guest] = {}
        self.host_reporting = True
        self._settings = settings
        self.outbox = Outbox()
        self._due: List[Tuple[float, str]] = []
        self._questions = Questions(settings, self.outbox)
        self._throttle = Throttle(log)
        self._parted: Dict[
            str, Tuple[Any, guest_channel.Init]
        ] = {}  # after DEL_INST: the socket, the guest's init

    def take_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        return self.outbox.take()

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

    # --- channels ----------------------------------------------------------------------------------

    def channel_found(self, uuid: str, path: str, ident: Any, fresh: bool, now: float) -> None:
        """The guest's socket exists; `fresh`: it was just made. One that we have already is left alone."""
        guest = self._guest(uuid)
        if guest.link != ABSENT:
            if not fresh and (guest.path != path or guest.ident == ident):
                return  # ours already, or its other name (docs/protocol/1-guest-channel.md#transport)
            self._unlink(guest, now)
        if fresh or guest.ident not in (None, ident):  # made anew, perhaps while we did not run
            guest.owes_answer = guest.resting = False
            guest.failure = ""
            guest.deaths_at = []
            guest.silence_until = -NEVER
            for kind in (FAILURE, ILLNESS):
                self.outbox.untell(guest, kind, "the instance was created anew")
            guest.patience_until = -NEVER
        guest.path, guest.ident = path, ident
        parted = self._parted.pop(uuid, None)
        if guest.init is None and parted is not None and parted[0] == ident:
            guest.init = parted[1]
        guest.backoff = self._settings.reconnect_first
        self._retry(guest, now, now)

    def channel_gone(self, uuid: str, path: str, now: float) -> None:
        """The guest's socket is no more."""
        guest = self.table.get(uuid)
        if guest is not None and guest.path == path:
            self._unlink(guest, now)
            self.outbox.add(Look(uuid))  # it may be there under its other name

    def connected(self, uuid: str, now: float) -> None:
        """A child serves the guest."""
        guest = self.table[uuid]
        guest.link = CONNECTED
        guest.failure = "" if guest.failure == ILL else guest.failure  # the new child finds out
        guest.linked_at = now
        guest.links += 1
        guest.turned_away = 0.0
        if guest.enablings:  # while it was being made
            guest.enablings = 1
            self.outbox.add(Put(uuid, pipe_protocol.EnableReporting()))

    def child_ended(self, uuid: str, why: str, detail: str, now: float) -> None:
        """The guest's child has ended: PEER_CLOSED, GAVE_UP, DIED or FORK_FAILED."""
        guest = self.table[uuid]
        self._say(
            guest, now, logging.WARNING if why in (DIED, FORK_FAILED) else logging.INFO, "%s%s", why, detail
        )
        self._without_child(guest, now)
        if why == PEER_CLOSED:
            guest.owes_answer = False
            self.outbox.untell(guest, ILLNESS, "the guest is gone")
            self._questions.agree_all(guest, "the guest is gone", now)
        if why == DIED and self._dies_too_often(guest, now):
            self._retry(guest, now + self._child_rest(guest), now)
        elif why == FORK_FAILED and guest.owes_answer:  # ours, and its hang is not to be hidden for long
            guest.backoff = min(guest.backoff, self._settings.child_rest_watched_max)
            self._back_off(guest, now)
        elif guest.link == CONNECTING or now - guest.linked_at < self._settings.stable_after:
            self._back_off(guest, now)
        else:
            guest.backoff = self._settings.reconnect_first
            self._retry(guest, now, now)
        self.outbox.save(guest)

    def _replace_child(self, guest: Guest, now: float) -> None:
        """Another one, on a new connection, with what we know of the guest now."""
        self._without_child(guest, now)
        self.outbox.add(Drop(guest.uuid))
        self._retry(guest, now, now)

    def _without_child(self, guest: Guest, now: float) -> None:
        guest.running = False
        self._questions.take_back(guest)
        self._schedule_stopped(guest, now)

    def _dies_too_often(self, guest: Guest, now: float) -> bool:
        """Whether its children are to rest: forking them without end would cost the other guests."""
        guest.deaths += 1
        guest.deaths_at = [at for at in guest.deaths_at if now - at < DEATHS_WINDOW] + [now]
        guest.resting = len(guest.deaths_at) > self._settings.child_deaths_max
        if guest.resting:
            text = "%d of its children died within %d s: no other for %g s"
            values = (len(guest.deaths_at), DEATHS_WINDOW, self._child_rest(guest))
            self._say(guest, now, logging.ERROR, text, *values)
        return guest.resting

    def _child_rest(self, guest: Guest) -> float:
        """Who kills the children of a guest that was heartbeating does not hide its hang for long."""
        if not guest.owes_answer:
            return self._settings.child_rest
        beyond = len(guest.deaths_at) - self._settings.child_deaths_max - 1
        watched_max = min(self._settings.child_rest_watched_max, self._settings.child_rest)
        return min(2.0 ** min(beyond, REST_DOUBLINGS_MAX), watched_max)

    # --- time and state --------------------------------------------------------------------------------

    def _guest(self, uuid: str) -> Guest:
        guest = self.table.get(uuid)
        if guest is None:
            guest = Guest(uuid, self._settings.reconnect_first, self._settings.state_period)
            self.table[uuid] = guest
        return guest

    def _schedule(self, guest: Guest, when: float) -> None:
        heapq.heappush(self._due, (when, guest.uuid))

    def _check(self, guest: Guest, now: float) -> None:
        """Whatever of this guest has fallen due."""
        self._questions.agree_overdue(guest, now)
        if guest.link == RETRYING and guest.retry_at <= now:
            guest.link = CONNECTING
            assert guest.path is not None
            guest.enablings = 0
            self.outbox.add(Connect(guest.uuid, guest.path, self._resume(guest, now)))
        if guest.stopped_due <= now:
            self._stop(guest, now)
        if guest.state_due <= now:
            self._tell_changed_state(guest, now)
        if guest.late_illness is not None and guest.late_illness_due <= now:
            guest.illnesses.spend(now)
            self._tell_illness(guest, guest.late_illness, now)
        if guest.hold_until <= now:
            guest.hold_until = NEVER
            for kind, one in guest.untold.items():
                if one.held:
                    guest.untold[kind] = one._replace(held=False)
                    self.outbox.tell_again(guest, kind)
        self._forget_if_over(guest)

    def _forget_if_over(self, guest: Guest) -> None:
        """Nobody provisioned it, it is gone, and there is nothing left to tell of it."""
        known = guest.provisioned or guest.heartbeating or guest.untold
        if guest.link == ABSENT and not known:
            self._delete(guest.uuid)

    def child_patience(self, uuid: str) -> float:
        """Within how many seconds the guest's child must have woken up and gone to sleep again."""
        guest = self.table.get(uuid)
        sleeps = self._settings.idle_reconnect
        if guest is not None and guest.init is not None:
            interval = self._interval(guest)
            patience = self._settings.guest_patience
            resuming = session_types.resuming_patience(interval, patience, self._settings.failure_threshold)
            restarting = guest.init.restart_secs if guest.patience_until != -NEVER else 0.0
            sleeps = 2 * interval if guest.running else max(sleeps, resuming, restarting)
        return sleeps + self._settings.child_patience

    def _patience(self, guest: Guest) -> float:
        return max(2 * self._interval(guest), self._settings.guest_patience)

    def _interval(self, guest: Guest) -> float:
        return (guest.init or guest_channel.DEFAULT_INIT).heartbeat_interval_ms / 1000

    def _resume(self, guest: Guest, now: float) -> Optional[session_types.Resume]:
        if guest.init is None:
            return None
        silence = self._questions.expected_silence(guest, now)
        if silence <= 0 and guest.silence_until > -NEVER and not guest.answered_since_notice:
            guest.owes_answer = False  # it went quiet as announced, and has not been asked since
        answered = guest.owes_answer and guest.answered_since_notice and silence > 0
        patience = max(0.0, guest.patience_until - now)
        ill = guest.ill_told_at > -NEVER
        return session_types.Resume(guest.init, guest.owes_answer, silence, answered, patience, ill)

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
        self.outbox.add(Drop(guest.uuid))
        guest.link, guest.path = ABSENT, None
        guest.running = guest.owes_answer = False
        self.outbox.untell(guest, ILLNESS, "the guest is gone")
        self._questions.agree_all(guest, "the guest is gone", now)
        guest.silence_until = -NEVER
        self._schedule_stopped(guest, now)
        self.outbox.save(guest)
        self._schedule(guest, now)

    def _schedule_stopped(self, guest: Guest, now: float) -> None:
        if guest.heartbeating and guest.stopped_due == NEVER:
            guest.stopped_due = now + self._settings.stopped_grace
            self._schedule(guest, guest.stopped_due)

    def _stop(self, guest: Guest, now: float, number: Optional[int] = None) -> None:
        """It does not heartbeat any more; who knows that already is not told twice.

        `number` is that of a stop that was named before a loss: it is told at once.
        """
        guest.stopped_due = NEVER
        if guest.heartbeating or (number is not None and guest.state_due != NEVER):
            guest.heartbeating = False
            self._tell_state(guest, now, number)
        self.outbox.save(guest)

    def _tell_changed_state(self, guest: Guest, now: float) -> None:
        guest.state_due = NEVER
        if guest.told != self._shown(guest):
            self._tell_state(guest, now)

    def _shown(self, guest: Guest) -> Optional[datagram.InstanceInfo]:
        """What guestAgent is to believe of a guest that heartbeats, None: that it does not."""
        return self.info(guest)._replace(reporting=False) if guest.heartbeating else None

    def _tell_state(self, guest: Guest, now: float, number: Optional[int] = None) -> None:
        """guestAgent is to hear whether it heartbeats: at once, or, of one that comes and goes, soon."""
        guest.state_due = NEVER
        if number is None and not guest.state_changes.spend(now):
            guest.state_due = now + guest.state_changes.wait(now)
            self._schedule(guest, guest.state_due)
            return
        guest.told = self._shown(guest)
        info = self.info(guest)
        if guest.heartbeating:
            self._say(guest, now, logging.INFO, "heartbeating")
            self.outbox.tell(guest, STATE, datagram.RUNNING, info)
        else:
            self._say(guest, now, logging.INFO, "stopped heartbeating")
            self.outbox.tell(guest, STATE, datagram.STOPPED, info, number)

    def _say(self, guest: Guest, now: float, level: int, text: str, *values: Any) -> None:
        """A line about what its child says. One that says too much is not to fill the disk."""
        if not guest.lines.spend(now):
            guest.left_out += 1
            return
        more = " (%d lines were left out)" % guest.left_out if guest.left_out else ""
        guest.left_out = 0
        log.log(level, "%s: " + text + more, guest.uuid, *values)

    def info(self, guest: Guest) -> datagram.InstanceInfo:
        """The guest's state as guestAgent is told."""
        init = guest.init or guest_channel.DEFAULT_INIT
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

    def _tell_illness(self, guest: Guest, report: session_types.Ill, now: float) -> None:
        guest.late_illness = None
        guest.ill_told_at = now
        info = self.info(guest)._replace(repair_action=report.action)
        self.outbox.tell(guest, ILLNESS, datagram.ILLHEALTH, info)

    def _part_with(self, uuid: str) -> None:
        """DEL_INST: forget it, but for what a guest behind the same socket would have to tell us again."""
        guest = self.table.get(uuid)
        if guest is not None and guest.init is not None and guest.ident is not None:
            while len(self._parted) >= PARTED_MAX:
                del self._parted[next(iter(self._parted))]
            self._parted[uuid] = (guest.ident, guest.init)
        self._delete(uuid)

    def _delete(self, uuid: str) -> None:
        guest = self.table.pop(uuid, None)
        if guest is not None:
            log.info("%s: deleted", uuid)
            self.outbox.forget(guest)
            self.outbox.add(Drop(uuid))
