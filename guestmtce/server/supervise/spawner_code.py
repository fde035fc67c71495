"""The code that a spawner runs: that which this master has loaded, whatever an upgrade has put in its place.

A spawner is a new process and imports from disk. One of another version than its master might ask for other
arguments or report other packets, and its children would be killed as rule breakers. So the master keeps the
sources as they were at its own start (some 150 kB), and where those on disk differ a spawner gets a copy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import Dict, List

import setproctitle

import guestmtce

# All of ours that a spawner imports.
_CHILD = (
    *("confine", "fork_sibling", "libc", "page_layout", "pipe_protocol", "preload", "process", "sandbox"),
    *("session", "session_heartbeat", "session_inits", "session_output", "session_patience"),
    *("session_questions", "session_states", "session_types", "spawner"),
)
MODULES = (
    *("guestmtce", "guestmtce.common", "guestmtce.common.throttle"),
    *("guestmtce.server", "guestmtce.server.child", *("guestmtce.server.child." + name for name in _CHILD)),
    *("guestmtce.wire", "guestmtce.wire.guest_channel", "guestmtce.wire.guest_channel_fast"),
    "guestmtce.wire.json_lines",
)


class SpawnerCode:
    """See the module's text. Make it when the modules have just been imported. Raises OSError."""

    def __init__(self) -> None:
        self._sources = read_sources()
        self._copy = ""

    def is_on_disk(self) -> bool:
        """Whether what is on disk is what this master has loaded; False while an upgrade replaces it."""
        try:
            return read_sources() == self._sources
        except OSError:
            return False

    @property
    def is_copied(self) -> bool:
        """Whether the latest `prepare_path` named a copy, which is still there."""
        return bool(self._copy)

    def prepare_path(self) -> str:
        """The folders to import from: those on disk, or a copy if these have changed. Raises OSError."""
        self.remove_copy()
        if self.is_on_disk():
            return import_path()
        self._copy = tempfile.mkdtemp(prefix="guestServer-")
        for path, source in self._sources.items():
            place = os.path.join(self._copy, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(source)
        # The copy first. The rest is for setproctitle, of which there is no copy.
        return self._copy + ":" + import_path()

    def remove_copy(self) -> None:
        """The spawner has imported what it needs."""
        if self._copy:
            shutil.rmtree(self._copy, ignore_errors=True)
            self._copy = ""


def read_sources() -> Dict[str, bytes]:
    """The sources on disk of MODULES: path below the package's parent → contents. Raises OSError."""
    sources = {}
    for name in MODULES:
        path = str(sys.modules[name].__file__)
        with open(path, "rb") as file:
            sources[os.path.relpath(path, _parent_of_package())] = file.read()
    return sources


def _parent_of_package() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(str(guestmtce.__file__))))


def import_path() -> str:
    """The folders that hold our package and setproctitle: all that the spawner needs besides the library."""
    folders: List[str] = []
    for module in (guestmtce, setproctitle):
        assert module.__file__ is not None
        folder = os.path.dirname(os.path.abspath(module.__file__))
        if os.path.basename(module.__file__).startswith("__init__."):
            folder = os.path.dirname(folder)
        if folder not in folders:
            folders.append(folder)
    return ":".join(folders)
