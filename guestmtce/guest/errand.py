"""A task that may wait for a file system, done by a process of its own: the client only hears of its result.

A process whose file system stands still cannot be killed. It ends when the file system goes on; the client
asks for no second one of its kind meanwhile.
"""

import os
import select
import time
from typing import Callable, List

from guestmtce.guest import process

NAME = "guestClient-ask"
CHUNK = 65536  # bytes
DONE, FAILED = b"=", b"!"  # what comes is a result, or why there is none
END = b"."  # the last byte of all that comes: a process that was killed has not written it

_running: List[int] = []  # pids


class Errand:
    """Does `work` in a process of its own. Raises OSError when no process can be made.

    `descriptor` can be read when something of the result is there.
    """

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._data = b""
        self.descriptor, result = os.pipe()
        try:
            _running.append(process.fork(lambda: _do(work, result)))
        except OSError:
            self.close()
            raise
        finally:
            os.close(result)
        # Our end only: the process waits until the client has read.
        os.set_blocking(self.descriptor, False)

    def receive(self) -> bool:
        """Take what is there; whether that is all."""
        try:
            data = os.read(self.descriptor, CHUNK)
        except BlockingIOError:
            return False
        self._data += data
        # The end of the pipe is the end of the answer: the process has written all, or was killed.
        return not data

    def result(self) -> bytes:
        """What the work gave, once all of it is there. Raises OSError with what it raised, in words."""
        kind, data, end = self._data[:1], self._data[1:-1], self._data[1:][-1:]
        # One that was killed in the middle has no end: half a configuration would pass for one with defaults.
        if end != END:
            raise OSError(0, "the process that was to do it was killed")
        if kind == DONE:
            return data
        raise OSError(0, data.decode("utf-8", "replace"))

    def wait(self, seconds: float) -> bool:
        """Wait for the result, at most so long; whether it is there."""
        until = time.monotonic() + seconds
        while select.select([self.descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            if self.receive():
                return True
        return False

    def close(self) -> None:
        """Give back the descriptor."""
        os.close(self.descriptor)


def reap() -> None:
    """To be called on SIGCHLD: those that have ended are forgotten."""
    for pid in list(_running):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                _running.remove(pid)
        except ChildProcessError:  # its parent was the process that has gone into the background
            _running.remove(pid)


def _do(work: Callable[[], bytes], result: int) -> None:
    process.rename(NAME)
    process.ignore_unwanted_signals()
    process.close_others({result})
    try:
        answer = DONE + work()
    except OSError as error:
        answer = FAILED + str(error.strerror).encode("utf-8", "replace")
    answer += END
    while answer:
        answer = answer[os.write(result, answer) :]
    os._exit(0)
