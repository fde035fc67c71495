"""What systemd is told, and when nobody is told anything."""

from __future__ import annotations

import os
import socket

import pytest

from guestmtce.daemon import sd_notify


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.bind(str(tmp_path / "notify"))
    one.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield one
    one.close()


def test_ready_names_the_process(systemd):
    sd_notify.ready("12 guests:\n10 ok, 2 lost")
    said = "READY=1\nMAINPID=%d\nSTATUS=12 guests: 10 ok, 2 lost" % os.getpid()
    assert systemd.recv(100).decode() == said


def test_an_abstract_socket_is_reached(monkeypatch):
    name = "guestmtce-test-%d" % os.getpid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert sd_notify.tell(sd_notify.STOPPING)
        assert systemd.recv(100) == b"STOPPING=1"


def test_an_at_in_a_path_is_a_part_of_it(tmp_path, monkeypatch):
    (tmp_path / "user@1000").mkdir()
    path = str(tmp_path / "user@1000" / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert sd_notify.tell(sd_notify.READY)
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/at/all", "/" + 200 * "x"])
def test_without_a_listener_nothing_is_told_and_nothing_fails(monkeypatch, path):
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not sd_notify.tell(sd_notify.READY)


def test_a_listener_that_reads_nothing_does_not_keep_us(systemd):
    while sd_notify.tell(sd_notify.ALIVE):
        pass


OWN = "own"  # this process


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        ("3000000", OWN, 1.5), ("3000000", None, 1.5), ("3000000", "1", None), (None, OWN, None),
        ("0", OWN, None), ("soon", OWN, None), ("3000000", "x", None),
    ],
)  # fmt: skip
def test_the_watchdog_is_fed_twice_as_often_as_must_be(monkeypatch, usec, pid, period):
    pid = str(os.getpid()) if pid == OWN else pid
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert sd_notify.watchdog_period() == period


def test_feeding_goes_on(systemd, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    calls = []
    sd_notify.feed_watchdog(lambda seconds, call: calls.append((seconds, call)))
    calls[0][1]()
    assert [seconds for seconds, _ in calls] == [1.0, 1.0]
    assert (systemd.recv(100), systemd.recv(100)) == (b"WATCHDOG=1", b"WATCHDOG=1")
