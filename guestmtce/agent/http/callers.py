"""Who may command: root, this daemon's own user, and whom `[agent] vim_users` names.

Without this gate any local user could switch the reporting of failures off. A kernel that does not tell who
calls must not lock the VIM out: then everybody is served, and the log and the health report say so.
"""

from __future__ import annotations

import logging
import os
import socket

from guestmtce.agent.http.http_connections import Caller
from guestmtce.agent.http.peer_uid import NoUid, PeerUids
from guestmtce.agent.http.users import look_up_users
from guestmtce.wire import vim_http
from guestmtce.wire.vim_http import Failure

log = logging.getLogger(__name__)

ROOT = 0


class Callers:
    """Whose commands are served; `identify` is called by the HTTP server's one thread alone."""

    def __init__(self, vim_users: str) -> None:
        uids, self._unknown = look_up_users(vim_users)
        self._uids = uids | {ROOT, os.geteuid()}
        self._peers = PeerUids()
        self._is_said = False
        if self._unknown:
            log.error("[agent] vim_users: there is no user %s: it may not command", ", ".join(self._unknown))

    def identify(self, connection: socket.socket) -> Caller:
        """Who is at the other end of an accepted connection."""
        uid = self._peers.look_up(connection)
        # The kernel shows uid 0 for a socket that nobody holds any more: who sends and closes must not pass
        # for root.
        if uid is NoUid.GONE:
            return Caller("a caller that is gone", Failure(403, vim_http.PARSE_ERROR, uid.value))
        # A kernel that tells nothing must not lock the VIM out
        # (docs/protocol/3-vim-http.md#requests-and-their-limits).
        if isinstance(uid, NoUid):
            self._say_once(uid)
            return Caller("a caller without uid: %s" % uid.value)
        if uid in self._uids:
            return Caller("uid %d" % uid)
        detail = "not root, not this daemon's own uid, not in [agent] vim_users"
        return Caller("uid %d" % uid, Failure(403, vim_http.PARSE_ERROR, detail))

    def describe(self) -> str:
        """For the health report."""
        uids = ",".join(str(uid) for uid in sorted(self._uids))
        unknown = " unknown %s" % ",".join(self._unknown) if self._unknown else ""
        return "commands are taken from uids %s%s known by %s" % (uids, unknown, self._peers.means)

    def close(self) -> None:
        """Give back the descriptor."""
        self._peers.close()

    def _say_once(self, why: NoUid) -> None:
        if not self._is_said:
            self._is_said = True
            text = "commands are served without asking for the caller's uid, [agent] vim_users or not: %s"
            log.warning(text, why.value)
