"""What guestAgent knows of hosts and instances, and what each change of it entails.

docs/protocol/3-vim-http.md#where-instances-are
docs/protocol/2-datagrams.md#what-guestagent-does-with-events

Pure. The inventory decides which change a fact makes; here every change is made whole, with the effects
that belong to it.

`now` is a count of what has happened, not a time: a question to the VIM bears it as its serial, and whoever
gets the answer sees what is newer than the question.
"""

from __future__ import annotations

import logging
from typing import Dict, List, Optional, Tuple

from guestmtce.agent.hosts import Hosts
from guestmtce.agent.model import (
    FAILED,
    UNHEALTHY,
    AskVim,
    Drop,
    DropHost,
    Effect,
    Host,
    Instance,
    Origin,
    Send,
    TellAlarm,
    TellService,
    Withdraw,
)
from guestmtce.daemon.log import Throttle
from guestmtce.wire import datagram, vim_http

log = logging.getLogger(__name__)

# Audits for which a failure of an adopted instance waits for the VIM's list, which says whose it is. A VIM
# that gives none is told all the same.
UNLISTED_MAX = 2
# Deleted instances whose uuids are remembered. Lists from before the first one that is not are not believed.
DELETED_MAX = 4096
# Instances of one host up to which another one is adopted; guestServer serves no more guests.
ADOPTED_MAX = 10000


class Ledger:
    """See the module's text."""

    def __init__(self) -> None:
        self.hosts = Hosts()
        self.instances: Dict[str, Instance] = {}  # by uuid in lower case
        self.effects: List[Effect] = []
        self._throttle = Throttle(log)
        self._now = 0
        self._deleted: Dict[str, int] = {}  # uuid → when the VIM deleted it, the oldest first
        self._deleted_before = 0  # what was deleted up to then is not remembered

    def now(self) -> int:
        """A number that is higher than all before it."""
        self._now += 1
        return self._now

    def send(self, host: Host, cmd: int, command: datagram.Command, seconds: float = 0.0) -> None:
        """Send this to the host's guestServer."""
        self.effects.append(Send(host.spoken, host.ip, cmd, command, seconds))

    def send_state(self, cmd: int, instance: Instance, anew: bool = False) -> None:
        """Send ADD_INST or MOD_INST: the server is to know the instance, with this reporting."""
        command = datagram.SetInstance(instance.uuid, instance.reporting)
        host = instance.host
        self.effects.append(Send(host.spoken, host.ip, cmd, command, anew=anew and instance.reporting))

    # --- questions to the VIM ----------------------------------------------------------------------

    def ask_state(self, host: Host) -> None:
        """Ask whether the host reports, unless the VIM has commanded it."""
        if not host.commanded:
            self.effects.append(AskVim(host.uuid, host.name, False, self.now()))

    def ask_list(self, host: Host, wait: int) -> None:
        """Ask for the host's instances, and not again before `wait` audits."""
        host.wanted, host.wait = True, wait
        self.effects.append(AskVim(host.uuid, host.name, True, self.now()))

    def want_list(self, host: Host) -> None:
        """A new list is to be had: ask for it as soon as that may be, at most once per audit period."""
        host.wanted = True
        if not host.wait:
            self.ask_list(host, 2)  # the next audit may follow at once, the second comes a period later

    # --- hosts -------------------------------------------------------------------------------------

    def add_host(self, record: datagram.HostRecord) -> None:
        """A new host: the VIM is asked what it knows of it, and its guestServer too."""
        log.info("host %s is %s at %s", record.hostname, record.uuid, record.ip)
        host = Host(record.hostname, record.uuid, record.ip)
        self.hosts.add(host)
        self.ask_state(host)
        self.ask_list(host, 2)
        self.send(host, datagram.QRY_INST, datagram.Query())

    def change_host(self, host: Host, record: datagram.HostRecord) -> None:
        """The host has another uuid or address."""
        log.info("host %s is now %s at %s", host.name, record.uuid, record.ip)
        left, host.ip = host.ip, record.ip
        self.hosts.remove(host)
        host.uuid = record.uuid
        self.hosts.add(host)
        if all(other.ip != left for other in self.hosts):
            self.effects.append(DropHost(left))
        self.introduce(host)

    def remove_host(self, host: Host) -> None:
        """The host is no more; its instances go first."""
        log.info("host %s is deleted", host.name)
        for instance in list(host.instances.values()):
            self.forget(instance, "its host is deleted")
        self.hosts.remove(host)
        self.effects.append(DropHost(host.ip))

    # --- where instances are -----------------------------------------------------------------------

    def add(self, uuid: str, host: Host, hostname: str, reporting: bool, anew: bool = False) -> Instance:
        """The VIM has this instance on this host."""
        log.info("%s: on %s, reporting %s", uuid, host.name, datagram.state_word(reporting))
        self._deleted.pop(uuid, None)
        instance = self.instances[uuid] = host.instances[uuid] = Instance(uuid, host, hostname, reporting)
        self.send_state(datagram.ADD_INST, instance, anew)
        return instance

    def adopt(self, uuid: str, host: Host, reporting: bool) -> Optional[Instance]:
        """A guestServer names an instance that the VIM has not named; None if it names too many."""
        if len(host.instances) >= ADOPTED_MAX:
            text = "guestServer on %s names more than %d instances: no more of them are believed"
            self._throttle.warning("adopted", text, host.name, ADOPTED_MAX)
            return None
        log.log(logging.DEBUG if host.listed else logging.INFO, "%s: adopted from %s", uuid, host.name)
        instance = Instance(uuid, host, host.name, reporting, adopted=True)
        self.instances[uuid] = host.instances[uuid] = instance
        self._doubt(instance)
        return instance

    def readopt(
        self, instance: Instance, host: Host, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """Another guestServer names an adopted instance; None: it is not adopted from there.

        While an instance migrates, both ends have its channel, and only one of them hears it. Neither may
        lose it before the VIM has said whose it is.
        """
        if instance.heartbeating or not heartbeating:
            return None
        log.info("%s: adopted from %s, not %s", instance.uuid, host.name, instance.host.name)
        self._place(instance, host, host.name)
        instance.reporting, instance.missed = reporting, None
        self._doubt(instance)
        return instance

    def _doubt(self, instance: Instance) -> None:
        """The last list of its host, if one came, lacks it."""
        if instance.host.listed:
            self.miss(instance)

    def miss(self, instance: Instance) -> None:
        """A list lacks this adopted instance: it may have been made before the VIM had it. Ask again."""
        instance.missed = instance.missed or self.now()
        self.want_list(instance.host)

    def claim(self, instance: Instance, host: Host, hostname: str) -> bool:
        """The VIM has it there, under that name. Returns whether it was elsewhere, and has been moved."""
        instance.adopted = False
        if instance.host is not host:
            self._move(instance, host, hostname)
            return True
        instance.hostname = hostname
        if instance.known and not instance.told:
            self.tell_service(instance, None)
        return False

    def _move(self, instance: Instance, host: Host, hostname: str) -> None:
        log.info("%s: moved from %s to %s", instance.uuid, instance.host.name, host.name)
        self.send(instance.host, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        self.effects.append(Drop(instance.uuid))
        self._place(instance, host, hostname)
        instance.heartbeating = instance.lost = False
        instance.heard = {}
        self.send_state(datagram.ADD_INST, instance)

    def _place(self, instance: Instance, host: Host, hostname: str) -> None:
        del instance.host.instances[instance.uuid]
        host.instances[instance.uuid] = instance
        instance.host, instance.hostname = host, hostname

    def forget(self, instance: Instance, why: str) -> None:
        """The instance is no more."""
        log.info("%s: %s", instance.uuid, why)
        self.send(instance.host, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        self.effects.append(Drop(instance.uuid))
        del self.instances[instance.uuid], instance.host.instances[instance.uuid]

    def note_deleted(self, uuid: str) -> None:
        """The VIM has deleted it, whether it was known or not: no older list brings it back."""
        self._deleted.pop(uuid, None)
        self._deleted[uuid] = self.now()
        if len(self._deleted) > DELETED_MAX:
            self._deleted_before = self._deleted.pop(next(iter(self._deleted)))

    def was_deleted(self, uuid: str) -> bool:
        """Whether the VIM has deleted it, and named it neither in a command nor in a newer list since."""
        return uuid in self._deleted

    def deleted_since(self, uuid: str, serial: int) -> bool:
        """Whether the VIM may have deleted it after the question with this serial."""
        return serial < max(self._deleted.get(uuid, 0), self._deleted_before)

    # --- reporting ---------------------------------------------------------------------------------

    def introduce(self, host: Host) -> None:
        """Tell a guestServer all that we know of its host. The query makes it hear us in any case."""
        if host.reporting is not None:
            self.send(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
        for instance in host.instances.values():
            self.send_state(datagram.MOD_INST, instance)
        self.send(host, datagram.QRY_INST, datagram.Query())

    def set_reporting(self, instance: Instance, reporting: bool) -> None:
        """Failures that were not told yet are void when reporting is disabled."""
        if instance.reporting and not reporting:
            self.withdraw(instance, "reporting was disabled", unwanted=True)
        instance.reporting = reporting

    def set_host_reporting(self, host: Host, reporting: bool) -> None:
        """The same for a whole host."""
        host.reporting = reporting
        self.send(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, reporting))
        if not reporting:
            for instance in host.instances.values():
                self.withdraw(instance, "the host's reporting was disabled", unwanted=True)

    # --- what the VIM is told ----------------------------------------------------------------------

    def withdraw(
        self,
        instance: Instance,
        why: str,
        states: Tuple[str, ...] = (FAILED, UNHEALTHY),
        unwanted: bool = False,
    ) -> None:
        """Failures of the instance are over, or the VIM does not want to hear of them."""
        if FAILED in states:
            instance.lost = False
        self.effects.append(Withdraw(instance.uuid, why, states, unwanted))

    def tell_service(self, one: Instance, origin: Optional[Origin]) -> None:
        """The VIM is to hear the instance's state, once it has the instance.

        An instance that its list lacks is told when the VIM claims it: many guests may be none of its own.
        """
        if one.adopted and one.missed is not None:
            return
        log.info("%s: heartbeating %s", one.uuid, datagram.state_word(one.heartbeating))
        one.told = True
        body = vim_http.service_event(
            one.uuid, one.hostname, one.reporting, one.heartbeating, one.restart_secs
        )
        self.effects.append(TellService(one.uuid, body, origin))

    def tell_alarm(self, instance: Instance, state: str, action: str, origin: Optional[Origin]) -> None:
        """The VIM is to hear of a failure, if failures of this instance and its host are reported."""
        if not (instance.reporting and instance.host.enabled):
            log.info("%s: %s, but reporting is disabled", instance.uuid, state)
            return
        log.warning("%s: %s, repair action %s", instance.uuid, state, action)
        body = vim_http.alarm_event(instance.uuid, instance.hostname, state, action)
        self.effects.append(TellAlarm(instance.uuid, state, body, origin))

    def tell_waiting(self, instance: Instance) -> None:
        """The VIM is to hear of a loss that has waited, if nothing is left to wait for."""
        if instance.lost and instance.known and not self.unclaimed(instance):
            instance.lost = False
            self.tell_alarm(instance, FAILED, instance.repair_action, instance.lost_in)

    def unclaimed(self, instance: Instance) -> bool:
        """Whether the VIM may still say that the instance is not, or no more, its host's."""
        return instance.adopted and instance.host.unlisted < UNLISTED_MAX
