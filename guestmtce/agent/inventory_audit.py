"""One round of the audit: what is compared with the VIM and the guestServers.

docs/protocol/2-datagrams.md#audit

It only asks. What comes back repairs the inventory where it arrives, as everything else that is heard.
"""

from __future__ import annotations

from guestmtce.agent.ledger import Ledger
from guestmtce.agent.model import Host
from guestmtce.common.log_line import WARNING
from guestmtce.wire import datagram

# Audits without a word of an instance before its server is told of it again. An old one stops heartbeating
# for it, so one lost answer is no reason.
UNANSWERED_MAX = 2


def audit_hosts(ledger: Ledger) -> None:
    """Ask the VIM what is still unknown, and every guestServer for its state."""
    for host in ledger.hosts:
        _count_silence(ledger, host)
        _query_vim(ledger, host)
        if host.reporting is not None:  # no answer carries it: a lost one is not seen
            ledger.send_command(host, datagram.MOD_HOST, datagram.SetHost(host.uuid, host.reporting))
        ledger.send_command(host, datagram.QRY_INST, datagram.Query())


def _count_silence(ledger: Ledger, host: Host) -> None:
    """What the last round's query has brought, by host and by instance."""
    if not host.answered:
        host.query_misses += 1
        text = (
            "guestServer on %s does not answer (%d audits): see whether it runs there, follows this"
            " controller, and may send to [agent] rx_port"
        )
        ledger.log(WARNING, text, host.name, host.query_misses, subject="silent")
    for instance in host.instances.values():
        if instance.unanswered >= UNANSWERED_MAX:  # its server may not know it
            ledger.send_state(datagram.ADD_INST, instance)
        instance.unanswered += 1
    host.answered = not host.instances  # a server without instances has nothing to say


def _query_vim(ledger: Ledger, host: Host) -> None:
    # "Disabled" is of a moment, and no enable comes later (docs/protocol/3-vim-http.md#hosts).
    if not host.reporting:
        ledger.query_state(host)
    host.list_wait = max(0, host.list_wait - 1)
    # Until the first list has come every audit asks; a newer one is worth one query per period.
    if host.list_wanted and not (host.listed and host.list_wait):
        host.unlisted_audits += 1
        ledger.query_list(host, 1)
        # A VIM that gives no list must not swallow a loss: after UNLISTED_MAX audits it is told all the same.
        for instance in host.instances.values():
            ledger.report_waiting_loss(instance)
