"""Whom we speak to over UDP and whom we believe: the part of `docs/datagrams.md` that both daemons share."""

from __future__ import annotations

import os
import time
from typing import Dict, List, Optional

from guestmtce.daemon.udp import Port
from guestmtce.wire import datagram, extension
from guestmtce.wire.extension import Refused, Seal, Tag

RESOLVE_PERIOD = 30.0  # s between two look-ups of the same names


def read_key(path: str) -> bytes:
    """The key in a file, without white space around it. Raises OSError, for a short key too."""
    with open(path, "rb") as file:
        key = file.read(4096).strip()
    try:
        Seal(key)
    except ValueError as error:
        raise OSError("%s: %s" % (path, error)) from None
    return key


def new_nonce() -> int:
    """A number for a process, that no process before had."""
    return int.from_bytes(os.urandom(4), "little") | 1


class Speaker:
    """What we know of one peer's manner of speaking, and the clothes of what we say to it.

    `spoken` is whether the peer speaks the extension: None while it has not spoken at all. `sealed` is
    whether a key is configured. In that case nobody is believed who has not shown, by echoing the nonce of
    this process, that he speaks to it now and not to one before it.
    """

    def __init__(self, key: bytes, sender: int, nonce: int = 0) -> None:
        self.spoken: Optional[bool] = None
        self.sender = sender
        self.nonce = nonce or new_nonce()
        self._seal = Seal(key) if key else None
        self._peer_nonce = 0  # as we echo it
        self._believed = (0, 0)  # nonce and sender of the last one that was believed

    @property
    def sealed(self) -> bool:
        """Whether a key is configured."""
        return self._seal is not None

    def dress(self, data: bytes, tag: Tag, route: bytes) -> bytes:
        """`data` with a tag, and a seal where there is a key."""
        tag = tag._replace(sender=self.sender, nonce=self.nonce, echo=self._peer_nonce)
        data = extension.stamp(data, tag)
        return self._seal.close(data, route) if self._seal is not None else data

    def check(self, data: bytes, frame: datagram.Datagram, route: bytes) -> None:
        """Raises Refused for a datagram that should have been sealed and is not."""
        if self._seal is not None:
            tag = extension.read(frame)
            if tag is None:
                raise Refused("not sealed")
            self._seal.open(data, route, tag.nonce)

    def introduced(self, tag: Optional[Tag]) -> bool:
        """Whether the sender of a checked datagram knows this process. Who does not is to be told of it."""
        if self._seal is None:
            return True
        assert tag is not None
        if tag.echo == self.nonce:
            return True
        self._peer_nonce = tag.nonce
        return False

    def heard(self, tag: Optional[Tag]) -> bool:
        """A believed datagram has come; whether its sender, or his manner of speaking, is a new one."""
        before = (self.spoken, self._believed)
        self.spoken = tag is not None
        if tag is not None:
            self._peer_nonce = tag.nonce
            self._believed = (tag.nonce, tag.sender)
        return before != (self.spoken, self._believed)


class Allowed:
    """The addresses of some names; looked up when somebody else speaks, and not too often."""

    def __init__(self, port: Port, names: List[str]) -> None:
        self._port = port
        self._names = names
        self._addresses: Dict[str, str] = {}
        self._looked_at = -float("inf")

    def __contains__(self, address: str) -> bool:
        if address in self._addresses.values() or not self._names:
            return True
        now = time.monotonic()
        if now - self._looked_at >= RESOLVE_PERIOD:
            self._looked_at = now
            for name in self._names:
                found = self._port.resolve(name)
                if found:
                    self._addresses[name] = found
        return address in self._addresses.values()
