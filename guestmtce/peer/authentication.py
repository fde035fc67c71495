"""What we send a peer over UDP, and which peers we believe: the part that both daemons share.

docs/protocol/2-datagrams.md#whom-the-daemons-believe
docs/protocol/2-datagrams.md#the-seal
"""

from __future__ import annotations

import os
import stat
from typing import List, NamedTuple, Optional

from guestmtce.daemon.config import Finding
from guestmtce.daemon.resolver import Resolver
from guestmtce.daemon.udp_port import UdpPort
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Seal, SealRefused, Tag

# Beyond any key: a file that is none must not be read whole.
KEY_FILE_MAX = 4096  # bytes
KEY_SETTINGS = ("key_file", "old_key_file")  # what a reload takes at once
REMEDY = ": make it (docs/install.md, A key between the daemons), or leave the setting out"


class Keys(NamedTuple):
    """`key` seals and opens, `old` opens only; each has KEY_MIN bytes or more, or is empty: none."""

    key: bytes = b""
    old: bytes = b""


NO_KEYS = Keys()


def read_keys(key_file: str, old_key_file: str) -> Keys:
    """The keys in these files; an empty name stands for none. Raises OSError."""
    if old_key_file and not key_file:
        raise OSError("[security] old_key_file without key_file: nothing would be sealed")
    return Keys(*(read_key(path) if path else b"" for path in (key_file, old_key_file)))


def check_keys(key_file: str, old_key_file: str) -> List[Finding]:
    """What is wrong with the settings of these names."""
    findings = []
    for name, path in zip(KEY_SETTINGS, (key_file, old_key_file)):
        try:
            if path:
                read_key(path)
        except OSError as error:
            why = str(error) if error.strerror is None else error.strerror + REMEDY
            findings.append(Finding(name, why))
    if old_key_file and not key_file:
        findings.append(Finding("old_key_file", "there is no key_file, so nothing would be sealed: name one"))
    return findings


def read_key(path: str) -> bytes:
    """The key in a file, without white space around it.

    Raises OSError, with the remedy, for a short key too, and for a file that others can read or write.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block us
    try:
        # Of the open file and not of its name, which may lead to another one a moment later.
        _check_owner(path, os.fstat(descriptor))
        key = os.read(descriptor, KEY_FILE_MAX).strip()
    finally:
        os.close(descriptor)
    try:
        datagram_ext.check_key(key)
    except ValueError as error:
        # ValueError's text has the key's length and nothing of the key: it goes into the log.
        raise OSError("%s: %s" % (path, error)) from None
    return key


def _check_owner(path: str, found: os.stat_result) -> None:
    """Raises OSError if anybody but root and ourselves has to do with the file."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError("%s: the key must stand in a regular file" % path)
    if found.st_uid not in (0, os.geteuid()):
        text = "%s belongs to uid %d, who could change the key: chown %d %s"
        raise OSError(text % (path, found.st_uid, os.geteuid(), path))
    # 0600 and 0400 pass (docs/protocol/2-datagrams.md#the-seal).
    if found.st_mode & 0o177:
        text = "%s has mode %04o, so that others may know or change the key: chmod 0600 %s"
        raise OSError(text % (path, stat.S_IMODE(found.st_mode), path))


def new_nonce() -> int:
    """A nonce for this process, 1 … 2³²−1, odd: 0 stands for none."""
    return int.from_bytes(os.urandom(4), "little") | 1


class Speaker:
    """Our side of the conversation with one peer: does it speak our extension, what is its nonce.

    `speaks_extension` is None until the peer has sent something. All speakers of a process share one nonce
    and one seal: a datagram accepted from one address is a replay from any other. Where there is a key, a
    peer is believed once it has echoed our nonce: that shows that it speaks to this process, and not to one
    before it.
    """

    def __init__(self, seal: Seal, sender: int, nonce: int = 0) -> None:
        self.speaks_extension: Optional[bool] = None
        self.sender = sender
        self.nonce = nonce or new_nonce()
        self._seal = seal
        # Two memories of the peer: what is echoed may come from a datagram that was not believed yet.
        self._peer_nonce = 0  # as we echo it
        self._believed = (0, 0)  # nonce and sender of the last one that was believed

    @property
    def sealed(self) -> bool:
        """Whether a key is configured."""
        return bool(self._seal)

    def for_another(self) -> Speaker:
        """Our side of the conversation with another peer."""
        return Speaker(self._seal, self.sender, self.nonce)

    def tag_and_seal(self, data: bytes, tag: Tag, route: bytes) -> bytes:
        """`data` with a tag, and a seal where there is a key."""
        tag = tag._replace(sender=self.sender, nonce=self.nonce, echo=self._peer_nonce)
        # The seal covers the tag. Whom we do not know gets the tag, too: an old daemon does not look at it
        # (docs/protocol/2-datagrams.md#old-peers-and-ours).
        return self._seal.add_seal(datagram_ext.stamp_tag(data, tag), route)

    def check(self, data: bytes, frame: datagram.Datagram, route: bytes) -> None:
        """Raises SealRefused for a datagram that should have been sealed and is not."""
        if self.sealed:
            tag = datagram_ext.read_tag(frame)
            if tag is None:
                raise SealRefused("not sealed")
            self._seal.check_seal(data, route, tag.nonce)

    def knows_this_process(self, tag: Optional[Tag]) -> bool:
        """Whether the sender of a checked datagram knows our nonce; one that does not is to be sent it."""
        if not self.sealed:
            return True
        # check() has refused what has no tag.
        assert tag is not None
        if tag.echo == self.nonce:
            return True
        # Not believed, but echoed: our answer shows the peer our nonce, and that we have heard it. One round
        # trip, and both know each other (docs/protocol/2-datagrams.md#the-seal).
        self._peer_nonce = tag.nonce
        return False

    def note_peer(self, tag: Optional[Tag]) -> bool:
        """A believed datagram has come: whether its sender, or its speaking the extension, has changed."""
        # The nonce shows a new process, the sender a new memory: either has heard nothing of what we sent
        # before.
        before = (self.speaks_extension, self._believed)
        self.speaks_extension = tag is not None
        if tag is not None:
            self._peer_nonce = tag.nonce
            self._believed = (tag.nonce, tag.sender)
        return before != (self.speaks_extension, self._believed)


class Allowed:
    """All addresses of some names, as far as they are known; while none is known no address is allowed."""

    def __init__(self, resolver: Resolver, names: List[str]) -> None:
        self._resolver = resolver
        self._names = names

    def __contains__(self, address: str) -> bool:
        # Asked each time: the addresses of a name change, and are looked up beside the loop.
        return any(address in self._resolver.addresses(name) for name in self._names)


class Candidates:
    """The addresses of a watched name that `port` reaches: somebody listens at one of them at least."""

    def __init__(self, resolver: Resolver, name: str, port: UdpPort) -> None:
        self._resolver = resolver
        self._name = name
        self._port = port
        self._turn = 0

    def addresses(self) -> List[str]:
        """All that are known now."""
        return [address for address in self._resolver.addresses(self._name) if self._port.reaches(address)]

    def current(self) -> str:
        """The one whose turn it is; nothing if none is known."""
        addresses = self.addresses()
        # A count and no index: the list may be another one by the next turn.
        return addresses[self._turn % len(addresses)] if addresses else ""

    def advance(self) -> None:
        """It is another one's turn."""
        self._turn += 1
