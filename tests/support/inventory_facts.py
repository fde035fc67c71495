"""Hosts, instances and facts for the inventory's tests."""

from __future__ import annotations

from guestmtce.agent.effects import AskVim, Send
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.model import Origin
from guestmtce.common.log_line import LogLine
from guestmtce.wire import datagram
from guestmtce.wire.datagram import HostRecord, InstanceInfo
from guestmtce.wire.vim_http import Named

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
V = "11111111-2222-3333-4444-555555555555"
A = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
B = HostRecord("compute-1", "aaaaaaaa-0000-4000-8000-000000000001", "10.0.0.2")
NOW = 1000.0  # s
HOSTS = {host.hostname: host for host in (A, B)}
ADD, MOD, DEL = datagram.ADD_INST, datagram.MOD_INST, datagram.DEL_INST


def drain_effects(made):
    """What is to be done, but for the lines that are to be logged."""
    return [effect for effect in made.take_effects() if not isinstance(effect, LogLine)]


def drain_lines(made):
    """The text of what is to be logged."""
    return [line.text % line.values for line in made.take_effects() if isinstance(line, LogLine)]


NEWEST = 1 << 40  # the serial of a question that was put after all else


def answer_list(made, hostname, listed, serial=NEWEST, now=0.0):
    """The VIM's list; it was asked for just now unless `serial` says when. It comes long before NOW."""
    made.note_list(hostname, listed, serial, now)


def answer_state(made, hostname, reporting, serial=NEWEST):
    """The same for a host's state."""
    made.note_host_state(hostname, reporting, serial)


def asks(host, instances):
    """The question to the VIM, whatever its serial."""
    return AskVim(host.uuid, host.hostname, instances, AnySerial())


class AnySerial(int):
    def __eq__(self, other):
        return isinstance(other, int)

    __hash__ = None


def inventory(*hosts, listed=True):
    made = Inventory()
    for host in hosts or (A,):
        made.note_host(host)
        if listed:
            answer_list(made, host.hostname, [])
    drain_effects(made)
    return made


def named(host=A, uuid=U):
    return Named(uuid, host.hostname, {})


def info(host=A, uuid=U, reporting=True, heartbeating=True, action="reboot"):
    return InstanceInfo(host.hostname, uuid, reporting, heartbeating, action, 601, 11, 12, 13, 14)


def loss(host=A, uuid=U):
    return datagram.Loss(host.hostname, uuid)


def send(host, cmd, command, seconds=0.0):
    return Send(host.hostname, host.ip, cmd, command, seconds)


def origin(number, host=A, sender=7):
    return Origin(host.ip, sender, number)


def enabled(heartbeating=True):
    made = inventory(A, B)
    made.set_instance(named(), True, NOW)
    if heartbeating:
        made.events.note_state(info())
    drain_effects(made)
    return made


def kinds(effects):
    return [type(effect) for effect in effects]


def of(kind, effects):
    return [effect for effect in effects if isinstance(effect, kind)]
