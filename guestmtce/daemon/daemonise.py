"""Going into the background, and telling whoever waits in the foreground how it went.

The caller of the command sees it return only when the daemon is ready, or has said why not.
"""

from __future__ import annotations

import os
import sys
from typing import Callable

READY = b"ready"


class Foreground:
    """What a daemon that stays in the foreground says of its start: nothing."""

    def ready(self) -> None:
        """The daemon serves."""

    def failed(self, why: str) -> None:
        """The daemon cannot start."""
        sys.stderr.write(why + "\n")


class Background(Foreground):
    """Tells the waiting first process over a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        self._say(READY)

    def failed(self, why: str) -> None:
        self._say(why.encode("utf-8", "replace"))

    def _say(self, word: bytes) -> None:
        """Once: there is one answer to who waits."""
        if self._pipe < 0:
            return
        try:
            os.write(self._pipe, word)
        except BrokenPipeError:
            pass  # who waited was killed; that is no reason not to serve
        os.close(self._pipe)
        self._pipe = -1


def fill_standard() -> None:
    """Nothing of ours is to take the place of a standard descriptor that whoever started us has closed."""
    while True:
        null = os.open(os.devnull, os.O_RDWR)
        if null > 2:
            os.close(null)
            return


def daemonise() -> Foreground:
    """Fork twice into a session of our own. Returns in the daemon only; call it while there is one thread.

    The working folder stays: paths on the command line may be relative, also when HUP reads them again.

    The first process waits for the daemon's word and exits with 0 for `ready`, 1 with the reason on stderr.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(_await(lambda: os.read(reader, 4096)))
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(0o022)
    _detach()
    return Background(writer)


def _detach() -> None:
    """Let go of the terminal, before a process that we start gets it from us and holds it for ever."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def _await(read: Callable[[], bytes]) -> int:
    said = b""
    while said != READY:
        more = read()
        if not more:
            break
        said += more
    if said == READY:
        return 0
    sys.stderr.write((said.decode("utf-8", "replace") or "the daemon ended before it was ready") + "\n")
    sys.stderr.flush()
    return 1
