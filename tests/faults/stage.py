"""A cluster whose guests are played with from many threads: what is said to them, and what the VIM heard."""

from __future__ import annotations

import collections
import threading
from typing import Any, Callable, Dict, List, Tuple

from guestmtce.lab.cluster import Cluster
from guestmtce.lab.pace import stretched


class Ear:
    """What the VIM heard, by instance. `at` is real time, monotonic."""

    def __init__(self, cluster: Cluster) -> None:
        self._heard: Dict[str, List[Tuple[float, str, Any]]] = collections.defaultdict(list)
        self._changed: Dict[str, threading.Condition] = collections.defaultdict(threading.Condition)
        self._note, cluster.vim.note = cluster.vim.note, self._hear  # type: ignore[method-assign]

    def _hear(self, entry: Dict[str, Any]) -> None:
        self._note(entry)
        if entry["method"] == "PATCH":
            uuid = entry["body"]["uuid"]
            with self._changed[uuid]:
                self._heard[uuid].append(
                    (entry["at"], entry["body"]["event-type"], entry["body"]["event-data"])
                )
                self._changed[uuid].notify_all()

    def of(self, uuid: str, kind: str, since: float = 0.0) -> List[Tuple[float, Any]]:
        """Pairs of arrival and event-data."""
        return [(at, data) for at, one, data in list(self._heard[uuid]) if one == kind and at >= since]

    def alarms(self, uuid: str) -> List[float]:
        return [at for at, _ in self.of(uuid, "alarm")]

    def status(self, uuid: str, until: float = float("inf")) -> str:
        """What the VIM read last, or read at a time."""
        states = [data["services"][0]["status"] for at, data in self.of(uuid, "service") if at <= until]
        return states[-1] if states else "disabled"

    def wait(self, uuid: str, condition: Callable[[], Any], what: str, seconds: float) -> Any:
        """The first true value. Raises AssertionError after so many real s; a busy machine has more time."""
        with self._changed[uuid]:
            value = self._changed[uuid].wait_for(condition, seconds)
        if not value:
            more = stretched(seconds) - seconds
            with self._changed[uuid]:
                value = self._changed[uuid].wait_for(condition, more)
        assert value, "not within %.1f s: %s" % (seconds, what)
        return value


class Stage:
    """A cluster whose guests play a row each."""

    def __init__(self, cluster: Cluster, interval: float) -> None:
        self.cluster = cluster
        self.interval = interval  # s of life
        self.ear = Ear(cluster)
        self._speaking = threading.Lock()

    def say(self, uuid: str, *words: Any) -> None:
        with self._speaking:
            self.cluster.hosts[0].guests.say(uuid, *words)
