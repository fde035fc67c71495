"""Letting go of the terminal, and the standard descriptors 0, 1 and 2."""

import os
from typing import Callable

STANDARD = (0, 1, 2)


def fill_standard_descriptors() -> None:
    """Nothing of ours is to take the place of a standard descriptor that whoever started us has closed."""
    while True:
        null = os.open(os.devnull, os.O_RDWR)
        if null not in STANDARD:
            os.close(null)
            return


def discard_standard_descriptors() -> None:
    """From now on they are /dev/null. Raises OSError."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in STANDARD:
        os.dup2(null, descriptor)
    if null not in STANDARD:
        os.close(null)


def go_background(await_start: Callable[[int], int]) -> int:
    """Fork into a session of our own, without a terminal. Returns in the new process only.

    The process that was started ends with the status that `await_start` gives: it gets a descriptor, and
    reads there what the new one writes to the descriptor that is returned. Call it while there is one thread.
    Raises OSError where no process can be made.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(await_start(reader))
    os.close(reader)
    os.setsid()
    os.umask(0o022)
    # Before a process that we start gets the terminal from us and holds it for ever.
    discard_standard_descriptors()
    return writer
