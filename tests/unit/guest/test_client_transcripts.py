"""The guest client against the recorded hosts: it does what the recorded guest did, or better.

The host's bytes come when they came then; the guest's client has the recorded guest's configuration, name and
invocation ids, and its script says what that one's said, when it said it. Then the two guests' words are
compared, one by one, with their times.
"""

from __future__ import annotations

import json

import pytest
from places import TRANSCRIPTS

from guestmtce.guest.client import AskVoters, Client
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.settings import Settings
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import ActionResponse, Challenge, ChallengeResponse, Exit, Init

FILES = sorted(TRANSCRIPTS.glob("*.jsonl"))
# Made with a device that does not show a hang-up of the host.
UNNOTICED = ("host-reconnect-unnoticed",)
WITH_SCRIPT = ("normal-life", "vote-script-hangs")
EXACT = 0.002  # s; what was recorded was rounded

# When our client says init, in s, where the recorded guest did otherwise. It does not wait a second before
# its first init (all), introduces itself as soon as it goes on after it was stopped (7 s), and repeats init
# every 5 s (the recorded guest sometimes after 10). After a hang-up that it noticed it first gives the host
# a second to go on where it was, instead of starting anew; that host had forgotten it once.
INITS = {
    "guest-stopped-7s": [0, 18.622, 23.622, 28.622],
    "host-reconnect": [0, 7.018, 12.018],
    "host-reconnect-unnoticed": [0, 10.848, 15.848],
}
# The recorded guest answers the second of two overlapping questions twice, first at the time of the first.
VOTES = {"vote-script-hangs": [0, 1, 2, 4]}


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def messages(record, who, shapes):
    if record.get("from") != who:
        return []
    lines = json_lines.LineBuffer().feed(record["bytes"].encode("utf-8"))
    return [guest_channel.parse(line, shapes) for line in lines]


class Replay:
    """The client in the recorded guest's place; `said` is what it said, `recorded` what that one said."""

    def __init__(self, path):
        self.path = path
        self.script = records(path)
        self.recorded = [
            (r["t"], m) for r in self.script for m in messages(r, "guest", guest_channel.FROM_GUEST)
        ]
        inits = [message for _, message in self.recorded if isinstance(message, Init)]
        self.ids = [init.invocation_id for init in inits]
        voters = frozenset(["script"] if path.stem in WITH_SCRIPT else [])
        self.client = Client(Config(), Settings(), inits[0].name, self.number, lambda: voters)
        answers = [message for _, message in self.recorded if isinstance(message, ChallengeResponse)]
        self.answers = {answer.heartbeat_response: answer for answer in answers}
        self.said, self.puts = [], []
        self.now = 0.0
        self.stopped = False  # by SIGSTOP
        self.piled_up = b""

    def number(self):
        """The recorded ids, and others when the client says init more often."""
        return self.ids.pop(0) if self.ids else 123456

    def keep(self, now, output):
        for data in output.messages:
            self.said.append((now, guest_channel.parse(data.strip())))
        self.puts += [effect.question_id for effect in output.effects if isinstance(effect, AskVoters)]

    def run(self):
        for record in self.script:
            self.pass_time(record["t"])
            self.note(record["t"], record.get("note", ""))
            if record.get("from") == "host":
                self.hear(record["t"], record["bytes"].encode("utf-8"))
            for message in messages(record, "guest", guest_channel.FROM_GUEST):
                self.inside(record["t"], message)
        return self

    def pass_time(self, until):
        while not self.stopped and self.client.deadline < until:
            self.now = max(self.now, self.client.deadline)
            self.keep(self.now, self.client.tick(self.now))
        self.now = until

    def hear(self, now, data):
        if self.stopped:
            self.piled_up += data
            return
        for line in json_lines.LineBuffer().feed(data):
            message = guest_channel.parse(line, guest_channel.FROM_HOST)
            if isinstance(message, Challenge):
                self.feel(now, self.answers.get(message.heartbeat_challenge))
        self.keep(now, self.client.receive(data, now))

    def feel(self, now, answer):
        """The guest feels as the recorded one said in its answer."""
        if answer is not None:
            ill = answer.heartbeat_health == "unhealthy"
            self.keep(now, self.client.set_health(Illness("reboot", answer.log_msg.strip()) if ill else None))

    def note(self, now, note):
        if note == "host connects" and self.path.stem not in UNNOTICED:
            self.keep(now, self.client.note_opened(now))
        elif note == "host connects" and now == 0:
            self.keep(now, self.client.note_opened(now))
        elif note.startswith("host closes") and self.path.stem not in UNNOTICED:
            self.keep(now, self.client.note_closed(now))
        elif note.startswith("SIGSTOP"):
            self.stopped = True
        elif note.startswith("SIGCONT"):
            self.stopped = False
            self.hear(now, self.piled_up)
            self.piled_up = b""

    def inside(self, now, message):
        """What went on inside the recorded guest, as its words tell: its script voted, or it ended."""
        if isinstance(message, ActionResponse) and message.vote_result in ("accept", "reject"):
            words = (message.vote_result, message.log_msg.strip())
            if self.puts:
                self.keep(now, self.client.count_vote(self.puts[-1], "script", *words))
        elif isinstance(message, Exit):
            self.keep(now, self.client.say_goodbye("Exiting...", now))


def of(kind, words):
    return [(when, message) for when, message in words if isinstance(message, kind)]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def replay(request):
    return Replay(request.param).run()


def test_the_recordings_are_there():
    assert {*INITS, *VOTES, *UNNOTICED, *WITH_SCRIPT} <= {path.stem for path in FILES}


def test_every_challenge_is_answered_as_it_was_then_and_no_later(replay):
    theirs, ours = of(ChallengeResponse, replay.recorded), of(ChallengeResponse, replay.said)
    assert [answer[:3] for _, answer in ours] == [answer[:3] for _, answer in theirs]
    assert all(mine <= then + EXACT for (mine, _), (then, _) in zip(ours, theirs))
    # The reason is given when something is wrong; the recorded guest also says what is right.
    reasons = [(a.log_msg, b.log_msg.strip()) for (_, a), (_, b) in zip(ours, theirs) if "un" in b[1]]
    assert all(mine == then for mine, then in reasons)


def test_every_question_is_answered_as_it_was_then_and_no_later(replay):
    theirs, ours = of(ActionResponse, replay.recorded), of(ActionResponse, replay.said)
    which = VOTES.get(replay.path.stem)
    theirs = [theirs[index] for index in which] if which else theirs
    assert len(ours) == len(theirs)
    for (mine, answer), (then, recorded) in zip(ours, theirs):
        assert answer[:3] == recorded[:3]
        # A vote is accepted and a notice completed; the recorded guest takes either word for either.
        agreed = {"revocable": "accept", "irrevocable": "complete"}[answer.notification_type]
        alike = recorded.vote_result.replace("complete", "accept").replace("accept", agreed)
        assert answer.vote_result == alike
        assert mine <= then + EXACT or which


def test_init_comes_when_it_came_then_or_sooner(replay):
    theirs, ours = of(Init, replay.recorded), of(Init, replay.said)
    expected = INITS.get(replay.path.stem) or [0, *(when for when, _ in theirs[1:])]
    assert [when for when, _ in ours] == pytest.approx(expected, abs=2 * EXACT)
    assert {init[1:] for _, init in ours} == {init[1:] for _, init in theirs}


def test_it_ends_with_an_exit_where_that_one_did(replay):
    assert of(Exit, replay.said) == of(Exit, replay.recorded)
