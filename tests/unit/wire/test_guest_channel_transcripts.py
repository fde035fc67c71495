"""Recorded conversations of a deployed guest, replayed: every word of it must be understood."""

from __future__ import annotations

import json

import pytest
from places import TRANSCRIPTS

from guestmtce.server.child.session import Session
from guestmtce.server.child.session_states import CHALLENGED, RESTING, RESUMING, WAITING
from guestmtce.server.child.session_types import Answered, Ill, Lost, Missed, Resume, SessionSettings, Stopped
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ActionResponse, Challenge, ChallengeResponse, Init, Nack

FILES = sorted(TRANSCRIPTS.glob("*.jsonl"))

# By recording: votes passed on; answers of the guest that match no challenge then open, which is right:
# it had been stopped and answered old ones in a burst; how often it was ill; how often it went.
KNOWN = {
    "challenges-stop": ([], 0, 0, 1),
    "guest-stopped-7s": ([], 6, 0, 0),
    "host-reconnect": ([], 0, 0, 0),
    "host-reconnect-unnoticed": ([], 0, 0, 0),
    "init-ack-withheld": (["complete"], 0, 0, 1),
    "normal-life": (["accept", "reject", "accept", "accept", "reject"], 0, 1, 1),
    "vote-script-hangs": (["timeout", "timeout", "timeout", "accept", "timeout"], 0, 0, 1),
}


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def messages(record, shapes=None):
    lines = json_lines.LineBuffer().feed(record["bytes"].encode("utf-8"))
    return [guest_channel.parse(line, shapes) for line in lines]


def by_host(record):
    return messages(record, guest_channel.FROM_HOST) if record.get("from") == "host" else []


class Replay:
    """A session in the recorded host's place: it asks what that host asked, when that host asked it."""

    def __init__(self, path, chunk):
        self.chunk = chunk
        self.script = records(path)
        self.coming = [m.heartbeat_challenge for r in self.script for m in by_host(r) if type(m) is Challenge]
        self.questions = 0
        self.unmatched = 0
        self.matched = 0
        self.init = None
        self.reports = []
        self.sent = []
        self.session = Session(SessionSettings(), self.number)

    def number(self):
        """What the recorded host asks next; a number of our own when it asks no more."""
        return self.coming[0] if self.coming else guest_channel.INT32_MAX

    def keep(self, output):
        data, reports = output
        self.reports += reports
        lines = json_lines.LineBuffer().feed(data)
        self.sent += [guest_channel.parse(line, guest_channel.FROM_HOST) for line in lines]

    def run(self):
        for record in self.script:
            if record.get("note") == "host connects":
                self.connect(record["t"])
            elif record.get("from") == "guest":
                self.guest(record)
            for message in by_host(record):
                self.host(message, record["t"])
        return self

    def connect(self, now):
        resume = None if self.init is None else Resume(self.init, True, 0.0)
        self.session = Session(SessionSettings(), self.number)
        self.keep(self.session.start(resume, now))

    def guest(self, record):
        for message in messages(record):
            if isinstance(message, Init):
                self.init = message
        data = record["bytes"].encode("utf-8")
        size = self.chunk or len(data)
        for begin in range(0, len(data), size):
            before = self.session.heartbeat.state
            self.keep(self.session.receive(data[begin : begin + size], record["t"]))
            self.matched += before in (CHALLENGED, RESUMING) and self.session.heartbeat.state == RESTING

    def host(self, message, now):
        if isinstance(message, Challenge):
            if (
                self.session.heartbeat.state != WAITING
                and self.session.heartbeat._challenge != self.coming[0]
            ):
                self.session.heartbeat.state = CHALLENGED
                self.session.heartbeat._send_challenge(now)
            assert self.coming.pop(0) == message.heartbeat_challenge
        elif isinstance(message, guest_channel.ActionNotify):
            # The recorded host made ids up that no init had; the guest echoes whatever it is asked with.
            self.session.heartbeat.init = self.session.heartbeat.init._replace(
                invocation_id=message.invocation_id
            )
            self.questions += 1
            self.keep(self.session.ask(self.questions, *message[2:0:-1], message.timeout_ms, now))


def test_the_recordings_are_there():
    assert {path.stem for path in FILES} >= set(KNOWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_guest_message_is_understood(path):
    said = [m for record in records(path) if record.get("from") == "guest" for m in messages(record)]
    count = path.read_text(encoding="utf-8").count('\\"heartbeat_response\\"')
    assert len([message for message in said if isinstance(message, ChallengeResponse)]) == count > 0
    assert all(message.vote_result != "unknown" for message in said if isinstance(message, ActionResponse))
    assert all(message.corrective_action == "reboot" for message in said if isinstance(message, Init))


@pytest.mark.parametrize("chunk", [0, 1, 100])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_replay(path, chunk):
    replay = Replay(path, chunk).run()
    assert [message for message in replay.sent if isinstance(message, Nack)] == []
    assert [report for report in replay.reports if isinstance(report, (Lost, Missed))] == []
    if path.stem not in KNOWN:
        return
    votes, unmatched, ill, gone = KNOWN[path.stem]
    answers = path.read_text(encoding="utf-8").count('\\"heartbeat_response\\"')
    assert replay.matched == answers - unmatched
    assert [report.vote for report in replay.reports if isinstance(report, Answered)] == votes
    assert len([report for report in replay.reports if isinstance(report, Ill)]) == ill
    assert len([report for report in replay.reports if isinstance(report, Stopped)]) == gone


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_replay_against_our_own_timers(path):
    """Our session challenges when it likes, so many of the recorded answers match nothing: still no nack."""
    replay = Replay(path, 0)
    replay.connect(0.0)
    for record in replay.script:
        while replay.session.deadline <= record["t"]:
            replay.keep(replay.session.tick(replay.session.deadline))
        if record.get("from") == "guest":
            replay.guest(record)
        for message in by_host(record):
            if isinstance(message, guest_channel.ActionNotify):
                replay.host(message, record["t"])
    assert [message for message in replay.sent if isinstance(message, Nack)] == []
    inits = [m for r in replay.script if r.get("from") == "guest" for m in messages(r) if isinstance(m, Init)]
    acks = [message.invocation_id for message in replay.sent if isinstance(message, guest_channel.InitAck)]
    assert acks == [init.invocation_id for init in inits]
