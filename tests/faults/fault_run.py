"""One seeded life among faults, and the check of what the VIM was told against what really happened.

Two hosts, twenty guests, everything tenfold faster than life. A lossy line between guestServers and
guestAgent; guests hang, fall ill, recover, restart, loop, go and come back, are deleted and made anew; the
VIM acts on them, repairs them, and is down, slow, resets or stands still; processes are killed, stopped or
slowed; agents are exchanged, or there are two; run folders are full or cleaned; names are not resolved. Then
the faults end (guests that hang go on hanging), and when all has been quiet for a while the record is
compared with the truth.

By hand: python tests/faults/fault_run.py [--jobs N] SEED … FIRST-LAST …
As root each life has mounts and a network of its own.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, Tuple

import apart
import scaled
import slowed
from agents import SECOND_AGENT, Agents
from guest_faults import GuestFaults
from troubles import Troubles
from vim_work import SECS, VimWork
from world import World

from guestmtce.agent.settings import AgentSettings
from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, TimedOut, wait_for
from guestmtce.lab.lossy_udp import LossyProxy
from guestmtce.peer import retransmit
from guestmtce.server.settings import ServerSettings

GUESTS, HOSTS = 10, 2
INTERVAL = 0.1  # s
FAULTS_FOR = 5.0  # s
COURSES_END = 15.0  # s for what was begun to end
QUIET_WAIT = 25.0  # s for everything to be told and agree
QUIET_FOR = 1.5  # s; a guest that hung while nobody watched it is lost after its patience
SCALE = 0.1
RUN_FOLDER_SIZE = 4  # MB
UNRESOLVED_EVERY = 4  # each so many-th seed has a name server that is silent
KINDS = ("LOST", "FALSE", "TWICE", "SECOND", "STALE", "ACTION", "UNQUIET")

SERVER = scaled.words(
    ServerSettings, SCALE, pulse_period_ms=50, stopped_grace=0.4, stable_after=0.05, reconnect_max=0.2,
    rescan=0.5, ill_repeat=30,
)  # fmt: skip
# An alarm is given up while the VIM stands still, so that it must be asked about.
AGENT = scaled.words(
    AgentSettings, SCALE, mtc_ask_period=0.3, vim_timeout=0.5, vim_alarm_timeout=2, vim_retry_max=0.5
)
GUEST = ["--scale", str(SCALE), "--secs", str(SECS)]


class SlowedCluster(Cluster):
    """Its daemons can be slowed."""

    server_module = agent_module = "slowed"
    server_before = slowed.before(Cluster.server_module, SCALE * retransmit.REPEAT_FIRST)
    agent_before = slowed.before(Cluster.agent_module, SCALE * retransmit.REPEAT_FIRST)


# --- the check -------------------------------------------------------------------------------------


def disagreements(world: World) -> List[str]:
    """What is still to be told, or told differently: nothing, when all is quiet."""
    cluster, found = world.cluster, []
    told = cluster.agent.dump("instance")
    if "pending 0" not in cluster.agent.health()["events"]:
        found.append("the agent has something to tell")
    for host in cluster.hosts:
        rows = host.server.dump("guest")
        if len(rows) != GUESTS:
            found.append("%s knows %d guests" % (host.name, len(rows)))
        for uuid, row in rows.items():
            wanted = "enabled" if world.beats(uuid) else "disabled"
            if (row["heartbeating"], row["pending"], row["reporting"]) != (wanted, "nothing", "enabled"):
                found.append("server %s %r, wanted %s" % (uuid[-2:], row, wanted))
            agent = told.get(uuid, {})
            if agent.get("heartbeating") != wanted or agent.get("host") != host.name:
                found.append("agent %s %r, wanted %s" % (uuid[-2:], agent, wanted))
            last = _last_state(world, uuid)
            if last != wanted:
                found.append("vim %s %s, wanted %s" % (uuid[-2:], last, wanted))
    if len(told) != GUESTS * HOSTS:
        found.append("the agent knows %d instances" % len(told))
    return found


def _last_state(world: World, uuid: str) -> str:
    """What the VIM heard last of the instance; of a new one it knows that it does not heartbeat yet."""
    made = world.truth.made.get(uuid, 0.0)
    services = [event for event in world.cluster.vim.events("service", uuid) if event["at"] > made]
    return services[-1]["body"]["event-data"]["services"][0]["status"] if services else "disabled"


class Quiet:
    """Whether nothing has been open for longer than anything takes its time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since = time.monotonic()

    def __call__(self) -> bool:
        if disagreements(self._world):
            self._since = time.monotonic()
        return time.monotonic() - self._since > QUIET_FOR


def _judge(world: World) -> List[str]:
    trouble: List[str] = []
    try:
        wait_for(Quiet(world), "quiet", QUIET_WAIT, step=0.2)
    except TimedOut:
        trouble = ["UNQUIET: " + text for text in disagreements(world)]
    ended = time.monotonic()
    _note_stalls(world)
    for uuid in world.cluster.uuids:
        trouble += world.truth.complaints(uuid, world.cluster.vim.events(uuid=uuid), ended)
    return trouble


def _note_stalls(world: World) -> None:
    """What is judged is what guests did; these had no CPU to do it."""
    for host in world.cluster.hosts:
        stalls = [(begin, end) for begin, end in host.guests.say("stalls") if end - begin > INTERVAL]
        if stalls:
            world.truth.note("the guests of %s stood still: %r" % (host.name, stalls))
        for uuid in world.cluster.uuids[host.number * GUESTS : (host.number + 1) * GUESTS]:
            world.truth.stood_still[uuid] = stalls


# --- one life --------------------------------------------------------------------------------------


def live(world: World, seconds: float, patience: float) -> None:
    """Faults for so long; then every course comes to its end, within `patience` s."""
    guests, troubles = GuestFaults(world), Troubles(world)
    vim, agents = VimWork(world, guests), Agents(world, guests)
    faults = [guests.hang] * 5 + [guests.recover] * 3 + [guests.restart_guest] * 2 + [vim.act] * 5
    faults += [guests.fall_ill, guests.loop, guests.go, guests.go, guests.come, guests.come, guests.make_anew]
    faults += [troubles.kill_child] * 2 + [troubles.kill_server, troubles.kill_agent]
    faults += [troubles.stop_something, troubles.slow_something, troubles.trouble_vim, troubles.trouble_vim]
    faults += [troubles.fill_run_folder, troubles.clean_run_folder]
    faults += world.random.choice(([agents.exchange_agents], [agents.split_brain], []))
    world.go_on(seconds, faults)
    world.end_courses(patience)


def run(seed: int, own_world: bool) -> None:
    """Live and check. Raises AssertionError with the whole story."""
    cluster = SlowedCluster(GUESTS, HOSTS, int(INTERVAL * 1000), SERVER[:], AGENT[:], GUEST)
    routes = []
    for host in cluster.hosts:
        host.seen_at = "127.0.1.%d" % (10 + host.number)
        host.controller = "127.0.1.%d" % (100 + host.number)
        theirs = (host.controller, cluster.agent_port), (host.seen_at, cluster.server_port)
        routes.append((theirs[0], theirs[1], (AGENT_ADDRESS, cluster.agent_port)))
        routes.append((theirs[1], theirs[0], (host.address, cluster.server_port)))
    agents = [SECOND_AGENT, *(host.controller for host in cluster.hosts)]
    cluster._server_settings.append("security.agents=" + ", ".join(agents))
    proxy = LossyProxy(seed, routes, loss=0.3, twice=0.1, delay_max=0.05)
    proxy.quiet = True
    proxy.start()
    if own_world:
        _make_world(cluster, seed)
    try:
        with cluster:
            cluster.provision()
            cluster.await_heartbeats()
            for host in cluster.hosts:
                host.guests.say("stalls")
            vim_list(cluster)
            proxy.quiet = False
            world = World(seed, cluster, proxy, own_world)
            live(world, FAULTS_FOR, COURSES_END)
            proxy.quiet = True
            _report(seed, world, _judge(world))
    finally:
        proxy.stop()
        if own_world:
            _unmake_world(cluster)


def _unmake_world(cluster: Cluster) -> None:
    for host in cluster.hosts:
        subprocess.run(["umount", os.path.join(cluster.folder, host.name)], check=False)
    shutil.rmtree(cluster.folder, ignore_errors=True)


def _make_world(cluster: Cluster, seed: int) -> None:
    """Run folders that can be full, and sometimes a name server that says nothing."""
    for host in cluster.hosts:
        folder = os.path.join(cluster.folder, host.name)
        os.makedirs(folder)
        size = "size=%dm" % RUN_FOLDER_SIZE
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "run", folder], check=True)
    if seed % UNRESOLVED_EVERY == UNRESOLVED_EVERY - 1:
        silent = apart.SilentNameServer(Path(cluster.folder, "names"))
        silent.__enter__()
        for command in silent.commands:
            subprocess.run(command, shell=True, check=True)
        cluster.mtc_address = "controller"
        known = ["%s %s %s" % (host.name, host.uuid, host.seen_at) for host in cluster.hosts]
        cluster._agent_settings.append("agent.hosts=" + ", ".join(known))


def vim_list(cluster: Cluster) -> None:
    """The VIM can tell a restarted agent what it knows."""
    for host in cluster.hosts:
        first = host.number * GUESTS
        listed = [(uuid, host.name, True) for uuid in cluster.uuids[first : first + GUESTS]]
        cluster.vim.instances[host.uuid] = listed
        cluster.vim.hosts[host.uuid] = True


def _report(seed: int, world: World, trouble: List[str]) -> None:
    if trouble:
        logs = [host.server.log() for host in world.cluster.hosts] + [world.cluster.agent.log()]
        path = os.path.join(tempfile.gettempdir(), "fault-%d.log" % seed)
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([*trouble, *world.truth.log, *logs]))
        raise AssertionError("\n".join([*trouble, "the story is in " + path]))


# --- many lives ------------------------------------------------------------------------------------


def live_apart(seed: int) -> Tuple[int, str]:
    """One life in a process of its own: exit status and output."""
    words = [sys.executable, os.path.abspath(__file__), "--here", str(seed)]
    if apart.ALLOWED:
        up = ["sh", "-ec", apart.loopback_up() + '; exec "$@"', "sh"]
        own = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = ["unshare", *own, *up, *words]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be held by whoever outlives it
        done = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False)
        output.seek(0)
        return done.returncode, output.read()


def _one_line(seed: int) -> collections.Counter[str]:
    began = time.monotonic()
    status, output = live_apart(seed)
    counts = collections.Counter(line.split(":")[0] for line in output.splitlines())
    found = collections.Counter({kind: counts[kind] for kind in KINDS if counts[kind]})
    said = ", ".join("%s %d" % pair for pair in found.items()) or "right"
    if status and not found:
        found["OTHER"] = 1
        said = "OTHER: " + output.strip().rpartition("\n")[2]
    print("seed %d: %s (%.1f s)" % (seed, said, time.monotonic() - began), flush=True)
    return found


def _seeds(word: str) -> List[int]:
    first, _, last = word.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> int:
    """See the module's text. 1 if any life went wrong."""
    parser = argparse.ArgumentParser(description="Lives among faults, a seed each.")
    parser.add_argument("seeds", nargs="+", help="SEED or FIRST-LAST")
    parser.add_argument("--jobs", type=int, default=1, help="lives beside each other")
    parser.add_argument("--here", action="store_true", help="in this process, whose world is its own")
    given = parser.parse_args()
    seeds = [seed for word in given.seeds for seed in _seeds(word)]
    if given.here:
        try:
            for seed in seeds:
                run(seed, apart.ALLOWED)
        except AssertionError as error:
            print(error)
            return 1
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        lives = list(pool.map(_one_line, seeds))
    total = sum(lives, collections.Counter())
    counts = ", ".join("%s %d" % (kind, total[kind]) for kind in [*KINDS, "OTHER"])
    print("%d lives, %d right; %s" % (len(lives), sum(not one for one in lives), counts))
    return int(bool(total))


if __name__ == "__main__":
    sys.exit(main())
