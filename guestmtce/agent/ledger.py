"""What guestAgent knows of hosts and instances, and what each change of it entails.

docs/protocol/3-vim-http.md#where-instances-are
docs/protocol/2-datagrams.md#what-guestagent-does-with-events

Pure. The inventory decides which change a fact makes; here every change is made whole, with the effects
that belong to it.

A *serial* counts what has happened; it is no time. A query to the VIM bears one, and whoever gets the answer
sees what is newer than the query.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from guestmtce.agent.effects import (
    AskMtc,
    AskVim,
    DropHost,
    Effect,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Send,
    Withdraw,
)
from guestmtce.agent.hosts import Hosts
from guestmtce.agent.model import FAILED, UNHEALTHY, FailureState, Host, Instance, Origin
from guestmtce.common.log_line import DEBUG, INFO, WARNING, LogLine
from guestmtce.wire import datagram, vim_http

# Audits for which a failure of an adopted instance waits for the VIM's list, which says whose it is. A VIM
# that gives none is told all the same.
UNLISTED_MAX = 2
# Deleted instances whose uuids are remembered. Lists from before the first one that is not are not believed.
DELETED_MAX = 4096
# Instances of one host up to which another one is adopted; guestServer serves no more guests.
ADOPTED_MAX = 10000
NAMESAKES_SHOWN = 4  # names in a log line


class Ledger:
    """See the module's text."""

    def __init__(self) -> None:
        self.hosts = Hosts()
        self.instances: Dict[str, Instance] = {}  # by uuid in lower case
        self.effects: List[Effect] = []
        self._serial = 0
        self._deleted: Dict[str, int] = {}  # uuid → when the VIM deleted it, the oldest first
        self._deleted_before = 0  # what was deleted up to then is not remembered

    def next_serial(self) -> int:
        """A serial that is higher than all before it."""
        self._serial += 1
        return self._serial

    def log(self, level: int, text: str, *values: object, subject: str = "") -> None:
        """Have a line logged; of lines with the same subject one per period is written."""
        self.effects.append(LogLine(level, text, values, subject))

    def note_unknown_host(self, speaker: str, name: str) -> None:
        """Somebody speaks of a host that mtcAgent has not named: ask for the hosts."""
        # `mtc_link` asks at most once per mtc_ask_period, however many speak of unknown hosts.
        self.effects.append(AskMtc())
        others = ", ".join(self.hosts.list_namesakes(name)[:NAMESAKES_SHOWN])
        text = (
            "%s speaks of host %s, which is unknown%s: asking mtcAgent for its hosts; should this go on, its"
            " name must be one that the controller has, or stand in [agent] hosts"
        )
        also = others and ", or one of " + others
        self.log(WARNING, text, speaker, name, also, subject="unknown host " + speaker)

    def send_command(self, host: Host, cmd: int, command: datagram.Command, seconds: float = 0.0) -> None:
        """Send this to the host's guestServer."""
        self.effects.append(Send(host.spelled, host.ip, cmd, command, seconds))

    def send_state(self, cmd: int, instance: Instance, anew: bool = False) -> None:
        """Send ADD_INST or MOD_INST: the server is to know the instance, with this reporting."""
        command = datagram.SetInstance(instance.uuid, instance.reporting)
        host = instance.host
        # A command that disables hides no disabling.
        self.effects.append(Send(host.spelled, host.ip, cmd, command, anew=anew and instance.reporting))

    # --- queries to the VIM ------------------------------------------------------------------------

    def query_state(self, host: Host) -> None:
        """Ask whether the host reports, unless the VIM has commanded it."""
        # After a command no answer counts: see the inventory's text.
        if not host.commanded:
            self.effects.append(AskVim(host.uuid, host.name, False, self.next_serial()))

    def query_list(self, host: Host, wait: int) -> None:
        """Ask for the host's instances, and not again before `wait` audits."""
        # At most one list per host and audit period: that of a full host has megabytes.
        host.list_wanted, host.list_wait = True, wait
        self.effects.append(AskVim(host.uuid, host.name, True, self.next_serial()))

    def request_list(self, host: Host) -> None:
        """A new list is to be had: ask for it as soon as that may be, at most once per audit period."""
        host.list_wanted = True
        if not host.list_wait:
            self.query_list(host, 2)  # the next audit may follow at once, the second comes a period later

    # --- hosts -------------------------------------------------------------------------------------

    def add_host(self, record: datagram.HostRecord) -> None:
        """A new host: the VIM is asked what it knows of it, and its guestServer too."""
        self.log(INFO, "host %s is %s at %s", record.hostname, record.uuid, record.ip)
        host = Host(record.hostname, record.uuid, record.ip)
        self.hosts.add(host)
        self.query_state(host)
        self.query_list(host, 2)
        self.send_command(host, datagram.QRY_INST, datagram.Query())

    def change_host(self, host: Host, record: datagram.HostRecord) -> None:
        """The host has another uuid or address."""
        self.log(INFO, "host %s is now %s at %s", host.name, record.uuid, record.ip)
        left, host.ip = host.ip, record.ip
        self.hosts.remove(host)  # it is found by its uuid: out before that changes, and in again after
        host.uuid = record.uuid
        self.hosts.add(host)
        self._leave_address(left)
        self.brief_server(host)

    def remove_host(self, host: Host) -> None:
        """The host is no more; its instances go first."""
        self.log(INFO, "host %s is deleted", host.name)
        for instance in list(host.instances.values()):
            self.forget_instance(instance, "its host is deleted")
        self.hosts.remove(host)
        self._leave_address(host.ip)

    def _leave_address(self, ip: str) -> None:
        # Addresses may change places: what another host was sent there is still repeated.
        if all(other.ip != ip for other in self.hosts):
            self.effects.append(DropHost(ip))

    # --- where instances are -----------------------------------------------------------------------

    def add_instance(
        self, uuid: str, host: Host, hostname: str, reporting: bool, anew: bool = False
    ) -> Instance:
        """The VIM has this instance on this host."""
        self.log(INFO, "%s: on %s, reporting %s", uuid, host.name, datagram.state_word(reporting))
        self._deleted.pop(uuid, None)
        instance = self.instances[uuid] = host.instances[uuid] = Instance(uuid, host, hostname, reporting)
        self.send_state(datagram.ADD_INST, instance, anew)
        return instance

    def adopt_instance(self, uuid: str, host: Host, reporting: bool) -> Optional[Instance]:
        """A guestServer names an instance that the VIM has not named; None if it names too many."""
        if len(host.instances) >= ADOPTED_MAX:
            text = (
                "guestServer on %s names more than %d instances: no more of them are believed before the VIM"
                " names them; look for sockets of no guest in its --channel-dir"
            )
            self.log(WARNING, text, host.name, ADOPTED_MAX, subject="adopted")
            return None
        self.log(DEBUG if host.listed else INFO, "%s: adopted from %s", uuid, host.name)
        instance = Instance(uuid, host, host.name, reporting, adopted=True)
        self.instances[uuid] = host.instances[uuid] = instance
        self._doubt_instance(instance)
        return instance

    def readopt_instance(
        self, instance: Instance, host: Host, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """Another guestServer names an adopted instance; None: it is not adopted from there.

        While an instance migrates, both ends have its channel, and only one of them hears it. Neither may
        lose it before the VIM has said whose it is.
        """
        if instance.heartbeating or not heartbeating:
            return None
        self.log(INFO, "%s: adopted from %s, not %s", instance.uuid, host.name, instance.host.name)
        # Nothing is sent to the other server: DEL_INST would close the channel that the guest may come back
        # to.
        self._place_instance(instance, host, host.name)
        instance.reporting, instance.missing_since = reporting, None
        self._doubt_instance(instance)
        return instance

    def _doubt_instance(self, instance: Instance) -> None:
        """The last list of its host, if one came, lacks it."""
        if instance.host.listed:
            self.note_missing(instance)

    def note_missing(self, instance: Instance) -> None:
        """A list lacks this adopted instance: it may have been made before the VIM had it. Ask again."""
        # The first miss keeps its serial, and gets it before the query: the query's serial is higher, so that
        # the list which answers it decides.
        instance.missing_since = instance.missing_since or self.next_serial()
        self.request_list(instance.host)

    def claim_instance(self, instance: Instance, host: Host, hostname: str) -> bool:
        """The VIM has it there, under that name. Returns whether it was elsewhere, and has been moved."""
        instance.adopted = False
        if instance.host is not host:
            self._move_instance(instance, host, hostname)
            return True
        instance.hostname = hostname
        # Its state was held back while the VIM's list lacked it.
        if instance.info_known and not instance.reported:
            self.report_service(instance, None)
        return False

    def _move_instance(self, instance: Instance, host: Host, hostname: str) -> None:
        self.log(INFO, "%s: moved from %s to %s", instance.uuid, instance.host.name, host.name)
        # Before the ADD_INST (docs/protocol/3-vim-http.md#where-instances-are).
        self.send_command(instance.host, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        # What waits for the VIM was said by the server that the instance has left.
        self.effects.append(ForgetVimEvents(instance.uuid))
        self._place_instance(instance, host, hostname)
        # The new host's server has said nothing yet, and is another sender of datagrams.
        instance.heartbeating = instance.loss_waits = False
        instance.newest = {}
        self.send_state(datagram.ADD_INST, instance)

    def _place_instance(self, instance: Instance, host: Host, hostname: str) -> None:
        del instance.host.instances[instance.uuid]
        host.instances[instance.uuid] = instance
        instance.host, instance.hostname = host, hostname

    def forget_instance(self, instance: Instance, why: str) -> None:
        """The instance is no more."""
        self.log(INFO, "%s: %s", instance.uuid, why)
        self.send_command(instance.host, datagram.DEL_INST, datagram.DeleteInstance(instance.uuid))
        self.effects.append(ForgetVimEvents(instance.uuid))
        del self.instances[instance.uuid], instance.host.instances[instance.uuid]

    def note_deleted(self, uuid: str) -> None:
        """The VIM has deleted it, whether it was known or not: no older list brings it back."""
        # Out and in again: the order of the dict is that of the deletes.
        self._deleted.pop(uuid, None)
        self._deleted[uuid] = self.next_serial()
        if len(self._deleted) > DELETED_MAX:
            self._deleted_before = self._deleted.pop(next(iter(self._deleted)))

    def was_deleted(self, uuid: str) -> bool:
        """Whether the VIM has deleted it, and named it neither in a command nor in a newer list since."""
        return uuid in self._deleted

    def deleted_since(self, uuid: str, serial: int) -> bool:
        """Whether the VIM may have deleted it after the query with this serial."""
        return serial < max(self._deleted.get(uuid, 0), self._deleted_before)

    # --- reporting ---------------------------------------------------------------------------------

    def brief_server(self, host: Host) -> None:
        """Send a guestServer all that we know of its host. The query makes it hear us in any case."""
        if host.reporting is not None:
            self.send_command(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
        for instance in host.instances.values():
            self.send_state(datagram.MOD_INST, instance)
        self.send_command(host, datagram.QRY_INST, datagram.Query())

    def set_reporting(self, instance: Instance, reporting: bool) -> None:
        """Failures that the VIM does not have yet are void when reporting is disabled."""
        was_reporting, instance.reporting = instance.reporting, reporting
        if was_reporting and not reporting:
            self.withdraw_failures(instance, "reporting was disabled", unwanted=True)

    def set_host_reporting(self, host: Host, reporting: bool) -> None:
        """The same for a whole host."""
        host.reporting = reporting
        self.send_command(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, reporting))
        if not reporting:
            for instance in host.instances.values():
                self.withdraw_failures(instance, "the host's reporting was disabled", unwanted=True)

    # --- what the VIM hears ------------------------------------------------------------------------

    def withdraw_failures(
        self,
        instance: Instance,
        why: str,
        states: Tuple[FailureState, ...] = (FAILED, UNHEALTHY),
        unwanted: bool = False,
    ) -> None:
        """Failures of the instance are over, or the VIM does not want to hear of them."""
        if FAILED in states:
            # A loss that waits for its repair action is in no queue yet: the effect alone would not stop it.
            instance.loss_waits = False
        self.effects.append(Withdraw(instance.uuid, why, states, unwanted))

    def report_service(self, instance: Instance, origin: Optional[Origin]) -> None:
        """Report the instance's state to the VIM, once the VIM has the instance.

        One that its list lacks is reported when the VIM claims it: many guests may be none of its own.
        """
        if instance.adopted and instance.missing_since is not None:
            return
        self.log(INFO, "%s: heartbeating %s", instance.uuid, datagram.state_word(instance.heartbeating))
        instance.reported = True
        body = vim_http.service_event(
            instance.uuid,
            instance.hostname,
            instance.reporting,
            instance.heartbeating,
            instance.restart_secs,
        )
        self.effects.append(ReportService(instance.uuid, body, origin))

    def report_alarm(
        self, instance: Instance, state: FailureState, action: str, origin: Optional[Origin]
    ) -> None:
        """Report a failure to the VIM, if it wants to hear of failures of this instance."""
        # Nothing of the datagram waits then, and it is confirmed at once: nobody is to hear it.
        if not instance.wants_failures:
            self.log(INFO, "%s: %s, but the VIM has disabled reporting: no alarm", instance.uuid, state)
            return
        self.log(WARNING, "%s: %s, repair action %s", instance.uuid, state, action)
        body = vim_http.alarm_event(instance.uuid, instance.hostname, state, action)
        self.effects.append(ReportAlarm(instance.uuid, state, body, origin))

    def report_action(self, event: datagram.VoteResult, origin: Optional[Origin], until: float) -> None:
        """Report the outcome of a vote or notice; `until` (s, monotonic) the VIM waits for it."""
        self.log(
            INFO,
            "%s: %s %s: %s",
            event.uuid,
            event.notification_type,
            event.event_type,
            event.vote,
        )
        body = vim_http.action_event(
            event.uuid, event.notification_type, event.event_type, event.vote, event.reason
        )
        self.effects.append(ReportAction(event.uuid, body, origin, until))

    def report_waiting_loss(self, instance: Instance) -> None:
        """Report a loss that has waited, if nothing is left to wait for."""
        if instance.loss_waits and instance.info_known and not self.awaits_list(instance):
            # Before the report: whether it is told or not, it waits no more.
            instance.loss_waits = False
            self.report_alarm(instance, FAILED, instance.repair_action, instance.loss_origin)

    def awaits_list(self, instance: Instance) -> bool:
        """Whether the VIM may still say that the instance is not, or no more, its host's."""
        return instance.adopted and instance.host.unlisted_audits < UNLISTED_MAX
