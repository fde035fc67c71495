"""Files that are written whole or not at all."""

from __future__ import annotations

import os


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Put `text` into `path`; a reader sees the old text or the new one. Raises OSError."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except (OSError, UnicodeError):
        os.unlink(temporary)
        raise


def remove(path: str) -> None:
    """Remove `path`; one that is not there is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
