"""guestServer's master: ties the guests' table to sockets, children, the agent and the clock.

It never parses a guest's bytes, and never blocks once it serves. What happens goes into the table
(`state.guest_table`), and what the table wants comes out as effects, which are carried out here, one short
method each.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pwd
import socket
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence

from guestmtce.common.log_line import LogLine
from guestmtce.daemon import lifecycle
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.peer.authentication import KEY_SETTINGS, Keys
from guestmtce.peer.retransmit import Sequences
from guestmtce.server import agent_link, reports
from guestmtce.server import settings as settings_module
from guestmtce.server.agent_link import AgentLink
from guestmtce.server.child import confine, session_types
from guestmtce.server.child.session_types import Report
from guestmtce.server.discovery import Discovery, Identity
from guestmtce.server.settings import CONFIGURED_FLAG, GO_FLAG, NAME, PLATFORM, ServerSettings
from guestmtce.server.state import effects, guest
from guestmtce.server.state.guest_table import GuestTable
from guestmtce.server.state_store import Store
from guestmtce.server.supervise import confinement_trial, resource_usage, seccomp, uid_pool
from guestmtce.server.supervise.children import Children, ChildrenHandlers
from guestmtce.server.supervise.spawner_client import SpawnerSettings
from guestmtce.server.supervise.stuck_children import StuckChildren
from guestmtce.wire import datagram

log = logging.getLogger(__name__)

SAVE_PAUSE = 0.05  # s between two turns in which the store writes what it could not


class Master(lifecycle.Service[ServerSettings]):
    """The daemon. `open` waits, without blocking, until the host is ready, and then starts everything."""

    reloadable = frozenset(KEY_SETTINGS)

    def __init__(self, loop: Loop, settings: ServerSettings) -> None:
        self._loop = loop
        self._settings = settings
        self._guests = GuestTable(settings)  # until `_start` there is no guest in it
        self._throttle = Throttle(log)
        self._store: Optional[Store] = None
        self._link: Optional[AgentLink] = None
        self._due: Optional[Timer] = None
        self._carrying_out = False
        self._channels = Discovery(loop, settings, self._channel_found, self._channel_gone)
        self._to_connect: Dict[str, effects.Connect] = {}  # in turn, when a child can be had
        handlers = ChildrenHandlers(
            self._child_started, self._child_reported, self._child_ended, self._connect_waiting
        )
        means = _choose_means(settings)
        auto = settings.child_uids == uid_pool.AUTO
        own_uids = None if auto and means.identity is None else uid_pool.choose_uids(settings.child_uids)
        spawner = SpawnerSettings(settings.session(), means, settings.spawn_timeout, settings.page_layout)
        self._children = Children(loop, spawner, handlers, own_uids, uids_required=not auto)
        self._liveness = StuckChildren(
            loop,
            self._children.list_pids,
            self._child_patience,
            self._child_stuck,
            self._children.kill_rule_breaker,
        )
        self._child_user = settings.child_user if means.identity is not None else "no (not root)"

    # --- life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start at once if the host is ready, else as soon as it is."""
        if self._settings.no_wait:
            self._start()
        elif not os.path.isdir(PLATFORM):
            log.info("there is no %s, so this is no host of StarlingX: waiting for nothing", PLATFORM)
            self._start()
        elif not _missing_flags():
            self._start()
        else:
            log.info("%s", self.status())
            self._loop.after(self._settings.flag_poll, self._poll_host)

    def close(self) -> None:
        """End the children; what is remembered stays for the next start."""
        self._channels.close()
        self._children.close()
        if self._store is not None:
            # A clean stop is an absence from now on, not from the last periodic mark.
            self._store.mark_alive(self._loop.now)
            while self._store.save_again():
                pass
        if self._link is not None:
            self._link.close()

    def read_files(self, settings: ServerSettings) -> Keys:
        """HUP: the keys. Raises OSError."""
        return settings.keys()

    def reload(self, settings: ServerSettings, keys: Keys) -> None:
        """HUP: take the keys.

        A host that got another name while we serve goes on under the one that guestAgent knows.
        """
        named = {name: getattr(settings, name) for name in KEY_SETTINGS}
        self._settings = dataclasses.replace(self._settings, **named)  # it may not have started yet
        if self._link is not None:
            self._link.reload_keys(keys)
        name = settings.hostname or socket.gethostname()
        if self._store is not None and name != self._settings.hostname:
            text = "this host is called %s now, and is %s to guestAgent until guestServer is restarted"
            log.warning(text, name, self._settings.hostname)

    def _poll_host(self) -> None:
        if _missing_flags():
            self._loop.after(self._settings.flag_poll, self._poll_host)
        else:
            self._loop.after(self._settings.start_delay, self._start_or_stop)

    def _start_or_stop(self) -> None:
        try:
            self._start()
        except OSError as error:
            # From a timer there is nobody to raise it to: the daemon ends with a failure instead.
            log.critical("cannot start: %s", error)
            self.failed = True
            self._loop.stop()

    def _start(self) -> None:
        self._name_host()
        self._store = Store(os.path.abspath(self._settings.run_dir), NAME)
        next_sequence = Sequences(self._store.reserve_sequences).next_sequence
        self._guests = GuestTable(self._settings, next_sequence)
        handlers = agent_link.Handlers(
            self._handle_command,
            self._event_confirmed,
            self._guests.instance_info,
            self._guests.find_report,
            self._store.save_agent,
        )
        # After the store: who was followed before, and the numbers that were given, are known then.
        self._link = AgentLink(
            self._loop, self._settings, self._store.sender(), next_sequence, handlers,
            followed_before=self._store.followed_agent(),
        )  # fmt: skip
        self._children.open()
        # Before anything is recalled or connected: a host that cannot confine a child serves none.
        self._children.prove_confinement()
        self._recall_guests()
        self._mark_alive()
        self._liveness.start_rounds()
        # After the recall: a socket that is found is matched with what is known of its guest.
        self._channels.start()
        self._link.start()
        self._carry_out()

    def _name_host(self) -> None:
        """Only now is the host configured, its name included."""
        if not self._settings.hostname:
            self._settings = dataclasses.replace(self._settings, hostname=socket.gethostname())
        log.info("this host is %s", self._settings.hostname)

    def _recall_guests(self) -> None:
        assert self._store is not None
        now, alive_at = self._loop.now, self._store.alive_at()
        self._guests.recall_host(self._store.host_reporting())
        memories = self._store.load_guests()
        for memory in memories:
            self._guests.recall_guest(memory, alive_at, now)
        if memories:
            log.info("%d guests are known from before", len(memories))

    def _mark_alive(self) -> None:
        assert self._store is not None
        if self._store.was_cleaned():
            self._store.save_anew(row.memory() for row in self._guests.guests.values())
        self._store.mark_alive(self._loop.now)
        self._save_again()
        self._loop.after(self._settings.alive_mark, self._mark_alive)

    def _save_again(self) -> None:
        if self._store is not None and self._store.save_again():
            self._loop.after(SAVE_PAUSE, self._save_again)

    # --- what happens ------------------------------------------------------------------------------

    def _channel_found(self, uuid: str, path: str, ident: Identity, fresh: bool) -> None:
        self._guests.socket_found(uuid, path, ident, fresh, self._loop.now)
        self._carry_out()

    def _channel_gone(self, uuid: str, path: str) -> None:
        self._guests.socket_gone(uuid, path, self._loop.now)
        self._carry_out()

    def _child_started(self, uuid: str) -> None:
        self._guests.child_started(uuid, self._loop.now)
        self._loop.after(0, self._carry_out)  # not from within the spawner's answer

    def _child_reported(self, uuid: str, report: Report) -> None:
        self._guests.handle_report(uuid, report, self._loop.now)
        self._carry_out()

    def _child_ended(self, uuid: str, why: str, detail: str) -> None:
        self._guests.child_ended(uuid, why, detail, self._loop.now)
        self._carry_out()

    def _child_patience(self, uuid: str) -> float:
        return self._guests.child_patience(uuid)

    def _child_stuck(self, uuid: str) -> None:
        log.error("%s: its child has not woken up for too long: replacing it", uuid)
        self._children.replace_child(uuid)

    def _handle_command(self, command: datagram.Command) -> None:
        if isinstance(command, datagram.Query):
            assert self._link is not None
            self._link.answer_query(list(self._guests.guests))
        else:
            self._guests.handle_command(command, self._loop.now)
            self._carry_out()

    def _event_confirmed(self, key: guest.PendingKey) -> None:
        self._guests.confirm_event(key)
        self._carry_out()

    def _do_due(self) -> None:
        self._due = None
        self._guests.tick(self._loop.now)
        self._carry_out()

    # --- what is to be done ------------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Do all that the table wants. From within an effect: the outer call does it, in its turn."""
        if self._carrying_out:
            return
        self._carrying_out = True
        try:
            wanted = self._guests.drain_effects()
            while wanted:
                # Lines last: each wakes the log's thread, which would keep an event from going out.
                for effect in sorted(wanted, key=_is_log_line):
                    # One effect's defect is logged by the loop and costs no other effect.
                    self._loop.call(functools.partial(_CARRY_OUT[type(effect)], self, effect))
                wanted = self._guests.drain_effects()
        finally:
            self._carrying_out = False
        self._set_timer()

    def _set_timer(self) -> None:
        # A timer that is too early is left alone: it fires, finds nothing due and is set anew.
        if self._due is None or self._guests.next_due < self._due.when:
            if self._due is not None:
                self._due.cancel()
            self._due = None
            if self._guests.next_due != guest.NEVER:
                self._due = self._loop.at(self._guests.next_due, self._do_due)

    def _queue_connect(self, effect: effects.Connect) -> None:
        """A guest that is connected speaks at once: it is, when there will be somebody to listen."""
        self._to_connect[effect.uuid] = effect
        self._connect_next()

    def _connect_next(self) -> None:
        while self._to_connect and self._children.spawner.has_room:
            self._connect_now(self._to_connect.pop(next(iter(self._to_connect))))

    def _connect_waiting(self) -> None:
        self._connect_next()
        self._carry_out()

    def _connect_now(self, effect: effects.Connect) -> None:
        """What its socket refuses is the guest's failure. All that fails beside it is ours, and none its."""
        try:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._child_ended(effect.uuid, session_types.FORK_FAILED, ": no socket could be had: %s" % error)
            return
        try:
            # A full backlog says EAGAIN at once; a connect(2) that blocks would wait for QEMU, and with it
            # all guests.
            channel.setblocking(False)
            channel.connect(effect.path)
        except OSError as error:
            channel.close()
            self._guests.connect_failed(effect.uuid, error, self._loop.now)
            return
        try:
            self._children.start_child(effect.uuid, channel, effect.resume)
        except OSError as error:
            self._child_ended(
                effect.uuid, session_types.FORK_FAILED, ": it could not be asked for: %s" % error
            )

    def _drop_child(self, effect: effects.DropChild) -> None:
        # It may still wait for a child: none is to be made for a socket that is gone.
        self._to_connect.pop(effect.uuid, None)
        self._children.drop_child(effect.uuid)

    def _put_command(self, effect: effects.PutCommand) -> None:
        self._children.send_command(effect.uuid, effect.command)

    def _look_for_socket(self, effect: effects.LookForSocket) -> None:
        self._channels.look_for(effect.uuid)

    def _report_event(self, effect: effects.ReportEvent) -> None:
        if self._link is not None:
            self._link.report_event(effect)

    def _withdraw_event(self, effect: effects.WithdrawEvent) -> None:
        if self._link is not None:
            self._link.withdraw_event(effect.key)

    def _save_guest(self, effect: effects.SaveGuest) -> None:
        if self._store is not None:
            self._store.save_guest(effect.memory)

    def _save_host(self, effect: effects.SaveHost) -> None:
        if self._store is not None:
            self._store.save_host(effect.reporting)

    def _forget_guest(self, effect: effects.ForgetGuest) -> None:
        if self._store is not None:
            self._store.forget_guest(effect.uuid)

    def _write_log_line(self, line: LogLine) -> None:
        self._throttle.write(line)

    # --- reports for people ------------------------------------------------------------------------

    def status(self) -> str:
        """What it waits for, or how many guests there are, and how they are."""
        if self._store is None:
            return "waiting for " + (" and ".join(_missing_flags()) or "the end of [timeouts] start_delay")
        return reports.status_line(self._guests.guests.values())

    def health(self) -> List[str]:
        """One line per subject, `name value …`."""
        rows, children = self._guests.guests.values(), self._children
        means = " ".join("%s %s" % mean for mean in children.confinement.items())
        loop = self._loop
        return [
            reports.guests_line(rows),
            "channels %s watched %s" % (self._settings.channel_dir, self._channels.watching),
            *(reports.agent_lines(self._link) if self._link is not None else ()),
            reports.counts_line(rows),
            resource_usage.format_usage(list(children.list_pids().values())),
            "spawner pid %d started %d" % (children.spawner.pid, children.spawner.started),
            "confinement user %s %s" % (children.uids or self._child_user, means),
            "memory unsaved %d" % (len(self._store.unsaved) if self._store is not None else 0),
            reports.failing_line(rows),
            "broken-rules %d stuck %d" % (children.rule_breakers, self._liveness.stuck),
            "loop defects %d wake-ups %d stalls %d" % (loop.defects, loop.wake_ups, loop.stalls),
        ]

    def dump(self) -> List[str]:
        """One line per guest, `guest UUID key=value …`."""
        pids = self._children.list_pids()
        return [reports.guest_line(row, pids.get(row.uuid, 0)) for row in self._guests.guests.values()]


_CARRY_OUT: Dict[Any, Callable[[Master, Any], None]] = {
    effects.Connect: Master._queue_connect,
    effects.DropChild: Master._drop_child,
    effects.PutCommand: Master._put_command,
    effects.LookForSocket: Master._look_for_socket,
    effects.ReportEvent: Master._report_event,
    effects.WithdrawEvent: Master._withdraw_event,
    effects.SaveGuest: Master._save_guest,
    effects.SaveHost: Master._save_host,
    effects.ForgetGuest: Master._forget_guest,
    LogLine: Master._write_log_line,
}


def _is_log_line(effect: object) -> bool:
    return isinstance(effect, LogLine)


def _missing_flags() -> List[str]:
    """What a host of StarlingX does not have before it is configured and go-enabled."""
    return [flag for flag in (CONFIGURED_FLAG, GO_FLAG) if not os.path.exists(flag)]


def _child_identity(user: str) -> Optional[confine.Identity]:
    """What children become. Raises OSError for a user that does not exist."""
    if os.geteuid() != 0:
        log.warning("not root: children keep the user they have")
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError("--child-user %s: there is no such user" % user) from None
    return confine.Identity(entry.pw_uid, entry.pw_gid)


def _choose_means(settings: ServerSettings) -> confine.Means:
    """What children are confined with. Raises OSError where root lacks what it takes."""
    identity = _child_identity(settings.child_user)
    if identity is not None:
        confinement_trial.require_capabilities()
    return confine.Means(identity, seccomp.choose_filter(settings.no_seccomp, required=identity is not None))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command `guestServer`."""
    return lifecycle.run(NAME, ServerSettings, settings_module.FILES, Master, arguments)


if __name__ == "__main__":
    sys.exit(main())
