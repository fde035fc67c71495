"""A client of another user: connects, sends, does as it is asked, and stays until its input ends.

Arguments: uid, port, what to do (see ACTS), what to send. Everything is imported before the user is changed:
the interpreter may lie where the other user cannot read.
"""

import os
import socket
import struct
import sys


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ask(connection):
    data = b""
    while True:
        more = connection.recv(65536)
        if not more:
            break
        data += more
    print(data.split()[1].decode())


ACTS = {
    "open": lambda connection: None,
    "half closed": lambda connection: connection.shutdown(socket.SHUT_WR),
    "closed": lambda connection: connection.close(),
    "reset": reset,
    "ask": ask,
}


def main(uid, port, act, data):
    if int(uid) != os.geteuid():
        os.setgroups([])
        os.setuid(int(uid))
    connection = socket.socket()
    connection.connect(("127.0.0.1", int(port)))
    connection.sendall(data.encode())
    ACTS[act](connection)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
