"""The UNIX socket for local processes: connections in, lines out, no more than a few, and none waited for.

The socket lies in a folder that only root can write to, so nobody can put another in its place; root, and
the group that was configured, may connect. A user has only so many connections, and all but root together
only so many more: root always gets in. What is said on it is the registry's affair.
"""

import errno
import json
import os
import socket
import stat
import struct
from typing import Callable, Dict, Tuple

from guestmtce.common import NEVER
from guestmtce.guest import local_processes
from guestmtce.guest.local_processes import Registry
from guestmtce.guest.log import Log
from guestmtce.guest.loop import Loop
from guestmtce.guest.member import Peer
from guestmtce.guest.settings import Settings

SOCKET = "/run/guest-client/processes.sock"
CONNECTIONS_MAX = 16  # registered or not yet, of all users but root, and as many of root
CONNECTIONS_OF_A_USER = 8
BACKLOG = 16  # connections that we have not seen yet
CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: pid, uid, gid
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
FOLDER_MODE = 0o755
READ_SIZE = 8192  # bytes


class Apps:
    """See the module's text. A part of the loop. Raises OSError when the socket cannot be made.

    It tells `on_health` when the processes' health may have changed, `on_vote` and `on_leave` of voters.
    """

    def __init__(self, loop: Loop, path: str, group: str, settings: Settings, log: Log) -> None:
        self.on_health: Callable[[], None] = lambda: None
        self.on_vote: Callable[[int, str, str, str], None] = lambda *_: None
        self.on_leave: Callable[[str], None] = lambda voter: None
        self.registry = Registry(settings)
        self._loop = loop
        self._log = log
        self._accept_pause = settings.accept_pause
        self._accept_at = NEVER  # s; no connection is taken before then
        self._path = path
        self._links: Dict[int, socket.socket] = {}
        self._uids: Dict[int, int] = {}  # of each connection
        self._listener = _listen(path, group) if path else None
        self._own = _ident(path)
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), self._accept)

    @property
    def deadline(self) -> float:
        """When a heartbeat is due, or connections are taken again."""
        return min(self.registry.deadline, self._accept_at)

    def tick(self, now: float) -> None:
        """Heartbeats are due. Who has answered meanwhile is heard first."""
        if now >= self._accept_at and self._listener is not None:
            self._accept_at = NEVER
            self._loop.watch(self._listener.fileno(), self._accept)
        for key in list(self._links):
            self._read(key)
        self.registry.tick(now)
        self._act()

    def ask(self, number: int, notification_type: str, event_type: str, seconds: float) -> None:
        """Put a question to those who vote."""
        self.registry.ask(number, notification_type, event_type, seconds)
        self._act()

    def withdraw(self, number: int) -> None:
        """Nobody waits for the answer any more."""
        self.registry.withdraw(number)
        self._act()

    def close(self) -> None:
        """Give back everything."""
        for key in list(self._links):
            self._drop(key)
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._accept_at = NEVER
            if _ident(self._path) == self._own:  # else somebody has removed it, or has put another there
                os.unlink(self._path)

    # --- connections -------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            link, _ = self._listener.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._pause(error)
            return  # else it has gone again
        link.setblocking(False)
        peer = _peer(link)
        why = self._refusal(peer)
        if why:
            self._log("the local process with %s is refused: %s" % (peer, why), "refused %d" % peer.uid)
            _refuse(link, why)
            return
        key = link.fileno()
        self._links[key], self._uids[key] = link, peer.uid
        self._loop.watch(key, lambda: self._serve(key))
        self.registry.opened(key, self._loop.now, peer)

    def _pause(self, error: OSError) -> None:
        """One that cannot be accepted stays in the queue: it would wake the loop without end."""
        assert self._listener is not None
        self._loop.unwatch(self._listener.fileno())
        self._accept_at = self._loop.now + self._accept_pause
        self._log("%s: no local process can connect: %s" % (self._path, error.strerror), "accept")

    def _refusal(self, peer: Peer) -> str:
        """Why it may not connect; nothing: it may."""
        uids = list(self._uids.values())
        root = peer.uid == 0
        if not root and uids.count(peer.uid) >= CONNECTIONS_OF_A_USER:
            return "uid %d has %d connections" % (peer.uid, CONNECTIONS_OF_A_USER)
        if sum((uid == 0) == root for uid in uids) >= CONNECTIONS_MAX:
            return "there are %d connections" % CONNECTIONS_MAX
        return ""

    def _serve(self, key: int) -> None:
        self._read(key)
        self._act()

    def _read(self, key: int) -> None:
        try:
            data = self._links[key].recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.registry.received(key, data, self._loop.now)
        else:
            self._drop(key)
            self.registry.closed(key, "its connection ended", self._loop.now)

    def _drop(self, key: int) -> None:
        link = self._links.pop(key, None)
        if link is not None:
            del self._uids[key]
            self._loop.unwatch(key)
            link.close()

    # --- what the registry wants -------------------------------------------------------------------

    def _act(self) -> None:
        reports = self.registry.take()
        while reports:
            for report in reports:
                self._do(report)
            reports = self.registry.take()
        self.on_health()

    def _do(self, report: object) -> None:
        if isinstance(report, local_processes.Say):
            self._say(report.key, report.line)
        elif isinstance(report, local_processes.Close):
            self._drop(report.key)
        elif isinstance(report, local_processes.Voted):
            self.on_vote(*report)
        elif isinstance(report, local_processes.Left):
            self.on_leave(report.voter)
        elif isinstance(report, local_processes.Note):
            self._log(report.text, report.about)

    def _say(self, key: int, line: bytes) -> None:
        """One that does not read, so that not even a line fits, is a broken one."""
        link = self._links.get(key)
        if link is None:
            return
        try:
            sent = link.send(line)
        except OSError:
            sent = 0
        if sent < len(line):
            self._drop(key)
            self.registry.closed(key, "it does not read", self._loop.now)


def _peer(link: socket.socket) -> Peer:
    """Who is at the other end."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, _ = CREDENTIALS.unpack(data)
    return Peer(pid, uid)


def _refuse(link: socket.socket, why: str) -> None:
    """Say why, and hang up."""
    try:
        link.send(json.dumps({"type": "refused", "reason": why}).encode("ascii") + b"\n")
    except OSError:
        pass
    link.close()


def _ident(path: str) -> Tuple[int, int]:
    """Which file it is; (0, 0) without one."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _answers(path: str) -> bool:
    """Whether somebody listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # it has many to listen to
        except OSError:
            return False
    return True


def _listen(path: str, group: str) -> socket.socket:
    """The listening socket at `path`. Raises OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, FOLDER_MODE, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise OSError("%s must be writable by us alone" % folder)
    if os.path.exists(path):
        if _answers(path):
            raise OSError("another guest client listens there")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    os.chmod(path, 0o600)
    if group:
        import grp  # for these only

        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, 0o660)
    listener.listen(BACKLOG)
    return listener
