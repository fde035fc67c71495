"""Hosts and instances: what guestAgent concludes from what it hears.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events
docs/protocol/3-vim-http.md#where-instances-are

Pure: facts go in by one method each, and `take_effects` gives, in order, what is to be sent or told. Hosts
come from mtcAgent and are known by name and uuid; instances come from the VIM, or, after a restart, from
the VIM's list and the guestServers' answers.

An instance is *adopted* when a guestServer named it before the VIM did. A VIM's list is a picture of a
moment: an adopted instance that is not in it is missed, and only if a list that was asked for after that
lacks it too, the server is told to forget it. A list that was asked for before the VIM deleted an instance
does not bring it back. What the VIM commanded is newer than any list.

Whether a host reports is what the VIM commanded last. A VIM that commands nothing is asked until it says
*enabled*, and whenever mtcAgent names the host. After a command no answer counts: it is of a moment, and a
VIM that commands the one commands the other.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Optional, Tuple, Union

from guestmtce.agent.ledger import Ledger
from guestmtce.agent.model import (
    ANYTHING,
    BEAT,
    FAILED,
    LONG_AGO,
    START,
    STATE,
    UNHEALTHY,
    AskMtc,
    Effect,
    Host,
    Instance,
    Origin,
    TellAction,
)
from guestmtce.daemon.log import Throttle
from guestmtce.wire import datagram, guest_channel, vim_http
from guestmtce.wire.vim_http import Failure, Named

log = logging.getLogger(__name__)

# Audits without a word of an instance before its server is told of it again. An old one stops heartbeating
# for it, so one lost answer is no reason.
UNANSWERED_MAX = 2
# s after a question's timeout in which the VIM still waits for the outcome; after 1.1 s it goes on by itself
# (docs/protocol/3-vim-http.md#outcomes).
OUTCOME_GRACE = 1.0
# s after a list of the VIM's in which its command may say the same: the list was quicker than the command.
SAME_WORD = 2.0


class Inventory:
    """See the module's text. `Failure` is raised to whoever commands what cannot be."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self.hosts = self._ledger.hosts
        self.instances = self._ledger.instances
        self._throttle = Throttle(log)

    def take_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        effects, self._ledger.effects = self._ledger.effects, []
        return effects

    # --- mtcAgent ----------------------------------------------------------------------------------

    def host_set(self, record: datagram.HostRecord) -> None:
        """ADD_HOST, MOD_HOST: this host exists, and so."""
        host = self.hosts.recorded(record)
        if host is None:
            self._ledger.add_host(record)
            return
        if (host.uuid, host.ip) != (record.uuid, record.ip):
            self._ledger.change_host(host, record)
        self._ledger.ask_state(host)

    def host_deleted(self, record: datagram.HostRecord) -> None:
        """DEL_HOST: forget it, and its instances first."""
        host = self.hosts.recorded(record)
        if host is not None:
            self._ledger.remove_host(host)

    # --- the VIM's commands ------------------------------------------------------------------------
    # A uuid in a reply is spelled as in the command.

    def host(self, uuid: str) -> Host:
        """The host with this uuid. Raises Failure 404."""
        host = self.hosts.with_uuid(uuid)
        if host is None:
            self._note_unknown("the VIM speaks", uuid)
            raise Failure(404, vim_http.NOT_FOUND, "unknown host")
        return host

    def host_reporting(self, uuid: str, reporting: bool) -> None:
        """Host enable, disable."""
        host = self.host(uuid)
        log.info("host %s: reporting %s", host.name, datagram.state_word(reporting))
        host.commanded = True
        self._ledger.set_host_reporting(host, reporting)

    def create(self, named: Named) -> None:
        """Instance create: a new one starts with reporting disabled; a known one keeps what it has."""
        host = self._named_host(named, 400)
        instance = self.instances.get(named.uuid.lower())
        if instance is None:
            self._ledger.add(named.uuid.lower(), host, named.hostname, reporting=False)
        else:
            self._ledger.claim(instance, host, named.hostname)

    def set(self, named: Named, reporting: bool, now: float) -> Dict[str, Any]:
        """Instance set; an unknown instance is added. Returns the reply.

        One that the VIM enables, and of which this agent has no word of the VIM yet, was disabled by an agent
        before this one, whose command may not have arrived. The same holds where the only word is a list that
        was quicker than the command.
        """
        host = self._named_host(named, 404)
        instance = self.instances.get(named.uuid.lower())
        if instance is None:
            self._ledger.add(named.uuid.lower(), host, named.hostname, reporting, anew=True)
        else:
            anew = instance.adopted or now - instance.listed_at < SAME_WORD
            instance.listed_at = LONG_AGO
            self._ledger.set_reporting(instance, reporting)
            if not self._ledger.claim(instance, host, named.hostname):
                self._ledger.send_state(datagram.MOD_INST, instance, anew)
        return self.reply(named.uuid)

    def reply(self, uuid: str) -> Dict[str, Any]:
        """Instance query. Raises Failure 404."""
        one = self._instance(uuid)
        return vim_http.services_reply(uuid, one.hostname, one.reporting, one.heartbeating, one.restart_secs)

    def delete(self, uuid: str) -> None:
        """Instance delete. Raises Failure 404."""
        if datagram.UUID.fullmatch(uuid):  # an unknown one may be in a list that is on its way
            self._ledger.note_deleted(uuid.lower())
        self._ledger.forget(self._instance(uuid), "deleted")

    def ask(self, named: Named, notification_type: str, event: str, now: float) -> Dict[str, str]:
        """Vote or notify. Returns the reply; its timeout is 0 when the guest will not answer."""
        instance = self._instance(named.uuid)
        seconds = 0
        if instance.heartbeating:
            seconds = guest_channel.timeout_secs(instance, notification_type, event)
            cmd = datagram.VOTE_INST if notification_type == guest_channel.VOTE else datagram.NOTIFY_INST
            question = datagram.Ask(instance.uuid, notification_type, event)
            self._ledger.send(instance.host, cmd, question, seconds)
            instance.outcome_until[notification_type, event] = now + seconds + OUTCOME_GRACE
        return vim_http.action_reply(named.uuid, named.hostname, event, seconds)

    # --- the VIM's answers -------------------------------------------------------------------------
    # `serial` is the one of the question.

    def vim_host_state(self, hostname: str, reporting: Optional[bool], serial: int) -> None:
        """The VIM's answer about a host; None: it gave none."""
        host = self.hosts.find(hostname)
        if host is None or reporting is None or host.commanded or serial < host.state_serial:
            return
        host.state_serial = serial
        if reporting != host.reporting:
            log.info("host %s: the VIM says reporting is %s", host.name, datagram.state_word(reporting))
            self._ledger.set_host_reporting(host, reporting)

    def vim_instances(
        self, hostname: str, listed: Optional[List[vim_http.Listed]], serial: int, now: float
    ) -> None:
        """The VIM's list of a host's instances; None: it gave none."""
        host = self.hosts.find(hostname)
        if host is None or listed is None:
            return
        if not host.listed:
            log.info("host %s: the VIM lists %d instances", host.name, len(listed))
        host.listed, host.wanted, host.unlisted = True, False, 0
        for entry in listed:
            self._listed(host, entry, serial, now)
        known = {entry.uuid for entry in listed}
        for instance in [one for one in host.instances.values() if one.adopted and one.uuid not in known]:
            if instance.missed is not None and serial > instance.missed:
                self._ledger.forget(instance, "unknown to the VIM")
            else:
                self._ledger.miss(instance)

    def _listed(self, asked: Host, entry: vim_http.Listed, serial: int, now: float) -> None:
        named = self.hosts.find(entry.hostname)
        host, hostname = (asked, asked.name) if named is None else (named, entry.hostname)
        instance = self.instances.get(entry.uuid)
        if instance is None and self._ledger.deleted_since(entry.uuid, serial):
            self._ledger.want_list(asked)
        elif instance is None:
            self._ledger.add(entry.uuid, host, hostname, entry.reporting).listed_at = now
        elif instance.adopted:
            # What the VIM commanded is newer than any list; what a server said is not.
            self._ledger.set_reporting(instance, entry.reporting)
            instance.listed_at = now
            if not self._ledger.claim(instance, host, hostname):
                self._ledger.send_state(datagram.ADD_INST, instance)
                self._ledger.tell_waiting(instance)

    # --- the guestServers' events ------------------------------------------------------------------
    # Each returns whether it could be understood; if not, the server is to say it again.

    def server_ready(self, event: datagram.Ready) -> bool:
        """MONITOR_READY: a guestServer has started and must learn what we know."""
        host = self._speaker(event.hostname)
        if host is not None:
            log.info("guestServer on %s has started", host.name)
            self._ledger.introduce(host)
        return host is not None

    def server_state(
        self, info: datagram.InstanceInfo, origin: Optional[Origin] = None, still_ill: bool = False
    ) -> bool:
        """RUNNING, STOPPED: a change of state. `still_ill`: its illness of before is not over with that."""
        host, instance = self._subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        if info.heartbeating and still_ill:
            instance.hear(origin, BEAT)
            self._alive(instance, (FAILED,), origin)
        elif info.heartbeating:
            instance.hear(origin, START, BEAT)
            self._alive(instance, (FAILED, UNHEALTHY), origin)
        elif origin is not None:
            # A stop is named before the loss that it comes with: it ran again after one that is older.
            instance.hear(origin, BEAT)
            self._alive(instance, (FAILED,), origin)
        if not instance.overtaken(STATE, origin):
            instance.hear(origin, STATE, ANYTHING)
            instance.take(info)
            self._ledger.tell_waiting(instance)
            self._ledger.tell_service(instance, origin)
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
        news = not instance.told or instance.heartbeating != info.heartbeating
        instance.hear(origin, ANYTHING)
        instance.take(info)
        if instance.reporting != info.reporting:
            self._ledger.send_state(datagram.MOD_INST, instance)
        if info.heartbeating:
            # An ill guest heartbeats too: only a new start makes it well.
            instance.hear(origin, BEAT)
            self._alive(instance, (FAILED,), origin)
        self._ledger.tell_waiting(instance)
        if news:
            self._ledger.tell_service(instance, None)  # no server waits until its answer is told
        return True

    def server_ill(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """ILLHEALTH: the guest is ill; `repair_action` is what it wants now, not its usual one."""
        host, instance = self._subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        if origin is not None and self._ledger.unclaimed(instance):
            return False
        if instance.overtaken(START, origin) or instance.overtaken(UNHEALTHY, origin):
            return True
        instance.hear(origin, UNHEALTHY, ANYTHING, *((BEAT,) if info.heartbeating else ()))
        self._ledger.tell_alarm(instance, UNHEALTHY, info.repair_action, origin)
        if not instance.overtaken(STATE, origin):
            news = not instance.told or instance.heartbeating != info.heartbeating
            known = instance.known
            instance.take(info._replace(repair_action=instance.repair_action))
            instance.known = known  # the usual action is not what it wants now
            if news:
                self._ledger.tell_service(instance, None)
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
            self._ledger.send(host, datagram.QRY_INST, datagram.Query())
        self._ledger.tell_waiting(instance)
        return not instance.lost or origin is None

    def server_vote(self, event: datagram.VoteResult, now: float, origin: Optional[Origin] = None) -> bool:
        """VOTE_NOTIFY: the answer to a vote or notice, which the VIM wants for a time only."""
        host = self._speaker(event.hostname)
        instance = self.instances.get(event.uuid)
        if host is not None and instance is not None and instance.host is host:
            log.info("%s: %s %s: %s", event.uuid, event.notification_type, event.event_type, event.vote)
            body = vim_http.action_event(
                event.uuid, event.notification_type, event.event_type, event.vote, event.reason
            )
            until = _wanted_until(instance, event, now)
            self._ledger.effects.append(TellAction(event.uuid, body, origin, until))
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
            self._ledger.withdraw(instance, "the guest heartbeats again", over)

    # --- the audit ---------------------------------------------------------------------------------

    def audit(self) -> None:
        """Ask the VIM what is still unknown, and every guestServer for its state.

        docs/protocol/2-datagrams.md#audit
        """
        for host in self.hosts:
            self._count_silence(host)
            self._ask_vim(host)
            if host.reporting is not None:  # no answer carries it: a lost one is not seen
                self._ledger.send(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
            self._ledger.send(host, datagram.QRY_INST, datagram.Query())

    def _count_silence(self, host: Host) -> None:
        if not host.answered:
            host.misses += 1
            text = "guestServer on %s does not answer (%d audits)"
            self._throttle.warning("silent", text, host.name, host.misses)
        for instance in host.instances.values():
            if instance.unanswered >= UNANSWERED_MAX:  # its server may not know it
                self._ledger.send_state(datagram.ADD_INST, instance)
            instance.unanswered += 1
        host.answered = not host.instances  # a server without instances has nothing to say

    def _ask_vim(self, host: Host) -> None:
        if not host.reporting:
            self._ledger.ask_state(host)
        host.wait = max(0, host.wait - 1)
        if host.wanted and not (host.listed and host.wait):
            host.unlisted += 1
            self._ledger.ask_list(host, 1)
            for instance in host.instances.values():
                self._ledger.tell_waiting(instance)

    # --- helpers -----------------------------------------------------------------------------------

    def _instance(self, uuid: str) -> Instance:
        instance = self.instances.get(uuid.lower())
        if instance is None:
            raise Failure(404, vim_http.NOT_FOUND, "unknown instance")
        return instance

    def _named_host(self, named: Named, status: int) -> Host:
        host = self.hosts.find(named.hostname)
        if host is None:
            self._note_unknown("the VIM speaks", named.hostname)
            raise Failure(status, vim_http.NOT_FOUND, "unknown host")
        return host

    def _speaker(self, hostname: str) -> Optional[Host]:
        host = self.hosts.find(hostname)
        if host is None:
            self._note_unknown("a guestServer speaks", hostname)
        else:
            host.spoken = hostname
        return host

    def _note_unknown(self, what: str, name: str) -> None:
        self._ledger.effects.append(AskMtc())
        others = ", ".join(self.hosts.namesakes(name)[:4])
        text = "%s of host %s, which is unknown%s: asking mtcAgent for its hosts; should this go on, its \
name must be one that the controller has, or stand in [agent] hosts"
        self._throttle.warning(what, text, what, name, others and ", or one of " + others)

    def _reported(
        self, host: Optional[Host], uuid: str, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """The instance that a server speaks of, if it is that server's. An unknown one is adopted."""
        if host is None:
            return None
        instance = self.instances.get(uuid)
        if instance is None and not self._ledger.was_deleted(uuid):
            return self._ledger.adopt(uuid, host, reporting)
        if instance is not None and instance.host is host:
            return instance
        if instance is not None and instance.adopted:
            return self._ledger.readopt(instance, host, reporting, heartbeating)
        self._throttle.warning("foreign", "%s does not belong to %s: telling it so", uuid, host.name)
        self._ledger.send(host, datagram.DEL_INST, datagram.DeleteInstance(uuid))
        return None


def _wanted_until(instance: Instance, event: datagram.VoteResult, now: float) -> float:
    """When the VIM waits no more for this outcome.

    A question that was put by an agent before this one was put before `now`: its whole timeout is a bound.
    """
    asked = (event.notification_type, event.event_type)
    until = instance.outcome_until.get(asked)
    if until is not None:
        return until
    known = event.event_type in guest_channel.EVENT_TYPES
    seconds = guest_channel.timeout_secs(instance, *asked) if known else instance.vote_secs
    return now + seconds + OUTCOME_GRACE
