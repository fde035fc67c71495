"""A spawner some of whose children do what their guest tells them: as if it had taken them over.

A guest that says MARK alone may then send Python, one expression at a time: a line with its length in bytes,
and as many. Its confined child works it out and answers in one line. Every other child is as honest as ever.
Only tests start it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time

from guestmtce.server.child import process
from guestmtce.server.child.spawner import main

__all__ = ["main"]

MARK = b"#!"
BOOT = (
    "import sys; sys.path[:0] = sys.argv[1].split(':');from hostile_spawner import main; main(sys.argv[2:])"
)

GUEST, PIPE = 0, 1  # a child's descriptors

_honest_read = process.read
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p


def syscall(number, *arguments):
    """The bare system call: what it returned, or minus errno."""
    words = [one if isinstance(one, bytes) else ctypes.c_long(one) for one in arguments]
    result = _libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result


def repeat(call, count):
    """Call it so often, or until it fails."""
    for _ in range(count):
        call()
    return "did it %d times" % count


def peek(number, pid):
    """process_vm_readv: a word of its memory, where it has some, for it was forked as we were."""
    word = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(word), 8)
    return syscall(number, pid, ctypes.addressof(vector), 1, ctypes.addressof(vector), 1, 0)


def executable(make):
    """Memory made executable: by mmap at once, or by mprotect later."""
    if make == "mmap":
        return syscall_mmap(7)
    address = syscall_mmap(3)
    return _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 7) or "executable"


def syscall_mmap(protection):
    address = _libc.mmap(None, ctypes.c_size_t(4096), protection, 0x22, -1, ctypes.c_long(0))
    return -1 if address == ctypes.c_void_p(-1).value else address


WORDS = {
    "os": os,
    "time": time,
    "socket": socket,
    "syscall": syscall,
    "repeat": repeat,
    "executable": executable,
    "peek": peek,
}


def _received(length):
    data = b""
    while len(data) < length:
        more = os.read(GUEST, length - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _line():
    data = b""
    while not data.endswith(b"\n"):
        data += _received(1)
    return data


def _obey():
    # A socket object without a question to the kernel, which the filter would refuse.
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=GUEST)
    os.write(GUEST, MARK + b"\n")
    while True:
        text = _received(int(_line()))
        try:
            answer = repr(eval(text, {**WORDS, "guest": guest}))
        except BaseException as error:  # noqa: BLE001 - whatever happens is the answer
            answer = "%s: %s" % (type(error).__name__, error)
        os.write(GUEST, answer.encode("ascii", "replace")[:4000] + b"\n")


def _read(descriptor, length):
    data = _honest_read(descriptor, length)
    if descriptor == GUEST and data == MARK:
        for one in (GUEST, PIPE):
            os.set_blocking(one, True)
        _obey()
    return data


process.read = _read
