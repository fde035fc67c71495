"""Words before a daemon's command line that give it a world of its own: mounts, a name server, a `/dev`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import List

import pytest

SILENT_ADDRESS = "127.0.53.1"  # port 53 of it: resolv.conf has no other
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# Python code: a network namespace starts with a loopback that is down, and not every machine has ip(8).
LOOPBACK_UP = """
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), %d, struct.pack("16sh14x", b"lo", %d))
""" % (SIOCSIFFLAGS, IFF_UP)


def _is_allowed() -> bool:
    """Whether we may have mounts and a network of our own, which root of some containers may not."""
    words = ["unshare", "--mount", "--net", sys.executable, "-c", LOOPBACK_UP]
    return os.geteuid() == 0 and not subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode


ALLOWED = _is_allowed()
needs_root = pytest.mark.skipif(not ALLOWED, reason="only root has mounts and a network of its own")


def mounted(*commands: str) -> List[str]:
    """Run the shell commands in a mount namespace, then become the program. Its pid stays."""
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh"]


def loopback_up() -> str:
    """The shell command that brings it up."""
    return "'%s' -c '%s'" % (sys.executable, LOOPBACK_UP)


def etc(folder: Path) -> Path:
    """A copy of /etc that the program may have instead: `mounted(bind(COPY, "/etc"))`."""
    copy = folder / "etc"
    shutil.copytree("/etc", copy, symlinks=True, ignore_dangling_symlinks=True)
    return copy


def bind(source: Path, target: str) -> str:
    """The shell command that shows `source` at `target`."""
    return "mount --bind '%s' '%s'" % (source, target)


class SilentNameServer:
    """A name server that hears everything and says nothing; `asked` counts. A context manager."""

    def __init__(self, folder: Path, hosts: str = "127.0.0.1 localhost\n") -> None:
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((SILENT_ADDRESS, 53))
        self._socket.settimeout(0.1)
        self._open = True
        folder.mkdir(exist_ok=True)
        files = {
            "resolv.conf": "nameserver %s\n" % SILENT_ADDRESS,
            "hosts": hosts,
            "nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        self.commands = [bind(folder / name, "/etc/" + name) for name in files]
        self.before = mounted(*self.commands)

    def __enter__(self) -> SilentNameServer:
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()
        self._socket.close()

    def _hear(self) -> None:
        while self._open:
            try:
                self._socket.recv(4096)
                self.asked += 1
            except socket.timeout:
                pass
