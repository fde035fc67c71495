"""What the VIM does to guests: actions, with notices and votes, and repairs."""

from __future__ import annotations

import time

from guest_faults import GuestFaults
from truth import Asked, lasts
from world import AWAY, OLD, Course, World

SECS = 1  # s, each timeout of the guests
VIM_WAITS = SECS + 0.11  # s: then the VIM goes on without an outcome
EVENTS = ("pause", "suspend", "reboot", "live_migrate_begin", "cold_migrate_begin", "resize_begin")
ANSWERS = (
    ("accept", "0"), ("complete", "0"), ("accept", "0.3"), ("accept", "1.5"), ("mute",), ("reject", "0"),
)  # fmt: skip


class VimWork:
    """`act` is a fault; repairs come by themselves."""

    def __init__(self, world: World, guests: GuestFaults) -> None:
        self.world, self._guests = world, guests
        self.truth, self.random, self.cluster = world.truth, world.random, world.cluster
        self._heard = 0  # alarms that were looked at
        world.each_turn.append(self._hear)

    def act(self) -> None:
        """An action of the VIM, or one that nova refuses."""
        for uuid in self._guests.choose(self.world.beats):
            self.world.start(self._counted(uuid, self._action(uuid)))

    def _counted(self, uuid: str, course: Course) -> Course:
        self.world.busy.add(uuid)
        self.world.commanding += 1
        try:
            yield from course
        finally:
            self.world.commanding -= 1
            self.world.busy.discard(uuid)

    def _action(self, uuid: str) -> Course:
        event, word = self.random.choice(EVENTS), self.random.choice(("notify", "notify", "notify", "vote"))
        self.world.say(uuid, "vote", *self.random.choice(ANSWERS))
        yield from self._while_vim_is_away()
        asked = Asked(time.monotonic(), uuid, event)
        self.truth.note("%s %s %s" % (word, event, uuid[-2:]))
        try:
            status, reply = self.cluster.client.ask(word, uuid, self.world.host_of(uuid).name, event)
        except OSError:
            return  # there is no agent; the VIM gives up
        if status == 200 and reply["timeout"] != "0":
            self.truth.asked.append(asked)
            answer = yield from self._outcome(asked)
            self.world.say(uuid, "vote", "accept")
            if word == "notify" and answer != "reject":
                yield self.random.uniform(0.003, 0.026)
                yield from self._report(uuid, "disabled")
                yield from self._nova(uuid)
                self.truth.is_back(uuid)

    def _outcome(self, asked: Asked) -> Course:
        """What the VIM is told in time, else silent agreement."""
        while time.monotonic() < asked.at + VIM_WAITS:
            for event in self.cluster.vim.events("action", asked.uuid):
                if event["at"] > asked.at:
                    return event["body"]["event-data"]["guest-response"]
            yield 0.02
        return ""

    def _nova(self, uuid: str) -> Course:
        what = self.random.choice(("refuses", "refuses", "pauses", "reboots"))
        self.truth.note("nova %s %s" % (what, uuid[-2:]))
        yield self.random.uniform(0.16, 0.26)
        if what == "refuses":
            yield self.random.random()
            yield from self._report(uuid, "enabled")
        elif what == "pauses":
            self.world.say(uuid, "hang")
            yield self.random.random()
            yield from self._report(uuid, "enabled")
            yield self.random.random() * 2
            self.world.say(uuid, "healthy")
        else:
            yield from self._reboot(uuid, 1 + 1.5 * self.random.random())

    def _reboot(self, uuid: str, boots_for: float) -> Course:
        """nova answers long before the guest is back, and reporting is enabled then."""
        self.world.say(uuid, "reset", "%.2f" % boots_for)
        self.truth.end(self.truth.hung, uuid)
        self.truth.end(self.truth.ill, uuid)
        back_at = time.monotonic() + boots_for
        yield 0.2
        yield from self._report(uuid, "enabled")
        yield max(0.0, back_at - time.monotonic())

    def _report(self, uuid: str, state: str) -> Course:
        """Set reporting, as soon as VIM and agent are there."""
        yield from self._while_vim_is_away()
        host = self.world.host_of(uuid)
        listed = self.cluster.vim.instances[host.uuid]
        self.cluster.vim.instances[host.uuid] = [
            (one, name, state == "enabled" if one == uuid else on) for one, name, on in listed
        ]
        while not self._is_set(uuid, host.name, state):
            yield 0.05
        self.truth.note("%s %s" % (state, uuid[-2:]))

    def _is_set(self, uuid: str, hostname: str, state: str) -> bool:
        if self.world.agents == OLD and self.world.old_agent is not None:
            self.world.old_agent.report(uuid, state == "enabled")
            return True
        try:
            return self.cluster.client.set(uuid, hostname, state)[0] == 200
        except OSError:
            return False

    def _while_vim_is_away(self) -> Course:
        while self.world.vim_trouble in AWAY:
            yield 0.02

    def _hear(self) -> None:
        """The VIM repairs what is alarmed: the ill always, others as often as not, all of an old agent."""
        events = self.cluster.vim.events("alarm")
        for event in events[self._heard :]:
            uuid = event["body"]["uuid"]
            self.truth.note("alarm of " + uuid[-2:])
            wanted = lasts(self.truth.ill, uuid) or self.world.agents == OLD or self.random.random() < 0.5
            if wanted and uuid not in self.world.busy | self.truth.gone:
                self.world.start(self._counted(uuid, self._repair(uuid)))
        self._heard = len(events)

    def _repair(self, uuid: str) -> Course:
        self.truth.begin(self.truth.repairs, uuid)
        yield 0.01
        yield from self._report(uuid, "disabled")
        yield 0.05
        yield from self._reboot(uuid, 1 + self.random.random())
        self.truth.end(self.truth.repairs, uuid)
        self.truth.is_back(uuid)
