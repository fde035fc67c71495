"""A daemon of ours on a host whose name service does not answer: `mute_names.py MODULE ARGUMENTS…`."""

import importlib
import socket
import sys
import time

HANGS = 60.0  # s; more than any test waits
look_up = socket.getaddrinfo


def hang(host, port, family=0, type=0, proto=0, flags=0):
    """Numeric addresses are no business of a name service."""
    try:
        return look_up(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        if flags & socket.AI_NUMERICHOST:
            raise
        sys.stderr.write("a look-up of %s hangs\n" % host)
        time.sleep(HANGS)
        raise


if __name__ == "__main__":
    socket.getaddrinfo = hang
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
