"""Reading INI files: our own, which must be sound, and others', of which we take what can be read."""

from __future__ import annotations

import codecs
import configparser
import errno
import os
import re
import stat
from typing import List, Tuple

from guestmtce.daemon.log import printable

FILE_MAX = 1024 * 1024  # bytes
NAMED_MAX = 5  # lines that are named of those that cannot be read
LINE_SHOWN = 40  # characters of a line

ROUNDS_MAX = 10  # attempts to parse what is left

_SECTION = re.compile(r"\s*\[.+\]")


def parser() -> configparser.ConfigParser:
    """An empty one that reads as the deployed daemons do; `#` begins a comment at a line's end, too."""
    return configparser.ConfigParser(
        interpolation=None, strict=False, inline_comment_prefixes=(";", "#"), comment_prefixes=(";", "#")
    )


def read_own(path: str) -> Tuple[configparser.ConfigParser, List[str]]:
    """The file, and lines for the log about what is odd in it. Raises OSError, ValueError in one line.

    Bytes that are no UTF-8 become lone surrogates: in comments they do no harm.
    """
    lines, notes = _read(path)
    # configparser stops at the first such line, and would name no other.
    early = _before_sections(lines)
    if early:
        raise ValueError(_text_of(early, lines) + " before the first [section]")
    ini, stray = _parse(lines, path)
    if stray:
        raise ValueError(_text_of(stray, lines) + " neither a [section] nor KEY = VALUE")
    return ini, notes


def read_others(path: str) -> Tuple[configparser.ConfigParser, List[str]]:
    """The same of a file that others write: lines that are no INI are named and left out.

    Raises OSError, and ValueError if what is left makes no sense either.
    """
    lines, notes = _read(path)
    bad: List[int] = []
    stray = _before_sections(lines)
    # A line that goes may make another one senseless: what continued it, or the keys of its section.
    for _ in range(ROUNDS_MAX):
        bad += stray
        left_out = set(bad)
        # Empty lines in their place keep the numbers of the others, which the log names.
        ini, stray = _parse(["" if index in left_out else line for index, line in enumerate(lines)], path)
        if not stray:
            break
    else:
        raise ValueError("it is no INI file")
    if bad:
        notes.append("%s no INI, ignored" % _text_of(bad, lines))
    return ini, notes


def _before_sections(lines: List[str]) -> List[int]:
    """The lines, counted from 0, that belong to no section and say something."""
    first = next((index for index, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    return [index for index in range(first) if lines[index].strip() and lines[index].strip()[0] not in ";#"]


def _parse(lines: List[str], path: str) -> Tuple[configparser.ConfigParser, List[int]]:
    """What can be parsed, and the lines, counted from 0, that cannot."""
    ini = parser()
    try:
        ini.read_string("\n".join(lines), path)
    except configparser.MissingSectionHeaderError as error:
        return ini, [error.lineno - 1]
    except configparser.ParsingError as error:
        return ini, [line_number - 1 for line_number, _ in error.errors]
    return ini, []


def _text_of(indices: List[int], lines: List[str]) -> str:
    """`line 3 (its text) is`, or `lines 3, 4 are`."""
    if len(indices) == 1:
        return "line %d (%s) is" % (indices[0] + 1, printable(lines[indices[0]].strip(), LINE_SHOWN))
    shown = ", ".join(str(index + 1) for index in indices[:NAMED_MAX])
    return "lines %s%s are" % (shown, ", ..." if len(indices) > NAMED_MAX else "")


def _read(path: str) -> Tuple[List[str], List[str]]:
    """The lines, without a byte order mark, and a note about bytes that are no UTF-8. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer does not hold us up
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            raise OSError(errno.EINVAL, "it is no plain file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(FILE_MAX + 1) or b""  # None: a terminal on which nothing was typed
    finally:
        os.close(descriptor)
    if len(data) > FILE_MAX:
        raise OSError(errno.EFBIG, "it is larger than %d bytes" % FILE_MAX)
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
    try:
        return data.decode("utf-8").split("\n"), []
    except UnicodeDecodeError as error:
        note = "line %d is no UTF-8" % (data.count(b"\n", 0, error.start) + 1)
        return data.decode("utf-8", "surrogateescape").split("\n"), [note]
