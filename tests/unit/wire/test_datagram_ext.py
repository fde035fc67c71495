from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import ACK, IS_ACK, WANTS_ACK, Seal, SealRefused, Tag

KEY = b"k" * 16
ROUTE = b"agent>compute-0"
PLAIN = datagram.build_command(datagram.QRY_INST, "10.0.0.1", datagram.Query())
TAG = Tag(WANTS_ACK, 11, 22, 33, 44, 55)
U32 = st.integers(0, 2**32 - 1)


def test_byte_offsets():
    data = datagram_ext.stamp_tag(PLAIN, TAG)
    assert struct.unpack_from("<HHI", data, 64) == (1, WANTS_ACK, 11)
    assert struct.unpack_from("<I5I", data, 76) == (22, 33, 44, 55, 0, 0)
    assert data[:64] == PLAIN[:64] and data[72:76] == PLAIN[72:76] and data[100:] == PLAIN[100:]
    sealed = Seal(KEY).add_seal(data, ROUTE)
    assert sealed[:32] == data[:32] and sealed[64:] == data[64:]
    assert struct.unpack_from("<Q", sealed, 32) == (1,)
    assert any(sealed[40:64])


def test_the_values_of_docs_datagrams():
    """Daemons of two versions of this project speak to each other: what is on the wire stays."""
    assert (datagram_ext.ACK, datagram_ext.MARK) == (0x11110ACC, 0x11110ACD)
    flags = (datagram_ext.WANTS_ACK, datagram_ext.IS_ACK, datagram_ext.GOODBYE, datagram_ext.TAKES_MARKS)
    assert (*flags, datagram_ext.ANEW, datagram_ext.STILL_ILL) == (1, 2, 4, 8, 16, 32)
    assert (datagram_ext.KEY_MIN, datagram_ext.MAC_SIZE, datagram_ext.WINDOW) == (16, 24, 64)
    assert datagram_ext.WINDOWS_MAX == 65_536


@pytest.mark.parametrize("flag", [1, 2, 4, 8, 16, 32])
def test_a_flag_says_one_thing(flag):
    tag = Tag(flag)
    said = {1: tag.wants_ack, 4: tag.is_goodbye, 16: tag.is_anew, 32: tag.is_still_ill}
    assert {bit for bit, is_set in said.items() if is_set} == {flag} & {1, 4, 16, 32}


def test_a_tag_says_nothing_by_itself():
    assert Tag() == (0, 0, 0, 0, 0, 0, 0)


def test_a_mark_names_the_event_and_the_vim_that_is_told():
    frame = datagram.unpack(
        datagram_ext.stamp_tag(datagram_ext.build_mark(b""), datagram_ext.mark_tag(TAG, 9))
    )
    assert (frame.cmd, frame.body) == (datagram_ext.MARK, {})
    assert datagram_ext.read_tag(frame) == Tag(0, number=22, acked_sender=11, vim=9)


def test_an_old_daemon_bears_no_tag_and_reads_ours_as_its_own():
    assert datagram_ext.read_tag(datagram.unpack(PLAIN)) is None
    stamped = datagram.unpack(datagram_ext.stamp_tag(PLAIN, TAG))
    assert datagram.parse_command(stamped) == datagram.Query()
    assert (stamped.signature, stamped.body) == (b"guest msg header:", {"source": "10.0.0.1"})


@given(st.integers(0, 7), U32, U32, U32, U32, U32)
def test_a_tag_survives(flags, sender, number, acked_sender, nonce, echo):
    tag = Tag(flags, sender, number, acked_sender, nonce, echo)
    assert datagram_ext.read_tag(datagram.unpack(datagram_ext.stamp_tag(PLAIN, tag))) == tag


def test_an_acknowledgement_names_the_message():
    tag = datagram_ext.ack_tag(TAG)._replace(sender=7)
    frame = datagram.unpack(datagram_ext.stamp_tag(datagram_ext.build_ack(datagram.AGENT_SIGNATURE), tag))
    assert frame.cmd == ACK
    assert datagram_ext.read_tag(frame) == Tag(IS_ACK, 7, 22, 11)
    with pytest.raises(datagram.BadDatagram):
        datagram.parse_event(frame)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (2, 1, True),
        (1, 2, False),
        (1, 1, False),
        (1, 2**32 - 1, True),
        (2**32 - 1, 1, False),
        (2**31 - 1, 0, True),
        (2**31, 0, False),
    ],  # fmt: skip
)
def test_numbers_wrap(one, other, expected):
    assert datagram_ext.is_newer(one, other) is expected


# --- the seal --------------------------------------------------------------------------------------


def sealed(seal, tag=TAG, route=ROUTE):
    return seal.add_seal(datagram_ext.stamp_tag(PLAIN, tag), route)


def test_a_sealed_datagram_passes_once_in_any_order():
    ours, theirs = Seal(KEY), Seal(KEY)
    datagrams = [sealed(ours) for _ in range(10)]
    for data in reversed(datagrams):
        theirs.check_seal(data, ROUTE, TAG.nonce)
    for data in datagrams:
        with pytest.raises(SealRefused, match="replay"):
            theirs.check_seal(data, ROUTE, TAG.nonce)


@pytest.mark.parametrize("came", [(0, 1, 2), (0, 2), (2, 0), (1, 0, 2), (0, 2, 1), (2,)])
def test_what_has_come_passes_no_second_time_and_what_has_not_passes(came):
    ours, theirs = Seal(KEY), Seal(KEY)
    datagrams = [sealed(ours) for _ in range(3)]
    for index in came:
        theirs.check_seal(datagrams[index], ROUTE, TAG.nonce)
    for index in came:
        with pytest.raises(SealRefused, match="replay"):
            theirs.check_seal(datagrams[index], ROUTE, TAG.nonce)
    for index in {0, 1, 2} - set(came):
        theirs.check_seal(datagrams[index], ROUTE, TAG.nonce)


@pytest.mark.parametrize(("since", "passes"), [(62, True), (63, True), (64, False), (65, False), (99, False)])
def test_a_datagram_may_come_after_63_that_were_sent_later(since, passes):
    ours, theirs = Seal(KEY), Seal(KEY)
    first = sealed(ours)
    later = [sealed(ours) for _ in range(since)]
    theirs.check_seal(later[-1], ROUTE, TAG.nonce)
    if passes:
        theirs.check_seal(first, ROUTE, TAG.nonce)
    with pytest.raises(SealRefused, match="replay"):
        theirs.check_seal(first, ROUTE, TAG.nonce)


def test_a_window_takes_the_same_memory_whatever_has_passed():
    ours, theirs = Seal(KEY), Seal(KEY)
    for _ in range(3 * datagram_ext.WINDOW):
        theirs.check_seal(sealed(ours), ROUTE, TAG.nonce)
    ((highest, bits),) = theirs._windows.values()
    assert (highest, bits) == (192, 2**64 - 1)


@pytest.mark.parametrize("place", [0, 20, 33, 40, 63, 64, 72, 80, 99, 100, len(PLAIN) - 1])
def test_whatever_is_altered_breaks_the_seal(place):
    data = bytearray(sealed(Seal(KEY)))
    data[place] ^= 1
    with pytest.raises(SealRefused, match="wrong"):
        Seal(KEY).check_seal(bytes(data), ROUTE, TAG.nonce)


def test_unsealed_foreign_and_misdirected_ones_are_refused():
    theirs = Seal(KEY)
    with pytest.raises(SealRefused, match="not sealed"):
        theirs.check_seal(datagram_ext.stamp_tag(PLAIN, TAG), ROUTE, TAG.nonce)
    with pytest.raises(SealRefused, match="wrong"):
        theirs.check_seal(sealed(Seal(b"another key of 16")), ROUTE, TAG.nonce)
    with pytest.raises(SealRefused, match="wrong"):
        theirs.check_seal(sealed(Seal(KEY)), b"agent>compute-1", TAG.nonce)
    theirs.check_seal(sealed(Seal(KEY)), ROUTE, TAG.nonce)


def test_the_seal_is_made_of_the_route_a_nul_and_the_datagram_without_it():
    data = sealed(Seal(KEY))
    content = ROUTE + b"\0" + data[:40] + bytes(24) + data[64:]
    assert data[40:64] == hmac.new(KEY, content, hashlib.sha256).digest()[:24]


def test_an_old_daemon_reads_a_sealed_datagram():
    frame = datagram.unpack(sealed(Seal(KEY)))
    assert (frame.signature, datagram.parse_command(frame)) == (b"guest msg header:", datagram.Query())


# --- a change of keys ------------------------------------------------------------------------------

OLD, NEW = b"the key of before", b"the key of after!"


def passes(sender, receiver):
    try:
        receiver.check_seal(sealed(sender), ROUTE, TAG.nonce)
        return True
    except SealRefused:
        return False


def test_a_change_of_keys_loses_no_datagram_in_any_order():
    """The procedure of docs/install.md: each step is taken by one side first, and by the other at last."""
    steps = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    for first in (0, 1):
        sides = [Seal(OLD), Seal(OLD)]
        for step in steps[1:]:
            for side in (sides[first], sides[1 - first]):
                assert side.change_keys(*step)
                assert passes(sides[0], sides[1]) and passes(sides[1], sides[0])
        assert not passes(Seal(OLD), sides[0])


def test_what_passed_before_a_change_of_keys_does_not_pass_after_it():
    ours, theirs = Seal(OLD), Seal(OLD)
    data = sealed(ours)
    theirs.check_seal(data, ROUTE, TAG.nonce)
    theirs.change_keys(NEW, OLD)
    with pytest.raises(SealRefused, match="replay"):
        theirs.check_seal(data, ROUTE, TAG.nonce)


def test_the_same_keys_are_no_change_and_a_short_one_changes_nothing():
    seal = Seal(OLD)
    assert not seal.change_keys(OLD)
    with pytest.raises(ValueError, match="5 bytes"):
        seal.change_keys(OLD, b"short")
    assert passes(Seal(OLD), seal) and not passes(Seal(b"short" * 4), seal)


def test_without_a_key_nothing_is_sealed_and_everything_passes():
    seal = Seal()
    assert not seal and seal.add_seal(PLAIN, ROUTE) == PLAIN
    seal.check_seal(PLAIN, ROUTE, 0)


def test_only_so_many_processes_are_remembered(monkeypatch):
    monkeypatch.setattr(datagram_ext, "WINDOWS_MAX", 3)
    theirs = Seal(KEY)
    for nonce in (1, 2, 1, 3, 1, 4, 1):
        theirs.check_seal(
            sealed(Seal(KEY), TAG._replace(nonce=nonce)) if nonce > 1 else next_of_one(), ROUTE, nonce
        )
    assert sorted(nonce for _, nonce in theirs._windows) == [1, 3, 4]


def next_of_one(ours=Seal(KEY)):  # noqa: B008 -- one seal for all calls
    return sealed(ours, TAG._replace(nonce=1))


def test_a_short_key_is_none():
    with pytest.raises(ValueError, match="15 bytes"):
        Seal(b"x" * 15)
    assert Seal(b"x" * 16)
    with pytest.raises(ValueError, match="2 bytes"):
        Seal(KEY, b"xx")


@pytest.mark.parametrize("size", [0, 1, 40, 63, 64, 99])
def test_what_is_shorter_than_a_datagram_is_not_sealed(size):
    with pytest.raises(SealRefused, match="not sealed"):
        Seal(KEY).check_seal(b"x" * size, ROUTE, TAG.nonce)


def test_the_shortest_datagram_can_be_sealed():
    theirs, data = Seal(KEY), datagram_ext.stamp_tag(datagram_ext.build_ack(b""), TAG)
    assert len(data) == 100
    theirs.check_seal(Seal(KEY).add_seal(data, ROUTE), ROUTE, TAG.nonce)


def test_each_route_and_process_has_a_window_of_its_own():
    theirs, data = Seal(KEY), sealed(Seal(KEY))
    theirs.check_seal(data, ROUTE, 1)
    theirs.check_seal(data, ROUTE, 2)
    theirs.check_seal(sealed(Seal(KEY), route=b"agent>compute-1"), b"agent>compute-1", 1)
    with pytest.raises(SealRefused, match="replay"):
        theirs.check_seal(data, ROUTE, 1)
