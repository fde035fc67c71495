"""guestAgent: ties the inventory to the VIM, the guestServers and mtcAgent.

Three kinds of threads: this one, with the loop (UDP, audit, signals); those of the VIM's commands; and those
that speak to the VIM. They meet in `_apply`, under the one lock.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from guestmtce.agent import settings as settings_module
from guestmtce.agent import vim_queue
from guestmtce.agent.audit import Audit
from guestmtce.agent.delivered_log import Told
from guestmtce.agent.http.vim_commands import Commands
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.model import AskMtc, DropHost, Origin, Send, TellAlarm
from guestmtce.agent.mtc_link import MtcLink
from guestmtce.agent.server_link import Heard, ServerLink
from guestmtce.agent.settings import NAME, AgentSettings
from guestmtce.agent.vim_client import Patience, VimLink
from guestmtce.daemon import lifecycle
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import Resolver
from guestmtce.peer.authentication import KEY_SETTINGS, Keys
from guestmtce.peer.retransmit import SeenByPeer
from guestmtce.wire import datagram, vim_http

log = logging.getLogger(__name__)

FAILURES = (datagram.LOSS, datagram.ILLHEALTH)


class Agent(lifecycle.Service[AgentSettings]):
    """The daemon."""

    reloadable = frozenset(KEY_SETTINGS)

    def __init__(self, loop: Loop, settings: AgentSettings) -> None:
        self.strangers = 0
        self._throttle = Throttle(log)
        self._loop = loop
        self._settings = settings
        self._lock = threading.Lock()
        self._inventory = Inventory()
        self._outbox = vim_queue.Outbox(settings.vim_retry_first, settings.vim_retry_max)
        self._told = Told(settings.run_dir, NAME)
        self._seen = SeenByPeer()  # by host
        self._vim = VimLink(
            settings.vim_base,
            Patience(settings.vim_alarm_timeout, settings.vim_timeout),
            self._lock,
            self._outbox,
            _Journal(self._told, self._mark),
            self._vim_replied,
            self._confirm,
            lambda: loop.idle,
        )
        self._audit = Audit(loop, settings, self._apply)
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
            settings.bind,
            settings.rx_port,
            settings.server_port,
            self._lock,
            self._server_event,
            settings.keys(),
            self._resolver,
        )
        self._mtc = MtcLink(self._loop, settings, self._host, self._resolver)
        self._commands = Commands(
            settings.http_address,
            settings.http_port,
            settings.http_threads,
            self._apply,
            settings.vim_users,
            settings.command_timeout,
        )
        self._commands.start()
        self._loop.on_idle = self._vim.release
        self._vim.start()
        for record in hosts:
            self._host(datagram.ADD_HOST, record)
        self._mtc.start()
        self._audit.start()

    def close(self) -> None:
        """Stop; what the VIM was not told, the next audit of the next agent finds out."""
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
            with self._lock:
                self._servers.reload_keys(keys)

    # --- what happens ------------------------------------------------------------------------------

    def _apply(self, act: Callable[[Inventory], Any]) -> Any:
        """Do `act` on the inventory and carry out what follows, whether it raises or not.

        Datagrams are sent under the lock, which takes microseconds and never waits: two commands for one
        instance must not overtake each other.
        """
        with self._lock:
            try:
                return act(self._inventory)
            finally:
                self._carry_out()

    def _carry_out(self) -> None:
        for effect in self._inventory.take_effects():
            if isinstance(effect, Send):
                if self._servers is not None:
                    self._servers.send(effect)
            elif isinstance(effect, DropHost):
                if self._servers is not None:
                    self._servers.drop(effect.ip)
            elif isinstance(effect, AskMtc):
                self._loop.call_from_thread(self._ask_mtc)
            elif isinstance(effect, TellAlarm):
                self._outbox.take(effect, self._told.sent_to(effect.origin))
            else:
                self._outbox.take(effect)
        self._vim.notify()
        self._confirm()

    def _confirm(self) -> None:
        """Confirm what the VIM has heard, or is not to hear any more; under the lock."""
        for origin in self._outbox.take_settled():
            if self._servers is not None:
                self._servers.confirm(origin)

    def _mark(self, origin: Origin, vim: int) -> None:
        """Have its guestServer know that an alarm is under way to this VIM, 0: is not."""
        with self._lock:
            if self._servers is not None:
                self._servers.mark(origin, vim)

    def _ask_mtc(self) -> None:
        if self._mtc is not None:
            self._mtc.ask()

    def _host(self, cmd: int, record: datagram.HostRecord) -> None:
        if cmd == datagram.DEL_HOST:
            self._apply(lambda inventory: inventory.host_deleted(record))
        else:
            self._apply(lambda inventory: inventory.host_set(record))

    def _server_event(self, heard: Heard) -> None:
        with self._lock:
            host = self._inventory.hosts.find(heard.event.hostname)
            if host is not None and host.ip != heard.address and not heard.sealed:
                self.strangers += 1
                text = "an event of %s from %s, which is not its address, was dropped"
                self._throttle.warning("address", text, host.name, heard.address)
            elif not heard.wants_ack:
                _tell(self._inventory, heard, heard.origin)
            elif heard.origin is not None:
                self._take_once(heard, heard.origin, host.name if host is not None else "")
            self._carry_out()

    def _take_once(self, heard: Heard, origin: Origin, hostname: str) -> None:
        """An event that is repeated until we confirm it: once the VIM has it, or if nobody is to hear it.

        `hostname` is the host's one name, however the event spells it.
        """
        now = self._loop.now
        seen = self._seen.came_before(hostname, origin.sender, origin.number, now)
        if not seen and origin not in self._told:
            if heard.cmd in FAILURES and self._is_outdated(heard.event, hostname):
                return  # if it is still true, the server says it again
            if heard.vim:
                self._told.sending_elsewhere(origin, heard.vim)
            if not _tell(self._inventory, heard, origin):
                return  # we do not know enough of its host or instance yet: it will come again
            self._seen.add(hostname, origin.sender, origin.number, now)
            self._carry_out()
        if self._servers is not None:
            if not self._outbox.holds(origin):
                self._servers.confirm(origin)
            elif self._told.under_way(origin) != heard.vim:
                self._servers.mark(origin, self._told.under_way(origin))

    def _is_outdated(self, failure: Any, hostname: str) -> bool:
        """Whether it may be from before reporting was disabled and enabled again."""
        host = self._inventory.hosts.find(hostname)
        servers = self._servers
        return host is not None and servers is not None and servers.enables_anew(host.ip, failure.uuid)

    def _vim_replied(self, item: vim_queue.Item, reply: Any) -> None:
        if item.what == "state":
            state = vim_http.parse_host_state(reply)
            self._apply(lambda inventory: inventory.vim_host_state(item.uuid, state, item.serial))
        else:
            listed = vim_http.parse_instances(reply)
            now = time.monotonic()
            self._apply(lambda inventory: inventory.vim_instances(item.uuid, listed, item.serial, now))

    # --- reports for people ------------------------------------------------------------------------

    def status(self) -> str:
        """How many hosts and instances there are, and whether the VIM can be reached."""
        with self._lock:
            instances = self._inventory.instances.values()
            beating = sum(one.heartbeating for one in instances)
            reached = "reachable" if self._vim.reachable else "UNREACHABLE"
            values = (len(self._inventory.hosts), len(instances), beating, reached, len(self._outbox))
            return "%d hosts, %d instances: %d heartbeating; VIM %s, %d events wait" % values

    def health(self) -> List[str]:
        """One line per subject, `name value …`."""
        with self._lock:
            box = self._outbox
            beating = sum(one.heartbeating for one in self._inventory.instances.values())
            lines = [
                "hosts %d instances %d heartbeating %d"
                % (len(self._inventory.hosts), len(self._inventory.instances), beating),
                "vim %s %s"
                % (self._settings.vim_base, "reachable" if self._vim.reachable else "UNREACHABLE"),
                "events told %d waiting %d withdrawn %d given up %d expired %d"
                % (box.told, len(box), box.withdrawn, box.given_up, box.expired),
            ]
            waiting = self._servers.waiting if self._servers is not None else 0
        if self._commands is not None:
            lines.extend(self._commands.health())
        for name, link in (("guestServers", self._servers), ("mtcAgent", self._mtc)):
            if link is not None:
                counts = (name, link.port.received, link.port.sent, link.refused)
                lines.append("datagrams of %s received %d sent %d refused %d" % counts)
        lines.append("commands-out unconfirmed %d" % waiting)
        lines.append("strangers %d" % self.strangers)
        lines.append("audits %d defects %d" % (self._audit.rounds, self._loop.defects))
        return lines

    def dump(self) -> List[str]:
        """One line per host and per instance."""
        with self._lock:
            lines = []
            for host in self._inventory.hosts:
                lines.append(
                    "host %s uuid=%s ip=%s reporting=%s listed=%s query_misses=%d"
                    % (host.name, host.uuid, host.ip, datagram.state_word(host.enabled),
                       host.listed, host.misses)
                )  # fmt: skip
            for one in self._inventory.instances.values():
                lines.append(
                    "instance %s host=%s reporting=%s heartbeating=%s action=%s adopted=%s"
                    % (one.uuid, one.hostname, datagram.state_word(one.reporting),
                       datagram.state_word(one.heartbeating), one.repair_action, one.adopted)
                )  # fmt: skip
            return lines


class _Journal(NamedTuple):
    """Where the next agent finds what is under way: in this controller's file, and at the guestServer."""

    told: Told
    mark: Callable[[Origin, int], None]

    def add(self, origin: Origin) -> None:
        """The VIM has it."""
        self.told.add(origin)

    def sending(self, origin: Origin, vim: int) -> None:
        """An alarm is about to be sent to this VIM.

        Who is killed between the note and the sending loses the alarm: the file's note comes last.
        """
        self.mark(origin, vim)
        self.told.sending(origin, vim)

    def unsent(self, origin: Origin) -> None:
        """The VIM does not have it after all."""
        marked = self.told.under_way(origin)
        self.told.unsent(origin)
        if marked:
            self.mark(origin, 0)


_EVENTS: Dict[int, Callable[[Inventory, Any, Optional[Origin]], bool]] = {
    datagram.MONITOR_READY: lambda inventory, event, _: inventory.server_ready(event),
    datagram.RUNNING: Inventory.server_state,
    datagram.STOPPED: Inventory.server_state,
    datagram.QRY_INST: Inventory.server_answer,
    datagram.ILLHEALTH: Inventory.server_ill,
    datagram.LOSS: Inventory.server_loss,
    datagram.VOTE_NOTIFY: lambda inventory, event, origin: inventory.server_vote(
        event, time.monotonic(), origin
    ),
}


def _tell(inventory: Inventory, heard: Heard, origin: Optional[Origin]) -> bool:
    """What a guestServer said, to the inventory; whether it could be understood."""
    if heard.still_ill and isinstance(heard.event, datagram.InstanceInfo) and heard.cmd == datagram.RUNNING:
        return inventory.server_state(heard.event, origin, True)
    return _EVENTS[heard.cmd](inventory, heard.event, origin)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command `guestAgent`."""
    return lifecycle.run(NAME, AgentSettings, settings_module.FILES, Agent, arguments)


if __name__ == "__main__":
    sys.exit(main())
