"""Whom we speak to and whom we believe, without sockets."""

from __future__ import annotations

import os

import pytest

from guestmtce.peer.authentication import Allowed, Speaker, new_nonce, read_key, read_keys
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Seal, SealRefused, Tag

KEY = b"0123456789abcdef"
PLAIN = datagram.build_command(datagram.QRY_INST, "192.0.2.1", datagram.Query())
ROUTE = b"agent>host-0"


def tag_of(data):
    return datagram_ext.read_tag(datagram.unpack(data))


def take(speaker, data, route=ROUTE):
    """Whether the speaker believes the datagram; SealRefused if it is not even read."""
    speaker.check(data, datagram.unpack(data), route)
    believed = speaker.knows_this_process(tag_of(data))
    if believed:
        speaker.note_peer(tag_of(data))
    return believed


# --- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [KEY, KEY + b"\n", b"\n " + KEY + b" \r\n"])
def test_white_space_around_a_key_does_not_count(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    assert read_key(str(tmp_path / "key")) == KEY
    assert ServerSettings(key_file=str(tmp_path / "key")).keys() == (KEY, b"")


@pytest.mark.parametrize("content", [b"", b"\n" * 30, KEY[:-1] + b" \n", None])
def test_no_key_and_a_short_one_are_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)
    with pytest.raises(OSError, match="key"):
        read_key(str(tmp_path / "key"))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_that_only_its_owner_knows_is_taken(tmp_path, mode):
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(mode)
    assert read_key(str(tmp_path / "key")) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602, 0o601, 0o700])
def test_a_key_that_others_may_know_or_change_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(mode)
    with pytest.raises(OSError, match="mode %04o.*chmod 0600 %s" % (mode, path)):
        read_key(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_that_belongs_to_another_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    os.chown(path, 12345, 0)
    with pytest.raises(OSError, match="uid 12345.*chown 0 %s" % path):
        read_key(str(path))


def test_a_key_in_a_pipe_or_folder_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(OSError, match="regular file"):
        read_key(str(tmp_path / "pipe"))
    with pytest.raises(OSError, match=str(tmp_path)):
        read_key(str(tmp_path))


def test_a_second_key_alone_is_an_error():
    with pytest.raises(OSError, match="old_key_file without key_file"):
        read_keys("", "/etc/mtc/key")


def test_nobody_asked_for_a_key():
    assert not any(ServerSettings().keys())


def test_nonces_differ():
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100 and all(0 < nonce < 2**32 for nonce in nonces)
    assert Speaker(Seal(b""), 1).nonce != Speaker(Seal(b""), 1).nonce


# --- what we say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", KEY])
def test_what_we_say_bears_who_we_are_and_whom_we_speak_to(key):
    speaker = Speaker(Seal(key), 7, 8)
    assert speaker.sealed is bool(key)
    assert tag_of(speaker.tag_and_seal(PLAIN, Tag(1, number=3), ROUTE)) == Tag(1, 7, 3, 0, 8, 0)
    speaker.note_peer(Tag(sender=9, nonce=10))
    data = speaker.tag_and_seal(PLAIN, Tag(2, number=3, acked_sender=9), ROUTE)
    assert tag_of(data) == Tag(2, 7, 3, 9, 8, 10)
    assert any(data[32:64]) is bool(key)


# --- what we hear ----------------------------------------------------------------------------------


def test_the_peer_may_change_its_manner_of_speaking_and_who_it_is():
    speaker = Speaker(Seal(b""), 7)
    assert speaker.speaks_extension is None
    said = [
        (None, True, False), (None, False, False), (Tag(sender=1, nonce=2), True, True),
        (Tag(sender=1, nonce=2, number=5), False, True), (Tag(sender=1, nonce=3), True, True),
        (Tag(sender=2, nonce=3), True, True), (None, True, False), (Tag(sender=2, nonce=3), True, True),
    ]  # fmt: skip
    for tag, another, spoken in said:
        assert speaker.knows_this_process(tag)
        assert (speaker.note_peer(tag), speaker.speaks_extension) == (another, spoken)


def test_without_a_key_everything_passes():
    speaker = Speaker(Seal(b""), 7)
    for data in (
        PLAIN,
        Speaker(Seal(b""), 1).tag_and_seal(PLAIN, Tag(), ROUTE),
        Speaker(Seal(KEY), 1).tag_and_seal(PLAIN, Tag(), ROUTE),
    ):
        assert take(speaker, data)


def test_the_introduction_takes_one_round_trip():
    server, agent = Speaker(Seal(KEY), 1), Speaker(Seal(KEY), 2)
    back = b"server>host-0"
    assert not take(server, agent.tag_and_seal(PLAIN, Tag(), ROUTE))
    assert take(agent, server.tag_and_seal(PLAIN, Tag(), back), back)
    assert take(server, agent.tag_and_seal(PLAIN, Tag(), ROUTE))
    assert (server.speaks_extension, agent.speaks_extension) == (True, True)


@pytest.mark.parametrize("sender", [1, 2])
def test_a_new_process_is_another_one_though_its_nonce_is_known_from_the_introduction(sender):
    ours = Speaker(Seal(KEY), 7)
    assert ours.note_peer(Tag(sender=1, nonce=2, echo=ours.nonce))
    assert not ours.knows_this_process(Tag(sender=sender, nonce=3))
    assert tag_of(ours.tag_and_seal(PLAIN, Tag(), ROUTE)).echo == 3
    again = Tag(sender=sender, nonce=3, echo=ours.nonce)
    assert ours.knows_this_process(again)
    assert ours.note_peer(again)
    assert not ours.note_peer(again)


def test_what_is_not_sealed_is_refused_where_there_is_a_key():
    ours, theirs = Speaker(Seal(KEY), 7), Speaker(Seal(KEY), 1)
    good = theirs.tag_and_seal(PLAIN, Tag(), ROUTE)
    take(ours, good)
    for data, why in [
        (PLAIN, "not sealed"),
        (Speaker(Seal(b""), 1).tag_and_seal(PLAIN, Tag(), ROUTE), "not sealed"),
        (Speaker(Seal(KEY + b"x"), 1).tag_and_seal(PLAIN, Tag(), ROUTE), "wrong"),
        (theirs.tag_and_seal(PLAIN, Tag(), b"agent>host-1"), "wrong"),
        (good, "replay"),
    ]:
        with pytest.raises(SealRefused, match=why):
            take(ours, data)
    assert ours.speaks_extension is None


# --- addresses -------------------------------------------------------------------------------------


class Known:
    """Stands for a resolver."""

    def __init__(self, **addresses):
        self.known = addresses

    def addresses(self, name):
        return self.known.get(name, ())


def test_all_addresses_of_the_names_are_allowed_and_nobody_else():
    allowed = Allowed(Known(one=("10.0.0.1", "fd00::1"), two=("10.0.0.2",)), ["one", "two", "three"])
    inside = ["10.0.0.1", "fd00::1", "10.0.0.2"]
    assert all(address in allowed for address in inside)
    assert not any(address in allowed for address in ("10.0.0.3", "", "one"))


def test_nobody_is_allowed_before_the_names_are_known():
    resolver = Known()
    allowed = Allowed(resolver, ["one"])
    assert "10.0.0.1" not in allowed
    resolver.known["one"] = ("10.0.0.1",)
    assert "10.0.0.1" in allowed
    assert "10.0.0.1" not in Allowed(resolver, [])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["controller", "controller-0", "controller-1"]),
        ({"controller": "10.0.0.1"}, ["10.0.0.1"]),
        ({"controller": "c", "agents": " a, b,,"}, ["c", "a", "b"]),
        ({"agents": "x"}, ["controller", "controller-0", "controller-1", "x"]),
    ],
)
def test_whose_commands_a_server_obeys(changes, names):
    assert ServerSettings(**changes).agent_names() == names
