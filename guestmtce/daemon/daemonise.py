"""Going into the background; the process that was started waits, and reports how the start went.

The caller of the command sees it return only when the daemon is ready, or has said why not.
"""

from __future__ import annotations

import os
import sys

from guestmtce.common import background

WORD_MAX = 4096  # bytes read at once of what the daemon says
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
        """Write the start's result to the process that waits for it; later calls do nothing."""
        if self._pipe < 0:
            return
        try:
            os.write(self._pipe, word)
        except BrokenPipeError:
            pass  # the waiting process was killed; that is no reason not to serve
        os.close(self._pipe)
        self._pipe = -1


def daemonise() -> Foreground:
    """Go into the background. Returns in the daemon only; call it while there is one thread.

    The working folder stays: paths on the command line may be relative, also when HUP reads them again.

    The first process waits for the daemon's word and exits with 0 for `ready`, 1 with the reason on stderr.
    """
    pipe = background.go_background(_await_word)
    # No leader of a session any more: no terminal that the daemon opens becomes its own.
    if os.fork():
        os._exit(0)
    return Background(pipe)


def _await_word(descriptor: int) -> int:
    said = b""
    # `ready` is complete by itself; the reason of a failure ends with the pipe.
    while said != READY:
        more = os.read(descriptor, WORD_MAX)
        if not more:
            break
        said += more
    if said == READY:
        return 0
    sys.stderr.write((said.decode("utf-8", "replace") or "the daemon ended before it was ready") + "\n")
    sys.stderr.flush()
    return 1
