"""What systemd is told by a daemon in a unit of Type=notify, and nothing without one (sd_notify(3)).

It is told over the datagram socket that the environment names, so this needs no library. The watchdog is fed
from the loop itself: a loop that hangs is found out.
"""

from __future__ import annotations

import os
import socket
from typing import Callable, Optional

READY = "READY=1"
RELOADING = "RELOADING=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
USEC = 1_000_000  # µs per s


def tell(*assignments: str) -> bool:
    """Send these assignments to systemd; whether it listens. What cannot be sent is lost."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
            # The loop itself calls this: a manager that does not read must not stop the heartbeat.
            systemd.setblocking(False)
            # "@" stands for the NUL of an abstract socket (unix(7)).
            systemd.sendto(
                "\n".join(assignments).encode("utf-8"), "\0" + path[1:] if path[0] == "@" else path
            )
    except OSError:
        return False
    return True


def is_listened_to() -> bool:
    """Whether systemd wants to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def status(text: str) -> str:
    """The word that `systemctl status` shows: one line, whatever `text` holds."""
    return "STATUS=" + " ".join(text.split())


def ready(text: str) -> None:
    """The daemon serves. MAINPID corrects systemd's guess; `text` is for `systemctl status`."""
    tell(READY, "MAINPID=%d" % os.getpid(), status(text))


def watchdog_period() -> Optional[float]:
    """The period of `ALIVE` in s, half of what systemd allows; None: its watchdog is off."""
    try:
        timeout = int(os.environ["WATCHDOG_USEC"]) / USEC
        watched = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    # WATCHDOG_PID may name the process that started us: then the watchdog is not ours.
    return timeout / 2 if timeout > 0 and watched == os.getpid() else None


def feed_watchdog(after: Callable[[float, Callable[[], None]], object]) -> None:
    """Send `ALIVE` now and each period; `after(seconds, call)` is the loop's."""
    period = watchdog_period()
    if period is None:
        return
    tell(ALIVE)
    after(period, lambda: feed_watchdog(after))
