"""What a program gets from whoever starts it, and lets go of: signals, standard descriptors, the terminal."""

import os
import signal
from typing import Callable

STANDARD = (0, 1, 2)


def reset_signals() -> None:
    """Undo what a parent has left over exec: blocked signals, and children that are not to be waited for.

    Until a loop serves SIGINT it ends this process as SIGTERM does, and not with a traceback.
    """
    # Both outlive exec: a blocked TERM could not end us, and with SIGCHLD ignored waitpid() knows no child.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for signum in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


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
    # setsid() fails in the leader of a process group, which a command of a shell is: its child is none.
    if os.fork():
        # With its own copy open it would never see the end of a daemon that failed without a word.
        os.close(writer)
        os._exit(await_start(reader))
    os.close(reader)
    os.setsid()
    os.umask(0o022)
    # Before a process that we start gets the terminal from us and holds it for ever.
    discard_standard_descriptors()
    return writer
