"""What befalls guests by themselves."""

from __future__ import annotations

import time
from typing import Callable, List

from truth import lasts
from world import Course, World

OBEYS_WITHIN = 10.0  # s


class GuestFaults:
    """Each public method but `choose` is a fault; it does nothing where no guest is fit for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.truth, self.random, self.cluster = world.truth, world.random, world.cluster

    def choose(self, condition: Callable[[str], bool]) -> List[str]:
        """One guest, or none, that no course is at work on and for which this is true."""
        free = [
            uuid
            for uuid in self.cluster.uuids
            if uuid not in self.world.busy and not lasts(self.truth.ill, uuid) and condition(uuid)
        ]
        return [self.random.choice(free)] if free else []

    def hang(self) -> None:
        for uuid in self.choose(self.world.beats):
            self.truth.begin(self.truth.hung, uuid)
            self.world.say(uuid, "hang")

    def recover(self) -> None:
        for uuid in self.choose(lambda one: lasts(self.truth.hung, one) and one not in self.truth.gone):
            self.world.say(uuid, "healthy")
            self.truth.end(self.truth.hung, uuid)

    def fall_ill(self) -> None:
        for uuid in self.choose(self.world.beats):
            self.truth.begin(self.truth.ill, uuid)
            self.world.say(uuid, "ill", "reboot")

    def restart_guest(self) -> None:
        for uuid in self.choose(self.world.beats):
            self.world.say(uuid, "restart")
            self.truth.is_back(uuid)

    def go(self) -> None:
        """A machine ends, with or without its socket. If it hung, that may be told, and need not be."""
        for uuid in self.choose(lambda one: one not in self.truth.gone):
            self.world.say(uuid, self.random.choice(("off", "crash")))
            self.truth.ends(uuid)

    def come(self) -> None:
        """A machine that ended starts again."""
        for uuid in self.choose(lambda one: one in self.truth.gone):
            self._switch_on(uuid)

    def _switch_on(self, uuid: str) -> None:
        self.world.say(uuid, "on")
        self.truth.end(self.truth.hung, uuid)
        self.truth.gone.discard(uuid)
        self.truth.is_back(uuid)

    def make_anew(self) -> None:
        """The VIM deletes an instance, and makes it again."""
        for uuid in self.choose(lambda _: not self.world.vim_trouble):
            self.world.busy.add(uuid)
            self._make_anew(uuid)
            self.world.busy.discard(uuid)

    def _make_anew(self, uuid: str) -> None:
        host, client = self.world.host_of(uuid), self.cluster.client
        if uuid not in self.truth.gone:
            self.world.say(uuid, "off")
        listed = self.cluster.vim.instances
        listed[host.uuid] = [entry for entry in listed[host.uuid] if entry[0] != uuid]
        self._obeyed(lambda: client.delete(uuid)[0], 404)  # its list lacked it before it was told
        self.truth.made[uuid] = time.monotonic()
        self.truth.end(self.truth.hung, uuid)
        self.world.go_on(self.random.random() * 0.2)
        self._switch_on(uuid)
        self.world.go_on(self.random.random() * 0.2)
        listed[host.uuid] = [*listed[host.uuid], (uuid, host.name, True)]
        self._obeyed(lambda: client.create(uuid, host.name)[0])
        self._obeyed(lambda: client.set(uuid, host.name, "enabled")[0])

    def _obeyed(self, command: Callable[[], int], *others: int) -> None:
        """The VIM repeats what an agent that has just started does not understand yet."""
        until = time.monotonic() + OBEYS_WITHIN
        while True:
            status = command()
            if status in (200, 204, *others):
                return
            assert time.monotonic() < until, "the agent does not obey: %d" % status
            self.world.go_on(0.05)

    def loop(self) -> None:
        """A client that starts again and again: that answers nothing is a failure, that exits is none."""
        for uuid in self.choose(self.world.beats):
            word = self.random.choice(("introduce", "leave"))
            if word == "introduce":
                self.truth.begin(self.truth.hung, uuid)
            self.world.say(uuid, word, "%.2f" % (self.random.random() * 0.3))
            for_good = word == "introduce" and self.random.random() < 0.3
            self.world.start(self._looping(uuid, 1e9 if for_good else 0.5 + 2 * self.random.random()))

    def _looping(self, uuid: str, seconds: float) -> Course:
        self.world.busy.add(uuid)
        if seconds > 1e6:
            return
        yield seconds
        self.world.say(uuid, "healthy")
        self.world.say(uuid, "reset")
        self.truth.end(self.truth.hung, uuid)
        self.truth.is_back(uuid)
        self.world.busy.discard(uuid)
