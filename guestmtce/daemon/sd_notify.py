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


def tell(*words: str) -> bool:
    """Send this to systemd; whether there was somebody to tell. What cannot be sent is lost."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
            systemd.setblocking(False)
            systemd.sendto("\n".join(words).encode("utf-8"), "\0" + path[1:] if path[0] == "@" else path)
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
    """It serves; which process it is, for who sees another start; `text`: for `systemctl status`."""
    tell(READY, "MAINPID=%d" % os.getpid(), status(text))


def watchdog_period() -> Optional[float]:
    """How often, in s, `ALIVE` is to be told, twice as often as must be; None: nobody waits for it."""
    try:
        timeout = int(os.environ["WATCHDOG_USEC"]) / USEC
        watched = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return timeout / 2 if timeout > 0 and watched == os.getpid() else None


def feed_watchdog(after: Callable[[float, Callable[[], None]], object]) -> None:
    """Tell that we live, now and ever again; `after(seconds, call)` is the loop's."""
    period = watchdog_period()
    if period is None:
        return
    tell(ALIVE)
    after(period, lambda: feed_watchdog(after))
