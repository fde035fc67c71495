"""What befalls processes, the VIM and run folders."""

from __future__ import annotations

import os
import signal
import time
from typing import Dict, Set

import psutil
import slowed
from world import OURS, Course, World

from guestmtce.lab.cluster import Daemon, LabHost

NEVER = float("inf")
RESET_FORGOTTEN = 0.6  # s after which an alarm that was reset has been sent again
RUN_FOLDER_BACK = 2.2  # s; 10 s in life, and the longest stall of a slowed loop, which has no time for it


def _go_on_after(pid: int, seconds: float) -> None:
    """From another thread than the one that may wait for an answer of what is stopped."""
    time.sleep(seconds)
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


class Troubles:
    """Each public method is a fault."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.truth, self.random, self.cluster = world.truth, world.random, world.cluster
        self._full: Set[str] = set()  # hosts
        self._cleaned: Dict[str, float] = {}  # host → when
        self._resets_until = 0.0  # s, monotonic

    def kill_child(self) -> None:
        children = self.cluster.children(self.random.choice(self.cluster.hosts))
        if children:
            uuid = self.random.choice(sorted(children))
            self.truth.note("kill child " + uuid[-2:])
            try:
                children[uuid].kill()
            except psutil.NoSuchProcess:
                pass

    def kill_server(self) -> None:
        host = self.random.choice(self.cluster.hosts)
        if time.monotonic() < self._cleaned.get(host.name, 0.0) + RUN_FOLDER_BACK:
            return
        self.truth.note("kill server " + host.name)
        uuids = [uuid for uuid in self.cluster.uuids if self.world.host_of(uuid) is host]
        host.server.kill()
        for uuid in uuids:
            self.truth.begin(self.truth.unwatched, uuid)
        self._empty(host)
        self.world.go_on(self.random.random() * 0.3)
        self.world.go_on_while(lambda: self.cluster.start_server(host))
        for uuid in uuids:
            self.truth.end(self.truth.unwatched, uuid)

    def kill_agent(self) -> None:
        """Not while the VIM resets what it has read, nor soon after: the real one does so only when it dies,
        and the next agent would take this one, which lives, for one that processed what was under way. Nor
        while there are two agents: the second one would be followed in the end, and its VIM wants no
        reporting.
        """
        if time.monotonic() < self._resets_until or self.world.agents != OURS:
            return
        self.truth.note("kill agent")
        self.cluster.agent.kill()
        self.world.go_on(self.random.random() * 0.3)
        self.world.go_on_while(self.cluster.start_agent)

    def stop_something(self) -> None:
        host = self.random.choice(self.cluster.hosts)
        pids = [host.server.popen.pid, self.cluster.agent.popen.pid]
        pids += [child.pid for child in self.cluster.children(host).values()][:3]
        pid = self.random.choice(pids)
        self.truth.note("stop %d" % pid)
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return
        self.world.go_on_while(lambda: _go_on_after(pid, self.random.random() * 0.5))

    def slow_something(self) -> None:
        """A callback of a loop takes its time."""
        daemon: Daemon = self.random.choice(
            [self.random.choice(self.cluster.hosts).server, self.cluster.agent]
        )
        seconds = self.random.random()
        self.truth.note("slow %s %.2f" % (daemon.folder, seconds))
        slowed.slow(daemon.folder, seconds)

    # --- the VIM's troubles ---

    def trouble_vim(self) -> None:
        if not self.world.vim_trouble:
            self.world.vim_trouble = self.random.choice(("down", "slow", "reset", "hang", "stall"))
            self.truth.note("vim " + self.world.vim_trouble)
            self.world.start(self._vim_troubled(self.world.vim_trouble))

    def _vim_troubled(self, trouble: str) -> Course:
        """Down for up to 40 s of life, resetting or standing still for up to 8, or still for 25 … 65."""
        vim, began = self.cluster.vim, time.monotonic()
        if trouble == "down":
            vim.stop()
            self.truth.deaths.append(time.monotonic())
            yield self.random.choice((0.4, 0.8, 4.0)) * self.random.random()
            vim.start()
        elif trouble == "slow":
            vim.delay = 0.05
            yield 0.4
            vim.delay = 0.0
        else:
            switch = "reset" if trouble == "reset" else "hang"
            if trouble == "reset":
                self._resets_until = NEVER
            setattr(vim, switch, True)
            if switch == "hang":
                self.truth.stalls.append((began, None))
            yield self.random.uniform(2.5, 6.5) if trouble == "stall" else self.random.random() * 0.8
            setattr(vim, switch, False)
            if trouble == "reset":
                self._resets_until = time.monotonic() + RESET_FORGOTTEN
            if switch == "hang":
                self.truth.stalls[self.truth.stalls.index((began, None))] = (began, time.monotonic())
        self.world.vim_trouble = ""

    # --- run folders ---

    def fill_run_folder(self) -> None:
        host = self.random.choice(self.cluster.hosts)
        if self.world.own_mounts and host.name not in self._full:
            self.truth.note("full " + host.name)
            self._full.add(host.name)
            self.world.start(self._filled(host))

    def _filled(self, host: LabHost) -> Course:
        with open(os.path.join(host.server.folder, "fill"), "wb", 0) as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except OSError:
                pass
        yield self.random.random()
        self._empty(host)

    def _empty(self, host: LabHost) -> None:
        if host.name in self._full:
            self.truth.note("room again " + host.name)
            self._full.discard(host.name)
            os.unlink(os.path.join(host.server.folder, "fill"))

    def clean_run_folder(self) -> None:
        """All but the log, which is the test's."""
        host = self.random.choice(self.cluster.hosts)
        if host.name in self._full:
            return
        self.truth.note("clean " + host.name)
        self._cleaned[host.name] = time.monotonic()
        for root, _, names in os.walk(host.server.folder):
            for name in names:
                if not name.endswith(".log"):
                    try:
                        os.unlink(os.path.join(root, name))
                    except FileNotFoundError:
                        pass  # it was a temporary one
            if root != host.server.folder:
                try:
                    os.rmdir(root)
                except OSError:
                    pass  # something was written meanwhile
