"""Each guest's connection to this host: its socket and its child, and when it is made anew.

docs/protocol/1-guest-channel.md#connection-upkeep
docs/protocol/1-guest-channel.md#resuming-a-guest

A connection is ABSENT (no socket), RETRYING (to be connected at `retry_at`), CONNECTING (a child is being
forked) or CONNECTED. That it breaks says nothing of the guest's life: the next child judges that, by what it
is given to resume with.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple

from guestmtce.common.log_line import ERROR, INFO, WARNING
from guestmtce.server.child import pipe_protocol, session_types
from guestmtce.server.child.session_types import DIED, FORK_FAILED, PEER_CLOSED
from guestmtce.server.state import liveness
from guestmtce.server.state.agenda import Agenda
from guestmtce.server.state.effects import Connect, DropChild, LookForSocket, PutCommand
from guestmtce.server.state.failures import Failures
from guestmtce.server.state.guest import (
    ABSENT,
    CONNECTED,
    CONNECTING,
    NEVER,
    RETRYING,
    Guest,
    SocketIdentity,
)
from guestmtce.server.state.questions import Questions
from guestmtce.server.state.state_reports import StateReports
from guestmtce.server.state.table_settings import TableSettings
from guestmtce.wire import guest_channel

REST_DOUBLINGS_MAX = 16  # of a rest of 1 s; the setting ends it long before
DEPARTED_MAX = 4096  # guests whose init is kept after DEL_INST
CRASHES_WINDOW = 60.0  # s in which the deaths of a guest's children are counted


class Connections:
    """See the module's text. Times in s, monotonic. Every guest that is given is in the table."""

    def __init__(
        self,
        settings: TableSettings,
        agenda: Agenda,
        state_reports: StateReports,
        failures: Failures,
        questions: Questions,
    ) -> None:
        self._settings = settings
        self._agenda = agenda
        self._state_reports = state_reports
        self._failures = failures
        self._questions = questions
        self._departed: Dict[str, Tuple[SocketIdentity, guest_channel.Init]] = {}  # after DEL_INST

    # --- sockets -----------------------------------------------------------------------------------

    def take_socket(self, guest: Guest, path: str, identity: SocketIdentity, fresh: bool, now: float) -> None:
        """The guest's socket exists; `fresh`: it was just made. One that we have already is left alone."""
        connection = guest.connection
        if connection.state != ABSENT:
            if not fresh and (connection.path != path or connection.socket_identity == identity):
                return  # ours already, or its other name (docs/protocol/1-guest-channel.md#transport)
            self.disconnect_guest(guest, now)
        if fresh or connection.socket_identity not in (None, identity):  # perhaps while we did not run
            self._note_made_anew(guest)
        connection.path, connection.socket_identity = path, identity
        # Before the connection, which resumes with the init.
        self._restore_init(guest, identity)
        connection.back_off.reset()
        self.retry_at(guest, now, now)

    def lose_socket(self, guest: Guest, path: str, now: float) -> None:
        """The guest's socket is no more."""
        if guest.connection.path == path:
            self.disconnect_guest(guest, now)
            self._agenda.add_effect(LookForSocket(guest.uuid))  # it may be there under its other name

    def disconnect_guest(self, guest: Guest, now: float) -> None:
        """The socket is gone, and with it the guest that was behind it."""
        self._agenda.add_effect(DropChild(guest.uuid))
        guest.connection.state, guest.connection.path = ABSENT, None
        guest.liveness.note(liveness.CHILD_GONE)
        self._note_guest_gone(guest, now)
        guest.liveness.silence_until = -NEVER
        self._state_reports.schedule_stopped(guest, now)
        self._agenda.save_guest(guest)
        self._agenda.wake_guest(guest, now)  # to be forgotten, if nothing is to be told of it

    def keep_init(self, guest: Guest) -> None:
        """DEL_INST: a guest that is found again behind the same socket does not tell us its init again."""
        identity = guest.connection.socket_identity
        if guest.init is not None and identity is not None:
            # The oldest goes first: a dictionary keeps the order in which it was filled.
            while len(self._departed) >= DEPARTED_MAX:
                del self._departed[next(iter(self._departed))]
            self._departed[guest.uuid] = (identity, guest.init)

    def _restore_init(self, guest: Guest, identity: SocketIdentity) -> None:
        departed = self._departed.pop(guest.uuid, None)
        if guest.init is None and departed is not None and departed[0] == identity:
            guest.init = departed[1]

    def _note_made_anew(self, guest: Guest) -> None:
        guest.liveness.note(liveness.MADE_ANEW)
        guest.liveness.ill = False
        guest.liveness.silence_until = guest.liveness.patience_until = -NEVER
        guest.crashes.crash_looping = False
        guest.crashes.recent = ()
        self._failures.withdraw_both(guest, "the instance was created anew")

    def _note_guest_gone(self, guest: Guest, now: float) -> None:
        guest.liveness.note(liveness.EXCUSED)
        self._failures.end_illness(guest, "the guest is gone")
        self._questions.agree_to_all(guest, "the guest is gone", now)

    # --- children ----------------------------------------------------------------------------------

    def retry_at(self, guest: Guest, when: float, now: float) -> None:
        """Connect the guest at `when`."""
        guest.connection.state, guest.connection.retry_at = RETRYING, when
        if when <= now:
            self._questions.agree_to_overdue(guest, now)
            self.connect_if_due(guest, now)
        else:
            self._agenda.wake_guest(guest, when)

    def retry_later(self, guest: Guest, now: float) -> None:
        """It could not be connected, or not for long: connect it later, and later each time."""
        self.retry_at(guest, now + guest.connection.back_off.next_delay(), now)

    def connect_if_due(self, guest: Guest, now: float) -> None:
        """Have a child made, if it is time."""
        connection = guest.connection
        if connection.state == RETRYING and connection.retry_at <= now:
            connection.state = CONNECTING
            assert connection.path is not None
            # The next child is told all of it by `Resume`; what is enabled from here on counts for it.
            guest.liveness.enablings = 0
            self._agenda.add_effect(Connect(guest.uuid, connection.path, self._make_resume(guest, now)))

    def note_child_started(self, guest: Guest, now: float) -> None:
        """A child serves the guest."""
        guest.connection.state = CONNECTED
        guest.connection.connected_at = now
        guest.connection.connections_made += 1
        guest.connection.refused_for = 0.0
        guest.liveness.ill = False  # the new child finds out
        if guest.liveness.enablings:  # while it was being made
            guest.liveness.enablings = 1
            self._agenda.add_effect(PutCommand(guest.uuid, pipe_protocol.EnableReporting()))

    def note_child_ended(self, guest: Guest, why: str, detail: str, now: float) -> None:
        """The guest's child has ended: PEER_CLOSED, GAVE_UP, DIED or FORK_FAILED."""
        level = WARNING if why in (DIED, FORK_FAILED) else INFO
        self._agenda.log_report(guest, now, level, "%s%s", why, detail)
        self._lose_child(guest, now)
        # QEMU's closing excuses the guest: its machine may be gone. A dead child is this host's trouble, and
        # its guest goes on owing its answer.
        if why == PEER_CLOSED:
            self._note_guest_gone(guest, now)
        # A long rest is for deaths alone: an end by QEMU or by the session is none, however often it comes.
        if why == DIED and self._is_crash_looping(guest, now):
            self.retry_at(guest, now + self._child_rest(guest), now)
        elif why == FORK_FAILED and guest.liveness.owes_answer:  # ours, and its hang is not to be hidden
            self._shorten_back_off(guest)
            self.retry_later(guest, now)
        elif self._was_short_lived(guest, now):
            self.retry_later(guest, now)
        else:
            guest.connection.back_off.reset()
            self.retry_at(guest, now, now)
        self._agenda.save_guest(guest)

    def replace_child(self, guest: Guest, now: float) -> None:
        """Another one, on a new connection, with what we know of the guest now."""
        self._lose_child(guest, now)
        self._agenda.add_effect(DropChild(guest.uuid))
        self.retry_at(guest, now, now)

    def child_patience(self, guest: Optional[Guest]) -> float:
        """Within how many seconds the guest's child must have woken up and gone to sleep again."""
        sleeps = self._settings.idle_reconnect
        # A child wakes up once an interval while its guest heartbeats, else when its session's longest wait
        # is over.
        if guest is not None and guest.init is not None:
            interval = guest.interval
            patience = self._settings.guest_patience
            resuming = session_types.resuming_patience(interval, patience, self._settings.failure_threshold)
            restarting = guest.init.restart_secs if guest.liveness.patience_until != -NEVER else 0.0
            sleeps = 2 * interval if guest.liveness.running else max(sleeps, resuming, restarting)
        return sleeps + self._settings.child_patience

    def _lose_child(self, guest: Guest, now: float) -> None:
        guest.liveness.note(liveness.CHILD_GONE)
        self._questions.take_back_all(guest)
        self._state_reports.schedule_stopped(guest, now)

    def _was_short_lived(self, guest: Guest, now: float) -> bool:
        connection = guest.connection
        return connection.state == CONNECTING or now - connection.connected_at < self._settings.stable_after

    def _shorten_back_off(self, guest: Guest) -> None:
        back_off = guest.connection.back_off
        back_off.delay = min(back_off.delay, self._settings.child_rest_watched_max)

    def _is_crash_looping(self, guest: Guest, now: float) -> bool:
        """Whether its children are to rest: forking them without end would cost the other guests."""
        crashes = guest.crashes
        crashes.count += 1
        crashes.recent = (*(at for at in crashes.recent if now - at < CRASHES_WINDOW), now)
        crashes.crash_looping = len(crashes.recent) > self._settings.child_deaths_max
        if crashes.crash_looping:
            text = "%d of its children died within %d s, [supervision] child_deaths_max: no other for %g s"
            values = (len(crashes.recent), CRASHES_WINDOW, self._child_rest(guest))
            self._agenda.log_report(guest, now, ERROR, text, *values)
        return crashes.crash_looping

    def _child_rest(self, guest: Guest) -> float:
        """Who kills the children of a guest that was heartbeating does not hide its hang for long."""
        if not guest.liveness.owes_answer:
            return self._settings.child_rest
        beyond = len(guest.crashes.recent) - self._settings.child_deaths_max - 1
        watched_max = min(self._settings.child_rest_watched_max, self._settings.child_rest)
        return min(2.0 ** min(beyond, REST_DOUBLINGS_MAX), watched_max)

    def _make_resume(self, guest: Guest, now: float) -> Optional[session_types.Resume]:
        if guest.init is None:
            return None
        life = guest.liveness
        silence = self._questions.expected_silence(guest, now)
        if silence <= 0 and life.silence_until > -NEVER and not life.answered_since_notice:
            life.note(liveness.EXCUSED)  # it went quiet as announced, and has not been asked since
        answered = life.owes_answer and life.answered_since_notice and silence > 0
        patience = max(0.0, life.patience_until - now)
        ill = guest.pending.ill_reported_at > -NEVER
        return session_types.Resume(guest.init, life.owes_answer, silence, answered, patience, ill)
