"""What a guestAgent of old is told, and in which order (docs/protocol/2-datagrams.md#an-old-guestagent).

It confirms nothing and acts on every repetition, so everything is said once. What it was told of failures is
kept while it is true: nobody knows that it was heard, and the next agent is to hear of it.

It drops what it hears of an instance that it does not know, takes an instance's repair action from its state
alone, and names each instance that it learns of by ADD_INST.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional

from guestmtce.server.state.effects import ReportEvent
from guestmtce.server.state.guest import FAILURES, STATE, PendingKey
from guestmtce.wire import datagram


class OldAgent:
    """See the module's text. `send` sends, `next_sequence` names, `info` gives an
    instance's state and `report` what is to be said under a key.
    """

    def __init__(
        self,
        send: Callable[[ReportEvent], None],
        next_sequence: Callable[[], int],
        info: Callable[[str], Optional[datagram.InstanceInfo]],
        report: Callable[[PendingKey], Optional[ReportEvent]],
    ) -> None:
        self._send = send
        self._next_sequence = next_sequence
        self._info = info
        self._report = report
        self._failures: Dict[PendingKey, None] = {}  # that were said, and are still true; the oldest first
        self._stop_said: Optional[datagram.Event] = None  # with a loss; the table tells it after the loss

    def report_event(self, report: ReportEvent) -> None:
        """Say this; the state goes before a loss, or the VIM would not hear what is to be done."""
        stop = self._stop_said
        if report.key.kind == STATE:
            self._stop_said = None
        if report.cmd == datagram.LOSS:
            self._report_stop_first(report)
        # The table tells its STOPPED after the loss: it was said before the loss already, and each one is a
        # PATCH to the VIM.
        if report.cmd != datagram.STOPPED or report.event != stop:
            self._send(report)
        self.note_said(report.key)

    def note_said(self, key: PendingKey) -> None:
        """This was said to it."""
        if key.kind in FAILURES:
            self._failures[key] = None

    def introduce_instance(self, uuid: str) -> None:
        """It names an instance, maybe for the first time: say how that is, and the failures that it has."""
        info = self._info(uuid)
        if info is None:
            return
        cmd = datagram.RUNNING if info.heartbeating else datagram.STOPPED
        self._send(ReportEvent(cmd, info, self._next_sequence(), PendingKey(uuid, STATE)))
        # This state stands before the losses below, and needs no STOPPED of its own.
        self._stop_said = info
        for kind in FAILURES:
            key = PendingKey(uuid, kind)
            report = self._report(key) if key in self._failures else None
            if report is not None:
                self._send(report)

    def withdraw_event(self, key: PendingKey) -> None:
        """It is no longer true."""
        self._failures.pop(key, None)

    def pop_failures(self) -> List[ReportEvent]:
        """What was said of failures and is still true; it is forgotten here."""
        reports = map(self._report, self._failures)
        failures = [report for report in reports if report is not None]
        self._failures = {}
        return failures

    def _report_stop_first(self, loss: ReportEvent) -> None:
        """What the loss means for the instance's state."""
        event = loss.event
        info = event if isinstance(event, datagram.InstanceInfo) else self._info(loss.key.uuid)
        stop = info._replace(heartbeating=False) if info is not None else None
        if stop is not None and stop != self._stop_said:
            self._stop_said = stop
            key = PendingKey(loss.key.uuid, STATE)
            self._send(ReportEvent(datagram.STOPPED, stop, self._next_sequence(), key))
