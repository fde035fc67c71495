"""Hosts and instances: what guestAgent concludes from what it hears.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events
docs/protocol/3-vim-http.md#where-instances-are

Pure: facts go in by one method each, and `take_effects` gives, in order, what is to be sent, reported or
logged. Hosts come from mtcAgent and are known by name and uuid; instances come from the VIM, or, after a
restart, from the VIM's list and the guestServers' answers. Here is what mtcAgent and the VIM say;
`inventory_events` has what the guestServers say, `inventory_audit` what is asked of all from time to time,
and `ledger` what each change entails.

An instance is *adopted* when a guestServer named it before the VIM did. A VIM's list is a picture of a
moment: an adopted instance that is not in it is missed, and only if a list that was asked for after that
lacks it too, the server is told to forget it. A list that was asked for before the VIM deleted an instance
does not bring it back. What the VIM commanded is newer than any list.

Whether a host reports is what the VIM commanded last. A VIM that commands nothing is asked until it says
*enabled*, and whenever mtcAgent names the host. After a command no answer counts: it is of a moment, and a
VIM that commands the one commands the other.
"""

from __future__ import annotations

from typing import Iterable, List, Mapping, Optional

from guestmtce.agent.effects import Effect
from guestmtce.agent.inventory_audit import audit_hosts
from guestmtce.agent.inventory_events import OUTCOME_GRACE, ServerEvents
from guestmtce.agent.ledger import Ledger
from guestmtce.agent.model import LONG_AGO, Host, Instance
from guestmtce.common.log_line import INFO
from guestmtce.wire import datagram, guest_channel, vim_http
from guestmtce.wire.vim_http import Failure, Named

# s after a list of the VIM's in which its command may say the same: the list was quicker than the command.
SAME_WORD = 2.0

Reply = Mapping[str, object]  # the JSON object that answers a command


class Inventory:
    """See the module's text. `Failure` is raised to whoever commands what cannot be."""

    def __init__(self, unheard_before: Iterable[str] = ()) -> None:
        """`unheard_before`: uuids that an agent before this one disabled, unheard by their servers, maybe."""
        self._unheard = set(unheard_before)
        self._ledger = Ledger()
        self.hosts = self._ledger.hosts
        self.instances = self._ledger.instances
        self.events = ServerEvents(self._ledger)  # what the guestServers say

    def take_effects(self) -> List[Effect]:
        """What is to be done now, in order."""
        effects, self._ledger.effects = self._ledger.effects, []
        return effects

    def run_audit(self) -> None:
        """Compare what is known with what the VIM and the guestServers say (`inventory_audit`)."""
        audit_hosts(self._ledger)

    # --- mtcAgent ----------------------------------------------------------------------------------

    def note_host(self, record: datagram.HostRecord) -> None:
        """ADD_HOST, MOD_HOST: this host exists, and so."""
        host = self.hosts.find_recorded(record)
        if host is None:
            self._ledger.add_host(record)
            return
        if (host.uuid, host.ip) != (record.uuid, record.ip):
            self._ledger.change_host(host, record)
        # A host that was locked or booted when the VIM was asked before has said "disabled", and the VIM
        # sends no enable later (docs/protocol/3-vim-http.md#hosts).
        self._ledger.query_state(host)

    def delete_host(self, record: datagram.HostRecord) -> None:
        """DEL_HOST: forget it, and its instances first."""
        host = self.hosts.find_recorded(record)
        if host is not None:
            self._ledger.remove_host(host)

    # --- the VIM's commands ------------------------------------------------------------------------
    # A uuid in a reply is spelled as in the command.

    def find_host(self, uuid: str) -> Host:
        """The host with this uuid. Raises Failure 404."""
        host = self.hosts.find_by_uuid(uuid)
        if host is None:
            self._ledger.note_unknown_host("the VIM", uuid)
            raise Failure(404, vim_http.NOT_FOUND, "unknown host")
        return host

    def set_host_reporting(self, uuid: str, reporting: bool) -> None:
        """Host enable, disable."""
        host = self.find_host(uuid)
        self._ledger.log(INFO, "host %s: reporting %s", host.name, datagram.state_word(reporting))
        host.commanded = True
        self._ledger.set_host_reporting(host, reporting)

    def create_instance(self, named: Named) -> None:
        """Instance create: a new one starts with reporting disabled; a known one keeps what it has."""
        # 400, where a set answers 404: docs/protocol/3-vim-http.md#failures.
        host = self._find_named_host(named, 400)
        instance = self.instances.get(named.uuid.lower())
        if instance is None:
            self._ledger.add_instance(named.uuid.lower(), host, named.hostname, reporting=False)
        else:
            # Its reporting stays; the original resets it here
            # (docs/protocol/3-vim-http.md#where-instances-are).
            self._ledger.claim_instance(instance, host, named.hostname)

    def set_instance(self, named: Named, reporting: bool, now: float) -> Reply:
        """Instance set; an unknown instance is added. Returns the reply.

        One that the VIM enables, and of which this agent has no word of the VIM yet, was disabled by an agent
        before this one, whose command may not have arrived. The same holds where the only word is a list that
        was quicker than the command.
        """
        host = self._find_named_host(named, 404)
        instance = self.instances.get(named.uuid.lower())
        if instance is None:
            self._ledger.add_instance(named.uuid.lower(), host, named.hostname, reporting, anew=True)
        else:
            self._pop_unheard(instance.uuid)
            anew = instance.adopted or now - instance.listed_at < SAME_WORD
            # From now on a command of the VIM is the last word: what enables later hides no disabling.
            instance.listed_at = LONG_AGO
            # Before the claim: a move tells the new server this reporting with its ADD_INST, and no MOD_INST
            # follows.
            self._ledger.set_reporting(instance, reporting)
            if not self._ledger.claim_instance(instance, host, named.hostname):
                self._ledger.send_state(datagram.MOD_INST, instance, anew)
        return self.query_instance(named.uuid)

    def query_instance(self, uuid: str) -> Reply:
        """Instance query. Raises Failure 404."""
        instance = self._find_instance(uuid)
        return vim_http.services_reply(
            uuid, instance.hostname, instance.reporting, instance.heartbeating, instance.restart_secs
        )

    def delete_instance(self, uuid: str) -> None:
        """Instance delete. Raises Failure 404."""
        if datagram.UUID.fullmatch(uuid):  # an unknown one may be in a list that is on its way
            self._ledger.note_deleted(uuid.lower())
        self._ledger.forget_instance(self._find_instance(uuid), "deleted")

    def ask_guest(self, named: Named, notification_type: str, event: str, now: float) -> Reply:
        """Vote or notify. Returns the reply; its timeout is 0 when the guest will not answer."""
        instance = self._find_instance(named.uuid)
        seconds = 0
        # A guest that does not heartbeat will not answer. 0 has the VIM go on at once
        # (docs/protocol/3-vim-http.md#timeouts-of-votes-and-notices).
        if instance.heartbeating:
            seconds = guest_channel.timeout_secs(instance, notification_type, event)
            cmd = datagram.VOTE_INST if notification_type == guest_channel.VOTE else datagram.NOTIFY_INST
            question = datagram.Ask(instance.uuid, notification_type, event)
            self._ledger.send_command(instance.host, cmd, question, seconds)
            # The latest question of its kind counts: an outcome bears no number of its question.
            instance.outcome_until[notification_type, event] = now + seconds + OUTCOME_GRACE
        return vim_http.action_reply(named.uuid, named.hostname, event, seconds)

    # --- the VIM's answers -------------------------------------------------------------------------
    # `serial` is the one of the query.

    def note_host_state(self, hostname: str, reporting: Optional[bool], serial: int) -> None:
        """The VIM's answer about a host; None: it gave none."""
        host = self.hosts.find_host(hostname)
        # Queries overlap when the VIM is slow: the answer to the one that was put last counts, in whichever
        # order they come.
        if host is None or reporting is None or host.commanded or serial < host.state_serial:
            return
        host.state_serial = serial
        if reporting != host.reporting:
            text = "host %s: the VIM says reporting is %s"
            self._ledger.log(INFO, text, host.name, datagram.state_word(reporting))
            self._ledger.set_host_reporting(host, reporting)

    def note_list(
        self, hostname: str, listed: Optional[List[vim_http.Listed]], serial: int, now: float
    ) -> None:
        """The VIM's list of a host's instances; None: it gave none."""
        host = self.hosts.find_host(hostname)
        # No list is no word about anything: a VIM that is silent makes no server forget a guest.
        if host is None or listed is None:
            return
        if not host.listed:
            self._ledger.log(INFO, "host %s: the VIM lists %d instances", host.name, len(listed))
        host.listed, host.list_wanted, host.unlisted_audits = True, False, 0
        for entry in listed:
            self._note_listed(host, entry, serial, now)
        known = {entry.uuid for entry in listed}
        # A copy, for forget_instance takes out of it.
        for instance in list(host.instances.values()):
            if not instance.adopted or instance.uuid in known:
                continue
            # Only a list that was asked for after the first one that lacked it: a guest is often up before
            # the VIM has it.
            if instance.missing_since is not None and serial > instance.missing_since:
                self._ledger.forget_instance(instance, "unknown to the VIM")
            else:
                self._ledger.note_missing(instance)

    def _note_listed(self, asked: Host, entry: vim_http.Listed, serial: int, now: float) -> None:
        named = self.hosts.find_host(entry.hostname)
        host, hostname = (asked, asked.name) if named is None else (named, entry.hostname)
        instance = self.instances.get(entry.uuid)
        if instance is None and self._ledger.deleted_since(entry.uuid, serial):
            # The list may be older than the delete. A newer one shows whether the instance was made anew
            # since.
            self._ledger.request_list(asked)
        elif instance is None:
            anew = self._pop_unheard(entry.uuid)
            self._ledger.add_instance(entry.uuid, host, hostname, entry.reporting, anew).listed_at = now
        elif instance.adopted:
            anew = self._pop_unheard(entry.uuid)
            # A loss of before may be of the time in which nobody wanted to hear of any.
            instance.loss_waits = instance.loss_waits and not anew
            # What the VIM commanded is newer than any list; what a server said is not.
            self._ledger.set_reporting(instance, entry.reporting)
            instance.listed_at = now
            if not self._ledger.claim_instance(instance, host, hostname):
                self._ledger.send_state(datagram.ADD_INST, instance, anew)
                # The list says that it is this host's: that is what its loss has waited for. After a move
                # there is none: the loss was of the host before.
                self._ledger.report_waiting_loss(instance)

    # --- helpers -----------------------------------------------------------------------------------

    def _pop_unheard(self, uuid: str) -> bool:
        """Whether its server may not have heard that it was disabled; to be asked once, at the VIM's word."""
        was_unheard = uuid in self._unheard
        self._unheard.discard(uuid)
        return was_unheard

    def _find_instance(self, uuid: str) -> Instance:
        instance = self.instances.get(uuid.lower())
        if instance is None:
            raise Failure(404, vim_http.NOT_FOUND, "unknown instance")
        return instance

    def _find_named_host(self, named: Named, status: int) -> Host:
        host = self.hosts.find_host(named.hostname)
        if host is None:
            self._ledger.note_unknown_host("the VIM", named.hostname)
            raise Failure(status, vim_http.NOT_FOUND, "unknown host")
        return host
