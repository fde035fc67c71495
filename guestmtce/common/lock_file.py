"""A locked file says that a program runs; the kernel releases the lock however its holder ends.

The holder removes the file when it ends. Between another's open and its lock that may happen, and a third may
make and lock a new file meanwhile: two would hold a lock on a file of this name. So the file at the path is
looked at again once the lock is there, and a lock on a file that is there no more is given back.
"""

import fcntl
import os

FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Held(Exception):
    """Another process holds the lock."""


def open_locked(path: str, mode: int) -> int:
    """The descriptor of the file at `path`, locked; a new file gets `mode`.

    Raises Held, and OSError, also for a link in the file's place: whoever made it chose what we would write.
    """
    while True:
        descriptor = os.open(path, FLAGS, mode)
        try:
            # flock and not fcntl's locks: a lock of the open file passes to the child that goes into the
            # background.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Held from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Whether the file at `path` is the open one. Raises OSError where that cannot be seen."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
