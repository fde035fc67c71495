"""A whole cloud on loopback: guests, guestServers on 127.0.0.N, a guestAgent, an mtcAgent and a VIM.

The daemons are the real ones, as processes of their own with free ports and private folders; guests are one
process per host. Everything is gone after `stop`, whatever happened before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import psutil

from guestmtce.lab import pace
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.mtc_agent import MtcAgent
from guestmtce.lab.ports import free_ports
from guestmtce.lab.process import GuestsProcess, LabProcess
from guestmtce.lab.vim import CommandClient, Vim
from guestmtce.wire.datagram import HostRecord

AGENT_ADDRESS = "127.0.0.1"
CONNECT_WAIT = 1.0  # s
START_WAIT = 10.0  # s
DUMP_PACE = 0.05  # s between two dumps of a daemon
FIRST_SERVER = 2  # last number of the first guestServer's address: 127.0.0.1 is the agent's


class TimedOut(AssertionError):
    """A condition did not come true in time."""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 10.0, step: float = 0.01) -> Any:
    """The first true value of `condition`, asked every `step` s; `what` it stands for.

    A busy machine gets more than `seconds`. Raises TimedOut.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        # Measured only when the time is up: a look at the machine's pace takes processor time itself.
        if not pace.within(seconds, time.monotonic() - began):
            raise TimedOut("not within %g s: %s" % (seconds, what))
        time.sleep(step)


class Daemon(LabProcess):
    """guestServer or guestAgent, in the foreground."""

    def __init__(
        self, name: str, module: str, folder: str, arguments: List[str], before: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        options = ["--foreground", "--run-dir", folder, "--log-dir", folder]
        output = os.path.join(folder, name + ".log")
        super().__init__(["-m", module, *options, *arguments], output, before=before)

    def _read_report(self, signum: int, path: str) -> List[str]:
        full = os.path.join(self.folder, path)
        # The daemons replace the file as a whole, so a new time means a new and complete report.
        before = os.stat(full).st_mtime_ns if os.path.exists(full) else 0
        self.signal(signum)
        wait_for(lambda: os.path.exists(full) and os.stat(full).st_mtime_ns != before, "the report " + path)
        with open(full, encoding="utf-8") as file:
            return file.read().splitlines()

    def health(self) -> Dict[str, str]:
        """The health report: the first word of each line → the line."""
        return {line.split()[0]: line for line in self._read_report(signal.SIGUSR1, self.name + ".info")}

    def dump(self, kind: str) -> Dict[str, Dict[str, str]]:
        """The lines `KIND NAME key=value …` of the dump: name → key → value."""
        rows = {}
        for line in self._read_report(signal.SIGUSR2, self.name + ".dump"):
            words = line.split()
            # The health report stands in the dump as well; its lines begin with other words.
            if words[0] == kind and len(words) > 1:
                rows[words[1]] = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        return rows


def host_uuid(number: int) -> str:
    """The uuid of the lab's host `number`."""
    return "aaaaaaaa-0000-4000-8000-%012d" % number


class LabHost:
    """One compute host: its guests and its guestServer."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = "compute-%d" % number
        self.address = "127.0.0.%d" % (number + FIRST_SERVER)
        self.seen_at = self.address  # where the agent finds it; a proxy may stand there
        self.controller = AGENT_ADDRESS  # where it finds the agent
        self.uuid = host_uuid(number)
        self.guests: GuestsProcess
        self.server: Daemon

    @property
    def record(self) -> HostRecord:
        """As mtcAgent knows it."""
        return HostRecord(self.name, self.uuid, self.seen_at)


class Cluster:
    """See the module's text. A context manager; `settings` are `SECTION.KEY=VALUE` words for both daemons."""

    server_module = "guestmtce.server.master"  # a test may have its own, and more on its command line
    agent_module = "guestmtce.agent.main"
    server_words: Sequence[str] = ()
    server_before: Sequence[str] = ()  # see LabProcess
    agent_before: Sequence[str] = ()
    mtc_address = AGENT_ADDRESS

    def __init__(
        self,
        guests: int,
        hosts: int = 1,
        interval_ms: int = 1000,
        server_settings: Optional[List[str]] = None,
        agent_settings: Optional[List[str]] = None,
        guest_options: Optional[List[str]] = None,
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="guestmtce-lab-")
        os.chmod(self.folder, 0o755)
        self.hosts = [LabHost(number) for number in range(hosts)]
        self.uuids = [uuid_of(number) for number in range(1, guests * hosts + 1)]
        self.guest_count = guests
        self._provisioned = ""
        self.agent: Daemon
        self.vim = Vim()
        self.mtc: Optional[MtcAgent] = None
        ports = free_ports(5)
        self.server_port, self.agent_port, self.http_port, self.mtc_command_port, self.mtc_event_port = ports
        self.client = CommandClient(AGENT_ADDRESS, self.http_port)
        self._interval_ms = interval_ms
        self._server_settings = server_settings or []
        self._agent_settings = agent_settings or []
        self._guest_options = guest_options or []
        self._processes: List[LabProcess] = []

    def __enter__(self) -> Cluster:
        try:
            self.start()
        # KeyboardInterrupt, too: __exit__ is not called where __enter__ fails, and daemons would stay behind.
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    # --- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; returns when the agent serves and the servers have found it."""
        self.start_neighbours()
        for host in self.hosts:
            self.start_guests(host)
            self.start_server(host)
        self.start_agent()

    def start_neighbours(self) -> None:
        """Start the VIM and the mtcAgent."""
        self.vim.start()
        records = [host.record for host in self.hosts]
        self.mtc = MtcAgent(records, AGENT_ADDRESS, self.mtc_event_port, self.mtc_command_port)
        self.mtc.start()

    def start_guests(self, host: LabHost, folder: str = "", first: int = 0) -> None:
        """Start the guests of a host, in its folder or another; returns when all their sockets are there."""
        first = first or host.number * self.guest_count + 1
        options = ["--interval-ms", str(self._interval_ms), *self._guest_options]
        folder = folder or os.path.join(self.folder, "qemu-%d" % host.number)
        output = os.path.join(self.folder, "guests-%d.log" % host.number)
        host.guests = GuestsProcess(folder, self.guest_count, first, options, output)
        self._processes.append(host.guests)

    def start_server(self, host: LabHost) -> Daemon:
        """Start (again) the guestServer of a host."""
        arguments = ["--channel-dir", host.guests.folder, "--bind", host.address, "--no-wait"]
        arguments += ["--rx-port", str(self.server_port), "--agent-port", str(self.agent_port)]
        arguments += ["--controller", host.controller, "--hostname", host.name]
        arguments += [word for setting in self._server_settings for word in ("--set", setting)]
        arguments += self.server_words
        folder = os.path.join(self.folder, host.name)
        host.server = Daemon("guestServer", self.server_module, folder, arguments, self.server_before)
        self._processes.append(host.server)
        self._await_info(host.server)
        return host.server

    def start_agent(self) -> Daemon:
        """Start (again) the guestAgent, with an empty memory."""
        arguments = ["--bind", AGENT_ADDRESS, "--http-port", str(self.http_port), "--vim-url", self.vim.url]
        arguments += ["--rx-port", str(self.agent_port), "--server-port", str(self.server_port)]
        arguments += ["--mtc-address", self.mtc_address, "--mtc-cmd-port", str(self.mtc_command_port)]
        arguments += ["--mtc-event-port", str(self.mtc_event_port)]
        arguments += [word for setting in self._agent_settings for word in ("--set", setting)]
        folder = os.path.join(self.folder, "controller")
        self.agent = Daemon("guestAgent", self.agent_module, folder, arguments, self.agent_before)
        self._processes.append(self.agent)
        self._await_info(self.agent)
        wait_for(lambda: self._agent_serves() or not self.agent.is_alive(), "guestAgent serves", START_WAIT)
        return self.agent

    def _await_info(self, daemon: Daemon) -> None:
        def started() -> bool:
            # A daemon that could not start is told of with its log, and not waited for.
            if not daemon.is_alive():
                raise RuntimeError("%s ended: %s" % (daemon.name, daemon.log()))
            # With its pid: the log of a daemon that is started again has the line of the one before, too.
            return "started, pid %d" % daemon.popen.pid in daemon.log()

        wait_for(started, daemon.name + " started", START_WAIT)

    def _agent_serves(self) -> bool:
        try:
            socket.create_connection((AGENT_ADDRESS, self.http_port), CONNECT_WAIT).close()
            return True
        except OSError:
            return False

    def stop(self) -> None:
        """Stop everything and remove every file."""
        # The agent, the servers, and the guests last: nobody sees a neighbour end before itself.
        for process in reversed(self._processes):
            process.stop()
        if self.mtc is not None:
            self.mtc.stop()
        self.vim.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- looking -----------------------------------------------------------------------------------

    def provision(self, state: str = "enabled") -> None:
        """Create and set every instance, as the VIM does; waits until the agent knows the hosts."""
        self._provisioned = state
        for host in self.hosts:
            self._await_host(host)
            # Guests are numbered through the hosts: a host has a block of them.
            first = host.number * self.guest_count
            for uuid in self.uuids[first : first + self.guest_count]:
                assert self.client.create(uuid, host.name)[0] == 200
                assert self.client.set(uuid, host.name, state)[0] == 200

    def _await_host(self, host: LabHost) -> None:
        wait_for(lambda: host.name in self.agent.dump("host"), host.name + " is known", step=DUMP_PACE)

    def heartbeating(self) -> List[str]:
        """The instances that the agent says are heartbeating."""
        rows = self.agent.dump("instance")
        return [uuid for uuid, row in rows.items() if row["heartbeating"] == "enabled"]

    def await_heartbeats(self, seconds: float = 15.0) -> None:
        """Until every instance heartbeats, as the agent sees it, and would be missed."""
        wait_for(
            lambda: len(self.heartbeating()) == len(self.uuids),
            "all guests heartbeat",
            seconds,
            step=DUMP_PACE,
        )
        # A failure is reported only with reporting enabled, and of a guest that has answered a challenge
        # since.
        if self._provisioned == "enabled":
            wait_for(lambda: not self._unjudged(), "all guests have answered since", seconds, step=DUMP_PACE)

    def _unjudged(self) -> List[str]:
        """The instances whose failure would not be reported."""
        rows = [pair for host in self.hosts for pair in host.server.dump("guest").items()]
        return [uuid for uuid, row in rows if (row["reporting"], row["owes_answer"]) != ("enabled", "yes")]

    def children(self, host: Optional[LabHost] = None) -> Dict[str, psutil.Process]:
        """The child process of every guest, by uuid.

        Where titles have no effect guestServer is asked, which one that stands still does not answer.
        """
        host = host or self.hosts[0]
        titled = {}
        for process in psutil.Process(host.server.popen.pid).children():
            with contextlib.suppress(psutil.Error):
                # docs/protocol/4-host.md#names-of-processes
                name, colon, uuid = " ".join(process.cmdline()).strip().partition(": ")
                if name == "guestServer" and colon:
                    titled[uuid] = process
        if not titled:  # not even the spawner
            return self._dumped_children(host)
        # The spawner's title has the same form, and no uuid.
        return {uuid: process for uuid, process in titled.items() if uuid in self.uuids}

    def _dumped_children(self, host: LabHost) -> Dict[str, psutil.Process]:
        children = {}
        for uuid, row in host.server.dump("guest").items():
            if uuid in self.uuids and int(row["pid"]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    children[uuid] = psutil.Process(int(row["pid"]))
        return children
