"""What a guest of the tests boots from: a Debian kernel and an initramfs with Python and guestClient in it.

`scripts/dev/setup-vm` has the files; here they become one cpio archive ("newc", as Linux unpacks it),
together with the client, installed from this checkout as a user installs it, its configuration and the two
scripts that a test may replace.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from typing import Dict, Iterator, Tuple

import guestmtce

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(guestmtce.__file__)))
PREPARED = os.path.join(REPOSITORY, ".vm")
KERNEL = os.path.join(PREPARED, "vmlinuz")
INSTALL = os.path.join(REPOSITORY, "scripts", "guest", "install")
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console",
)  # fmt: skip
HEALTH_SCRIPT = "/etc/guest-client/heartbeat/health"
EVENT_SCRIPT = "/etc/guest-client/heartbeat/event"

# The guest's first process. The port `control` has a shell for the test: a line comes, what it prints and
# its exit status go back. The names of the ports, which come a little later
# than the ports, are made into links as udev does it in a real guest.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /var/log
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
for module in %(modules)s; do insmod /modules/$module.ko; done
mkdir /dev/virtio-ports
while ! [ -e /dev/virtio-ports/cgcs.heartbeat -a -e /dev/virtio-ports/control ]; do
    for port in /sys/class/virtio-ports/*; do
        name=$(cat $port/name) && [ -n "$name" ] && ln -sf ../${port##*/} /dev/virtio-ports/$name
    done
    usleep 20000
done
exec 3<>/dev/virtio-ports/control
OPTIONS="--log /dev/console" /etc/init.d/heartbeat_init start 3>&-
echo "= ready $(cut -d ' ' -f 1 /proc/uptime)" >&3
while :; do
    while read -r token line <&3; do
        eval "$line" >&3 2>&1 </dev/null
        echo "= $token $?" >&3
    done
    sleep 0.1
done
"""
CONFIGURATION = """HB_INTERVAL=1000
CORRECTIVE_ACTION=reboot
VOTE=8
SHUTDOWN_NOTICE=8
SUSPEND_NOTICE=8
RESUME_NOTICE=13
RESTART=120
HEALTH_CHECK_INTERVAL=2
HEALTH_CHECK_SCRIPT=%s
EVENT_NOTIFICATION_SCRIPT=%s
""" % (HEALTH_SCRIPT, EVENT_SCRIPT)
FINE = "#!/bin/sh\nexit 0\n"

Entry = Tuple[str, int, int, bytes]  # path, mode, mtime, content


def _tree(root: str) -> Iterator[Entry]:
    """Everything below `root`, folders first."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            yield _entry(os.path.join(folder, name), os.path.relpath(os.path.join(folder, name), root))


def _entry(path: str, name: str) -> Entry:
    facts = os.lstat(path)
    content = b""
    if stat.S_ISLNK(facts.st_mode):
        content = os.readlink(path).encode()
    elif stat.S_ISREG(facts.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    return name, facts.st_mode, int(facts.st_mtime), content


def _written() -> Dict[str, str]:
    return {
        "init": INIT % {"modules": " ".join(MODULES)},
        "etc/guest-client/heartbeat/guest_heartbeat.conf": CONFIGURATION,
        HEALTH_SCRIPT[1:]: FINE,
        EVENT_SCRIPT[1:]: FINE,
    }


def _entries() -> Iterator[Entry]:
    for path, text in _written().items():
        yield path, stat.S_IFREG | 0o755, 0, text.encode()
    yield from _tree(os.path.join(PREPARED, "root"))
    for module in MODULES:
        yield _entry(os.path.join(PREPARED, "modules", module + ".ko"), "modules/%s.ko" % module)
    with tempfile.TemporaryDirectory() as installed:
        subprocess.run([INSTALL, installed], check=True)
        yield from _tree(installed)


def _in_order(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Every folder before what lies in it, and of two entries with one path the first."""
    known = {""}
    for entry in entries:
        parts = entry[0].split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in known:
                known.add(folder)
                yield folder, stat.S_IFDIR | 0o755, 0, b""
        if entry[0] not in known:
            known.add(entry[0])
            yield entry


def _record(number: int, entry: Entry) -> bytes:
    path, mode, mtime, content = entry
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(path: str) -> None:
    """Write the archive to `path`."""
    with open(path, "wb") as file:
        for number, entry in enumerate(_in_order(_entries()), 1):
            file.write(_record(number, entry))
        file.write(_record(0, ("TRAILER!!!", 0, 0, b"")))
