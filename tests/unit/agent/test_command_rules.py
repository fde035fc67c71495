"""What a command is about, how long it is repeated, and what it tells of reporting."""

import pytest

from guestmtce.agent import command_rules
from guestmtce.agent.command_rules import QUERY_FOR, RepeatedCommand
from guestmtce.agent.effects import Send
from guestmtce.common import NEVER
from guestmtce.peer.retransmit import Message
from guestmtce.wire import datagram, datagram_ext, guest_channel
from guestmtce.wire.datagram import Ask, DeleteInstance, Loopback, Query, SetHost, SetInstance

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
IP, NOW = "10.0.0.1", 100.0
VOTE = Ask(U, guest_channel.VOTE, "stop")
WANTS_ACK, ANEW = datagram_ext.WANTS_ACK, datagram_ext.ANEW


@pytest.mark.parametrize(
    ("command", "key", "ends"),
    [
        (SetInstance(U, True), ("instance", U, 0), NEVER),
        (DeleteInstance(U), ("instance", U, 0), NEVER),
        (SetHost(U, True), ("host", U, 0), NEVER),
        (VOTE, ("question", U, 7), NOW + 30),
        (Query(), ("query", IP, 0), NOW + QUERY_FOR),
        (Loopback(), None, NEVER),
    ],
)
def test_what_is_repeated_and_for_how_long(command, key, ends):
    send = Send("compute-0", IP, datagram.LOOPBACK, command, 30.0)
    assert command_rules.key_command(send, 7) == key
    assert command_rules.choose_expiry(send, NOW) == ends


@pytest.mark.parametrize(
    ("command", "flags", "tells"),
    [
        (SetInstance(U, True), WANTS_ACK, False),
        (SetInstance(U, True), WANTS_ACK | ANEW, True),
        (SetInstance(U, False), WANTS_ACK, True),
        (DeleteInstance(U), WANTS_ACK, True),
        (SetHost(U, True), WANTS_ACK, False),
        (SetHost(U, False), WANTS_ACK, True),
    ],
)
def test_what_tells_that_reporting_was_off_is_hidden_by_no_newer_command(command, flags, tells):
    assert command_rules.tells_disabling(command, flags) is tells
    sent = RepeatedCommand(Send("compute-0", IP, datagram.MOD_INST, command), flags)
    assert command_rules.hides_disabling(Message("key", 1, sent, NEVER, NOW)) is tells
    assert not command_rules.hides_disabling(None)
