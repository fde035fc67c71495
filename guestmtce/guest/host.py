"""Whether this machine is a host of guests: there the guest's service has no place."""

import os
from typing import Optional

PLATFORM_FILE = "etc/platform/platform.conf"
PLATFORM_KEYS = ("nodetype", "subfunction")
HOST_TYPES = ("worker", "compute", "controller")  # `compute` is the older name of a worker
SERVER = "usr/local/bin/guestServer"
# A program without one of these is not the service: pip brings it with the client.
SERVICES = (
    "etc/init.d/guestServer", "etc/systemd/system/guestServer.service",
    "lib/systemd/system/guestServer.service", "usr/lib/systemd/system/guestServer.service",
)  # fmt: skip


def host_evidence(root: str = "/") -> Optional[str]:
    """What shows that the machine with its files at `root` is a host of guests, in words; None: nothing."""
    if os.path.exists(os.path.join(root, SERVER)):
        for service in SERVICES:
            if os.path.exists(os.path.join(root, service)):
                return "guestServer is installed here (/%s)" % service
    return _platform_evidence(os.path.join(root, PLATFORM_FILE))


def _platform_evidence(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() in PLATFORM_KEYS and set(value.replace(" ", "").split(",")).intersection(HOST_TYPES):
            return "/%s says %s" % (PLATFORM_FILE, line)
    return None
