"""A trial at the daemon's start: can a guest's process be forked, confined and ended here?

Root in a container may lack a capability, a namespace may not map a uid, a kernel may refuse a step. Every
child would die of it. So one is made before there are guests, on a connection that has ended already: it
confines itself, sees the end and exits.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from typing import Dict, List, Optional

from guestmtce.server.child import pipe_protocol, spawner
from guestmtce.server.child.session_types import Note
from guestmtce.server.supervise.spawner_client import SpawnerClient, kill_process

log = logging.getLogger(__name__)

NAME = "trial"  # in the place of a guest's uuid
WAIT = 5.0  # s for the trial child to end by itself

# linux/capability.h: bit → name. Children change their user and are signalled from outside it.
CAPABILITIES: Dict[int, str] = {5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID"}
# Without it guestServer works where QEMU's sockets let root in.
USEFUL_CAPABILITIES: Dict[int, str] = {1: "CAP_DAC_OVERRIDE"}


def require_capabilities() -> None:
    """What root needs for children of another user. Raises OSError that names what is missing."""
    with open("/proc/self/status", "rb") as file:
        status = file.read()
    if missing_capabilities(status, USEFUL_CAPABILITIES):
        log.warning("root without CAP_DAC_OVERRIDE: sockets of QEMU's user may refuse guestServer")
    missing = missing_capabilities(status, CAPABILITIES)
    if missing:
        raise OSError(
            "root without %s cannot have guests' processes of another user:"
            " give guestServer these capabilities, or start it as another user" % ", ".join(missing)
        )


def missing_capabilities(status: bytes, wanted: Dict[int, str]) -> List[str]:
    """Of those that are `wanted`, the ones not effective in a process with this /proc/PID/status."""
    line = next(line for line in status.split(b"\n") if line.startswith(b"CapEff:"))
    effective = int(line.split()[1], 16)
    return [name for bit, name in wanted.items() if not effective >> bit & 1]


def try_child(client: SpawnerClient, uid: Optional[int]) -> None:
    """Make a child as guests have them, with `uid` if given. Raises OSError with the reason that it fails."""
    guest, far = socket.socketpair()
    report_pipe, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with guest, report_pipe, theirs:
        far.close()
        request = spawner.encode_request(0, NAME, uid, None)
        pid = client.fork_now(request, [guest.fileno(), theirs.fileno()])
        theirs.close()
        # The pipe's end comes when nobody holds the child's side: our copy is closed before.
        said = _read_last_words(report_pipe)
        # Without effect on one that has ended; one that hangs must not hang the daemon's start.
        kill_process(pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != pipe_protocol.END_PEER_CLOSED:
        raise OSError("a guest's process cannot work here: %s" % (said or "it ended with %d" % code))


def _read_last_words(report_pipe: socket.socket) -> str:
    """Wait for the end of what the child says; returns its last words."""
    said = ""
    poll = select.poll()
    poll.register(report_pipe, select.POLLIN)
    while poll.poll(WAIT * 1000):
        packet = report_pipe.recv(pipe_protocol.PACKET_MAX + 1)
        if not packet:
            return said
        report = pipe_protocol.decode_report(packet)
        if isinstance(report, Note):
            said = report.text
    return "it did not end within %g s" % WAIT
