"""The guest's port: hang-up, reopen, a host that does not read, terminals, and devices that are not there."""

from __future__ import annotations

import errno
import os
import pty
import socket
import time

import pytest
from guest_rig import Rig

from guestmtce.guest import port
from guestmtce.guest.port import WAITING_MAX, PortListener, VirtioPort
from guestmtce.guest.settings import Settings

FAST = Settings(reopen_first=0.005, reopen_max=0.02, probe_first=0.005, probe_max=0.02)


class World(Rig):
    """A port, and what it told."""

    def __init__(self, path):
        super().__init__()
        self.events, self.data = [], b""
        listener = PortListener(
            lambda: self.events.append("open"), lambda: self.events.append("close"), self._take
        )
        self.port = VirtioPort(self.loop, path, FAST, self.log, listener)
        self.loop.parts.append(self.port)

    def _take(self, data):
        self.data += data


class Host:
    """QEMU's place: a socket that the port connects to."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)

    def accept(self):
        self.link, _ = self.listener.accept()
        self.link.settimeout(60)
        return self.link

    def read(self, size):
        data = b""
        while len(data) < size:
            data += self.link.recv(size - len(data))
        return data

    def close(self):
        self.listener.close()
        os.unlink(self.path)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "port")


@pytest.fixture
def world(path):
    one = World(path)
    yield one
    one.port.close()
    one.close()


@pytest.fixture
def host(path):
    one = Host(path)
    yield one
    one.listener.close()


def test_words_go_both_ways(world, host):
    world.serve(lambda: world.events, "it is open")
    host.accept().sendall(b"half a li")
    world.serve(lambda: world.data, "the host is heard")
    host.link.sendall(b"ne\n")
    world.serve(lambda: world.data == b"half a line\n", "the rest")
    world.port.send(b"hello")
    assert host.read(5) == b"hello"


def test_a_socket_that_is_not_there_is_tried_until_it_is(world, path):
    rounds, tick = [], world.port.tick
    world.port.tick = lambda now: (rounds.append(now), tick(now))
    world.serve(lambda: len(rounds) >= 5, "it is tried")
    assert rounds[4] - rounds[0] >= 0.05  # 0.005 + 0.01 + 0.02 + 0.02
    assert world.events == [] and len(world.lines) == 1 and "No such file" in world.lines[0]
    host = Host(path)
    world.serve(lambda: world.events == ["open"], "it is open")
    link = host.accept()
    host.close()
    link.close()
    world.serve(lambda: "No such file" in world.lines[-1], "that it is gone is named again")


def test_a_host_that_hangs_up_is_told_and_connected_to_again(world, host):
    world.serve(lambda: world.events, "it is open")
    host.accept().close()
    world.serve(lambda: world.events == ["open", "close", "open"], "it is open again")
    host.accept()
    world.port.send(b"new")
    assert host.read(3) == b"new"


def test_what_waits_for_a_host_that_hung_up_is_lost(world, host):
    world.serve(lambda: world.events, "it is open")
    host.accept()
    while not world.port.waits:
        world.port.send(b"x" * 4000)
    host.link.close()
    world.serve(lambda: world.events == ["open", "close", "open"], "it is open again")
    assert not world.port.waits
    host.accept()
    world.port.send(b"new")
    assert host.read(3) == b"new"


def test_without_a_host_nothing_is_kept(world):
    world.port.send(b"lost")
    assert not world.port.waits


def test_a_host_that_does_not_read_costs_the_oldest_messages_and_gets_the_others_whole(world, host):
    world.serve(lambda: world.events, "it is open")
    host.accept()
    messages = [b"<%06d%s>" % (number, b"." * 92) for number in range(20000)]
    for message in messages:
        world.port.send(message)
    assert world.port.dropped > 1000
    assert sum(map(len, world.port._waiting)) <= WAITING_MAX
    host.link.setblocking(False)
    got = []

    def all_read():
        try:
            got.append(host.link.recv(65536))
        except BlockingIOError:
            pass
        return not world.port.waits

    world.serve(all_read, "all is written")
    text = b"".join([*got, drained(host.link)])
    assert len(text) % 100 == 0
    read = [text[at : at + 100] for at in range(0, len(text), 100)]
    assert set(read) <= set(messages) and read == sorted(read)
    assert len(read) == len(messages) - world.port.dropped and read[-1] == messages[-1]


def drained(link):
    data = b""
    while True:
        try:
            data += link.recv(65536)
        except BlockingIOError:
            return data


def unread(world, monkeypatch, begun=0):
    """The host takes `begun` bytes of the first message, and no more."""
    left = [begun]

    def write(descriptor, data):
        if not left[0]:
            raise BlockingIOError
        count, left[0] = left[0], 0
        return count

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize(
    ("begun", "sizes", "kept"),
    [
        (0, [4096] * 4, "0123"),  # 16384 bytes may wait
        (0, [4096] * 5, "1234"),
        (0, [4096] * 7, "3456"),
        (0, [1] * 9, "012345678"),
        (0, [12000] * 2, "01"),
        (0, [12000] * 3, "12"),
        (9, [4096] * 6, "0345"),  # not the one of which the host has a part
        (9, [12000] * 3, "02"),
    ],
)
def test_the_oldest_message_goes_when_too_much_waits(world, host, monkeypatch, begun, sizes, kept):
    world.serve(lambda: world.events, "it is open")
    host.accept()
    unread(world, monkeypatch, begun)
    for number, size in enumerate(sizes):
        world.port.send(b"%d" % number * size)
    assert b"".join(data[-1:] for data in world.port._waiting).decode() == kept
    assert world.port.dropped == len(sizes) - len(kept)
    monkeypatch.undo()


def test_what_waited_for_one_host_is_no_part_of_a_message_to_the_next(world, host, monkeypatch):
    world.serve(lambda: world.events, "it is open")
    unread(world, monkeypatch, 9)
    world.port.send(b"x" * 100)
    host.accept().close()
    world.serve(lambda: world.events == ["open", "close", "open"], "it is open again")
    for number in range(5):
        world.port.send(b"%d" % number * 4096)
    assert [data[:1] for data in world.port._waiting] == [b"1", b"2", b"3", b"4"]
    monkeypatch.undo()


def test_a_host_that_reads_little_at_a_time_gets_every_message_whole(world, host, monkeypatch):
    world.serve(lambda: world.events, "it is open")
    host.accept()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    messages = [b"\n{%06d}\n" % number for number in range(20)]
    for message in messages:
        world.port.send(message)
    world.serve(lambda: not world.port.waits, "all is written")
    assert host.read(sum(map(len, messages))) == b"".join(messages)
    monkeypatch.undo()


def test_when_all_is_written_the_port_is_no_longer_waited_for(world, host, monkeypatch):
    world.serve(lambda: world.events, "it is open")
    host.accept()
    unread(world, monkeypatch)
    world.port.send(b"word")
    monkeypatch.undo()
    world.serve(lambda: not world.port.waits, "it is written")
    reads, read = [], world.port._read_device
    world.port._read_device = lambda: (reads.append(1), read())
    world.rest(0.03)
    assert reads == []


def test_a_port_that_fails_while_it_is_read_is_named_and_opened_anew(world, host, monkeypatch):
    world.serve(lambda: world.events, "it is open")
    read = os.read

    def fail(descriptor, size):
        if descriptor == world.port._descriptor and size == port.READ_SIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", fail)
    host.accept().sendall(b"x")
    world.serve(lambda: world.events[:2] == ["open", "close"], "the failure")
    monkeypatch.undo()
    assert any("Input/output error" in line for line in world.lines)
    world.serve(lambda: world.events[-1] == "open", "it is open again")


# --- character devices -----------------------------------------------------------------------------


@pytest.fixture
def terminal(path):
    """The two ends of a terminal; the port finds the one at `path`."""
    main, other = pty.openpty()
    os.symlink(os.ttyname(other), path)
    os.set_blocking(main, False)
    yield main, other
    for one in (main, other):
        try:
            os.close(one)
        except OSError:
            pass


def test_a_terminal_neither_echoes_nor_changes_a_byte(world, terminal):
    world.serve(lambda: world.events, "it is open")
    os.write(terminal[0], b"\na\r\x03\x04\n")
    world.serve(lambda: world.data == b"\na\r\x03\x04\n", "every byte")
    world.port.send(b"\nb\n")
    assert os.read(terminal[0], 100) == b"\nb\n"


def test_a_terminal_whose_other_side_is_gone_is_opened_anew(world, terminal, path):
    world.serve(lambda: world.events, "it is open")
    os.close(terminal[1])
    os.close(terminal[0])
    world.serve(lambda: world.events == ["open", "close"], "the hang-up")
    main, other = pty.openpty()
    os.unlink(path)
    os.symlink(os.ttyname(other), path)
    world.serve(lambda: world.events == ["open", "close", "open"], "it is open again")
    os.write(main, b"x")
    world.serve(lambda: world.data == b"x", "the host is heard")
    os.close(main), os.close(other)


def test_a_device_without_a_host_stays_open_and_is_looked_at_again(world, path):
    """As a virtio port: reads give nothing while the host is away. A FIFO does the same without a writer."""
    os.mkfifo(path)
    reader = world.port
    # A FIFO that is opened for both has a writer: itself. Open it as the kernel's port would be seen.
    opened = []
    reader._open_path = lambda: (opened.append(1), os.open(path, os.O_RDONLY | os.O_NONBLOCK))[1]
    world.rest(0.05)
    assert world.events == []
    for events in (["open"], ["open", "close", "open"]):
        visit(world, path, events)
    world.rest(0.05)
    assert opened == [1]


def visit(world, path, events):
    """A host comes, says a word and goes; then `events` have been told, and the hang-up."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    world.serve(lambda: world.events == events, "the host is there")
    world.data = b""
    os.write(writer, b"word")
    world.serve(lambda: world.data == b"word", "the host is heard")
    os.close(writer)
    world.serve(lambda: world.events == [*events, "close"], "the hang-up")


def test_waiting_without_a_host_takes_no_time_of_the_processor(world, path):
    os.mkfifo(path)
    world.port._open_path = lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    rounds = []
    tick = world.port.tick
    world.port.tick = lambda now: (rounds.append(now), tick(now))
    began = time.monotonic()
    world.serve(lambda: len(rounds) > 2, "it looks again")
    world.rest(0.2)
    assert len(rounds) <= 3 + 100 * (time.monotonic() - began)


NO_PORTS = {
    "a file": lambda path: path.write_text("x"),
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", NO_PORTS)
def test_what_is_no_port_is_named_and_waited_for(tmp_path, name):
    path = tmp_path / "port"
    NO_PORTS[name](path)
    world = World(str(path))
    world.serve(lambda: world.lines, "it is named")
    assert "it is no device and no socket" in world.lines[0] and world.events == []
    path.rmdir() if path.is_dir() else path.unlink()
    host = Host(str(path))
    world.serve(lambda: world.events == ["open"], "the port")
    host.close()
    world.port.close()
    world.close()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full"])
def test_a_device_that_cannot_be_waited_for_is_no_port(path):
    world = World(path)
    world.serve(lambda: world.lines, "it is named")
    world.rest(0.1)
    assert path in world.lines[0] and world.events == []
    world.port.close()
    world.close()


def test_a_port_without_udev_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(port, "VIRTIO_FOLDER", str(tmp_path / "virtio-ports"))
    monkeypatch.setattr(port, "VIRTIO_PORTS", str(tmp_path / "sys"))
    for number, name in enumerate(("org.qemu.guest_agent.0", "cgcs.heartbeat")):
        folder = tmp_path / "sys" / ("vport%dp1" % number)
        folder.mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
    (tmp_path / "sys" / "vport0p0").mkdir()
    (tmp_path / "sys" / "vport0p0" / "name").write_bytes(b"\xff\n")
    wanted = str(tmp_path / "virtio-ports" / "cgcs.heartbeat")
    assert port._locate_device(wanted) == "/dev/vport1p1"
    assert port._locate_device(wanted + "x") == wanted + "x"
    assert port._locate_device("/other/cgcs.heartbeat") == "/other/cgcs.heartbeat"
    (tmp_path / "virtio-ports").mkdir()
    (tmp_path / "virtio-ports" / "cgcs.heartbeat").touch()
    assert port._locate_device(wanted) == wanted


def test_the_kernel_is_asked_where_udev_has_named_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "listdir", lambda folder: asked.append(folder) or [])
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert port._locate_device("/dev/virtio-ports/cgcs.heartbeat") == "/dev/virtio-ports/cgcs.heartbeat"
    assert asked == ["/sys/class/virtio-ports"]
