"""One call over D-Bus, as bytes: enough to ask systemd for a unit.

The bytes are those of the D-Bus specification, "Message Protocol". systemd has a socket of its own for
it, with no bus behind: no `Hello`, no names, no other peer. A caller sends `build_greeting()` and
`build_call(…)` at once, and gives all that comes back to `find_answer`.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

SERIAL = 1  # of the only call
_BYTE_ORDER = {"little": b"l", "big": b"B"}[sys.byteorder]
_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8
_FIXED_HEADER = struct.Struct("=cBBBIII")  # order, type, flags, version, body's size, serial, fields' size
_SIZE = struct.Struct("=I")


class Answer(NamedTuple):
    """What systemd says to the call. `error`: its text, empty where the call was carried out."""

    error: str


class Method(NamedTuple):
    """Whose method is called."""

    destination: str
    path: str
    interface: str
    member: str


def build_greeting() -> bytes:
    """Who we are, which the kernel tells the other side, too."""
    uid = str(os.geteuid()).encode("ascii").hex().encode("ascii")
    # The digits of the uid, each as the hexadecimal code of its character, as EXTERNAL wants it.
    return b"\0AUTH EXTERNAL " + uid + b"\r\nBEGIN\r\n"


def build_call(method: Method, signature: str, body: bytes) -> bytes:
    """A call of `method` with arguments that `Writer` wrote."""
    fields = Writer()
    names = ((_PATH, "o", method.path), (_INTERFACE, "s", method.interface), (_MEMBER, "s", method.member))
    for code, kind, value in (*names, (_DESTINATION, "s", method.destination), (_SIGNATURE, "g", signature)):
        fields.align(8)
        fields.data.append(code)
        fields.put("g", kind)
        fields.put(kind, value)
    size = len(fields.data)
    fields.align(8)
    return _FIXED_HEADER.pack(_BYTE_ORDER, _CALL, 0, 1, len(body), SERIAL, size) + fields.data + body


class Writer:
    """Values one after the other, each at its alignment; `data` is what they became."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        """Go to the next multiple of `size`."""
        self.data.extend(bytes(-len(self.data) % size))

    def put(self, kind: str, value: Any) -> None:
        """A value of one of these types: s and o (text), g (a signature), b, i, u, t (numbers), as, au."""
        if kind in ("s", "o"):
            text = value.encode("utf-8")
            self._put_number("=I", len(text))
            self.data.extend(text + b"\0")
        elif kind == "g":
            self.data.extend(bytes([len(value)]) + value.encode("ascii") + b"\0")
        elif kind in ("b", "i", "u"):
            self._put_number("=i" if kind == "i" else "=I", int(value))
        elif kind == "t":
            self._put_number("=Q", value)
        else:
            self.put_array(4, lambda: self._put_each(kind[1:], value))

    def _put_each(self, kind: str, values: Sequence[Any]) -> None:
        for value in values:
            self.put(kind, value)

    def _put_number(self, form: str, value: int) -> None:
        self.align(struct.calcsize(form))
        self.data.extend(struct.pack(form, value))

    def put_array(self, alignment: int, put_items: Callable[[], object]) -> None:
        """An array whose items `put_items` puts."""
        # The size, which is known once the items are there.
        self._put_number("=I", 0)
        size_at = len(self.data) - 4
        self.align(alignment)
        # The size of an array does not count the padding before its first item.
        first = len(self.data)
        put_items()
        _SIZE.pack_into(self.data, size_at, len(self.data) - first)

    def put_properties(self, properties: Sequence[Tuple[str, str, Any]]) -> None:
        """An array a(sv): name, type and value of each."""

        def put_items() -> None:
            for name, kind, value in properties:
                self.align(8)
                self.put("s", name)
                self.put("g", kind)
                self.put(kind, value)

        self.put_array(8, put_items)


def find_answer(data: bytes) -> Optional[Answer]:
    """What the other side says to our call; None: it is incomplete. Raises ValueError for other bytes."""
    line, end, rest = data.partition(b"\r\n")
    if not end:
        return None
    if not line.startswith(b"OK"):
        return Answer("it does not accept us: " + line.decode("utf-8", "replace"))
    while len(rest) >= _FIXED_HEADER.size:
        order, kind, _, _, body_size, _, fields_size = _FIXED_HEADER.unpack_from(rest)
        # systemd is on this machine and answers in its order.
        if order != _BYTE_ORDER:
            raise ValueError("no D-Bus: %r" % rest[:16])
        # The header is padded to 8, the body is not.
        body = _FIXED_HEADER.size + fields_size + -fields_size % 8
        if len(rest) < body + body_size:
            return None
        # No look at the serial: on a connection with one call each return and each error is that call's. A
        # signal of systemd's is passed over.
        if kind == _RETURN:
            return Answer("")
        if kind == _ERROR:
            return Answer(_first_text(rest[body : body + body_size]) or "an error without a text")
        rest = rest[body + body_size :]
    return None


def _first_text(body: bytes) -> str:
    size = _SIZE.unpack_from(body)[0] if len(body) >= _SIZE.size else 0
    return body[_SIZE.size : _SIZE.size + size].decode("utf-8", "replace")
