"""The real VIM's order of calls for every action, played by one guest a row, all rows at the same time.

What the VIM, nova and the machine do, and when, was measured
(docs/protocol/1-guest-channel.md#what-the-vim-does-around-an-action): the notice, its answer, PATCH
disabled 3 … 26 ms later, nova, PATCH enabled when nova's API has answered. A guest answers challenges for
1.6 … 2.6 s more until nova acts. Times here are in seconds of life; `SCALE` makes them real.

Each row ends with a true failure of its guest: it is alarmed at once, and nothing was alarmed before that the
row does not say.
"""

from __future__ import annotations

import math
import random
import threading
import time
from typing import Any, List, NamedTuple, Optional

import scaled
from stage import Stage
from tiers import PACE

from guestmtce.agent.settings import AgentSettings
from guestmtce.lab.cluster import Cluster
from guestmtce.lab.pace import within
from guestmtce.server.settings import ServerSettings

SCALE = min(1.0, 0.1 * PACE)
SECS = math.ceil(10 * SCALE)  # s, each of the guest's timeouts: 10 s of life, and not less than 1
BOOT = 25.0  # s that a guest takes to boot
REFUSAL = 13.0  # s until the VIM enables after an API that refused
ABANDONED = 80.0  # s until the VIM enables after a migration that never happens
UNPAUSE_LEAD, RESUME_LEAD = 1.6, 20.0  # s between PATCH enabled and the machine's running
LOADED = 5 * SCALE  # s, real: what a loaded machine may add to anything
SECONDS = (
    10.0  # s, and three intervals: the VIM must read `disabled` of a machine that was silent for so long
)
STAGGER = 15.0  # s over which the rows begin: a VIM does not command all its guests at the same moment
LATENCY_MAX = 0.25  # s, real: the shortest patience of a guest is 0.5

REFUSES, NEVER = "refuses", "never"


class Row(NamedTuple):
    """`nova`: the seconds that it takes, `refuses` or `never`; `answer`: the notice's, in s, or `mute`."""

    action: str
    nova: str = "2"
    answer: str = "0"
    acts_after: Optional[float] = None  # s after the notice's answer; None: 1.6 … 2.6
    hangs: bool = False  # truly, between disabled and enabled: the VIM finds that by itself

    @property
    def name(self) -> str:
        words = [self.action, "nova-" + self.nova, "answer-" + self.answer]
        words += ["at-once"] * (self.acts_after is not None) + ["hangs"] * self.hangs
        return "-".join(words)


class Player(threading.Thread):
    """Plays one row; `trouble` is why it failed, `again` (s, real) how soon a machine that ran was seen."""

    def __init__(self, stage: Stage, uuid: str, row: Row, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.stage, self.uuid, self.row = stage, uuid, row
        self.trouble = ""
        self.again: Optional[float] = None
        self.expected = 0  # alarms
        self._chance = chance
        self._seconds = max(SECONDS, 4 * stage.interval + 2)
        self._silent_at = 0.0  # real; a machine that is silent from then on for SECONDS at least

    def run(self) -> None:
        self._sleep(STAGGER * self._chance.random())
        try:
            runs = self._play()
            self._check_before()
            if runs:
                self._fail()
        except Exception as error:  # noqa: BLE001 - the thread's verdict is read by the test
            self.trouble = "%s: %s" % (type(error).__name__, error)

    def _play(self) -> bool:
        special = getattr(self, "_whole_" + self.row.action, None)
        return special() if special is not None else self._ordered()

    # --- the words of a row ---

    def _sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds) * SCALE)

    def _say(self, *words: Any) -> None:
        self.stage.say(self.uuid, *words)

    def _silence(self, *words: Any) -> None:
        self._say(*words)
        self._silent_at = self._silent_at or time.monotonic()

    def _report(self, state: str) -> None:
        status, _ = self.stage.cluster.client.set(self.uuid, self.stage.cluster.hosts[0].name, state)
        assert status == 200, "PATCH %s: %d" % (state, status)

    def _ask(self, event: str, word: str = "notify") -> bool:
        """Put a question and wait for its outcome; False: the guest is not asked, it does not heartbeat."""
        began = time.monotonic()
        host = self.stage.cluster.hosts[0].name
        status, reply = self.stage.cluster.client.ask(word, self.uuid, host, event)
        assert status == 200, "%s %s: %d" % (word, event, status)
        if reply["timeout"] == "0":
            return False
        ear = self.stage.ear
        ear.wait(
            self.uuid, lambda: ear.of(self.uuid, "action", began), event + " answered", SECS + 1 + LOADED
        )
        return True

    def _order(self, event: str) -> None:
        """The notice, its answer, and reporting disabled."""
        delay = self.row.answer if self.row.answer == "mute" else float(self.row.answer) * SCALE
        self._say("vote", *(["mute"] if delay == "mute" else ["accept", delay]))
        assert self._ask(event), "the guest heartbeats before " + event
        time.sleep(self._chance.uniform(0.003, 0.026))
        self._report("disabled")
        self._say("vote", "accept")

    def _seen_again(self, since: float, later: float) -> None:
        """The VIM reads enabled after `since`; how soon after `later` is what counts (both real)."""
        ear = self.stage.ear

        def seen() -> List[float]:
            services = ear.of(self.uuid, "service", since)
            return [at for at, data in services if data["services"][0]["status"] == "enabled"]

        found = ear.wait(self.uuid, seen, "enabled again", 10 * SCALE + LOADED)
        self.again = max(0.0, found[0] - later)

    # --- ordered actions ---

    def _ordered(self) -> bool:
        event = NOTICES[self.row.action]
        if event:
            self._order(event)
        else:
            self._report("disabled")
        if self.row.nova in (REFUSES, NEVER):
            return self._nothing_happens()
        acts = self.row.acts_after if self.row.acts_after is not None else self._chance.uniform(1.6, 2.6)
        self._sleep(acts)
        return getattr(self, "_nova_" + self.row.action)(float(self.row.nova), acts)

    def _nothing_happens(self) -> bool:
        wait = REFUSAL if self.row.nova == REFUSES else ABANDONED
        if self.row.hangs:
            self._sleep(3)
            self._silence("hang")
            self._sleep(wait - 3)
            self._report("enabled")
            self._sleep(self._seconds)
            self._say("healthy")
        else:
            self._sleep(wait)
            self._report("enabled")
        return True

    def _nova_pause(self, takes: float, acts: float) -> bool:
        """Reporting is enabled while it is paused; later it goes on."""
        self._silence("hang")
        self._sleep(takes - acts)
        self._report("enabled")
        self._sleep(self._seconds + self._chance.random())
        return self._goes_on()

    def _nova_unpause(self, takes: float, acts: float) -> bool:
        self._silence("hang")
        self._sleep(self._seconds + takes)
        self._report("enabled")
        assert not self._ask("unpause"), "a paused guest is asked nothing"
        self._sleep(UNPAUSE_LEAD)
        return self._goes_on()

    def _nova_suspend(self, takes: float, acts: float) -> bool:
        """Its QEMU lives on; it is resumed after that."""
        self._silence("hang")
        self._sleep(takes - acts + 5)
        self._report("enabled")
        self._sleep(RESUME_LEAD)
        return self._goes_on()

    def _nova_save(self, takes: float, acts: float) -> bool:
        """A suspend that ends its QEMU: another one, that stands still, has its memory on the resume."""
        self._silence("off")
        self._sleep(takes - acts + 5)
        self._say("restored")
        self._sleep(1)
        self._report("enabled")
        self._sleep(RESUME_LEAD)
        return self._goes_on()

    def _nova_late_enable(self, takes: float, acts: float) -> bool:
        """The machine runs before reporting is enabled."""
        self._silence("hang")
        self._sleep(takes - acts + self._seconds)
        runs_at = time.monotonic()
        self._say("healthy")
        self._sleep(1)
        enabled_at = time.monotonic()
        self._report("enabled")
        self._seen_again(runs_at, enabled_at)
        return True

    def _goes_on(self) -> bool:
        runs_at = time.monotonic()
        self._say("healthy")
        self._seen_again(runs_at, runs_at)
        return True

    def _nova_stop(self, takes: float, acts: float) -> bool:
        self._silence("bye")
        self._sleep(1)
        self._say("off")
        self._sleep(takes - acts - 1)
        self._report("enabled")
        self._sleep(self._seconds)
        return False

    def _nova_reboot(self, takes: float, acts: float) -> bool:
        back_at = time.monotonic() + BOOT * SCALE
        self._silence("reset", BOOT * SCALE)
        self._sleep(takes - acts)
        self._report("enabled")
        time.sleep(max(0.0, back_at - time.monotonic()))
        return True

    def _nova_no_return(self, takes: float, acts: float) -> bool:
        """A wanted reboot after which nobody comes."""
        self._silence("hang")
        self._sleep(takes - acts)
        self._report("enabled")
        self._sleep(self._seconds + BOOT)
        return False

    def _nova_live_migrate(self, takes: float, acts: float) -> bool:
        """It runs until it is moved, in no time."""
        self._sleep(takes - acts - 0.5)
        self._say("off")
        self._say("restored")
        self._sleep(0.3)
        self._say("healthy")
        self._report("enabled")
        self._ask("live_migrate_end")
        return True

    def _nova_cold_migrate(self, takes: float, acts: float) -> bool:
        self._silence("off")
        self._sleep(takes - acts)
        back_at = time.monotonic() + BOOT * SCALE
        self._say("on", BOOT * SCALE)
        self._report("enabled")
        time.sleep(max(0.0, back_at - time.monotonic()))
        return True

    _nova_resize = _nova_evacuate = _nova_cold_migrate

    # --- rows of their own ---

    def _whole_repair_of_the_ill(self) -> bool:
        self._say("ill")
        return self._repaired()

    def _whole_repair_of_the_hung(self) -> bool:
        self._say("hang")
        return self._repaired()

    def _whole_reset_unasked(self) -> bool:
        """As `virsh reset`: the socket stays, and that is a failure like any other."""
        self._say("reset", BOOT * SCALE)
        return self._repaired()

    def _repaired(self) -> bool:
        """The alarm, and the VIM's repair: no notice, nova takes `nova` s, the guest boots for longer."""
        ear = self.stage.ear
        ear.wait(self.uuid, lambda: ear.alarms(self.uuid), "the alarm", 10 * SCALE + LOADED)
        self.expected += 1
        self._report("disabled")
        self._sleep(0.5)
        return self._nova_reboot(float(self.row.nova), 0.5)

    def _whole_rebuild(self) -> bool:
        """Reporting stays enabled; the socket goes with its QEMU."""
        self._silence("off")
        self._sleep(float(self.row.nova) + self._seconds)
        self._say("on", BOOT * SCALE)
        self._sleep(BOOT)
        return True

    def _whole_agreed_and_hangs(self) -> bool:
        """The VIM never disables: the bridge ends after 15 s, and it has its patience of 5 s."""
        assert self._ask("live_migrate_begin")
        agreed_at = time.monotonic()
        self._sleep(5)
        return self._lost_within(agreed_at, 14, 20 + 3 * self.stage.interval)

    def _whole_hung_as_it_was_asked(self) -> bool:
        """It answers nothing since the notice: silent as announced, and no failure."""
        self._silence("hang")
        assert self._ask("live_migrate_begin")
        self._sleep(15 + 5 + 3 * self.stage.interval)
        self._say("healthy")
        return True

    def _whole_rejected_and_hangs(self) -> bool:
        self._say("vote", "reject")
        assert self._ask("suspend")
        self._say("vote", "accept")
        self._sleep(1)
        return self._lost_within(time.monotonic(), 0, 3 * self.stage.interval)

    def _whole_ended_and_hangs(self) -> bool:
        assert self._ask("live_migrate_begin")
        self._sleep(3)
        assert self._ask("live_migrate_end")
        return self._lost_within(time.monotonic(), 0, 3 * self.stage.interval)

    def _whole_voted_and_hangs(self) -> bool:
        assert self._ask("reboot", "vote")
        return self._lost_within(time.monotonic(), 0, 3 * self.stage.interval)

    def _lost_within(self, since: float, least: float, most: float) -> bool:
        """It hangs now; the alarm comes so many s of life after `since` (real). Then it starts again."""
        self._say("hang")
        ear = self.stage.ear
        ear.wait(self.uuid, lambda: ear.alarms(self.uuid), "alarmed", most * SCALE + LOADED)
        took = (ear.alarms(self.uuid)[0] - since) / SCALE
        assert took >= least, "alarmed after %.1f s, %g at least" % (took, least)
        self.expected += 1
        self._report("disabled")
        self._say("reset", 0.1)
        self._sleep(2)
        self._report("enabled")
        return True

    # --- what must hold ---

    def _check_before(self) -> None:
        ear = self.stage.ear
        alarms = ear.alarms(self.uuid)
        assert len(alarms) == self.expected, "%d alarms, %d expected" % (len(alarms), self.expected)
        if self._silent_at:
            read = ear.status(self.uuid, self._silent_at + self._seconds * SCALE)
            assert read == "disabled", "silent for %g s, and the VIM reads %s" % (self._seconds, read)
        if self.again is not None:
            assert within(LATENCY_MAX, self.again), "seen again after %.0f ms" % (1000 * self.again)

    def _fail(self) -> None:
        """A true failure after all: alarmed after two misses."""
        ear = self.stage.ear
        ear.wait(
            self.uuid, lambda: ear.status(self.uuid) == "enabled", "enabled in the end", 15 * SCALE + LOADED
        )
        self._sleep(2 * self.stage.interval + 1)
        self._check_before()
        self._say("hang")
        self.expected += 1
        most = 3 * self.stage.interval * SCALE + LOADED
        ear.wait(self.uuid, lambda: len(ear.alarms(self.uuid)) >= self.expected, "the last alarm", most)


NOTICES = {
    "pause": "pause", "unpause": "pause", "suspend": "suspend", "save": "suspend", "late_enable": "pause",
    "stop": "stop", "reboot": "reboot", "no_return": "reboot", "live_migrate": "live_migrate_begin",
    "cold_migrate": "cold_migrate_begin", "resize": "resize_begin", "evacuate": "",
}  # fmt: skip


def play(rows: List[Row], interval: float, seed: int = 1) -> List[Player]:
    """All rows at once, with guests of this interval. Returns the players, each with its `trouble`."""
    interval_ms = round(1000 * interval * SCALE)
    server = ["client.hbs_pulse_period=50", *scaled.words(ServerSettings, SCALE)]
    agent = scaled.words(AgentSettings, SCALE)
    guests = ["--scale", str(SCALE), "--secs", str(SECS)]
    with Cluster(len(rows), 1, interval_ms, server, agent, guests) as cluster:
        stage = Stage(cluster, interval)
        host = cluster.hosts[0]
        cluster.vim.hosts = {host.uuid: True}
        cluster.vim.instances = {host.uuid: [(uuid, host.name, True) for uuid in cluster.uuids]}
        cluster.provision()
        cluster.await_heartbeats(30)
        players = [
            Player(stage, uuid, row, random.Random(seed + number))
            for number, (uuid, row) in enumerate(zip(cluster.uuids, rows))
        ]
        for player in players:
            player.start()
        for player in players:
            player.join()
        time.sleep(1.0)  # a second alarm would come now
        for player in players:
            alarms = len(stage.ear.alarms(player.uuid))
            if not player.trouble and alarms != player.expected:
                player.trouble = "%d alarms in the end, %d expected" % (alarms, player.expected)
        return players
