"""A file whose execution, or opening, waits: fanotify asks for permission, and we take our time. For root."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from pathlib import Path

import pytest

FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_NONBLOCK = 4, 1, 2
FAN_MARK_ADD, FAN_OPEN_PERM, FAN_OPEN_EXEC_PERM, FAN_ALLOW = 1, 0x10000, 0x40000, 1
AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # event_len, vers, reserved, metadata_len, mask, fd, pid

_libc = ctypes.CDLL(None, use_errno=True)


class SlowOpen:
    """A context in which whoever executes `path` waits until `allow`, or the end. `waiting`: one does.

    With FAN_OPEN_PERM as `event` it is whoever opens it, this process too.
    """

    def __init__(self, path: Path, event: int = FAN_OPEN_EXEC_PERM) -> None:
        self._path = path
        self._event = event
        self.waiting = threading.Event()
        self._allowed = threading.Event()

    def __enter__(self) -> SlowOpen:
        self._group = _libc.fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
        if self._group < 0:
            if ctypes.get_errno() == errno.EPERM:
                pytest.skip("root of a container, which may hold up no opening of files")
            raise OSError(ctypes.get_errno(), "no fanotify here")
        mark = ctypes.c_uint64(self._event)
        if _libc.fanotify_mark(self._group, FAN_MARK_ADD, mark, AT_FDCWD, os.fsencode(self._path)) < 0:
            raise OSError(ctypes.get_errno(), "cannot watch %s" % self._path)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def allow(self) -> None:
        """Everybody may go on, from now on."""
        self._allowed.set()

    def __exit__(self, *_: object) -> None:
        self.allow()
        os.close(self._group)  # who still waits is allowed by that

    def _serve(self) -> None:
        while True:
            try:
                data = os.read(self._group, 4096)
            except OSError:
                return
            self.waiting.set()
            self._allowed.wait()
            while data:
                length, _, _, _, _, descriptor, _ = _EVENT.unpack_from(data)
                try:
                    os.write(self._group, struct.pack("=iI", descriptor, FAN_ALLOW))
                except OSError:
                    return
                os.close(descriptor)
                data = data[length:]
