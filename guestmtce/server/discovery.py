"""Which guests' sockets exist: inotify, backed up by a re-scan.

docs/protocol/1-guest-channel.md#transport
docs/protocol/1-guest-channel.md#connection-upkeep

A watch follows the folder itself, not its name. When the folder is deleted while a socket holds it, is
mounted over, or is reached by another link, the watch says nothing. So every `folder_check` s the name is
looked up anew.

The only module that imports pyinotify. Everything it finds goes to two callbacks: `found(uuid, path,
identity, fresh)` and `gone(uuid, path)`. `uuid` is in lower case, however the file's name spells it.
`identity` tells a file from another of the same name, and `fresh` says that the file was just made, even
if it looks the same.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from typing import Any, Callable, Dict, Optional, Set, Tuple

from guestmtce.daemon.log import Throttle, printable
from guestmtce.daemon.loop import Loop, Timer
from guestmtce.server.settings import ServerSettings
from guestmtce.wire.datagram import UUID

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports asyncore, and PYTHONWARNINGS=error would end us
    import pyinotify

log = logging.getLogger(__name__)

NAME = re.compile(r"(?:cgcs\.heartbeat\.|wrs\.heartbeat\.agent\.0\.)(%s)\.sock" % UUID.pattern)

Identity = Tuple[int, ...]
Found = Callable[[str, str, Identity, bool], None]
Gone = Callable[[str, str], None]

_FOLDER_GONE = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF | pyinotify.IN_UNMOUNT | pyinotify.IN_IGNORED
_APPEARED = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO | pyinotify.IN_MODIFY
_VANISHED = pyinotify.IN_DELETE | pyinotify.IN_MOVED_FROM
_WATCHED = _APPEARED | _VANISHED | pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF | pyinotify.IN_ONLYDIR

pyinotify.log.setLevel(logging.CRITICAL)  # it prints to stderr what it also returns


class Discovery:
    """Watches one folder. `start` begins with a scan; the folder may come and go."""

    def __init__(self, loop: Loop, settings: ServerSettings, found: Found, gone: Gone) -> None:
        self.watching = False
        self._loop = loop
        self._settings = settings
        self._found = found
        self._gone = gone
        self._present: Dict[str, str] = {}  # path → uuid
        self._oddly_spelled: Dict[str, Set[str]] = {}  # uuid → names with upper case
        self._throttle = Throttle(log)
        self._manager: Any = None
        self._notifier: Any = None
        self._watch_again: Optional[Timer] = None
        self._watched: Optional[Tuple[int, int]] = None  # the folder's device and inode

    def start(self) -> None:
        """Watch, scan, and scan again every `rescan` s."""
        self._watch()
        self._loop.after(self._settings.folder_check, self._check_folder)
        self._loop.after(self._settings.rescan, self._rescan)

    def look_for(self, uuid: str) -> None:
        """Report the socket of `uuid`, if it is there."""
        for pattern in ("cgcs.heartbeat.%s.sock", "wrs.heartbeat.agent.0.%s.sock"):
            self._look_at_file(pattern % uuid, fresh=False)
        for name in list(self._oddly_spelled.get(uuid, ())):
            self._look_at_file(name, fresh=False)

    def scan(self) -> None:
        """Compare the folder with what was reported, and report the differences."""
        try:
            names = os.listdir(self._settings.channel_dir)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:  # that says nothing about the guests
            self._throttle.warning("scan", "cannot read %s: %s", self._settings.channel_dir, error)
            return
        present = {os.path.join(self._settings.channel_dir, name) for name in names}
        # Gone first: a renamed socket would else count as the other name of one that is still there.
        for path in [path for path in self._present if path not in present]:
            self._report_gone(path)
        for name in names:
            self._look_at_file(name, fresh=False)

    def close(self) -> None:
        """Stop watching."""
        self._unwatch()

    def _rescan(self) -> None:
        self.scan()
        self._loop.after(self._settings.rescan, self._rescan)

    # --- the folder --------------------------------------------------------------------------------

    def _check_folder(self) -> None:
        self._loop.after(self._settings.folder_check, self._check_folder)
        if not self.watching:
            return
        try:
            there = _read_folder_identity(self._settings.channel_dir)
        except OSError as error:  # that says nothing about the folder
            self._throttle.warning("check", "cannot look at %s: %s", self._settings.channel_dir, error)
            return
        if there != self._watched:
            log.warning("%s is not the folder any more that is watched", self._settings.channel_dir)
            self._watch()

    def _watch(self) -> None:
        """Watch the folder and scan it; while it cannot be watched, do so by scans alone."""
        self._unwatch()
        self._watch_again = None
        folder = self._settings.channel_dir
        try:
            self._watched = _read_folder_identity(folder)  # before the watch: a change in between is found
            self._manager = pyinotify.WatchManager()
            self._notifier = pyinotify.Notifier(self._manager, self._handle_event, timeout=0)
            self._manager.add_watch(folder, _WATCHED, quiet=False)
        except (pyinotify.WatchManagerError, OSError) as error:
            self._throttle.warning("watch", "cannot watch %s, will try again: %s", folder, error)
            self._unwatch()
            self._watch_soon(self._settings.folder_retry)
        else:
            self._loop.watch(self._manager.get_fd(), self._read_events)
            self.watching = True
            log.info("watching %s", folder)
        self.scan()

    def _watch_soon(self, seconds: float) -> None:
        if self._watch_again is None:
            self._watch_again = self._loop.after(seconds, self._watch)

    def _unwatch(self) -> None:
        if self.watching:
            self._loop.unwatch(self._manager.get_fd())
            self.watching = False
        if self._manager is not None:
            self._manager.close()
            self._manager = self._notifier = None

    def _read_events(self) -> None:
        try:
            self._notifier.read_events()
        except UnicodeDecodeError as error:  # somebody's odd file name; the events behind it are lost
            self._throttle.warning("name", "in %s: %s", self._settings.channel_dir, error)
            self._notifier.process_events()
            self.scan()
        else:
            self._notifier.process_events()

    def _handle_event(self, event: Any) -> None:
        """One event; pyinotify calls this from `process_events`."""
        if not self.watching:
            return  # left over from a folder that is gone
        if event.mask & pyinotify.IN_Q_OVERFLOW:
            log.warning("inotify queue overflow: scanning %s", self._settings.channel_dir)
            self.scan()
        elif event.mask & _FOLDER_GONE:
            log.warning("%s is gone", self._settings.channel_dir)
            # Not from within the notifier that this would close.
            self._watch_soon(0)
            for path in list(self._present):
                self._report_gone(path)
        elif event.mask & _APPEARED:
            self._look_at_file(event.name, fresh=True)
        elif event.mask & _VANISHED:
            self._report_gone(os.path.join(self._settings.channel_dir, event.name))

    # --- one file ----------------------------------------------------------------------------------

    def _look_at_file(self, name: str, fresh: bool) -> None:
        match = NAME.fullmatch(name)
        if match is None:
            return
        path = os.path.join(self._settings.channel_dir, name)
        identity = _read_identity(path)
        if identity is None:
            self._report_gone(path)  # gone already, or no socket any more
            return
        uuid = match.group(1).lower()
        self._present[path] = uuid
        if uuid not in name:
            self._oddly_spelled.setdefault(uuid, set()).add(name)
        log.debug("found %s%s", printable(name), " (fresh)" if fresh else "")
        self._found(uuid, path, identity, fresh)

    def _report_gone(self, path: str) -> None:
        uuid = self._present.pop(path, None)
        if uuid is None:
            return
        names = self._oddly_spelled.get(uuid, set())
        names.discard(os.path.basename(path))
        if not names:
            self._oddly_spelled.pop(uuid, None)
        self._gone(uuid, path)


def _read_folder_identity(path: str) -> Optional[Tuple[int, int]]:
    """What tells this folder from another one, links followed; None if there is none. Raises OSError."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _read_identity(path: str) -> Optional[Identity]:
    """What tells this file from another one, if it is a socket. A link is not followed: it is not ours."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns) if stat.S_ISSOCK(status.st_mode) else None
