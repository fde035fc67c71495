"""What the VIM has been told, over a restart of guestAgent: a guestServer that was not confirmed asks again.

One file in the run folder, one line of sender and number each, written before the confirmation is sent. It
lets no alarm reach the VIM twice when this process is killed between the two.
"""

from __future__ import annotations

import logging
import os
from typing import List, Optional, Tuple

from guestmtce.agent.rows import Origin
from guestmtce.daemon import files
from guestmtce.daemon.log import Throttle

log = logging.getLogger(__name__)

SUFFIX = ".told"
KEPT = 4096  # lines; no more events than that wait for their confirmation at any moment
LINE_MAX = 24  # bytes: two numbers of 32 bits, a space, a newline


class Told:
    """The file. It is used by one thread. Trouble with it is logged, never fatal."""

    def __init__(self, run_dir: str, name: str) -> None:
        self._path = os.path.join(run_dir, name + SUFFIX)
        self._throttle = Throttle(log)
        self._lines = self._read()[-KEPT:]
        self._before = frozenset(map(_numbers, self._lines))

    def __contains__(self, origin: Origin) -> bool:
        """Whether a guestAgent before this one told the VIM of it."""
        return (origin.sender, origin.number) in self._before

    def add(self, origin: Origin) -> None:
        """The VIM has it."""
        line = "%d %d\n" % (origin.sender, origin.number)
        self._lines.append(line)
        try:
            if len(self._lines) > 2 * KEPT:
                del self._lines[:-KEPT]
                files.write_atomically(self._path, "".join(self._lines), 0o600)
            else:
                self._append(line)
        except OSError as error:
            self._throttle.warning("told", "cannot write %s: %s", self._path, error)

    def _append(self, line: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)

    def _read(self) -> List[str]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, encoding="ascii", errors="replace") as file:
                text = file.read(3 * KEPT * LINE_MAX)
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("cannot read %s: %s", self._path, error)
            return []
        return [line for line in text.splitlines(keepends=True) if _numbers(line)]


def _numbers(line: str) -> Optional[Tuple[int, int]]:
    """The sender and number of a whole line."""
    try:
        sender, number = map(int, line.split(" "))
        return (sender, number) if line.endswith("\n") else None
    except ValueError:
        return None
