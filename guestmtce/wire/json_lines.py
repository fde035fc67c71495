"""One JSON object on a line: cutting a stream into lines, and reading an object that a careless sender wrote.

docs/protocol/1-guest-channel.md#framing
docs/protocol/1-guest-channel.md#errors

The guest channel uses all of it. Datagrams and the VIM's bodies use the reader and `clean_text`: they carry
texts that came from a guest, too.

The guest's side of the channel uses this module, so it stays Python 3.6-clean and needs nothing but the
standard library.
"""

import json
import re
from typing import Any, Dict, List

# Bytes of a line kept while its newline is awaited (docs/protocol/1-guest-channel.md#framing). It is above
# guest_channel.MESSAGE_MAX because a guest's health script may make it send more than it should, and below
# anything that would matter to our memory.
LINE_MAX = 4096

# Bytes of UTF-8 in a `log_msg`: what the deployed guest has room for
# (docs/protocol/1-guest-channel.md#sizes-and-numbers).
LOG_MSG_MAX = 223


class NotAMessage(ValueError):
    """The line holds no JSON object. It is dropped without an answer."""


def clean_text(text: str, limit: int = LOG_MSG_MAX) -> str:
    """`text` cut to `limit` bytes of UTF-8, on a character's border, with lone surrogates as `?`."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


# --- lines -----------------------------------------------------------------------------------------


class LineBuffer:
    """Cuts a byte stream into lines; holds at most LINE_MAX bytes whatever arrives.

    A line that grows beyond LINE_MAX is thrown away up to its newline and counted in `overflows`.
    """

    __slots__ = ("_partial", "_skipping", "overflows")

    def __init__(self) -> None:
        self._partial = b""  # of a line whose newline has not come
        self._skipping = False  # until the newline that ends a line thrown away
        self.overflows = 0

    def feed(self, data: bytes) -> List[bytes]:
        """The complete lines that `data` finishes, without their newlines; none is blank."""
        if self._skipping:
            newline = data.find(b"\n")
            if newline < 0:
                return []
            data = data[newline + 1 :]
            self._skipping = False
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        if len(self._partial) > LINE_MAX:
            self._partial = b""
            self._skipping = True
            self.overflows += 1
        complete = []
        for line in lines:
            if len(line) > LINE_MAX:
                self.overflows += 1
            elif line and not line.isspace():
                complete.append(line)
        return complete


# --- objects ---------------------------------------------------------------------------------------


def _no_constant(name: str) -> None:
    """Python's decoder takes NaN and Infinity; RFC 8259 has no such values. Raises ValueError."""
    raise ValueError(name + " is no JSON")


# Of a key that comes twice the last value counts. strict=False: a guest's log_msg is not escaped and may hold
# a tab.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)


# Of a key that comes twice the first value counts: for text into which somebody may have smuggled the second.
FIRST_WINS = json.JSONDecoder(
    strict=False, parse_constant=_no_constant, object_pairs_hook=lambda pairs: dict(reversed(pairs))
)


def _load_whole(text: str, decoder: json.JSONDecoder) -> Dict[str, Any]:
    """The JSON object that is all of `text`. Raises ValueError, RecursionError."""
    value, end = decoder.raw_decode(text)
    if not isinstance(value, dict) or text[end:].strip():
        raise ValueError("no JSON object")
    return value


def load_object(text: str, last_field: str, decoder: json.JSONDecoder = _DECODER) -> Dict[str, Any]:
    """The JSON object in `text`; `last_field` may hold unescaped quotes, backslashes or control characters.

    Old senders write that field last and do not escape it (docs/protocol/1-guest-channel.md#errors,
    docs/protocol/2-datagrams.md#layout). What cannot be parsed as it stands is parsed without the
    field's text, which is then put in as it came.
    Raises NotAMessage when there is no object even so.
    """
    text = text.strip()
    try:
        return _load_whole(text, decoder)
    except (ValueError, RecursionError):
        pass
    opening = re.search('"%s"\\s*:\\s*"' % last_field, text)
    if opening is None:
        raise NotAMessage("no JSON object")
    try:
        fields = _load_whole(text[: opening.end()] + '"}', decoder)
    except (ValueError, RecursionError):
        raise NotAMessage("no JSON object") from None
    fields[last_field] = re.sub('"\\s*}?$', "", text[opening.end() :])
    return fields
