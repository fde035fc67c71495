"""A control group for the guests' processes: a transient scope beside the unit that guestServer runs in.

`systemctl status guestServer` lists each process below its unit, which would be one for each guest. So
systemd moves each spawner into a scope, and the children are born where their spawner is. What holds for a
process goes with it (namespaces, filters, limits, capabilities); what holds for a control group is asked for
again.

systemd is asked by one message, and nothing waits for the answer: a child that is born before the move stays
in the unit. Where there is no systemd, or it refuses, all of them do, and nothing else changes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from typing import Any, List, NamedTuple, Optional, Tuple

from guestmtce.daemon import dbus, sd_notify
from guestmtce.daemon.log import printable
from guestmtce.daemon.loop import Loop, Timer

log = logging.getLogger(__name__)

SOCKET = "/run/systemd/private"  # of systemd itself; there is not a bus on every host
OWN_GROUP = "/proc/self/cgroup"
ANSWER_WAIT = 30.0  # s; one daemon-reload of systemd's may come before our call
ANSWER_MAX = 65536  # bytes
START_SCOPE = dbus.Method(
    "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
)  # fmt: skip
SIGNATURE = "ssa(sv)a(sa(sv))"  # name, mode, properties, auxiliary units
INFINITY = 2**64 - 1
SIGKILL = 9
# Of the hierarchy that systemd keeps, the unified one or its own.
_GROUP = re.compile(r"^(?:0:|\d+:name=systemd):.*?/(?:([^/\n]+\.slice)/)?([^/\n]+\.service)$", re.MULTILINE)


class Unit(NamedTuple):
    """The unit that this process runs in, and the slice which that is in."""

    name: str
    slice: str


def find_own_unit() -> Optional[Unit]:
    """None where systemd does not run this process as a service that it waits for."""
    if not sd_notify.is_listened_to():
        return None
    try:
        with open(OWN_GROUP, encoding="utf-8", errors="replace") as file:
            found = _GROUP.search(file.read())
    except OSError:
        return None
    return Unit(found[2], found[1] or "system.slice") if found else None


def build_request(unit: Unit, pid: int) -> bytes:
    """What systemd is sent to have process `pid` in a scope beside `unit`."""
    body = dbus.Writer()
    body.put("s", "%s-guests-%d.scope" % (unit.name.rpartition(".")[0], pid))
    body.put("s", "fail")  # it must not stand in for a job that the unit has
    body.put_properties(_properties(unit, pid))
    body.put_array(8, lambda: None)
    return dbus.build_greeting() + dbus.build_call(START_SCOPE, SIGNATURE, bytes(body.data))


def _properties(unit: Unit, pid: int) -> List[Tuple[str, str, Any]]:
    return [
        ("Description", "s", "Guests' processes of " + unit.name),
        ("PIDs", "au", [pid]),
        ("Slice", "s", unit.slice),
        # It is stopped with the unit and after it: the main process ends its children.
        ("PartOf", "as", [unit.name]),
        ("Before", "as", [unit.name]),
        ("KillSignal", "i", SIGKILL),
        # One that fails has nothing that anybody could look at.
        ("CollectMode", "s", "inactive-or-failed"),
        ("TasksMax", "t", INFINITY),
        ("DevicePolicy", "s", "closed"),
        # A child that is killed for want of memory is not the end of the others.
        ("Delegate", "b", True),
    ]


class GuestsScope:
    """Has spawners put into a scope each; see the module's text."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket: Optional[socket.socket] = None
        self._answer = b""
        self._timer: Optional[Timer] = None
        self._complained = False  # one line is enough

    def move(self, pid: int) -> None:
        """Ask for the spawner `pid` to be moved, if systemd runs us."""
        unit = find_own_unit()
        if unit is None:
            return
        self.close()
        try:
            self._ask(build_request(unit, pid))
        except OSError as error:
            self._give_up("%s: %s" % (SOCKET, error.strerror))

    def _ask(self, request: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.connect(SOCKET)
        # The socket is fresh and the request small: a part of it means that systemd does not read.
        if self._socket.send(request) != len(request):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._answer = b""
        self._loop.watch(self._socket, self._read)
        self._timer = self._loop.after(ANSWER_WAIT, lambda: self._give_up("no answer in %g s" % ANSWER_WAIT))

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(ANSWER_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(str(error.strerror))
            return
        self._answer += data
        try:
            answer = dbus.find_answer(self._answer)
        except ValueError as error:
            self._give_up(str(error))
            return
        if answer is not None:
            self._give_up(answer.error) if answer.error else self.close()
        elif not data or len(self._answer) > ANSWER_MAX:
            self._give_up("systemd has hung up" if not data else "systemd says too much")

    def _give_up(self, why: str) -> None:
        self.close()
        if not self._complained:
            text = "`systemctl status` lists each guest's process: systemd gives them no scope: %s"
            log.info(text, printable(why))
        self._complained = True

    def close(self) -> None:
        """Hear no more of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.unwatch(self._socket)
            self._socket.close()
            self._socket = None
