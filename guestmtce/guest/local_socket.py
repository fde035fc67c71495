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
from typing import Callable, Dict, NamedTuple, Tuple

from guestmtce.common import NEVER
from guestmtce.common.log_line import LogLine
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


class SocketListener(NamedTuple):
    """What is called when the processes' health may have changed, a voter has voted, and one is gone."""

    check_health: Callable[[], None]
    count_vote: Callable[[int, str, str, str], None]  # question_id, voter, result, reason
    remove_voter: Callable[[str], None]


NOBODY = SocketListener(lambda: None, lambda *_: None, lambda voter: None)


class LocalSocket:
    """See the module's text. A part of the loop. Raises OSError when the socket cannot be made."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        group: str,
        settings: Settings,
        log: Log,
        listener: SocketListener = NOBODY,
    ) -> None:
        self._listener = listener
        self.registry = Registry(settings)
        self._loop = loop
        self._log = log
        self._accept_pause = settings.accept_pause
        self._accept_at = NEVER  # s; no connection is taken before then
        self._path = path
        self._connections: Dict[int, socket.socket] = {}
        self._uids: Dict[int, int] = {}  # of each connection
        self._server = _open_listener(path, group) if path else None
        self._own = _socket_identity(path)
        if self._server is not None:
            self._loop.watch(self._server.fileno(), self._accept_connection)

    @property
    def deadline(self) -> float:
        """When a heartbeat is due, or connections are taken again."""
        return min(self.registry.deadline, self._accept_at)

    def tick(self, now: float) -> None:
        """Heartbeats are due. Who has answered meanwhile is heard first."""
        if now >= self._accept_at and self._server is not None:
            self._accept_at = NEVER
            self._loop.watch(self._server.fileno(), self._accept_connection)
        for key in list(self._connections):
            self._read_connection(key)
        # Not before the reading: an answer that waits in a socket is no miss.
        self.registry.tick(now)
        self._carry_out_effects()

    def ask_members(self, question_id: int, notification_type: str, event_type: str, seconds: float) -> None:
        """Put a question to those who vote."""
        self.registry.ask_members(question_id, notification_type, event_type, seconds)
        self._carry_out_effects()

    def withdraw_question(self, question_id: int) -> None:
        """The answers to this question do not count any more."""
        self.registry.withdraw_question(question_id)
        self._carry_out_effects()

    def close(self) -> None:
        """Give back everything."""
        for key in list(self._connections):
            self._close_connection(key)
        if self._server is not None:
            self._loop.unwatch(self._server.fileno())
            self._server.close()
            self._server = None
            self._accept_at = NEVER
            if (
                _socket_identity(self._path) == self._own
            ):  # else somebody has removed it, or has put another there
                os.unlink(self._path)

    # --- connections -------------------------------------------------------------------------------

    def _accept_connection(self) -> None:
        assert self._server is not None
        try:
            connection, _ = self._server.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._pause_accepting(error)
            return  # else it has gone again
        connection.setblocking(False)
        peer = _peer_of(connection)
        why = self._reason_to_refuse(peer)
        if why:
            self._log("the local process with %s is refused: %s" % (peer, why), "refused %d" % peer.uid)
            _refuse_connection(connection, why)
            return
        key = connection.fileno()
        self._connections[key], self._uids[key] = connection, peer.uid
        self._loop.watch(key, lambda: self._serve_connection(key))
        self.registry.note_opened(key, self._loop.now, peer)

    def _pause_accepting(self, error: OSError) -> None:
        """One that cannot be accepted stays in the queue: it would wake the loop without end."""
        assert self._server is not None
        self._loop.unwatch(self._server.fileno())
        self._accept_at = self._loop.now + self._accept_pause
        self._log("%s: no local process can connect: %s" % (self._path, error.strerror), "accept")

    def _reason_to_refuse(self, peer: Peer) -> str:
        """Why it may not connect; nothing: it may."""
        uids = list(self._uids.values())
        root = peer.uid == 0
        if not root and uids.count(peer.uid) >= CONNECTIONS_OF_A_USER:
            return "uid %d has %d connections" % (peer.uid, CONNECTIONS_OF_A_USER)
        # Counted apart, so that other users' connections never keep root out.
        if sum((uid == 0) == root for uid in uids) >= CONNECTIONS_MAX:
            return "there are %d connections" % CONNECTIONS_MAX
        return ""

    def _serve_connection(self, key: int) -> None:
        self._read_connection(key)
        self._carry_out_effects()

    def _read_connection(self, key: int) -> None:
        try:
            data = self._connections[key].recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.registry.receive(key, data, self._loop.now)
        else:
            self._close_connection(key)
            self.registry.note_closed(key, "its connection ended", self._loop.now)

    def _close_connection(self, key: int) -> None:
        connection = self._connections.pop(key, None)
        if connection is not None:
            del self._uids[key]
            self._loop.unwatch(key)
            connection.close()

    # --- what the registry wants -------------------------------------------------------------------

    def _carry_out_effects(self) -> None:
        effects = self.registry.drain_effects()
        # Carrying out may cause more: a line that does not fit closes its connection, which may be a failure.
        while effects:
            for effect in effects:
                self._carry_out(effect)
            effects = self.registry.drain_effects()
        # Once, after all of them: whatever happened may have changed the guest's health.
        self._listener.check_health()

    def _carry_out(self, effect: object) -> None:
        if isinstance(effect, local_processes.SendLine):
            self._send(effect.key, effect.line)
        elif isinstance(effect, local_processes.CloseConnection):
            self._close_connection(effect.key)
        elif isinstance(effect, local_processes.CountVote):
            self._listener.count_vote(*effect)
        elif isinstance(effect, local_processes.RemoveVoter):
            self._listener.remove_voter(effect.voter)
        elif isinstance(effect, LogLine):
            self._log.write(effect)

    def _send(self, key: int, line: bytes) -> None:
        """One that does not read, so that not even a line fits, is a broken one."""
        connection = self._connections.get(key)
        if connection is None:
            return
        try:
            sent = connection.send(line)
        except OSError:
            sent = 0
        if sent < len(line):
            self._close_connection(key)
            self.registry.note_closed(key, "it does not read", self._loop.now)


def _peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, uid, _ = CREDENTIALS.unpack(data)
    return Peer(pid, uid)


def _refuse_connection(connection: socket.socket, why: str) -> None:
    """Say why, and hang up."""
    try:
        connection.send(json.dumps({"type": "refused", "reason": why}).encode("ascii") + b"\n")
    except OSError:
        pass
    connection.close()


def _socket_identity(path: str) -> Tuple[int, int]:
    """Which file it is; (0, 0) without one."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _is_served(path: str) -> bool:
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


def _open_listener(path: str, group: str) -> socket.socket:
    """The listening socket at `path`. Raises OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, FOLDER_MODE, exist_ok=True)
    # In a folder that others write to somebody could put a socket of his own in this one's place.
    status = os.stat(folder)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise OSError("%s must be writable by us alone" % folder)
    if os.path.exists(path):
        # A stale socket stays behind a client that was killed; one that is served is another client's.
        if _is_served(path):
            raise OSError("another guest client listens there")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(path)
    # Before listen(): until then nobody can connect, whatever the mode was at bind().
    os.chmod(path, 0o600)
    if group:
        import grp  # for these only

        os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, 0o660)
    listener.listen(BACKLOG)
    return listener
