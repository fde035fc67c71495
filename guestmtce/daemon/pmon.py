"""What pmon asks in its active mode, answered from the loop itself: a loop that hangs is found out.

docs/protocol/4-host.md#pmon

pmon sends `<process> 12345678 <sequence>` to a port of ours on this host, and expects
`<process> edcba987 <sequence>` back on its own: the magic number with its bits turned.
"""

from __future__ import annotations

import logging

from guestmtce.daemon import udp_port
from guestmtce.daemon.log import Throttle
from guestmtce.daemon.loop import Loop

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
MAGIC = 0x12345678
SEQUENCE_DIGITS = 20  # the most of an unsigned number of 64 bits


def answer(name: str, pulse: bytes) -> bytes:
    """The answer of the process `name` to a pulse. Raises ValueError for what is none, or not for us."""
    process, magic, sequence = pulse.rstrip(b"\0").decode("ascii").split()
    # pmon names the process: another one's pulse on our port is a mistake in its file.
    if process != name or int(magic, 16) != MAGIC:
        raise ValueError("not for %s" % name)
    # What is sent back is not a stranger's text: any local process can send to this port.
    if not sequence.isdigit() or len(sequence) > SEQUENCE_DIGITS:
        raise ValueError("no sequence number")
    return ("%s %8x %s" % (name, ~MAGIC & 0xFFFFFFFF, sequence)).encode("ascii")


def serve(loop: Loop, name: str, port: int, reply_port: int) -> udp_port.UdpPort:
    """Answer pmon's pulses on UDP `port` of this host, to its `reply_port`. Raises OSError."""
    throttle = Throttle(log)

    def take(pulse: bytes, _: str) -> None:
        try:
            reply = answer(name, pulse)
        except ValueError as error:  # bytes that are no ASCII included
            throttle.warning("pulse", "a datagram that is no pulse of pmon was dropped: %s", error)
        else:
            pulses.send(reply, ADDRESS, reply_port)

    pulses = udp_port.UdpPort(loop, ADDRESS, port, take)
    return pulses
