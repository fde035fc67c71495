"""Our packages in a booted tree, and around them what a cloud has: guests, a VIM and an mtcAgent."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import threading
import time
from typing import Any, Dict, Iterator, List, Sequence

from tree import POLL, Tree

from guestmtce.lab.cluster import host_uuid, wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.mtc_agent import MtcAgent
from guestmtce.lab.process import GuestsProcess
from guestmtce.lab.vim import CommandClient, Vim
from guestmtce.wire.datagram import HostRecord

NEXT = "9.0.0"  # a version to upgrade to
CHANNELS = "/var/lib/libvirt/qemu"
OFFERED = "/srv/packages"
OCF = "/usr/lib/ocf/resource.d/platform/guestAgent"
SOURCE = "sources.list.d/local.list"
HOST = HostRecord("compute-0", host_uuid(0), "127.0.0.1")
LOOPBACK = "127.0.0.1"
VIM_PORT, HTTP_PORT, EVENT_PORT, COMMAND_PORT = 30002, 2410, 2107, 2108
GUESTS = 3
WAIT = 20.0  # s; guestAgent looks around every 10 s


class Daemon:
    """An installed guestServer or guestAgent."""

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree = tree
        self.name = name

    @property
    def pid(self) -> int:
        """What its pid file says, 0 without one; in the tree's own numbers."""
        path = "/run/%s.pid" % self.name
        return int(self._tree.read(path)) if self._tree.exists(path) else 0

    def found(self) -> List[int]:
        """What `pidof` finds."""
        return [int(word) for word in self._tree.run("pidof " + self.name, status=None).split()]

    def titles(self) -> List[str]:
        """The titles of all its processes, the main one's first."""
        said = self._tree.run("ps -e -o args= | grep '^%s' || true" % self.name)
        return sorted(line.strip() for line in said.splitlines())

    def signal(self, name: str) -> None:
        """Send it a signal."""
        pid = self.pid
        assert pid, self.name + " has no pid file"  # 0 would be whoever asks
        self._tree.run("kill -%s %d" % (name, pid))

    def is_active(self) -> str:
        """What systemd says of its unit."""
        return self._tree.run("systemctl is-active " + self.name, status=None).strip()

    def is_enabled(self) -> str:
        """Whether it starts at boot."""
        return self._tree.run("systemctl is-enabled " + self.name, status=None).strip()

    def _report(self, signal: str, path: str) -> List[str]:
        full = self._tree.path(path)
        before = os.stat(full).st_ino if os.path.exists(full) else 0
        self.signal(signal)
        wait_for(lambda: os.path.exists(full) and os.stat(full).st_ino != before, "the report " + path)
        return self._tree.read(path).splitlines()

    def health(self) -> Dict[str, str]:
        """The health report: the first word of each line → the line."""
        return {line.split()[0]: line for line in self._report("USR1", "/run/%s.info" % self.name)}

    def dump(self, kind: str) -> Dict[str, Dict[str, str]]:
        """The dump's lines `KIND NAME key=value …`: name → key → value."""
        rows = {}
        for line in self._report("USR2", "/var/log/%s.dump" % self.name):
            words = line.split()
            if words[0] == kind and len(words) > 1:
                rows[words[1]] = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        return rows


class Installed:
    """A booted tree with a folder of packages; `open_cloud` and `close_cloud` are the neighbours."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.server = Daemon(tree, "guestServer")
        self.agent = Daemon(tree, "guestAgent")
        self.uuids = [uuid_of(number) for number in range(1, GUESTS + 1)]
        self.client = CommandClient(LOOPBACK, HTTP_PORT)
        self.vim = Vim(port=VIM_PORT)
        self.guests: Any = None
        self._mtc: Any = None
        self._asking = threading.Lock()  # the guests are one process, which answers in turn

    # --- packages ----------------------------------------------------------------------------------

    def offer(self, folder: str, version: str) -> None:
        """Put the packages of a version into the folder that apt looks at, beside others there."""
        offered = os.path.join(self.tree.folder, "packages")
        os.makedirs(offered, exist_ok=True)
        for package in glob.glob(os.path.join(folder, "*_%s_all.deb" % version)):
            shutil.copy(package, offered)
        with open(os.path.join(offered, "Packages"), "wb") as index:
            words = ["dpkg-scanpackages", "--multiversion", "."]
            subprocess.run(words, cwd=offered, stdout=index, stderr=subprocess.DEVNULL, check=True)
        shutil.copytree(offered, self.tree.path(OFFERED), dirs_exist_ok=True)
        self.tree.write("/etc/apt/" + SOURCE, "deb [trusted=yes] file:%s ./\n" % OFFERED)
        only = "-o Dir::Etc::sourcelist=%s -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0" % SOURCE
        self.tree.run("apt-get -q update " + only)

    def apt(self, words: str) -> str:
        """Run apt-get, which has no network: Debian's packages were downloaded when the tree was made."""
        return self.tree.run("apt-get -q -y " + words)

    def of_packages(self) -> List[str]:
        """What there is in the tree that is ours, or was made by ours."""
        names = "-name '*guestServer*' -o -name '*guestAgent*' -o -name '*guestmtce*' -o -name 'guestClient*'"
        names += " -o -name guest-client -o -name heartbeat_init -o -path /etc/mtc -o -name 'mtce-guest*'"
        known = (
            "-path /proc -o -path /sys -o -path %s -o -path /etc/rsyslog.d -o -path /var/log/journal"
            % OFFERED
        )
        known += " -o -path /var/lib/apt -o -path /var/cache/apt"
        return self.tree.run("find / \\( %s \\) -prune -o \\( %s \\) -print" % (known, names)).split()

    # --- the cloud ---------------------------------------------------------------------------------

    def open_cloud(self) -> None:
        """Guests, a VIM that wants their heartbeats reported, and an mtcAgent that knows the host."""
        self.vim.hosts = {HOST.uuid: True}
        self.vim.instances = {HOST.uuid: [(uuid, HOST.hostname, True) for uuid in self.uuids]}
        with self.tree.network():
            self.vim.start()
        self._start_mtc()
        output = os.path.join(self.tree.folder, "guests")
        self.guests = GuestsProcess(self.tree.path(CHANNELS), GUESTS, 1, ["--interval-ms", "1000"], output)

    def close_cloud(self) -> None:
        """Stop them."""
        if self.guests is not None:
            self.guests.stop()
            self.guests = None
        self._stop_mtc()
        self.vim.stop()

    def _start_mtc(self) -> None:
        with self.tree.network():
            self._mtc = MtcAgent([HOST], LOOPBACK, EVENT_PORT, COMMAND_PORT)
        self._mtc.start()

    def _stop_mtc(self) -> None:
        if self._mtc is not None:
            with self.tree.network():
                self._mtc.stop()
            self._mtc = None

    @contextlib.contextmanager
    def without_mtc(self) -> Iterator[None]:
        """There is no mtcAgent meanwhile."""
        self._stop_mtc()
        try:
            yield
        finally:
            self._start_mtc()

    def provision(self) -> None:
        """Create the instances as the VIM does; until all heartbeat, as guestAgent sees it."""
        wait_for(lambda: HOST.hostname in self.agent.dump("host"), "guestAgent knows the host", WAIT, POLL)
        with self.tree.network():
            for uuid in self.uuids:
                assert self.client.create(uuid, HOST.hostname)[0] == 200
                assert self.client.set(uuid, HOST.hostname, "enabled")[0] == 200
        self.await_heartbeats()

    @contextlib.contextmanager
    def instance(self, uuid: str) -> Iterator[None]:
        """The VIM has one more instance meanwhile, and wants its heartbeat reported."""
        listed = self.vim.instances[HOST.uuid]
        listed.append((uuid, HOST.hostname, True))
        with self.tree.network():
            assert self.client.create(uuid, HOST.hostname)[0] == 200
            assert self.client.set(uuid, HOST.hostname, "enabled")[0] == 200
        try:
            yield
        finally:
            listed.pop()
            with self.tree.network():
                self.client.delete(uuid)

    def await_heartbeats(self) -> float:
        """Until all heartbeat, as guestAgent sees it; the seconds that it took."""
        began = time.monotonic()
        wait_for(self._all_heartbeat, "all guests heartbeat", WAIT, POLL)
        return time.monotonic() - began

    def _all_heartbeat(self) -> bool:
        rows = self.agent.dump("instance")
        return [rows.get(uuid, {}).get("heartbeating") for uuid in self.uuids] == ["enabled"] * GUESTS

    def beats(self) -> Dict[str, float]:
        """When each guest last answered a challenge."""
        with self._asking:
            return {uuid: facts["last_beat"] for uuid, facts in self.guests.status().items()}

    def await_beats(self, seconds: float = WAIT) -> None:
        """Until every guest has answered once more: asked of the guests themselves."""
        before = self.beats()

        def all_answered() -> bool:
            beats = self.beats()
            return all(beats[uuid] > before[uuid] for uuid in before)

        wait_for(all_answered, "every guest answers", seconds, POLL)

    def alarms(self) -> List[Dict[str, Any]]:
        """What the VIM was told of failures."""
        return self.vim.events("alarm")

    @contextlib.contextmanager
    def silences(self) -> Iterator[List[float]]:
        """The longest time between two answers of each guest meanwhile, in s, is in the list afterwards."""
        longest: Dict[str, float] = dict.fromkeys(self.uuids, 0.0)
        last, done, result = self.beats(), threading.Event(), []

        def look() -> None:
            for uuid, beat in self.beats().items():
                longest[uuid] = max(longest[uuid], beat - last[uuid])
                last[uuid] = beat

        def watch() -> None:
            while not done.wait(POLL):
                look()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield result
            time.sleep(2.5)  # s: two more answers, at least
        finally:
            done.set()
            watcher.join()
        result.extend(longest.values())


def spread(values: Sequence[float]) -> str:
    """For a report."""
    return "%.2f … %.2f s" % (min(values), max(values))
