"""The compute hosts, found by name and by uuid (docs/protocol/2-datagrams.md#addresses-and-names).

Names are compared as names. `compute-0`, `Compute-0` and `compute-0.example.com` are one host as long as
just one known host has this first label. Two names with different domains are never one host.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional

from guestmtce.agent.model import Host
from guestmtce.wire.datagram import HostRecord


def _fold_name(name: str) -> str:
    return name.lower().rstrip(".")


def _first_label(name: str) -> str:
    return _fold_name(name).partition(".")[0]


def _has_domain(name: str) -> bool:
    return "." in _fold_name(name)


class Hosts:
    """See the module's text. Iteration gives the hosts."""

    def __init__(self) -> None:
        self._by_name: Dict[str, Host] = {}
        self._by_label: Dict[str, List[Host]] = {}
        self._by_uuid: Dict[str, Host] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._by_name.values())

    def add(self, host: Host) -> None:
        """From now on this host is found by its name and uuid."""
        self._by_name[_fold_name(host.name)] = host
        self._by_label.setdefault(_first_label(host.name), []).append(host)
        self._by_uuid[host.uuid.lower()] = host

    def remove(self, host: Host) -> None:
        """The host is found no more. To be called before its name or uuid changes, too."""
        label = _first_label(host.name)
        del self._by_name[_fold_name(host.name)]
        self._by_label[label].remove(host)
        if not self._by_label[label]:
            del self._by_label[label]
        # Another host may have been added under the same uuid since: its entry stays.
        if self._by_uuid.get(host.uuid.lower()) is host:
            del self._by_uuid[host.uuid.lower()]

    def find_by_uuid(self, uuid: str) -> Optional[Host]:
        """The host with this uuid, in upper or lower case."""
        return self._by_uuid.get(uuid.lower())

    def find_host(self, name: str) -> Optional[Host]:
        """The host of this name; None for an unknown one, and for one that may mean two hosts."""
        host = self._by_name.get(_fold_name(name))
        if host is not None:
            return host
        namesakes = self._by_label.get(_first_label(name), [])
        # One of both names has no domain. Of several hosts with this first label any could be meant.
        if len(namesakes) == 1 and _has_domain(name) != _has_domain(namesakes[0].name):
            return namesakes[0]
        return None

    def find_recorded(self, record: HostRecord) -> Optional[Host]:
        """The host of mtcAgent's record. A name with another domain is this host's only with its uuid."""
        host = self._by_name.get(_fold_name(record.hostname))
        if host is None:
            host = self.find_host(record.hostname)
            # Another host of a like name: taken for this one it would take over its address and its
            # instances.
            if host is not None and host.uuid.lower() != record.uuid.lower():
                return None
        return host

    def list_namesakes(self, name: str) -> List[str]:
        """The names of the hosts with the same first label, for a message."""
        return [host.name for host in self._by_label.get(_first_label(name), [])]
