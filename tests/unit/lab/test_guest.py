"""What the lab's guests do on a word: how machines boot, stand still and come back, and clients that loop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time

import pytest

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.process import GuestsProcess
from guestmtce.wire import guest_channel, json_lines

QUESTION = guest_channel.ActionNotify(0, "pause", "irrevocable", 1000)


@pytest.fixture
def guests(tmp_path):
    options = ["--interval-ms", "100", "--scale", "0.1", "--secs", "1"]
    with tempfile.TemporaryDirectory(prefix="guestmtce-") as folder:  # a socket's path is 107 bytes at most
        one = GuestsProcess(folder, 1, 1, options, str(tmp_path / "log"))
        yield one
        one.stop()


class Link:
    """The host's side of the guest's channel."""

    def __init__(self, guests):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("%s/cgcs.heartbeat.%s.sock" % (guests.folder, uuid_of(1)))
        self._lines = json_lines.LineBuffer()
        self._unread = []
        self.invocation = 0

    def close(self):
        self._socket.close()

    def say(self, message):
        self._socket.sendall(guest_channel.build(message, 1))

    def next(self, kind, seconds=2.0):
        """The next message of this kind; what comes before it is dropped. None: nothing in time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            while self._unread:
                message = guest_channel.parse(self._unread.pop(0), guest_channel.FROM_GUEST)
                if isinstance(message, kind):
                    return message
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            with contextlib.suppress(socket.timeout):
                self._unread += self._lines.feed(self._socket.recv(65536))
        return None

    def introduced(self):
        self.invocation = self.next(guest_channel.Init).invocation_id
        self.say(guest_channel.InitAck(self.invocation))

    def beats(self, number=5, seconds=2.0):
        self.say(guest_channel.Challenge(number))
        answer = self.next(guest_channel.ChallengeResponse, seconds)
        return answer is not None and answer.heartbeat_response == number


@pytest.fixture
def link(guests):
    with contextlib.closing(Link(guests)) as one:
        one.introduced()
        yield one


def test_a_machine_that_boots_keeps_its_socket_and_introduces_itself_after_its_time(guests, link):
    assert link.beats()
    began = time.monotonic()
    guests.say(1, "reset", 0.5)
    assert not link.beats(6, 0.2)
    link.introduced()
    assert time.monotonic() - began >= 0.5
    assert link.beats(7)
    assert guests.status()[uuid_of(1)]["links"] == 1


def test_a_machine_that_is_paused_answers_what_has_piled_up_when_it_goes_on(guests, link):
    guests.say(1, "hang")
    for number in (1, 2, 3):
        link.say(guest_channel.Challenge(number))
    assert link.next(guest_channel.ChallengeResponse, 0.2) is None
    guests.say(1, "healthy")
    answered = [link.next(guest_channel.ChallengeResponse).heartbeat_response for _ in range(3)]
    assert answered == [1, 2, 3]


def test_a_machine_that_is_restored_goes_on_where_it_was(guests, link):
    guests.say(1, "off")
    guests.say(1, "restored")
    with contextlib.closing(Link(guests)) as fresh:
        assert not fresh.beats(8, 0.2)
        guests.say(1, "healthy")
        assert fresh.next(guest_channel.ChallengeResponse).heartbeat_response == 8


def test_a_client_that_introduces_itself_again_and_again_answers_nothing(guests, link):
    guests.say(1, "introduce", 0.05)
    for _ in range(3):
        link.introduced()
        link.say(guest_channel.Challenge(9))
    assert guests.status()[uuid_of(1)]["answers"] == 0


def test_a_client_that_leaves_again_and_again_answers_once_each_time(guests, link):
    guests.say(1, "leave", 0.05)
    for number in (1, 2, 3):
        assert link.beats(number)
        assert link.next(guest_channel.Exit)
        link.introduced()


def test_a_question_is_answered_late_and_as_often_as_is_said(guests, link):
    question = QUESTION._replace(invocation_id=link.invocation)
    guests.say(1, "vote", "accept", 0.3)
    guests.say(1, "votes_each", 2)
    began = time.monotonic()
    link.say(question)
    assert link.next(guest_channel.ActionResponse).vote_result == "accept"
    assert time.monotonic() - began >= 0.3
    assert link.next(guest_channel.ActionResponse)
    guests.say(1, "vote", "mute")
    link.say(question)
    assert link.next(guest_channel.ActionResponse, 0.3) is None


def test_a_guest_whose_socket_was_removed_ends_without_a_word(guests):
    os.unlink("%s/cgcs.heartbeat.%s.sock" % (guests.folder, uuid_of(1)))
    guests.popen.stdin.close()
    wait_for(lambda: not guests.is_alive(), "it ends")
    assert guests.log() == ""


def test_the_guests_know_when_they_did_not_run(guests):
    assert guests.say("stalls") == []
    began = time.monotonic()
    guests.popen.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    guests.popen.send_signal(signal.SIGCONT)
    wait_for(lambda: guests.say("stalls"), "the stall is known")
    longest = max(guests.say("stalls"), key=lambda stall: stall[1] - stall[0])
    assert longest[0] <= began + 0.1 and longest[1] - longest[0] >= 0.2
