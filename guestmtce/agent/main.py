"""guestAgent: ties the inventory to the VIM, the guestServers and mtcAgent.

Three kinds of threads: this one, with the loop (UDP, audit, signals); those of the VIM's commands; and those
that speak to the VIM. They meet in `_apply`, under the one lock. The methods that other modules call when
something has happened are those of their listeners: `VimListener`, `ServerListener`, `HostListener`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Type, TypeVar

from guestmtce.agent import effects
from guestmtce.agent import settings as settings_module
from guestmtce.agent.delivered_log import DeliveredLog
from guestmtce.agent.http.vim_commands import Commands
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.inventory_events import ServerEvents
from guestmtce.agent.model import Origin
from guestmtce.agent.mtc_link import MtcLink
from guestmtce.agent.server_link import Endpoint, ReceivedEvent, ServerLink
from guestmtce.agent.settings import NAME, AgentSettings
from guestmtce.agent.vim_client import Patience, VimClient
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import HOST_STATE, VimRequest
from guestmtce.common.log_line import LogLine
from guestmtce.daemon import lifecycle
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import Resolver
from guestmtce.peer.authentication import KEY_SETTINGS, Keys
from guestmtce.peer.retransmit import SeenByPeer
from guestmtce.wire import datagram, vim_http

log = logging.getLogger(__name__)

FAILURES = (datagram.LOSS, datagram.ILLHEALTH)

Result = TypeVar("Result")


class Agent(lifecycle.Service[AgentSettings]):
    """The daemon."""

    reloadable = frozenset(KEY_SETTINGS)

    def __init__(self, loop: Loop, settings: AgentSettings) -> None:
        self.wrong_address_events = 0
        self.audits = 0  # rounds
        self._throttle = Throttle(log)
        self._loop = loop
        self._settings = settings
        self._lock = threading.Lock()
        self._delivered_log = DeliveredLog(settings.run_dir, NAME)
        self._inventory = Inventory(self._delivered_log.unheard_before)
        self._vim_queue = VimQueue(settings.vim_retry_first, settings.vim_retry_max)
        # By host and not by address: with a key a repetition may come from another address.
        self._seen = SeenByPeer()  # by host
        self._vim = VimClient(
            settings.vim_base,
            Patience(settings.vim_alarm_timeout, settings.vim_timeout),
            self._lock,
            self._vim_queue,
            _Journal(self._delivered_log, self._mark_event),
            self,
        )
        self._resolver = Resolver(loop, settings.resolve_first, settings.resolve_period)
        self._servers: Optional[ServerLink] = None
        self._mtc: Optional[MtcLink] = None
        self._commands: Optional[Commands] = None

    # --- life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Bind everything, then start everything. Raises OSError."""
        settings = self._settings
        hosts = settings.known_hosts()
        self._servers = ServerLink(
            self._loop,
            Endpoint(settings.bind, settings.rx_port, settings.server_port),
            self._lock,
            self,
            settings.keys(),
            self._resolver,
        )
        self._mtc = MtcLink(self._loop, settings, self, self._resolver)
        self._commands = Commands(settings, self._apply)
        self._commands.start()
        # A failure goes out only after all that was readable was read: a RUNNING behind it takes it back.
        self._loop.on_idle = self._vim.resume
        self._vim.start()
        # mtcAgent's word about the same name replaces what the setting says.
        for record in hosts:
            self.host_named(datagram.ADD_HOST, record)
        self._mtc.start()
        self._loop.after(settings.audit_first, self._run_audit)

    def close(self) -> None:
        """Stop; what the VIM does not have, the next audit of the next agent finds out."""
        self._vim.close()
        if self._commands is not None:
            self._commands.close()
        for link in (self._mtc, self._servers):
            if link is not None:
                link.close()
        self._resolver.close()

    def read_files(self, settings: AgentSettings) -> Keys:
        """HUP: the keys. Raises OSError."""
        return settings.keys()

    def reload(self, _settings: AgentSettings, keys: Keys) -> None:
        """HUP: take the keys."""
        if self._servers is not None:
            # Threads that serve the VIM's commands seal with them.
            with self._lock:
                self._servers.reload_keys(keys)

    def _run_audit(self) -> None:
        # Set first: a defect in the round is logged by the loop, and must not be the last round.
        self._loop.after(self._settings.audit_period, self._run_audit)
        self.audits += 1
        self._apply(Inventory.run_audit)

    # --- effects -----------------------------------------------------------------------------------

    def _apply(self, act: Callable[[Inventory], Result]) -> Result:
        """Do `act` on the inventory and carry out what follows, whether it raises or not.

        Datagrams are sent under the lock, which takes microseconds and never waits: two commands for one
        instance must not overtake each other.
        """
        with self._lock:
            try:
                return act(self._inventory)
            finally:
                # A command that is refused has effects, too: one about an unknown host asks mtcAgent.
                self._carry_out_effects()

    def _carry_out_effects(self) -> None:
        for effect in self._inventory.take_effects():
            _CARRY_OUT[type(effect)](self, effect)
        # One thread is woken for all that has come: it wakes the next when it takes a request itself.
        self._vim.notify()
        self.confirm_events()

    def _send_command(self, effect: effects.Send) -> None:
        if self._servers is not None:
            self._servers.send_command(effect)

    def _drop_server(self, effect: effects.DropHost) -> None:
        if self._servers is not None:
            self._servers.drop_server(effect.ip)

    def _ask_mtc_soon(self, effect: effects.AskMtc) -> None:
        self._loop.call_from_thread(self._ask_mtc)  # its link belongs to the loop's thread

    def _write_line(self, line: LogLine) -> None:
        self._throttle.write(line)

    def _queue_alarm(self, effect: effects.ReportAlarm) -> None:
        self._vim_queue.add_alarm(effect, self._delivered_log.sent_to(effect.origin))

    def _queue_for_vim(self, effect: effects.VimEffect) -> None:
        self._vim_queue.accept_effect(effect)

    def _ask_mtc(self) -> None:
        if self._mtc is not None:
            self._mtc.ask_hosts()

    def _mark_event(self, origin: Origin, vim: int) -> None:
        """Have its guestServer know that an alarm is under way to this VIM, 0: is not."""
        # From a thread that speaks to the VIM and holds no lock.
        with self._lock:
            if self._servers is not None:
                self._servers.mark_event(origin, vim)

    # --- mtcAgent: HostListener --------------------------------------------------------------------

    def host_named(self, cmd: int, record: datagram.HostRecord) -> None:
        """mtcAgent, or a setting, has named a host."""
        if cmd == datagram.DEL_HOST:
            self._apply(lambda inventory: inventory.delete_host(record))
        else:
            self._apply(lambda inventory: inventory.note_host(record))

    # --- the guestServers: ServerListener ----------------------------------------------------------

    def server_said(self, received: ReceivedEvent) -> None:
        """A guestServer has sent an event. Without a key only the host's own address is believed."""
        with self._lock:
            try:
                self._note_received(received)
            finally:
                # What was concluded before a defect is carried out with it, and not with the next event.
                self._carry_out_effects()

    def _note_received(self, received: ReceivedEvent) -> None:
        host = self._inventory.hosts.find_host(received.event.hostname)
        # The event of an unknown host passes: it asks mtcAgent, and nothing is believed or confirmed of
        # it.
        if host is not None and host.ip != received.address and not received.sealed:
            self.wrong_address_events += 1
            text = (
                "an event of %s from %s was dropped: mtcAgent says that this host is at %s; configure"
                " [security] key_file on both sides if it sends from another address"
            )
            self._throttle.warning("address", text, host.name, received.address, host.ip)
        # An old server's event, a MONITOR_READY or an answer: nobody waits for a confirmation of these,
        # and the audit repairs what is lost (docs/protocol/2-datagrams.md#audit).
        elif not received.wants_ack:
            _note_event(self._inventory.events, received, received.origin)
        elif received.origin is not None:
            self._note_once(received, received.origin, host.name if host is not None else "")

    def disabling_sent(self, uuid: str) -> None:
        """The next guestAgent must know, should this one end before it is heard."""
        self._delivered_log.note_disabling(uuid)

    def disabling_heard(self, uuid: str) -> None:
        """Its server knows."""
        self._delivered_log.note_disabling_heard(uuid)

    def _note_once(self, received: ReceivedEvent, origin: Origin, hostname: str) -> None:
        """An event that is repeated until we confirm it: once the VIM has it, or if nobody is to hear it.

        `hostname` is the host's one name, however the event spells it.
        """
        now = self._loop.now
        seen = self._seen.came_before(hostname, origin.sender, origin.sequence, now)
        # Two memories: what this process has noted, and what an agent before it had delivered when it ended.
        if not seen and origin not in self._delivered_log:
            if received.cmd in FAILURES and self._is_outdated(received.event, hostname):
                return  # if it is still true, the server says it again
            if received.vim:
                self._delivered_log.note_sending_elsewhere(origin, received.vim)
            if not _note_event(self._inventory.events, received, origin):
                return  # we do not know enough of its host or instance yet: it will come again
            # Not before: what was not understood must be news when it comes again.
            self._seen.add(hostname, origin.sender, origin.sequence, now)
            self._carry_out_effects()  # only the queue can say whether anything of it waits
        self._answer_repetition(received, origin)

    def _answer_repetition(self, received: ReceivedEvent, origin: Origin) -> None:
        """Confirm what nothing waits for; else show the server to which VIM the alarm is under way."""
        if self._servers is None:
            return
        if not self._vim_queue.holds_origin(origin):
            self._servers.confirm_event(origin)
        elif self._delivered_log.under_way(origin) != received.vim:
            self._servers.mark_event(origin, self._delivered_log.under_way(origin))

    def _is_outdated(self, failure: datagram.Event, hostname: str) -> bool:
        """Whether it may be from before reporting was disabled and enabled again."""
        host = self._inventory.hosts.find_host(hostname)
        if host is None or self._servers is None or isinstance(failure, datagram.Ready):
            return False
        return self._servers.enables_anew(host.ip, failure.uuid)

    # --- the VIM: VimListener ----------------------------------------------------------------------

    def vim_answered(self, query: VimRequest, body: object) -> None:
        """The VIM has answered about a host; a body of None says that it has not."""
        if query.topic == HOST_STATE:
            state = vim_http.parse_host_state(body)
            self._apply(lambda inventory: inventory.note_host_state(query.uuid, state, query.serial))
        else:
            listed = vim_http.parse_instances(body)
            now = time.monotonic()
            self._apply(lambda inventory: inventory.note_list(query.uuid, listed, query.serial, now))

    def confirm_events(self) -> None:
        """Confirm what the VIM has, or is not to hear any more; under the lock."""
        for line in self._vim_queue.take_log_lines():
            self._throttle.write(line)
        for origin in self._vim_queue.take_confirmable():
            if self._servers is not None:
                self._servers.confirm_event(origin)

    def may_deliver(self) -> bool:
        """Whether all that has come was read."""
        return self._loop.idle

    # --- reports for people ------------------------------------------------------------------------

    def status(self) -> str:
        """How many hosts and instances there are, and whether the VIM can be reached."""
        with self._lock:
            instances = self._inventory.instances.values()
            beating = sum(instance.heartbeating for instance in instances)
            reached = "reachable" if self._vim.reachable else "UNREACHABLE"
            values = (len(self._inventory.hosts), len(instances), beating, reached, len(self._vim_queue))
            return "%d hosts, %d instances: %d heartbeating; VIM %s, %d events pending" % values

    def health(self) -> List[str]:
        """One line per subject, `name value …`."""
        with self._lock:
            queue = self._vim_queue
            beating = sum(instance.heartbeating for instance in self._inventory.instances.values())
            lines = [
                "hosts %d instances %d heartbeating %d"
                % (len(self._inventory.hosts), len(self._inventory.instances), beating),
                "vim %s %s"
                % (self._settings.vim_base, "reachable" if self._vim.reachable else "UNREACHABLE"),
                "events delivered %d pending %d withdrawn %d given up %d expired %d"
                % (queue.delivered, len(queue), queue.withdrawn, queue.given_up, queue.expired),
            ]
            unconfirmed = self._servers.unconfirmed if self._servers is not None else 0
        if self._commands is not None:
            lines.extend(self._commands.health())
        for name, link in (("guestServers", self._servers), ("mtcAgent", self._mtc)):
            if link is not None:
                counts = (name, link.port.received, link.port.sent, link.refused)
                lines.append("datagrams of %s received %d sent %d refused %d" % counts)
        lines.append("commands-out unconfirmed %d" % unconfirmed)
        lines.append("wrong-address-events %d" % self.wrong_address_events)
        lines.append("audits %d defects %d" % (self.audits, self._loop.defects))
        return lines

    def dump(self) -> List[str]:
        """One line per host and per instance."""
        with self._lock:
            lines = []
            for host in self._inventory.hosts:
                lines.append(
                    "host %s uuid=%s ip=%s reporting=%s listed=%s query_misses=%d"
                    % (host.name, host.uuid, host.ip, datagram.state_word(host.enabled),
                       host.listed, host.query_misses)
                )  # fmt: skip
            for instance in self._inventory.instances.values():
                lines.append(
                    "instance %s host=%s reporting=%s heartbeating=%s repair_action=%s adopted=%s"
                    % (instance.uuid, instance.hostname, datagram.state_word(instance.reporting),
                       datagram.state_word(instance.heartbeating), instance.repair_action,
                       instance.adopted)
                )  # fmt: skip
            return lines


class _Journal(NamedTuple):
    """Where the next agent finds what is under way: in this controller's file, and at the guestServer."""

    delivered_log: DeliveredLog
    mark_event: Callable[[Origin, int], None]

    def note_delivered(self, origin: Origin) -> None:
        """The VIM has it."""
        self.delivered_log.note_delivered(origin)

    def note_sending(self, origin: Origin, vim: int) -> None:
        """An alarm is about to be sent to this VIM.

        Who is killed between the note and the sending loses the alarm: the file's note comes last.
        """
        self.mark_event(origin, vim)
        self.delivered_log.note_sending(origin, vim)

    def note_unsent(self, origin: Origin) -> None:
        """The VIM does not have it after all."""
        marked = self.delivered_log.under_way(origin)
        self.delivered_log.note_unsent(origin)
        if marked:
            self.mark_event(origin, 0)


_CARRY_OUT: Dict[Type[Any], Callable[[Agent, Any], None]] = {
    effects.Send: Agent._send_command,
    effects.DropHost: Agent._drop_server,
    effects.AskMtc: Agent._ask_mtc_soon,
    LogLine: Agent._write_line,
    effects.ReportAlarm: Agent._queue_alarm,
    effects.ReportService: Agent._queue_for_vim,
    effects.ReportAction: Agent._queue_for_vim,
    effects.Withdraw: Agent._queue_for_vim,
    effects.ForgetVimEvents: Agent._queue_for_vim,
    effects.AskVim: Agent._queue_for_vim,
}

_EVENTS: Dict[int, Callable[[ServerEvents, Any, Optional[Origin]], bool]] = {
    datagram.MONITOR_READY: lambda events, event, _: events.note_ready(event),
    datagram.RUNNING: ServerEvents.note_state,
    datagram.STOPPED: ServerEvents.note_state,
    datagram.QRY_INST: ServerEvents.note_answer,
    datagram.ILLHEALTH: ServerEvents.note_illness,
    datagram.LOSS: ServerEvents.note_loss,
    datagram.VOTE_NOTIFY: lambda events, event, origin: events.note_outcome(event, time.monotonic(), origin),
}


def _note_event(events: ServerEvents, received: ReceivedEvent, origin: Optional[Origin]) -> bool:
    """Note what a guestServer said; whether it could be understood."""
    event = received.event
    if received.still_ill and isinstance(event, datagram.InstanceInfo) and received.cmd == datagram.RUNNING:
        return events.note_state(event, origin, True)
    return _EVENTS[received.cmd](events, event, origin)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command `guestAgent`."""
    return lifecycle.run(NAME, AgentSettings, settings_module.FILES, Agent, arguments)


if __name__ == "__main__":
    sys.exit(main())
