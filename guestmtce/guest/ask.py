"""Asks the guest client that runs here about its local processes: `--members` and `--forget NAME`."""

import json
import socket
import sys
from typing import Any, Dict

from guestmtce.guest.log_text import printable

WAIT = 5.0  # s for its answer
ANSWER_MAX = 262144  # bytes; 48 processes, every byte of name and illness escaped as six
HEAD = ("NAME", "PID", "UID", "CONNECTED", "ACTION", "ILLNESS")


def ask(path: str, question: Dict[str, Any]) -> Dict[str, Any]:
    """One line there, one line back. Raises OSError, ValueError with what the client says."""
    with socket.socket(socket.AF_UNIX) as link:
        # A client that stands still is told of, and not waited for.
        link.settimeout(WAIT)
        link.connect(path)
        link.sendall(json.dumps(question).encode("ascii") + b"\n")
        line = b""
        while not line.endswith(b"\n") and len(line) < ANSWER_MAX:
            data = link.recv(4096)
            if not data:
                raise ValueError("the guest client hung up")
            line += data
    answer = json.loads(line.decode("utf-8", "replace"))
    if not isinstance(answer, dict) or answer.get("type") != "members":
        raise ValueError(str(answer.get("reason", answer) if isinstance(answer, dict) else answer))
    return answer


def print_members(path: str, forget: str) -> None:
    """The table of the local processes, after `forget` was forgotten. Raises OSError, ValueError."""
    question = {"type": "forget", "name": forget} if forget else {"type": "members"}
    rows = [HEAD]
    for member in ask(path, question)["members"]:
        connected = "yes" if member["connected"] else "no"
        illness = member["illness"] or "healthy"
        action = member["corrective_action"]
        rows.append((member["name"], member["pid"], member["uid"], connected, action, illness))
    for row in rows:
        # What processes say goes to a terminal, perhaps root's.
        sys.stdout.write("%-31s %7s %6s %-9s %-6s %s\n" % tuple(printable(str(value)) for value in row))
