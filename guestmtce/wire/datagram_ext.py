"""What our guestServer and our guestAgent add to the datagram.

docs/protocol/2-datagrams.md#the-added-fields
docs/protocol/2-datagrams.md#the-seal

It lives in fields that old daemons send as 0 and do not look at, so it can be sent to anybody; whoever
sets `ver` shows that he understands it. A `Tag` says who sent a datagram, which one it is, and whether
it wants to be acknowledged. A `Seal`, where a key is configured, proves that it was made by a holder of the
key, for this receiver, and not sent before.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Dict, NamedTuple, Optional, Tuple

from guestmtce.wire import datagram

EXTENSION_VERSION = 1  # in `ver`: I speak this

WANTS_ACK = 1  # flags, in `rev`
IS_ACK = 2
GOODBYE = 4  # on a LOOPBACK, which old servers ignore: this guestAgent stops, another may be followed at once
TAKES_MARKS = 8  # its sender knows MARK
ANEW = 16  # on a command that enables reporting: it was disabled before, which was not confirmed
STILL_ILL = 32  # on a RUNNING: an illness that was told before, and is perhaps not confirmed, goes on

# An acknowledgement is a datagram of its own, sent only to who has shown that he speaks this.
ACK = 0x11110ACC
# "The event that you repeat is under way to this VIM": sent only to who takes marks, who shows it to the next
# agent with the event.
MARK = 0x11110ACD

_FIELDS = struct.Struct("<HHI")  # ver, rev, res at 64
_NUMBER = struct.Struct("<I5I")  # num, parm at 76
_FIELDS_AT = 64
_NUMBER_AT = 76

# In `hdr`, behind the signature and the name of mtcAgent's peer.
_COUNTER_AT = 32
_MAC_AT = 40
MAC_SIZE = 24  # bytes of HMAC-SHA256 kept
_SEAL_END = _MAC_AT + MAC_SIZE
KEY_MIN = 16  # bytes

SEQUENCES = 2**32
WINDOW = 64  # counters below the highest one that may still come, once each
# Processes and routes whose counters are remembered. Only a holder of the key makes one.
WINDOWS_MAX = 65_536


class Tag(NamedTuple):
    """Who and which. All are u32; 0 stands for unknown.

    `sender` stays the same over what the sender still has to tell; `number` grows with every message that
    wants an acknowledgement, and names, in an acknowledgement, the message of `acked_sender` that is meant.
    `nonce` is the sender's process, `echo` the receiver's nonce as the sender knows it. `vim` is the VIM to
    which an agent was telling the message, as that agent names it.
    """

    flags: int = 0
    sender: int = 0
    number: int = 0
    acked_sender: int = 0
    nonce: int = 0
    echo: int = 0
    vim: int = 0

    @property
    def wants_ack(self) -> bool:
        """Whether the sender repeats the message until it is acknowledged."""
        return bool(self.flags & WANTS_ACK)

    @property
    def is_anew(self) -> bool:
        """Whether the receiver may have missed that what this enables was disabled before."""
        return bool(self.flags & ANEW)

    @property
    def is_still_ill(self) -> bool:
        """Whether the guest that heartbeats (again) is as ill as was told before."""
        return bool(self.flags & STILL_ILL)

    @property
    def is_goodbye(self) -> bool:
        """Whether the sender stops."""
        return bool(self.flags & GOODBYE)


def stamp_tag(data: bytes, tag: Tag) -> bytes:
    """`data`, a packed datagram, with the tag in it."""
    changed = bytearray(data)
    _FIELDS.pack_into(changed, _FIELDS_AT, EXTENSION_VERSION, tag.flags, tag.sender)
    _NUMBER.pack_into(changed, _NUMBER_AT, tag.number, tag.acked_sender, tag.nonce, tag.echo, tag.vim, 0)
    return bytes(changed)


def read_tag(frame: datagram.Datagram) -> Optional[Tag]:
    """The tag of a datagram; None when its sender does not speak this."""
    if frame.ver == 0:
        return None
    return Tag(frame.rev, frame.res, frame.num, *frame.parm[:4])


def build_ack(signature: bytes) -> bytes:
    """An acknowledgement; `ack_tag` is the tag that goes with it."""
    return datagram.pack(ACK, {}, signature)


def ack_tag(tag: Tag) -> Tag:
    """The tag of the acknowledgement of the message that bore `tag`."""
    return Tag(IS_ACK, number=tag.number, acked_sender=tag.sender)


def build_mark(signature: bytes) -> bytes:
    """A mark of an event; `mark_tag` is the tag that goes with it."""
    return datagram.pack(MARK, {}, signature)


def mark_tag(tag: Tag, vim: int) -> Tag:
    """The tag of a mark of the event that bore `tag`; `vim` is 0 when it is under way no more."""
    return Tag(number=tag.number, acked_sender=tag.sender, vim=vim)


def is_newer(one: int, other: int) -> bool:
    """Whether the number `one` came after `other`; numbers wrap at 2³²."""
    return 0 < (one - other) % SEQUENCES < SEQUENCES // 2


# --- the seal --------------------------------------------------------------------------------------


class SealRefused(ValueError):
    """The seal is missing, wrong or used before; the text says which."""


def check_key(key: bytes) -> None:
    """Raises ValueError for a key that is too short."""
    if len(key) < KEY_MIN:
        raise ValueError("the key has %d bytes, at least %d are needed" % (len(key), KEY_MIN))


class Seal:
    """Seals what is sent and checks what comes, with a shared `key` of at least KEY_MIN bytes.

    `other` is a second key that opens, too: while keys are changed, some daemons seal with the one and some
    with the other. Without a key nothing is sealed and nothing checked.

    What is proven depends on the `route`, for example `b"agent>compute-0"`: who speaks to whom. A counter per
    process and route lets every datagram pass once; one process (`nonce`) replaces another on a route only
    while its counters have not been seen, and the caller checks `echo` so that recordings of an earlier
    conversation find no listener. Raises ValueError for a short key.
    """

    def __init__(self, key: bytes = b"", other: bytes = b"") -> None:
        self._keys: Tuple[bytes, ...] = ()
        self._sent = 0
        # (route, nonce) → highest, window bits; the one that spoke longest ago first
        self._windows: Dict[Tuple[bytes, int], Tuple[int, int]] = {}
        self.change_keys(key, other)

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._keys)

    def change_keys(self, key: bytes, other: bytes = b"") -> bool:
        """Take other keys; what came before passes no second time. Whether anything changed."""
        keys = tuple(one for one in (key, other) if one)
        for one in keys:
            check_key(one)
        changed = keys != self._keys
        self._keys = keys
        return changed

    def add_seal(self, data: bytes, route: bytes) -> bytes:
        """`data`, stamped, with a seal."""
        if not self._keys:
            return data
        self._sent += 1
        changed = bytearray(data)
        struct.pack_into("<Q", changed, _COUNTER_AT, self._sent)
        changed[_MAC_AT:_SEAL_END] = _mac(self._keys[0], changed, route)
        return bytes(changed)

    def check_seal(self, data: bytes, route: bytes, nonce: int) -> None:
        """Check `data`, whose tag bears `nonce`. Raises SealRefused."""
        if not self._keys:
            return
        if len(data) < datagram.HEADER.size or not any(data[_COUNTER_AT:_SEAL_END]):
            raise SealRefused("not sealed")
        mac, content = data[_MAC_AT:_SEAL_END], bytearray(data)
        if not any(hmac.compare_digest(_mac(key, content, route), mac) for key in self._keys):
            raise SealRefused("the seal is wrong")
        (counter,) = struct.unpack_from("<Q", data, _COUNTER_AT)
        highest, bits = self._windows.get((route, nonce), (0, 0))
        if counter > highest:
            bits = (bits << min(counter - highest, WINDOW)) | 1
            highest = counter
        else:
            bit = 1 << (highest - counter)
            if highest - counter >= WINDOW or bits & bit:
                raise SealRefused("a replay")
            bits |= bit
        self._remember((route, nonce), (highest, bits & (2**WINDOW - 1)))

    def _remember(self, who: Tuple[bytes, int], window: Tuple[int, int]) -> None:
        self._windows.pop(who, None)
        if len(self._windows) >= WINDOWS_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[who] = window


def _mac(key: bytes, data: bytearray, route: bytes) -> bytes:
    blank = bytes(data[:_MAC_AT]) + bytes(MAC_SIZE) + bytes(data[_SEAL_END:])
    return hmac.new(key, route + b"\0" + blank, hashlib.sha256).digest()[:MAC_SIZE]
