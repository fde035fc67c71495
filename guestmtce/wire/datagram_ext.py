"""What our guestServer and our guestAgent add to the datagram: a tag, and a seal where a key is configured.

docs/protocol/2-datagrams.md#the-added-fields
docs/protocol/2-datagrams.md#confirmed-and-repeated
docs/protocol/2-datagrams.md#the-seal

The added fields are those that old daemons send as 0 and do not look at, so they can be sent to any peer. A
sender that sets `ver` shows that it speaks the extension. A `Tag` says who sent a datagram, which one it is,
and whether it wants to be confirmed. A `Seal` proves that the datagram was made by a holder of the key, for
this receiver, and was not sent before.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Dict, NamedTuple, Optional, Tuple

from guestmtce.wire import datagram

# In `ver`: the sender speaks this extension.
EXTENSION_VERSION = 1

# Flags, in `rev`.
WANTS_ACK = 1  # the sender repeats the datagram until it is confirmed
IS_ACK = 2  # this is a confirmation
GOODBYE = 4  # on a LOOPBACK, which old servers ignore: this guestAgent stops, another may be followed at once
TAKES_MARKS = 8  # the sender understands MARK
ANEW = 16  # on a command that enables reporting: it was disabled before, which was not confirmed
STILL_ILL = 32  # on a RUNNING: an illness that was reported before, and perhaps not confirmed, goes on

# A confirmation is a datagram of its own, sent only to a peer that has shown that it speaks the extension.
ACK = 0x11110ACC
# "The event that you repeat is being delivered to this VIM": sent only to a peer with TAKES_MARKS, which
# repeats the event with the mark, so that the next agent knows (docs/protocol/2-datagrams.md#marks).
MARK = 0x11110ACD

# Where the added fields lie in the header (docs/protocol/2-datagrams.md#layout, #the-added-fields).
_VER_TO_RES = struct.Struct("<HHI")  # ver, rev, res
_VER_AT = 64
_NUM_TO_PARM = struct.Struct("<I5I")  # num, parm[5]
_NUM_AT = 76
# These stand in the free part of `hdr`, behind the signature and the name of mtcAgent's peer.
_COUNTER = struct.Struct("<Q")
_COUNTER_AT = 32
_MAC_AT = 40
MAC_SIZE = 24  # bytes kept of the 32 of HMAC-SHA256 (RFC 2104: half of them or more)
_SEAL_END = _MAC_AT + MAC_SIZE

KEY_MIN = 16  # bytes
SEQUENCES = 2**32  # sequences are u32 and wrap
# Counters below the highest one that may still come, once each: datagrams overtake each other on their way.
WINDOW = 64
# Pairs of route and process whose counters are remembered. Only a holder of the key makes one.
WINDOWS_MAX = 65_536


class Tag(NamedTuple):
    """Sender and identity of a datagram. All fields are u32 (`flags` u16); 0 stands for unknown or none.

    docs/protocol/2-datagrams.md#the-added-fields
    """

    flags: int = 0
    sender: int = 0  # the same for as long as the sender keeps what it has to report
    number: int = 0  # grows with every message that wants to be confirmed; in an ACK or MARK: of which one
    acked_sender: int = 0  # in an ACK or MARK: the sender of the message `number`
    nonce: int = 0  # random, of the sending process
    echo: int = 0  # the receiver's nonce, as the sender knows it
    vim: int = 0  # the VIM to which an agent was delivering the event, as that agent names it

    @property
    def wants_ack(self) -> bool:
        """Whether the sender repeats the message until it is confirmed."""
        return bool(self.flags & WANTS_ACK)

    @property
    def is_anew(self) -> bool:
        """Whether the receiver may have missed that what this enables was disabled before."""
        return bool(self.flags & ANEW)

    @property
    def is_still_ill(self) -> bool:
        """Whether the guest that heartbeats (again) is as ill as was reported before."""
        return bool(self.flags & STILL_ILL)

    @property
    def is_goodbye(self) -> bool:
        """Whether the sender stops."""
        return bool(self.flags & GOODBYE)


def stamp_tag(data: bytes, tag: Tag) -> bytes:
    """`data`, a packed datagram, with the tag in it. Raises struct.error for a field that is no u32."""
    stamped = bytearray(data)
    _VER_TO_RES.pack_into(stamped, _VER_AT, EXTENSION_VERSION, tag.flags, tag.sender)
    _NUM_TO_PARM.pack_into(stamped, _NUM_AT, tag.number, tag.acked_sender, tag.nonce, tag.echo, tag.vim, 0)
    return bytes(stamped)


def read_tag(frame: datagram.Datagram) -> Optional[Tag]:
    """The tag of a datagram; None when its sender does not speak the extension."""
    if frame.ver == 0:
        return None
    return Tag(frame.rev, frame.res, frame.num, *frame.parm[:4])


def build_ack(signature: bytes) -> bytes:
    """A confirmation; `ack_tag` makes the tag that goes with it."""
    return datagram.pack(ACK, {}, signature)


def ack_tag(tag: Tag) -> Tag:
    """The tag of the confirmation of the message that bore `tag`."""
    return Tag(IS_ACK, number=tag.number, acked_sender=tag.sender)


def build_mark(signature: bytes) -> bytes:
    """A mark of an event; `mark_tag` makes the tag that goes with it."""
    return datagram.pack(MARK, {}, signature)


def mark_tag(tag: Tag, vim: int) -> Tag:
    """The tag of a mark of the event that bore `tag`; `vim` is 0 when no VIM is being told any more."""
    return Tag(number=tag.number, acked_sender=tag.sender, vim=vim)


def is_newer(sequence: int, other: int) -> bool:
    """Whether the message with `sequence` was made after the one with `other`, both of one sender.

    docs/protocol/2-datagrams.md#late-and-out-of-order

    Half of all sequences count as newer than a given one: sequences wrap at 2³².
    """
    return 0 < (sequence - other) % SEQUENCES < SEQUENCES // 2


# --- the seal --------------------------------------------------------------------------------------


class SealRefused(ValueError):
    """The seal is missing, wrong or used before; the text says which."""


def check_key(key: bytes) -> None:
    """Raises ValueError for a key that is too short."""
    if len(key) < KEY_MIN:
        raise ValueError("the key has %d bytes, at least %d are needed" % (len(key), KEY_MIN))


class Seal:
    """Seals what is sent and checks what comes, with a shared `key` of at least KEY_MIN bytes.

    docs/protocol/2-datagrams.md#the-seal

    `other` is a second key that opens, too: while keys are changed, some daemons seal with the one and some
    with the other. Without a key nothing is sealed and nothing is checked.

    What is proven depends on the `route`, for example `b"agent>compute-0"`: who speaks to whom. A counter per
    process and route lets every datagram pass once. One process (`nonce`) replaces another on a route only
    while its counters have not been seen. The caller checks `echo`, so that a recording of an earlier
    conversation is not taken. Raises ValueError for a short key.
    """

    def __init__(self, key: bytes = b"", other: bytes = b"") -> None:
        self._keys: Tuple[bytes, ...] = ()
        self._sent = 0  # datagrams sealed by this process
        # (route, nonce) → highest counter, a bit for each of the WINDOW counters from it downwards that was
        # seen; in the order in which they were last heard.
        self._windows: Dict[Tuple[bytes, int], Tuple[int, int]] = {}
        self.change_keys(key, other)

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._keys)

    def change_keys(self, key: bytes, other: bytes = b"") -> bool:
        """Take other keys. What came before passes no second time. Returns whether anything changed.

        Raises ValueError for a short key; the keys are as before then.
        """
        keys = tuple(given for given in (key, other) if given)
        for given in keys:
            check_key(given)
        changed = keys != self._keys
        self._keys = keys
        return changed

    def add_seal(self, data: bytes, route: bytes) -> bytes:
        """`data`, a datagram with its tag, with a seal; `data` itself where there is no key."""
        if not self._keys:
            return data
        self._sent += 1
        sealed = bytearray(data)
        _COUNTER.pack_into(sealed, _COUNTER_AT, self._sent)
        sealed[_MAC_AT:_SEAL_END] = _compute_mac(self._keys[0], sealed, route)
        return bytes(sealed)

    def check_seal(self, data: bytes, route: bytes, nonce: int) -> None:
        """Check `data`, whose tag bears `nonce`, and note its counter. Raises SealRefused."""
        if not self._keys:
            return
        # A daemon without a key leaves these bytes 0: the log shall name the missing key, not a forgery.
        if len(data) < datagram.HEADER.size or not any(data[_COUNTER_AT:_SEAL_END]):
            raise SealRefused("not sealed")
        mac, content = data[_MAC_AT:_SEAL_END], bytearray(data)
        # compare_digest takes the same time wherever two MACs differ: a forger learns no byte from it.
        if not any(hmac.compare_digest(_compute_mac(key, content, route), mac) for key in self._keys):
            raise SealRefused("the seal is wrong")
        # Last: only a holder of the key moves a window. Anybody else could void all that the real sender says
        # next.
        self._note_counter((route, nonce), *_COUNTER.unpack_from(data, _COUNTER_AT))

    def _note_counter(self, origin: Tuple[bytes, int], counter: int) -> None:
        """Take note of a counter of `origin`, a route and a nonce. Raises SealRefused: it was seen before.

        The anti-replay window of RFC 4303 (section 3.4.3): bit 0 stands for the highest counter.
        """
        highest, bits = self._windows.get(origin, (0, 0))
        if counter > highest:
            # Bounded: a counter has 64 bits, and a shift by so many would take all memory.
            bits = (bits << min(counter - highest, WINDOW)) | 1
            highest = counter
        else:
            bit = 1 << (highest - counter)
            if highest - counter >= WINDOW or bits & bit:
                raise SealRefused("a replay")
            bits |= bit
        self._remember(origin, (highest, bits & (2**WINDOW - 1)))

    def _remember(self, origin: Tuple[bytes, int], window: Tuple[int, int]) -> None:
        self._windows.pop(origin, None)
        if len(self._windows) >= WINDOWS_MAX:
            del self._windows[next(iter(self._windows))]  # the one that spoke longest ago
        self._windows[origin] = window


def _compute_mac(key: bytes, data: bytearray, route: bytes) -> bytes:
    """The MAC of a datagram on its route, whatever stands in the MAC's own place."""
    # The NUL keeps the route apart from the datagram's first bytes.
    blank = bytes(data[:_MAC_AT]) + bytes(MAC_SIZE) + bytes(data[_SEAL_END:])
    return hmac.new(key, route + b"\0" + blank, hashlib.sha256).digest()[:MAC_SIZE]
