"""A link of guestAgent in a loop of its own, and guestServers that tests play by hand, over real sockets."""

import socket
import threading

from guestmtce.agent.effects import Send
from guestmtce.agent.server_link import Endpoint, ServerLink
from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.ports import free_ports
from guestmtce.peer.authentication import Keys, Speaker
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Seal, Tag

LOCAL = "127.0.0.1"
SERVER = "127.0.0.3"
NAME = "compute-0"
TICK = 0.005  # s


class Bench:
    """The link, and the socket of an old guestServer at an address of its own."""

    def __init__(self, address="", key=b""):
        self.heard = []
        self.unheard = set()  # uuids that are disabled, and no server has confirmed it
        self.lock = threading.Lock()
        self.loop = Loop()
        self.agent_port, self.server_port = free_ports(2, "0.0.0.0")
        self.link = ServerLink(
            self.loop, Endpoint(address, self.agent_port, self.server_port), self.lock, self, Keys(key),
        )  # fmt: skip
        self._sockets = []
        self.server = self.open(SERVER)

    def server_said(self, received):
        self.heard.append(received)

    def disabling_sent(self, uuid):
        self.unheard.add(uuid)

    def disabling_heard(self, uuid):
        self.unheard.discard(uuid)

    def open(self, address):
        """A socket where the link expects a guestServer."""
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((address, self.server_port))
        one.settimeout(60)
        self._sockets.append(one)
        return one

    def send(self, *commands, ip=SERVER, name=NAME):
        """Have the link send these, each `cmd, command` and perhaps `seconds`."""
        with self.lock:
            for cmd, command, *seconds in commands:
                self.link.send_command(Send(name, ip, cmd, command, *seconds))

    def say(self, *datagrams, by=None):
        """Send these to the link, and wait until they were served."""
        until = self.link.port.received + len(datagrams)
        for data in datagrams:
            (by or self.server).sendto(data, (LOCAL, self.agent_port))
        wait_for(lambda: self.turn() or self.link.port.received >= until, "they are served", step=0)

    def turn(self):
        """Let the loop do what there is."""
        self.loop.after(TICK, lambda: None)
        self.loop.run_once()

    def until(self, condition, what, seconds=10.0):
        """Run the loop until it is so."""
        return wait_for(lambda: self.turn() or condition(), what, seconds, step=0)

    def close(self):
        self.link.close()
        self.loop.close()
        for one in self._sockets:
            one.close()


class OurServer:
    """A guestServer that speaks the extension; it answers nothing unless told to."""

    def __init__(self, bench, address=SERVER, name=NAME, key=b"", sender=77, taken=None):
        self.name = name
        self.socket = taken or bench.open(address)
        self.socket.setblocking(False)
        self.speaker = Speaker(Seal(key), sender)
        self.got = []  # (cmd, what, tag) of every datagram
        self.raw = []
        self.refused = 0
        self._bench = bench

    def listen(self):
        """Take what has come, and believe what can be believed."""
        while True:
            try:
                data = self.socket.recv(2048)
            except BlockingIOError:
                return self.got
            self.raw.append(data)
            frame = datagram.unpack(data)
            try:
                self.speaker.check(data, frame, b"agent>" + self.name.encode())
            except datagram_ext.SealRefused:
                self.refused += 1
                continue
            tag = datagram_ext.read_tag(frame)
            if self.speaker.knows_this_process(tag):
                self.speaker.note_peer(tag)
                of_event = frame.cmd in (datagram_ext.ACK, datagram_ext.MARK)
                command = None if of_event else datagram.parse_command(frame)
                self.got.append((frame.cmd, command, tag))

    def numbers(self, cmd):
        """The numbers of what came of this kind."""
        return [tag.number for one, _, tag in self.listen() if one == cmd]

    def dressed(self, cmd, event=None, tag=None):
        """A datagram as we say it."""
        data = datagram_ext.build_ack(b"") if event is None else datagram.build_event(cmd, event, full=False)
        return self.speaker.tag_and_seal(data, tag or Tag(), b"server>" + self.name.encode())

    def say(self, cmd, event=None, tag=None):
        """Say it; it was served. Returns the datagram."""
        data = self.dressed(cmd, event, tag)
        self._bench.say(data, by=self.socket)
        return data

    def ready(self):
        """MONITOR_READY."""
        return self.say(datagram.MONITOR_READY, datagram.Ready(self.name))

    def confirm(self, tag):
        """Confirm the command that bore this tag."""
        return self.say(datagram_ext.ACK, None, datagram_ext.ack_tag(tag))

    def meet(self):
        """Get to know each other: nothing, or one round trip where there is a key."""
        self.ready()
        if self.speaker.sealed:
            self._bench.send((datagram.QRY_INST, datagram.Query()), ip=self.socket.getsockname()[0],
                             name=self.name)  # fmt: skip
            self._bench.until(self.listen, "the agent echoes us")
            self.confirm(self.got[-1][2])
            self.ready()
