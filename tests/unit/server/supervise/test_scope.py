"""The scope that systemd is asked for: the message, who asks, and that nothing depends on the answer."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time

import pytest

from guestmtce.daemon import dbus
from guestmtce.daemon.loop import Loop
from guestmtce.server.supervise import scope

UNIT = scope.Unit("guestServer.service", "system.slice")
OK = b"OK 0123456789abcdef0123456789abcdef\r\n"


class Reader:
    """Reads what D-Bus writes, by its signature; written from the specification, not from the writer."""

    SIZES = {"y": 1, "b": 4, "i": 4, "u": 4, "t": 8}
    FORMS = {"y": "B", "b": "I", "i": "i", "u": "I", "t": "Q"}
    ALIGNED = {**SIZES, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8}

    def __init__(self, data):
        self.data, self.at = data, 0

    def skip_to(self, kind):
        size = self.ALIGNED[kind[0]]
        padding = self.data[self.at : self.at + -self.at % size]
        assert not any(padding)
        self.at += len(padding)

    def number(self, kind):
        self.skip_to(kind)
        (value,) = struct.unpack_from("=" + self.FORMS[kind], self.data, self.at)
        self.at += self.SIZES[kind]
        return value

    def text(self, size):
        value = self.data[self.at : self.at + size].decode()
        assert self.data[self.at + size] == 0
        self.at += size + 1
        return value

    def value(self, kind):
        if kind in ("s", "o"):
            return self.text(self.number("u"))
        if kind == "g":
            return self.text(self.number("y"))
        if kind == "v":
            return self.value(self.value("g"))
        if kind[0] == "a":
            size = self.number("u")
            self.skip_to(kind[1:])
            end, found = self.at + size, []
            while self.at < end:
                found.append(self.value(kind[1:]))
            assert self.at == end
            return found
        if kind[0] == "(":
            self.skip_to(kind)
            return tuple(self.value(each) for each in split(kind[1:-1]))
        return self.number(kind)


def split(signature):
    """The complete types of a signature."""
    while signature:
        end = 1
        while signature[:end].strip("a") == "" or signature[:end].count("(") != signature[:end].count(")"):
            end += 1
        yield signature[:end]
        signature = signature[end:]


def test_the_request_is_the_call_that_systemd_documents():
    greeting, _, message = scope.build_request(UNIT, 4711).partition(b"BEGIN\r\n")
    assert greeting == b"\0AUTH EXTERNAL %s\r\n" % str(os.geteuid()).encode().hex().encode()
    header = Reader(message)
    order, kind, flags, version = (header.number("y") for _ in range(4))
    assert (bytes([order]), kind, flags, version) == (b"l" if struct.pack("=H", 1)[0] else b"B", 1, 0, 1)
    size, serial = header.number("u"), header.number("u")
    fields = dict(header.value("a(yv)"))
    header.skip_to("(")
    body = Reader(message[header.at :])
    assert (size, serial) == (len(body.data), dbus.SERIAL)
    assert fields == {
        1: "/org/freedesktop/systemd1",
        2: "org.freedesktop.systemd1.Manager",
        3: "StartTransientUnit",
        6: "org.freedesktop.systemd1",
        8: "ssa(sv)a(sa(sv))",
    }
    name, mode, properties, others = (body.value(each) for each in split(fields[8]))
    assert body.at == len(body.data)
    assert (name, mode, others) == ("guestServer-guests-4711.scope", "fail", [])
    assert dict(properties) == {
        "Description": "Guests' processes of guestServer.service",
        "PIDs": [4711],
        "Slice": "system.slice",
        "PartOf": ["guestServer.service"],
        "Before": ["guestServer.service"],
        "KillSignal": 9,
        "CollectMode": "inactive-or-failed",
        "TasksMax": 2**64 - 1,
        "DevicePolicy": "closed",
        "Delegate": True,
    }


@pytest.mark.parametrize(
    "text, unit",
    [
        ("0::/system.slice/guestServer.service\n", UNIT),
        ("4:memory:/x\n1:name=systemd:/a/system.slice/guestServer.service\n0::/b/x.service\n", UNIT),
        ("0::/vms.slice/vms-heartbeat.slice/own.service\n", scope.Unit("own.service", "vms-heartbeat.slice")),
        ("0::/guestServer.service\n", UNIT),
        ("0::/system.slice/docker-0123.scope\n", None),
        ("0::/system.slice/guestServer.service/below\n", None),
        ("0::/\n", None),
        ("4:memory:/system.slice/guestServer.service\n", None),
    ],
)
def test_the_own_unit_is_found_where_systemd_listens(tmp_path, monkeypatch, text, unit):
    (tmp_path / "cgroup").write_text(text)
    monkeypatch.setattr(scope, "OWN_GROUP", str(tmp_path / "cgroup"))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    assert scope.find_own_unit() == unit
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert scope.find_own_unit() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setattr(scope, "OWN_GROUP", str(tmp_path / "none"))
    assert scope.find_own_unit() is None


def message(kind, body=b""):
    """What systemd sends, with one field in its header: the signature."""
    fields = b"\x08\x01g\0\x01s\0"
    return struct.pack("=cBBBIII", b"l", kind, 0, 1, len(body), 7, len(fields)) + fields + b"\0" + body


def text(words):
    return struct.pack("=I", len(words)) + words + b"\0"


SIGNAL = message(4, text(b"JobNew"))


@pytest.mark.parametrize(
    "data, answer",
    [
        (b"", None),
        (b"OK 01", None),
        (OK, None),
        (OK + SIGNAL, None),
        (OK + SIGNAL + message(2, text(b"/job/1"))[:-1], None),
        (OK + SIGNAL + message(2, text(b"/job/1")), dbus.Answer("")),
        (OK + message(3, text(b"it is there already")), dbus.Answer("it is there already")),
        (OK + message(3), dbus.Answer("an error without a text")),
        (b"REJECTED EXTERNAL\r\n", dbus.Answer("it does not accept us: REJECTED EXTERNAL")),
    ],
)
def test_the_answer_is_found_among_what_systemd_says(data, answer):
    assert dbus.find_answer(data) == answer


def test_what_is_no_answer_of_systemds_is_an_error():
    with pytest.raises(ValueError):
        dbus.find_answer(OK + b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def loop():
    one = Loop()
    yield one
    one.close()


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """The socket at which a systemd would listen, and a unit that we run in."""
    (tmp_path / "cgroup").write_text("0::/system.slice/guestServer.service\n")
    monkeypatch.setattr(scope, "OWN_GROUP", str(tmp_path / "cgroup"))
    monkeypatch.setattr(scope, "SOCKET", str(tmp_path / "private"))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(scope.SOCKET)
        listener.listen(1)
        listener.settimeout(5)
        yield listener


def run_until(loop, condition):
    ends = time.monotonic() + 5
    while not condition() and time.monotonic() < ends:
        loop.after(0.01, lambda: None)
        loop.run_once()
    assert condition()


@pytest.mark.parametrize(
    "said, lines",
    [
        ([OK + SIGNAL + message(2, text(b"/job/1"))], []),
        ([OK[:5], OK[5:], message(2, text(b"/job/1"))], []),
        ([OK + message(3, text(b"denied\n"))], ["denied\\n"]),
        ([OK, b""], ["systemd has hung up"]),
        ([OK + b"HTTP/1.1 400 Bad Request\r\n\r\n"], ["no D-Bus"]),
        ([OK + 2000 * SIGNAL], ["systemd says too much"]),
    ],
)
def test_the_answer_ends_the_conversation(loop, systemd, caplog, said, lines):
    caplog.set_level(logging.INFO)
    asked = scope.GuestsScope(loop)
    asked.move(4711)
    peer, _ = systemd.accept()
    with peer:
        assert peer.recv(65536) == scope.build_request(UNIT, 4711)
        for part in said:
            peer.send(part) if part else peer.shutdown(socket.SHUT_RDWR)
        run_until(loop, lambda: asked._socket is None)
    assert len(caplog.messages) == len(lines)
    for line, words in zip(caplog.messages, lines):
        assert words in line
        assert "systemctl status" in line


def test_a_systemd_that_says_nothing_or_takes_nothing_keeps_nobody(loop, systemd, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(scope, "ANSWER_WAIT", 0.05)
    asked = scope.GuestsScope(loop)
    began = time.monotonic()
    asked.move(4711)
    run_until(loop, lambda: asked._socket is None)
    assert "no answer in 0.05 s" in caplog.text
    for pid in range(4712, 4722):  # nobody accepts: the listener's queue is full
        asked.move(pid)
    assert time.monotonic() - began < 3
    asked.close()
    assert len(caplog.messages) == 1


def test_without_systemds_socket_there_is_one_line(loop, systemd, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(scope, "SOCKET", scope.SOCKET + "-none")
    asked = scope.GuestsScope(loop)
    asked.move(4711)
    asked.move(4712)
    assert len(caplog.messages) == 1
    assert "No such file" in caplog.text


def test_without_a_unit_nobody_is_asked(loop, systemd, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET")
    scope.GuestsScope(loop).move(4711)
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.accept()
