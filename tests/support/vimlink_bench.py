"""A link to the VIM, with the outbox that it empties, and what it is given to tell."""

from __future__ import annotations

import threading

from guestmtce.agent.effects import NEVER, ReportAction, ReportAlarm, ReportService
from guestmtce.agent.vim_client import Patience, VimClient
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel, vim_http

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
V = "11111111-2222-3333-4444-555555555555"
H = "aaaaaaaa-0000-4000-8000-000000000000"
NAME = "compute-0"
RETRY = 0.02  # s


def uuid_number(number):
    return "%08x-0000-4000-8000-000000000000" % number


def service(uuid=U, heartbeating=True):
    return ReportService(uuid, vim_http.service_event(uuid, NAME, True, heartbeating, 601))


def loss(uuid=U, action="reboot", origin=None):
    return ReportAlarm(uuid, "failed", vim_http.alarm_event(uuid, NAME, "failed", action), origin)


def ill(uuid=U):
    return ReportAlarm(uuid, "unhealthy", vim_http.alarm_event(uuid, NAME, "unhealthy", "stop"))


def outcome(vote="accept", kind=guest_channel.VOTE, reason="", event="stop", uuid=U, until=NEVER):
    return ReportAction(uuid, vim_http.action_event(uuid, kind, event, vote, reason), None, until)


class Journal:
    """What is written for the next agent: the number of an event, and its fate."""

    def __init__(self):
        self.lines = []

    def note_delivered(self, origin):
        self.lines.append((origin.sequence, "told"))

    def note_sending(self, origin, vim):
        self.lines.append((origin.sequence, "sending"))

    def note_unsent(self, origin):
        self.lines.append((origin.sequence, "unsent"))


class Bench:
    """An outbox, a link that empties it, and the answers that came. Times in s."""

    def __init__(self, base, timeout=5.0, alarm_timeout=5.0, retry=RETRY, may_begin=lambda: True):
        self.lock = threading.Lock()
        self.outbox = VimQueue(retry, 4 * retry)
        self.journal = Journal()
        self.replies = []
        self.settled = []
        patience = Patience(alarm_timeout, timeout)
        self.may_deliver = may_begin
        self.link = VimClient(base, patience, self.lock, self.outbox, self.journal, self)
        self.link.start()

    def vim_answered(self, item, reply):
        with self.lock:  # whoever takes the answer in needs the lock
            self.replies.append((item.uuid, item.topic, reply))

    def confirm_events(self):
        assert self.lock.locked()
        self.settled += [origin.sequence for origin in self.outbox.take_confirmable()]

    def tell(self, *effects, sent_to=None):
        with self.lock:
            for effect in effects:
                if sent_to is None:
                    self.outbox.accept_effect(effect)
                else:
                    self.outbox.add_alarm(effect, sent_to)
            self.link.notify()

    def until_told(self, count=0, seconds=5):
        wait_for(lambda: not len(self.outbox) and self.outbox.delivered >= count, "all is told", seconds)


def closing():
    """For a fixture: gives what makes benches, and closes them."""
    benches = []

    def make(*arguments, **more):
        benches.append(Bench(*arguments, **more))
        return benches[-1]

    yield make
    for one in benches:
        one.link.close()
        for thread in one.link._threads:
            thread.join(8)
            assert not thread.is_alive()
