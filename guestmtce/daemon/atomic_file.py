"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re

_LEFTOVER = re.compile(r".+\.[0-9]+\.tmp")


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Put `text` into `path`; a reader sees the old text or the new one. Raises OSError, with the file."""
    # In the same folder, as a rename does not leave its file system; with the pid, so that two daemons do not
    # write into one file.
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        # O_NOFOLLOW: in a folder that others may write to, a link at this name would have us write elsewhere.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except (OSError, UnicodeError):
            remove(temporary)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def write_in_place(path: str, text: str) -> None:
    """Put `text` over what stands in `path`, which must exist. Raises OSError, which names the file.

    This works on a full file system as long as `text` needs no more blocks than the file has. A reader at the
    same moment, or after a failure, may find a mixture of both.
    """
    data = text.encode("utf-8")
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Not before the write: blocks that were given back may be another file's when the text is written.
        os.ftruncate(descriptor, len(data))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def write_or_overwrite(path: str, text: str, mode: int = 0o644) -> None:
    """As `write_atomically`, and where there is no room for a second file as `write_in_place`.

    Raises OSError, which names the file: its text is then the old one, or a mixture.
    """
    try:
        write_atomically(path, text, mode)
    except OSError as error:
        try:
            write_in_place(path, text)
        except OSError:
            # The first error says why: the second one is of the makeshift.
            raise error from None


def remove(path: str) -> None:
    """Remove `path`; one that is not there is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_leftovers(folder: str, name: str = "") -> None:
    """Remove what `write_atomically` left in `folder`, of files `name`…, when its process was killed.

    A folder that cannot be read, and a file that cannot be removed, are left as they are.
    """
    try:
        found = [each for each in os.listdir(folder) if each.startswith(name) and _LEFTOVER.fullmatch(each)]
        for each in found:
            remove(os.path.join(folder, each))
    except OSError:
        pass


def is_title(title: str) -> bool:
    """Whether this process has the title `title`, as others see it."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            # setproctitle fills the old command line up with NULs.
            return file.read().rstrip(b"\0 ").decode("utf-8", "replace") == title
    except OSError:
        return False
