"""Hosts and instances: what guestAgent knows, and what follows from what it hears (spec 2 and 3).

Pure: facts go in by one method each, and `take_effects` gives, in order, what is to be sent or told. Hosts
come from mtcAgent and are known by name and uuid; instances come from the VIM, or, after a restart, from
the VIM's list and the guestServers' answers.

An instance is *adopted* when a guestServer named it before the VIM did. As soon as the VIM's list of that
host has arrived, an adopted instance that is not in it is not the VIM's, and the server is told to
forget it.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Optional, Tuple, Union

from guestmtce.agent.rows import (
    ANYTHING,
    BEAT,
    FAILED,
    START,
    STATE,
    UNHEALTHY,
    AskMtc,
    AskVim,
    Drop,
    DropHost,
    Effect,
    Host,
    Instance,
    Origin,
    Send,
    TellAction,
    TellAlarm,
    TellService,
    Withdraw,
)
from guestmtce.daemon.log import Throttle
from guestmtce.wire import channel, datagram, vim
from guestmtce.wire.vim import Failure, Named

log = logging.getLogger(__name__)


# Audits without a word of an instance before its server is told of it again. An old one stops heartbeating
# for it, so one lost answer is no reason.
UNANSWERED_MAX = 2
# Audits for which a failure of an adopted instance waits for the VIM's list, which says whose it is. A VIM
# that gives none is told all the same.
UNLISTED_MAX = 2
# s after a question's timeout in which the VIM still waits for the outcome; after 1.1 s it goes on by itself
# (spec 3, "How the real VIM behaves").
OUTCOME_GRACE = 1.0


class Inventory:
    """See the module's text. `Failure` is raised to whoever commands what cannot be."""

    def __init__(self) -> None:
        self.hosts: Dict[str, Host] = {}
        self.instances: Dict[str, Instance] = {}
        self._effects: List[Effect] = []
        self._throttle = Throttle(log)

    def take_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        effects, self._effects = self._effects, []
        return effects

    # --- mtcAgent ----------------------------------------------------------------------------------

    def host_set(self, record: datagram.HostRecord) -> None:
        """ADD_HOST, MOD_HOST: this host exists, and so."""
        host = self.hosts.get(record.hostname)
        if host is None:
            log.info("host %s is %s at %s", record.hostname, record.uuid, record.ip)
            self.hosts[record.hostname] = host = Host(record.hostname, record.uuid, record.ip)
            self._effects += [AskVim(host.uuid, host.name, False), AskVim(host.uuid, host.name, True)]
            self._to(host, datagram.QRY_INST, datagram.Query())
        elif (host.uuid, host.ip) != (record.uuid, record.ip):
            log.info("host %s is now %s at %s", record.hostname, record.uuid, record.ip)
            left, host.uuid, host.ip = host.ip, record.uuid, record.ip
            if all(other.ip != left for other in self.hosts.values()):
                self._effects.append(DropHost(left))
            self._introduce(host)

    def host_deleted(self, record: datagram.HostRecord) -> None:
        """DEL_HOST: forget it, and its instances first."""
        host = self.hosts.get(record.hostname)
        if host is None:
            return
        log.info("host %s is deleted", host.name)
        for instance in self._instances_of(host):
            self._forget(instance)
        del self.hosts[host.name]
        self._effects.append(DropHost(host.ip))

    # --- the VIM's commands ------------------------------------------------------------------------

    def host(self, uuid: str) -> Host:
        """The host with this uuid. Raises Failure 404."""
        for host in self.hosts.values():
            if host.uuid == uuid:
                return host
        raise self._unknown_host(404, uuid)

    def host_reporting(self, uuid: str, reporting: bool) -> None:
        """Host enable, disable."""
        host = self.host(uuid)
        log.info("host %s: reporting %s", host.name, datagram.state_word(reporting))
        self._set_host_reporting(host, reporting)

    def create(self, named: Named) -> None:
        """Instance create: a new one starts with reporting disabled; a known one keeps what it has."""
        host = self._named_host(named, 400)
        instance = self.instances.get(named.uuid)
        if instance is None:
            self._add(named.uuid, host, reporting=False)
        elif instance.hostname != host.name:
            self._move(instance, host)
        else:
            instance.adopted = False

    def set(self, named: Named, reporting: bool) -> Dict[str, Any]:
        """Instance set; an unknown instance is added. Returns the reply."""
        host = self._named_host(named, 404)
        instance = self.instances.get(named.uuid)
        if instance is None:
            instance = self._add(named.uuid, host, reporting)
        else:
            instance.adopted = False
            self._set_reporting(instance, reporting)
            if instance.hostname != host.name:
                self._move(instance, host)
            else:
                self._to(host, datagram.MOD_INST, datagram.SetInstance(instance.uuid, reporting))
        return self.reply(instance.uuid)

    def reply(self, uuid: str) -> Dict[str, Any]:
        """Instance query. Raises Failure 404."""
        one = self._instance(uuid)
        return vim.services_reply(uuid, one.hostname, one.reporting, one.heartbeating, one.restart_secs)

    def delete(self, uuid: str) -> None:
        """Instance delete. Raises Failure 404."""
        self._forget(self._instance(uuid))

    def ask(self, named: Named, notification_type: str, event: str, now: float) -> Dict[str, str]:
        """Vote or notify. Returns the reply; its timeout is 0 when the guest will not answer."""
        instance = self._instance(named.uuid)
        seconds = 0
        host = self.hosts.get(instance.hostname)
        if instance.heartbeating and host is not None:
            seconds = channel.timeout_secs(instance, notification_type, event)
            cmd = datagram.VOTE_INST if notification_type == channel.VOTE else datagram.NOTIFY_INST
            self._to(host, cmd, datagram.Ask(instance.uuid, notification_type, event), seconds)
            instance.outcome_until[notification_type, event] = now + seconds + OUTCOME_GRACE
        return vim.action_reply(named.uuid, named.hostname, event, seconds)

    # --- the VIM's answers -------------------------------------------------------------------------

    def vim_host_state(self, hostname: str, reporting: Optional[bool]) -> None:
        """The VIM's answer about a host; None: it gave none."""
        host = self.hosts.get(hostname)
        if host is not None and reporting is not None and host.reporting is None:
            log.info("host %s: the VIM says reporting is %s", host.name, datagram.state_word(reporting))
            self._set_host_reporting(host, reporting)

    def vim_instances(self, hostname: str, listed: Optional[List[vim.Listed]]) -> None:
        """The VIM's list of a host's instances; None: it gave none."""
        host = self.hosts.get(hostname)
        if host is None or listed is None:
            return
        if not host.listed:
            log.info("host %s: the VIM lists %d instances", host.name, len(listed))
        host.listed = True
        for entry in listed:
            self._listed(host, entry)
        known = {entry.uuid for entry in listed}
        for instance in self._instances_of(host):
            if instance.adopted and instance.uuid not in known:
                log.info("%s: unknown to the VIM", instance.uuid)
                self._forget(instance)

    def _listed(self, host: Host, entry: vim.Listed) -> None:
        instance = self.instances.get(entry.uuid)
        if instance is None:
            self._add(entry.uuid, host, entry.reporting)
        elif instance.adopted:
            # What the VIM commanded is newer than any list; what a server said is not.
            instance.adopted = False
            self._set_reporting(instance, entry.reporting)
            if instance.hostname != host.name:
                self._move(instance, host)
            else:
                self._to(host, datagram.ADD_INST, datagram.SetInstance(instance.uuid, entry.reporting))
                self._tell_waiting(host, instance)

    # --- the guestServers' events ------------------------------------------------------------------
    # Each returns whether it could be understood; if not, the server is to say it again.

    def server_ready(self, event: datagram.Ready) -> bool:
        """MONITOR_READY: a guestServer has started and must learn what we know."""
        host = self._speaker(event.hostname)
        if host is not None:
            log.info("guestServer on %s has started", host.name)
            self._introduce(host)
        return host is not None

    def server_state(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """RUNNING, STOPPED: a change of state."""
        host, instance = self._subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        if info.heartbeating:
            instance.hear(origin, START, BEAT)
            self._alive(instance, (FAILED, UNHEALTHY), origin)
        elif origin is not None:
            # A stop is named before the loss that it comes with: it ran again after one that is older.
            instance.hear(origin, BEAT)
            self._alive(instance, (FAILED,), origin)
        if not instance.overtaken(STATE, origin):
            instance.hear(origin, STATE, ANYTHING)
            instance.take(info)
            self._tell_waiting(host, instance)
            self._tell_service(instance, origin)
        return True

    def server_answer(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """The answer to our query. It does not undo what is newer: it may have been overtaken on its way."""
        host, instance = self._subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is not None:
            host.answered = True
        if host is None or instance is None:
            return host is not None
        instance.unanswered = 0
        if instance.overtaken(ANYTHING, origin):
            return True
        changed = instance.heartbeating != info.heartbeating
        instance.hear(origin, ANYTHING)
        instance.take(info)
        if instance.reporting != info.reporting:
            self._to(host, datagram.MOD_INST, datagram.SetInstance(instance.uuid, instance.reporting))
        if info.heartbeating:
            # An ill guest heartbeats too: only a new start makes it well.
            instance.hear(origin, BEAT)
            self._alive(instance, (FAILED,), origin)
        self._tell_waiting(host, instance)
        if changed:
            self._tell_service(instance, origin)
        return True

    def server_ill(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """ILLHEALTH: the guest is ill; `repair_action` is what it wants now, not its usual one."""
        host, instance = self._subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        if origin is not None and self._unclaimed(host, instance):
            return False
        if instance.overtaken(START, origin) or instance.overtaken(UNHEALTHY, origin):
            return True
        instance.hear(origin, UNHEALTHY, ANYTHING, *((BEAT,) if info.heartbeating else ()))
        self._tell_alarm(host, instance, UNHEALTHY, info.repair_action, origin)
        if not instance.overtaken(STATE, origin):
            changed, known = instance.heartbeating != info.heartbeating, instance.known
            instance.take(info._replace(repair_action=instance.repair_action))
            instance.known = known  # the usual action is not what it wants now
            if changed:
                self._tell_service(instance, None)
        return True

    def server_loss(
        self, event: Union[datagram.Loss, datagram.InstanceInfo], origin: Optional[Origin] = None
    ) -> bool:
        """LOSS: the guest has stopped answering. Ours tells its whole state, an old server only who it is.

        It is not understood as long as the repair action is not known, or whose the instance is: nobody may
        take it off the server's hands before the VIM can be told. A server that does not repeat it is asked.
        """
        # A server reports a loss only while reporting is enabled.
        host, instance = self._subject(event.hostname, event.uuid, True, True)
        if host is None or instance is None:
            return host is not None
        waits = instance.lost and origin is not None and origin == instance.lost_in
        if instance.overtaken(BEAT, origin) or (instance.overtaken(FAILED, origin) and not waits):
            return True
        instance.hear(origin, FAILED, ANYTHING)
        if isinstance(event, datagram.InstanceInfo):
            heartbeating = instance.heartbeating
            instance.take(event._replace(heartbeating=heartbeating))
        instance.lost, instance.lost_in = True, origin
        if not instance.known:
            self._to(host, datagram.QRY_INST, datagram.Query())
        self._tell_waiting(host, instance)
        return not instance.lost or origin is None

    def server_vote(self, event: datagram.VoteResult, now: float, origin: Optional[Origin] = None) -> bool:
        """VOTE_NOTIFY: the answer to a vote or notice, which the VIM wants for a time only."""
        host = self._speaker(event.hostname)
        instance = self.instances.get(event.uuid)
        if host is not None and instance is not None and instance.hostname == host.name:
            log.info("%s: %s %s: %s", event.uuid, event.notification_type, event.event_type, event.vote)
            body = vim.action_event(
                event.uuid, event.notification_type, event.event_type, event.vote, event.reason
            )
            self._effects.append(TellAction(event.uuid, body, origin, _wanted_until(instance, event, now)))
        else:
            text = "%s: a vote of no instance of %s was dropped"
            self._throttle.warning("vote", text, event.uuid, event.hostname)
        # Before the VIM's list has come the instance may be one that we shall know.
        return host is not None and (instance is not None or host.listed)

    def _subject(
        self, hostname: str, uuid: str, reporting: bool, heartbeating: bool
    ) -> Tuple[Optional[Host], Optional[Instance]]:
        host = self._speaker(hostname)
        return host, self._reported(host, uuid, reporting, heartbeating)

    def _alive(self, instance: Instance, states: Tuple[str, ...], origin: Optional[Origin]) -> None:
        """These failures are over, but for one of which a newer datagram has told."""
        over = tuple(state for state in states if not instance.overtaken(state, origin))
        if over:
            self._withdraw(instance, "the guest heartbeats again", over)

    # --- the audit ---------------------------------------------------------------------------------

    def audit(self) -> None:
        """Ask the VIM what is still unknown, and every guestServer for its state (spec 2, "Audit")."""
        for host in self.hosts.values():
            self._count_silence(host)
            self._ask_vim(host)
            if host.reporting is not None:  # no answer carries it: a lost one is not seen
                self._to(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
            self._to(host, datagram.QRY_INST, datagram.Query())

    def _count_silence(self, host: Host) -> None:
        if not host.answered:
            host.misses += 1
            text = "guestServer on %s does not answer (%d audits)"
            self._throttle.warning(host.name, text, host.name, host.misses)
        instances = self._instances_of(host)
        for instance in instances:
            if instance.unanswered >= UNANSWERED_MAX:  # its server may not know it
                self._to(host, datagram.ADD_INST, datagram.SetInstance(instance.uuid, instance.reporting))
            instance.unanswered += 1
        host.answered = not instances  # a server without instances has nothing to say

    def _ask_vim(self, host: Host) -> None:
        if host.reporting is None:
            self._effects.append(AskVim(host.uuid, host.name, False))
        if not host.listed:
            host.unlisted += 1
            self._effects.append(AskVim(host.uuid, host.name, True))
            for instance in self._instances_of(host):
                self._tell_waiting(host, instance)

    # --- helpers -----------------------------------------------------------------------------------

    def host_enabled(self, host: Host) -> bool:
        """Whether faults of this host are reported: as the VIM said, else as its instances suggest."""
        if host.reporting is not None:
            return host.reporting
        return any(instance.reporting for instance in self._instances_of(host))

    def _to(self, host: Host, cmd: int, command: datagram.Command, seconds: float = 0.0) -> None:
        self._effects.append(Send(host.name, host.ip, cmd, command, seconds))

    def _instances_of(self, host: Host) -> List[Instance]:
        return [instance for instance in self.instances.values() if instance.hostname == host.name]

    def _instance(self, uuid: str) -> Instance:
        instance = self.instances.get(uuid)
        if instance is None:
            raise Failure(404, vim.NOT_FOUND, "unknown instance")
        return instance

    def _named_host(self, named: Named, status: int) -> Host:
        host = self.hosts.get(named.hostname)
        if host is None:
            raise self._unknown_host(status, named.hostname)
        return host

    def _unknown_host(self, status: int, name: str) -> Failure:
        self._effects.append(AskMtc())
        self._throttle.warning("host", "the VIM speaks of the unknown host %s", name)
        return Failure(status, vim.NOT_FOUND, "unknown host")

    def _speaker(self, hostname: str) -> Optional[Host]:
        host = self.hosts.get(hostname)
        if host is None:
            self._effects.append(AskMtc())
            self._throttle.warning("speaker", "an event of the unknown host %s was dropped", hostname)
        return host

    def _reported(
        self, host: Optional[Host], uuid: str, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """The instance that a server speaks of, if it is that server's. An unknown one may be adopted."""
        if host is None:
            return None
        instance = self.instances.get(uuid)
        if instance is None and not host.listed:
            log.info("%s: adopted from %s", uuid, host.name)
            instance = self.instances[uuid] = Instance(uuid, host.name, reporting, adopted=True)
        if instance is not None and instance.hostname == host.name:
            return instance
        if instance is not None and instance.adopted and not host.listed:
            return self._disputed(host, instance, reporting, heartbeating)
        log.info("%s does not belong to %s: telling it so", uuid, host.name)
        self._to(host, datagram.DEL_INST, datagram.DeleteInstance(uuid))
        return None

    def _disputed(
        self, host: Host, instance: Instance, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """Two servers name an instance of which the VIM has not said whose it is: none may lose it yet.

        While it migrates, both ends have its channel, and only one of them hears it.
        """
        if instance.heartbeating or not heartbeating:
            return None
        log.info("%s: adopted from %s, not %s", instance.uuid, host.name, instance.hostname)
        instance.hostname, instance.reporting = host.name, reporting
        return instance

    def _add(self, uuid: str, host: Host, reporting: bool) -> Instance:
        log.info("%s: on %s, reporting %s", uuid, host.name, datagram.state_word(reporting))
        instance = self.instances[uuid] = Instance(uuid, host.name, reporting)
        self._to(host, datagram.ADD_INST, datagram.SetInstance(uuid, reporting))
        return instance

    def _move(self, instance: Instance, host: Host) -> None:
        log.info("%s: moved from %s to %s", instance.uuid, instance.hostname, host.name)
        old = self.hosts.get(instance.hostname)
        if old is not None:
            self._to(old, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        self._effects.append(Drop(instance.uuid))
        instance.hostname = host.name
        instance.adopted = instance.heartbeating = instance.lost = False
        instance.heard = {}
        self._to(host, datagram.ADD_INST, datagram.SetInstance(instance.uuid, instance.reporting))

    def _forget(self, instance: Instance) -> None:
        log.info("%s: deleted", instance.uuid)
        host = self.hosts.get(instance.hostname)
        if host is not None:
            self._to(host, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        self._effects.append(Drop(instance.uuid))
        del self.instances[instance.uuid]

    def _introduce(self, host: Host) -> None:
        """Tell a guestServer all that we know of its host. The query makes it hear us in any case."""
        if host.reporting is not None:
            self._to(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
        for instance in self._instances_of(host):
            self._to(host, datagram.MOD_INST, datagram.SetInstance(instance.uuid, instance.reporting))
        self._to(host, datagram.QRY_INST, datagram.Query())

    def _withdraw(self, instance: Instance, why: str, states: Tuple[str, ...] = (FAILED, UNHEALTHY)) -> None:
        if FAILED in states:
            instance.lost = False
        self._effects.append(Withdraw(instance.uuid, why, states))

    def _set_reporting(self, instance: Instance, reporting: bool) -> None:
        if instance.reporting and not reporting:
            self._withdraw(instance, "reporting was disabled")
        instance.reporting = reporting

    def _set_host_reporting(self, host: Host, reporting: bool) -> None:
        host.reporting = reporting
        self._to(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, reporting))
        if not reporting:
            for instance in self._instances_of(host):
                self._withdraw(instance, "the host's reporting was disabled")

    def _tell_service(self, one: Instance, origin: Optional[Origin]) -> None:
        log.info("%s: heartbeating %s", one.uuid, datagram.state_word(one.heartbeating))
        body = vim.service_event(one.uuid, one.hostname, one.reporting, one.heartbeating, one.restart_secs)
        self._effects.append(TellService(one.uuid, body, origin))

    def _unclaimed(self, host: Host, instance: Instance) -> bool:
        """Whether the VIM may still say that the instance is not, or no more, this host's."""
        return instance.adopted and not host.listed and host.unlisted < UNLISTED_MAX

    def _tell_waiting(self, host: Host, instance: Instance) -> None:
        if instance.lost and instance.known and not self._unclaimed(host, instance):
            instance.lost = False
            self._tell_alarm(host, instance, FAILED, instance.repair_action, instance.lost_in)

    def _tell_alarm(
        self, host: Host, instance: Instance, state: str, action: str, origin: Optional[Origin]
    ) -> None:
        if not (instance.reporting and self.host_enabled(host)):
            log.info("%s: %s, but reporting is disabled", instance.uuid, state)
            return
        log.warning("%s: %s, repair action %s", instance.uuid, state, action)
        body = vim.alarm_event(instance.uuid, instance.hostname, state, action)
        self._effects.append(TellAlarm(instance.uuid, state, body, origin))


def _wanted_until(instance: Instance, event: datagram.VoteResult, now: float) -> float:
    """When the VIM waits no more for this outcome.

    A question that was put by an agent before this one was put before `now`: its whole timeout is a bound.
    """
    asked = (event.notification_type, event.event_type)
    until = instance.outcome_until.get(asked)
    if until is not None:
        return until
    known = event.event_type in channel.EVENT_TYPES
    seconds = channel.timeout_secs(instance, *asked) if known else instance.vote_secs
    return now + seconds + OUTCOME_GRACE
