"""One seeded life among faults, and the check of what the VIM was told against what really happened.

Two hosts, twenty guests, everything tenfold faster than life. A lossy line between guestServers and
guestAgent; guests hang, recover, restart, go and come back, and are deleted and made anew; the VIM is down,
slow, resets or hangs; processes are killed or stopped. Then the faults end (guests that hang go on hanging),
and when all has been quiet for a while the record is compared with the truth.

By hand: python tests/faults/fault_run.py SEED …
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Callable, Dict, List, Optional, Set, Tuple

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, Host, TimedOut, wait_for
from guestmtce.lab.proxy import Proxy

GUESTS, HOSTS = 10, 2
INTERVAL = 0.1  # s
FAULTS_FOR = 4.0  # s
QUIET_WAIT = 25.0  # s for everything to be told and agree
# A failure that began this long before the faults ended, and went on, must have been told; one that
# was over may be told no later than this after its end (what was on its way when it ended).
ON_ITS_WAY = 0.6  # s
VIM_TIMEOUT = 0.5  # s
QUIET_FOR = 1.5  # s; a guest that hung while nobody watched it is lost after its patience
# A guest needs its time to be seen again: one that hangs anew within it has had one failure, not two.
RECOVERY = 1.5  # s

SERVER = [
    "client.hbs_pulse_period=50", "timers.stopped_grace=0.4", "timers.guest_patience=0.5",
    "timers.settled=0.05",
    "timers.state_period=0.02", "timers.reconnect_max=0.2", "timers.rescan=0.5", "timers.ready_repeat=0.5",
    "timers.ill_repeat=30",
]  # fmt: skip
AGENT = [
    "timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3",
    "timers.vim_timeout=%g" % VIM_TIMEOUT, "timers.vim_retry_first=0.05", "timers.vim_retry_max=0.5",
]  # fmt: skip
GUEST = ["--scale", "0.1", "--secs", "1"]


class Truth:
    """When each guest hung: pairs of begin and end (None: for good)."""

    def __init__(self) -> None:
        self.hung: Dict[str, List[Tuple[float, Optional[float]]]] = {}
        self.back: Dict[str, List[float]] = {}  # when each was switched on, or restarted
        self.gone: Set[str] = set()
        self.made: Dict[str, float] = {}  # when the VIM had deleted it, to make it anew
        self.troubled: List[Tuple[float, float]] = []  # when the VIM may have heard what it did not confirm
        self.kills: List[float] = []  # of the agent
        self.log: List[str] = []

    def note(self, text: str) -> None:
        self.log.append("%.3f %s" % (time.monotonic(), text))


class Life:
    """The faults of one seed."""

    def __init__(self, seed: int, cluster: Cluster, proxy: Proxy) -> None:
        self.random = random.Random(seed)
        self.cluster = cluster
        self.proxy = proxy
        self.truth = Truth()
        self.vim_up = True

    def host_of(self, uuid: str) -> Host:
        return self.cluster.hosts[self.cluster.uuids.index(uuid) // GUESTS]

    def hanging(self, uuid: str) -> bool:
        """It does, or did when it was switched off."""
        return bool(self.truth.hung.get(uuid)) and self.truth.hung[uuid][-1][1] is None

    def beats(self, uuid: str) -> bool:
        """It would, if it were let."""
        return not self.hanging(uuid) and uuid not in self.truth.gone

    def _over(self, uuid: str) -> None:
        if self.hanging(uuid):
            begin, _ = self.truth.hung[uuid].pop()
            self.truth.hung[uuid].append((begin, time.monotonic()))

    # --- the faults ---

    def hang(self) -> None:
        uuid = self.random.choice(self.cluster.uuids)
        if self.beats(uuid):
            self.truth.note("hang " + uuid[-2:])
            self.truth.hung.setdefault(uuid, []).append((time.monotonic(), None))
            self.host_of(uuid).guests.say(uuid, "hang")

    def recover(self) -> None:
        gone = self.truth.gone
        hanging = [uuid for uuid in self.cluster.uuids if self.hanging(uuid) and uuid not in gone]
        if hanging:
            uuid = self.random.choice(hanging)
            self.truth.note("recover " + uuid[-2:])
            self.host_of(uuid).guests.say(uuid, "healthy")
            self._over(uuid)

    def restart_guest(self) -> None:
        uuid = self.random.choice(self.cluster.uuids)
        if self.beats(uuid):
            self.truth.note("restart " + uuid[-2:])
            self.host_of(uuid).guests.say(uuid, "restart")
            self.truth.back.setdefault(uuid, []).append(time.monotonic())

    def go(self) -> None:
        """A machine ends, with or without its socket. If it hung, that may be told, and need not be."""
        uuid = self.random.choice(self.cluster.uuids)
        if uuid not in self.truth.gone:
            word = self.random.choice(("off", "crash"))
            self.truth.note("%s %s" % (word, uuid[-2:]))
            self.host_of(uuid).guests.say(uuid, word)
            self.truth.gone.add(uuid)

    def come(self) -> None:
        """A machine that ended starts again."""
        if self.truth.gone:
            self._switch_on(self.random.choice(sorted(self.truth.gone)))

    def make_anew(self) -> None:
        """The VIM deletes an instance, and makes it again."""
        uuid = self.random.choice(self.cluster.uuids)
        host, cluster = self.host_of(uuid), self.cluster
        self.truth.note("make anew " + uuid[-2:])
        if uuid not in self.truth.gone:
            host.guests.say(uuid, "off")
        listed = cluster.vim.instances[host.uuid]
        cluster.vim.instances[host.uuid] = [entry for entry in listed if entry[0] != uuid]
        self._order(lambda: cluster.client.delete(uuid)[0])
        self.truth.made[uuid] = time.monotonic()
        self._over(uuid)
        time.sleep(self.random.random() * 0.2)
        self._switch_on(uuid)
        time.sleep(self.random.random() * 0.2)
        cluster.vim.instances[host.uuid] = listed
        self._order(lambda: cluster.client.create(uuid, host.name)[0])
        self._order(lambda: cluster.client.set(uuid, host.name, "enabled")[0])

    def _switch_on(self, uuid: str) -> None:
        self.truth.note("on " + uuid[-2:])
        self.host_of(uuid).guests.say(uuid, "on")
        self._over(uuid)
        self.truth.gone.discard(uuid)
        self.truth.back.setdefault(uuid, []).append(time.monotonic())

    def _order(self, command: Callable[[], int]) -> None:
        """The VIM repeats what an agent that has just started does not understand yet."""
        wait_for(lambda: command() in (200, 204), "the agent obeys", step=0.05)

    def kill_child(self) -> None:
        children = self.cluster.children(self.random.choice(self.cluster.hosts))
        if children:
            uuid = self.random.choice(sorted(children))
            self.truth.note("kill child " + uuid[-2:])
            children[uuid].kill()

    def kill_server(self) -> None:
        host = self.random.choice(self.cluster.hosts)
        self.truth.note("kill server " + host.name)
        host.server.kill()
        time.sleep(self.random.random() * 0.3)
        self.cluster.start_server(host)

    def kill_agent(self) -> None:
        self.truth.note("kill agent")
        self.truth.kills.append(time.monotonic())
        self.cluster.agent.kill()
        time.sleep(self.random.random() * 0.3)
        self.cluster.start_agent()

    def stop_something(self) -> None:
        host = self.random.choice(self.cluster.hosts)
        pids = [host.server.popen.pid, self.cluster.agent.popen.pid]
        pids += [child.pid for child in self.cluster.children(host).values()][:3]
        pid = self.random.choice(pids)
        self.truth.note("stop %d" % pid)
        try:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.random() * 0.5)
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def trouble_vim(self) -> None:
        vim, began = self.cluster.vim, time.monotonic()
        trouble = self.random.choice(("down", "slow", "reset", "hang"))
        self.truth.note("vim " + trouble)
        if trouble == "down":
            vim.stop()
            time.sleep(self.random.random() * 0.8)
            vim.start()
        elif trouble == "slow":
            vim.delay = 0.05
            time.sleep(0.4)
            vim.delay = 0.0
        else:
            setattr(vim, trouble, True)
            time.sleep(self.random.random() * 0.8)
            setattr(vim, trouble, False)
        self.truth.troubled.append((began - VIM_TIMEOUT, time.monotonic() + 3 * VIM_TIMEOUT))

    def live(self) -> None:
        """Faults for a while."""
        faults = [self.hang] * 6 + [self.recover] * 4 + [self.restart_guest] * 2 + [self.kill_child] * 2
        faults += [self.go, self.go, self.come, self.come, self.make_anew]
        faults += [self.kill_server, self.kill_agent, self.stop_something, self.trouble_vim, self.trouble_vim]
        until = time.monotonic() + FAULTS_FOR
        while time.monotonic() < until:
            self.random.choice(faults)()
            time.sleep(self.random.random() * 0.15)


# --- the check -------------------------------------------------------------------------------------


def disagreements(life: Life) -> List[str]:
    """What is still to be told, or told differently: nothing, when all is quiet."""
    cluster, found = life.cluster, []
    told = cluster.agent.dump("instance")
    if "waiting 0" not in cluster.agent.health()["events"]:
        found.append("the agent has something to tell")
    for host in cluster.hosts:
        rows = host.server.dump("guest")
        if len(rows) != GUESTS:
            found.append("%s knows %d guests" % (host.name, len(rows)))
        for uuid, row in rows.items():
            wanted = "enabled" if life.beats(uuid) else "disabled"
            if (row["heartbeating"], row["untold"], row["reporting"]) != (wanted, "nothing", "enabled"):
                found.append("server %s %r, wanted %s" % (uuid[-2:], row, wanted))
            agent = told.get(uuid, {})
            if agent.get("heartbeating") != wanted or agent.get("host") != host.name:
                found.append("agent %s %r, wanted %s" % (uuid[-2:], agent, wanted))
            last = _last_state(life, uuid)
            if last != wanted:
                found.append("vim %s %s, wanted %s" % (uuid[-2:], last, wanted))
    if len(told) != GUESTS * HOSTS:
        found.append("the agent knows %d instances" % len(told))
    return found


def _last_state(life: Life, uuid: str) -> str:
    """What the VIM heard last of the instance; of a new one it knows that it does not heartbeat yet."""
    made = life.truth.made.get(uuid, 0.0)
    services = [event for event in life.cluster.vim.events("service", uuid) if event["at"] > made]
    return services[-1]["body"]["event-data"]["services"][0]["status"] if services else "disabled"


class Quiet:
    """Whether nothing has been open for longer than anything takes its time."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._since = time.monotonic()

    def __call__(self) -> bool:
        if disagreements(self._life):
            self._since = time.monotonic()
        return time.monotonic() - self._since > QUIET_FOR


def complaints(life: Life, ended: float) -> List[str]:
    """Failures that were lost, told twice, or not true."""
    found, truth = [], life.truth
    for uuid in life.cluster.uuids:
        alarms = [event["at"] for event in life.cluster.vim.events("alarm", uuid)]
        seen_from = truth.back.get(uuid, [])
        for begin, end in truth.hung.get(uuid, []):
            mine = [at for at in alarms if begin < at <= (end or ended) + ON_ITS_WAY]
            alarms = [at for at in alarms if at not in mine]
            was_seen = not any(0 <= begin - since < RECOVERY for since in seen_from)
            if end is None and not mine and was_seen and uuid not in truth.gone:
                found.append("LOST: %s hung at %.3f and was never told" % (uuid[-2:], begin))
            seen_from = [*seen_from, end or ended]
            if any(not _unconfirmed(truth, at) for at in mine[:-1]):
                found.append("TWICE: %s hung at %.3f, told at %r" % (uuid[-2:], begin, mine))
        if alarms:
            found.append("FALSE: %s told at %r, hung %r" % (uuid[-2:], alarms, truth.hung.get(uuid)))
    return found


def _unconfirmed(truth: Truth, at: float) -> bool:
    """Whether the agent may not know that the VIM heard this: no answer came, or it was killed too soon."""
    troubled = any(begin <= at <= end for begin, end in truth.troubled)
    return troubled or any(at <= kill <= at + VIM_TIMEOUT for kill in truth.kills)


def run(seed: int) -> None:
    """Live and check. Raises AssertionError with the whole story."""
    cluster = Cluster(GUESTS, HOSTS, int(INTERVAL * 1000), SERVER, AGENT, GUEST)
    routes = []
    for host in cluster.hosts:
        host.seen_at = "127.0.1.%d" % (10 + host.number)
        host.controller = "127.0.1.%d" % (100 + host.number)
        theirs = (host.controller, cluster.agent_port), (host.seen_at, cluster.server_port)
        routes.append((theirs[0], theirs[1], (AGENT_ADDRESS, cluster.agent_port)))
        routes.append((theirs[1], theirs[0], (host.address, cluster.server_port)))
    proxy = Proxy(seed, routes, loss=0.3, twice=0.1, delay_max=0.05)
    proxy.quiet = True
    proxy.start()
    try:
        with cluster:
            cluster.provision()
            cluster.await_heartbeats()
            vim_list(cluster)
            proxy.quiet = False
            life = Life(seed, cluster, proxy)
            life.live()
            proxy.quiet = True
            _judge(seed, life)
    finally:
        proxy.stop()


def vim_list(cluster: Cluster) -> None:
    """The VIM can tell a restarted agent what it knows."""
    for host in cluster.hosts:
        first = host.number * GUESTS
        listed = [(uuid, host.name, True) for uuid in cluster.uuids[first : first + GUESTS]]
        cluster.vim.instances[host.uuid] = listed
        cluster.vim.hosts[host.uuid] = True


def _judge(seed: int, life: Life) -> None:
    trouble: List[str] = []
    try:
        wait_for(Quiet(life), "quiet", QUIET_WAIT, step=0.2)
    except TimedOut:
        trouble = disagreements(life)
    trouble += complaints(life, time.monotonic())
    if trouble:
        logs = [host.server.log() for host in life.cluster.hosts] + [life.cluster.agent.log()]
        with open("/tmp/fault-%d.log" % seed, "w", encoding="utf-8") as file:
            file.write("\n".join([*trouble, *life.truth.log, *logs]))
        raise AssertionError("seed %d:\n%s\n%s" % (seed, "\n".join(trouble), "\n".join(life.truth.log)))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        started = time.monotonic()
        run(int(argument))
        print(
            "seed %s: nothing lost, nothing false (%.1f s)" % (argument, time.monotonic() - started),
            flush=True,
        )
