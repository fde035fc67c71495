"""The command line of guestClient. By hand: `argparse` would be half a megabyte more of memory."""

import getopt
from typing import Any, Dict, NamedTuple, Sequence

from guestmtce.guest.config import CONFIG_FILE
from guestmtce.guest.local_socket import SOCKET

DEVICE = "/dev/virtio-ports/cgcs.heartbeat"
PID_FILE = "/run/guestClient.pid"
FAULT_WAIT = 10  # s; often enough for who corrects a fault, and seldom enough for the log

HELP = """usage: guestClient [options]

The heartbeat client of a guest. It goes into the background.

  --device PATH     the port to the host, or a UNIX socket (%s)
  --config FILE     %s
  --socket PATH     for local processes; "" for none (%s)
  --group NAME      the group that may use that socket, beside root
  --pid-file FILE   %s
  -f, --foreground  stay in front, without a pid file; the log goes to stderr
  -l, --log FILE    log to FILE instead of syslog
  --service         as the service of a guest: does not start on a host of guests, and in front waits
                    %d s before it ends over a fault, for it is started again at once
  --may-start       tell whether --service would start here: exit status 0, or 6 and why not
  --members         tell which local processes the client that runs here knows, and how they are
  --forget NAME     have it forget a local process that has failed and is gone
  --set NAME=VALUE  a setting for developers, see guestmtce/guest/settings.py
  --version         which one this is
  -h, --help        this text
""" % (DEVICE, CONFIG_FILE, SOCKET, PID_FILE, FAULT_WAIT)


class Options(NamedTuple):
    """The command line."""

    device: str = DEVICE
    config: str = CONFIG_FILE
    socket: str = SOCKET
    group: str = ""
    pid_file: str = PID_FILE
    foreground: bool = False
    log: str = ""
    settings: Sequence[str] = ()
    service: bool = False
    may_start: bool = False
    members: bool = False
    forget: str = ""
    help: bool = False
    version: bool = False


# Option → field; those with a trailing `=` take a value, as getopt writes it.
NAMES = {
    "device=": "device", "config=": "config", "socket=": "socket", "group=": "group",
    "pid-file=": "pid_file", "foreground": "foreground", "log=": "log", "set=": "settings", "help": "help",
    "service": "service", "may-start": "may_start", "members": "members", "forget=": "forget",
    "version": "version",
}  # fmt: skip
LETTERS = {"-f": "--foreground", "-l": "--log", "-h": "--help"}


def parse(arguments: Sequence[str]) -> Options:
    """Raises ValueError for what cannot be understood."""
    try:
        pairs, rest = getopt.gnu_getopt(list(arguments), "fl:h", list(NAMES))
    except getopt.GetoptError as error:
        raise ValueError(str(error)) from None
    if rest:
        raise ValueError("unexpected: " + rest[0])
    if ("--forget", "") in pairs:
        raise ValueError("--forget: the name of a local process expected")  # and no daemon that starts
    given: Dict[str, Any] = {"settings": []}
    for letter, value in pairs:
        name = LETTERS.get(letter, letter)[2:]
        if name == "set":
            given["settings"].append(value)
        elif name in NAMES:
            given[NAMES[name]] = True
        else:
            given[NAMES[name + "="]] = value
    return Options(**given)
