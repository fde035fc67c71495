"""Which agents there are: ours, one of the deployed kind, or two."""

from __future__ import annotations

import os
from typing import List

from guest_faults import GuestFaults
from old_agent import OldAgent
from world import OLD, OURS, TWO, Course, World

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, Daemon
from guestmtce.lab.vim import Vim

SETTLING = 0.6  # s for all that is on its way to arrive, on a line without losses
SECOND_AGENT = "127.0.0.201"
NOBODY = "127.0.0.202"
OLD_AUDIT = 1.0  # s
REPAIRED_WITHIN = 5.0  # s; a failure that lasts is told to the next agent, and would be told twice


class Agents:
    """Each public method is a fault."""

    def __init__(self, world: World, guests: GuestFaults) -> None:
        self.world, self._guests = world, guests
        self.truth, self.random, self.cluster = world.truth, world.random, world.cluster

    def exchange_agents(self) -> None:
        """An old agent takes over for a while; its datagrams are said once, so the line loses none."""
        self.world.proxy.quiet = True
        if self._is_calm():
            self.world.go_on(SETTLING)
            if self._is_calm() and "pending 0" in self.cluster.agent.health()["events"]:
                self._old_agent()
        self.world.proxy.quiet = False

    def _is_calm(self) -> bool:
        return self.world.agents == OURS and not self.world.vim_trouble and not self.world.commanding

    def _old_agent(self) -> None:
        self.truth.note("an old agent")
        self.world.agents = OLD
        self.cluster.agent.stop()
        cluster, guests = self.cluster, self._guests
        listed = cluster.vim.instances
        hosts = [(host.seen_at, [one[0] for one in listed[host.uuid]]) for host in cluster.hosts]
        address = (AGENT_ADDRESS, cluster.agent_port)
        with OldAgent(address, cluster.server_port, cluster.vim.port, hosts, OLD_AUDIT) as agent:
            self.world.old_agent = agent
            self.world.go_on(SETTLING)
            faults = [guests.hang, guests.hang, guests.recover, guests.restart_guest, guests.fall_ill]
            self.world.go_on(1.0, faults)
            self.world.go_on(SETTLING)
            self.world.end_commands(REPAIRED_WITHIN)
        self.truth.note("our agent again")
        self.world.agents = OURS
        cluster.start_agent()
        self.world.go_on(SETTLING)

    def split_brain(self) -> None:
        """A second agent of ours, whose VIM wants no reporting: it is answered, and changes nothing."""
        if self.world.agents == OURS:
            self.world.agents = TWO
            self.world.start(self._two_agents())

    def _two_agents(self) -> Course:
        cluster = self.cluster
        vim = Vim(SECOND_AGENT)
        vim.hosts = dict.fromkeys(cluster.vim.hosts, False)
        vim.instances = {
            host: [(uuid, name, False) for uuid, name, _ in listed]
            for host, listed in cluster.vim.instances.items()
        }
        vim.start()
        self.truth.note("a second agent")
        folder = os.path.join(cluster.folder, "second")
        second = Daemon("guestAgent", Cluster.agent_module, folder, self._second_words(vim.url))
        try:
            yield 1.0 + 2 * self.random.random()
        finally:
            second.stop()
            vim.stop()
            self.truth.note("one agent")
            self.world.agents = OURS

    def _second_words(self, vim_url: str) -> List[str]:
        cluster = self.cluster
        words = ["--bind", SECOND_AGENT, "--http-address", SECOND_AGENT]
        words += ["--http-port", str(cluster.http_port), "--vim-url", vim_url, "--mtc-address", NOBODY]
        words += ["--rx-port", str(cluster.agent_port), "--server-port", str(cluster.server_port)]
        words += ["--mtc-cmd-port", str(cluster.mtc_command_port)]
        known = ["%s %s %s" % (host.name, host.uuid, host.address) for host in cluster.hosts]
        settings = [*cluster._agent_settings, "agent.hosts=" + ", ".join(known)]
        return words + [word for setting in settings for word in ("--set", setting)]
