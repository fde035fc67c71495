"""What guestAgent concludes from what guestServers say.

docs/protocol/2-datagrams.md#what-guestagent-does-with-events

Pure. Whether a datagram still counts is decided in `inventory_order`; here stands what one that counts
entails. Each method returns whether the datagram could be understood; if not, the server is to say it again.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

from guestmtce.agent.inventory_order import Said, Verdict, judge_datagram
from guestmtce.agent.ledger import Ledger
from guestmtce.agent.model import UNHEALTHY, Host, Instance, Origin
from guestmtce.common.log_line import INFO, WARNING
from guestmtce.wire import datagram, guest_channel

# s after a vote's or notice's timeout in which the VIM still waits for the outcome; after 1.1 s it goes on by
# itself (docs/protocol/3-vim-http.md#outcomes).
OUTCOME_GRACE = 1.0


class ServerEvents:
    """See the module's text. `origin` is None for an old guestServer, whose datagrams bear no numbers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def note_ready(self, event: datagram.Ready) -> bool:
        """MONITOR_READY: a guestServer has started and must learn what we know."""
        host = self._find_speaker(event.hostname)
        if host is not None:
            self._ledger.log(INFO, "guestServer on %s has started", host.name)
            self._ledger.brief_server(host)
        return host is not None

    def note_state(
        self, info: datagram.InstanceInfo, origin: Optional[Origin] = None, still_ill: bool = False
    ) -> bool:
        """RUNNING, STOPPED: a change of state. `still_ill`: its illness of before is not over with that."""
        host, instance = self._find_subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        # Even an old RUNNING ends what is older still: its state alone may no longer count.
        verdict = judge_datagram(instance.newest, _name_state(info, origin, still_ill), origin)
        self._withdraw_ended(instance, verdict)
        if verdict.state_counts:
            instance.believe_server(info)
            # Behind the withdrawal: a loss that is void by this datagram waits no more. Any other may be told
            # now, for the datagram bears the repair action.
            self._ledger.report_waiting_loss(instance)
            self._ledger.report_service(instance, origin)
        return True

    def note_answer(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """The answer to our query. It does not undo what is newer: it may have been overtaken on its way."""
        host, instance = self._find_subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is not None:
            host.answered = True
        if host is None or instance is None:
            return host is not None
        instance.unanswered = 0
        said = Said.ANSWER_BEATING if info.heartbeating else Said.ANSWER_SILENT
        verdict = judge_datagram(instance.newest, said, origin)
        if not verdict.counts:
            return True
        is_news = not instance.reported or instance.heartbeating != info.heartbeating
        instance.believe_server(info)
        if instance.reporting != info.reporting:
            # The agent's word counts, which is the VIM's: the server is corrected, not believed
            # (docs/protocol/2-datagrams.md#what-guestagent-does-with-events).
            self._ledger.send_state(datagram.MOD_INST, instance)
        self._withdraw_ended(instance, verdict)
        self._ledger.report_waiting_loss(instance)
        if is_news:
            self._ledger.report_service(instance, None)  # no server waits until its answer is delivered
        return True

    def note_illness(self, info: datagram.InstanceInfo, origin: Optional[Origin] = None) -> bool:
        """ILLHEALTH: the guest is ill; `repair_action` is what it wants now, not its usual one."""
        host, instance = self._find_subject(info.hostname, info.uuid, info.reporting, info.heartbeating)
        if host is None or instance is None:
            return host is not None
        # It will come again, until the list has shown whose the instance is. An old server says it once: it
        # counts now.
        if origin is not None and self._ledger.awaits_list(instance):
            return False
        said = Said.ILL_BEATING if info.heartbeating else Said.ILL_SILENT
        verdict = judge_datagram(instance.newest, said, origin)
        if not verdict.counts:
            return True
        self._ledger.report_alarm(instance, UNHEALTHY, info.repair_action, origin)
        if verdict.state_counts:
            is_news = not instance.reported or instance.heartbeating != info.heartbeating
            was_known = instance.info_known
            instance.believe_server(info._replace(repair_action=instance.repair_action))
            instance.info_known = was_known  # the usual action is not what it wants now
            if is_news:
                self._ledger.report_service(instance, None)
        return True

    def note_loss(
        self, event: Union[datagram.Loss, datagram.InstanceInfo], origin: Optional[Origin] = None
    ) -> bool:
        """LOSS: the guest has stopped answering. Ours says its whole state, an old server only who it is.

        It is not understood as long as the repair action is not known, or whose the instance is: nobody may
        take it off the server's hands before the VIM can be told. A server that does not repeat it is asked.
        """
        # A server reports a loss only while reporting is enabled.
        host, instance = self._find_subject(event.hostname, event.uuid, True, True)
        if host is None or instance is None:
            return host is not None
        # The LOSS that waits here has shown FAILED itself. Judged as any other its repetition would be void,
        # would be confirmed, and the alarm would be lost if this process ended before the list came.
        waits = instance.loss_waits and origin is not None and origin == instance.loss_origin
        said = Said.LOSS_THAT_WAITS if waits else Said.LOSS
        if not judge_datagram(instance.newest, said, origin).counts:
            return True
        if isinstance(event, datagram.InstanceInfo):
            # All but the state: the STOPPED that comes with it brings that, under a number of its own.
            instance.believe_server(event._replace(heartbeating=instance.heartbeating))
        instance.loss_waits, instance.loss_origin = True, origin
        if not instance.info_known:
            self._ledger.send_command(host, datagram.QRY_INST, datagram.Query())
        self._ledger.report_waiting_loss(instance)
        # While it waits it is not understood, and so not noted as seen: its server goes on repeating it.
        return not instance.loss_waits or origin is None

    def note_outcome(self, event: datagram.VoteResult, now: float, origin: Optional[Origin] = None) -> bool:
        """VOTE_NOTIFY: the answer to a vote or notice, which the VIM wants for a time only."""
        host = self._find_speaker(event.hostname)
        instance = self._ledger.instances.get(event.uuid)
        if host is not None and instance is not None and instance.host is host:
            self._ledger.report_action(event, origin, _wanted_until(instance, event, now))
        else:
            text = "%s: the outcome of a vote or notice was dropped: the VIM has no such instance on %s"
            self._ledger.log(WARNING, text, event.uuid, event.hostname, subject="vote")
        # Before the VIM's list has come the instance may be one that we shall know.
        return host is not None and (instance is not None or host.listed)

    # --- who speaks, and of whom -------------------------------------------------------------------

    def _find_speaker(self, hostname: str) -> Optional[Host]:
        host = self._ledger.hosts.find_host(hostname)
        if host is None:
            self._ledger.note_unknown_host("a guestServer", hostname)
        else:
            host.spelled = hostname
        return host

    def _find_subject(
        self, hostname: str, uuid: str, reporting: bool, heartbeating: bool
    ) -> Tuple[Optional[Host], Optional[Instance]]:
        """The host that speaks, and the instance it speaks of, if that is its own."""
        host = self._find_speaker(hostname)
        if host is None:
            return None, None
        return host, self._find_reported(host, uuid, reporting, heartbeating)

    def _find_reported(
        self, host: Host, uuid: str, reporting: bool, heartbeating: bool
    ) -> Optional[Instance]:
        """The instance that a server speaks of, if it is that server's. An unknown one is adopted."""
        instance = self._ledger.instances.get(uuid)
        # A server that has not heard of the delete must not bring the instance back: it is told once more,
        # below.
        if instance is None and not self._ledger.was_deleted(uuid):
            return self._ledger.adopt_instance(uuid, host, reporting)
        if instance is not None and instance.host is host:
            return instance
        if instance is not None and instance.adopted:
            return self._ledger.readopt_instance(instance, host, reporting, heartbeating)
        text = "%s does not belong to %s: its guestServer is told to forget it"
        self._ledger.log(WARNING, text, uuid, host.name, subject="foreign")
        self._ledger.send_command(host, datagram.DEL_INST, datagram.DeleteInstance(uuid))
        return None

    def _withdraw_ended(self, instance: Instance, verdict: Verdict) -> None:
        if verdict.ends:
            self._ledger.withdraw_failures(instance, "the guest heartbeats again", verdict.ends)


def _name_state(info: datagram.InstanceInfo, origin: Optional[Origin], still_ill: bool) -> Said:
    """A RUNNING or STOPPED, as the table of rules distinguishes them."""
    if info.heartbeating:
        return Said.RUNNING_STILL_ILL if still_ill else Said.RUNNING
    return Said.STOPPED_WITHOUT_NUMBER if origin is None else Said.STOPPED


def _wanted_until(instance: Instance, event: datagram.VoteResult, now: float) -> float:
    """When the VIM waits no more for this outcome.

    A vote or notice that was put by an agent before this one was put before `now`: its whole timeout is a
    bound.
    """
    asked = (event.notification_type, event.event_type)
    until = instance.outcome_until.get(asked)
    if until is not None:
        return until
    known = event.event_type in guest_channel.EVENT_TYPES
    seconds = guest_channel.timeout_secs(instance, *asked) if known else instance.vote_secs
    return now + seconds + OUTCOME_GRACE
