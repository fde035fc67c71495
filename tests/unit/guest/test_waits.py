"""What stands still in the guest delays no answer: a script's start, its file system and the log's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time

import psutil
import pytest
from guest_process import FAST, INTERVAL, GuestProcess, as_root, heartbeats, host, write_script
from slow_open import SlowOpen

from guestmtce.guest.log import log_to
from guestmtce.guest.reaper import NAME as REAPER
from guestmtce.guest.runner import KILLED_MAX
from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel

__all__ = ["host"]  # a fixture

STANDS_STILL = 10.0  # s
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h
DISK = 16 * 2**20  # bytes


@as_root
def test_a_script_whose_start_takes_ten_seconds_delays_no_answer(host, tmp_path):
    """As on a slow disk or NFS: its exec waits for the file to be opened."""
    path = tmp_path / "health"
    write_script(path, "exit 0\n")
    with SlowOpen(path) as slow:
        settings = [*FAST, "health_floor=1"]
        guest = GuestProcess(
            tmp_path / "guest", host.path, settings, HEALTH_CHECK_SCRIPT=path, HEALTH_CHECK_INTERVAL=60
        )
        try:
            host.accept().heartbeat()
            assert slow.waiting.wait(60), "the script was not started"
            assert heartbeats(host, STANDS_STILL) < INTERVAL
        finally:
            slow.allow()
            guest.stop()


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, and a function that freezes and one that thaws it."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(DISK)
    folder.mkdir()
    if shutil.which("mkfs.ext4") is None:
        lack = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lack("there is no mkfs.ext4: apt-get install e2fsprogs")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
        pytest.skip("root of a container, which may mount no file system of its own")
    descriptor, frozen = os.open(folder, os.O_RDONLY), []

    def freeze():
        fcntl.ioctl(descriptor, FIFREEZE, 0)
        frozen.append(True)

    def thaw():
        if frozen:
            frozen.clear()
            fcntl.ioctl(descriptor, FITHAW, 0)

    yield folder, freeze, thaw
    thaw()
    os.close(descriptor)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@as_root
def test_a_client_starts_though_the_file_system_of_its_log_stands_still(host, tmp_path, disk):
    folder, freeze, thaw = disk
    log = folder / "log"
    freeze()
    guest = GuestProcess(tmp_path / "guest", host.path, FAST, ["--log", str(log)])
    try:
        host.accept().heartbeat()
        assert heartbeats(host, 1.0) < INTERVAL
        thaw()
        wait_for(lambda: log.exists() and "started, pid" in log.read_text(), "the log is there")
    finally:
        thaw()
        guest.stop()


@as_root
def test_a_frozen_file_system_of_log_and_script_delays_no_answer(host, tmp_path, disk):
    folder, freeze, thaw = disk
    script = write_script(folder / "health", "echo looking >>%s/looked\n" % folder)
    log = folder / "log"
    settings = [*FAST, "health_floor=0.1"]
    guest = GuestProcess(
        tmp_path / "guest", host.path, settings, ["--log", str(log)], HEALTH_CHECK_SCRIPT=script,
        HEALTH_CHECK_INTERVAL=1,
    )  # fmt: skip
    try:
        host.accept().heartbeat()
        wait_for(lambda: (folder / "looked").exists(), "the health script ran")
        freeze()
        assert heartbeats(host, STANDS_STILL / 2) < INTERVAL
        for _ in range(20):
            host.say(guest_channel.InitAck(1))  # each is a line in the log
        assert heartbeats(host, STANDS_STILL / 2) < INTERVAL
        thaw()
        wait_for(lambda: "an init_ack of another init was ignored" in log.read_text(), "the log goes on")
    finally:
        thaw()
        guest.stop()


@as_root
def test_processes_that_cannot_be_killed_do_not_pile_up(host, tmp_path, disk):
    """A file system that stands still holds them. They have left the script's session, and it has ended."""
    folder, freeze, thaw = disk
    text = "(setsid sh -c 'echo >>%s/file' &) ; echo run >>%s/runs; sleep 600" % (folder, tmp_path)
    script = write_script(tmp_path / "health", text)
    freeze()
    guest = GuestProcess(
        tmp_path / "guest", host.path, FAST, HEALTH_CHECK_SCRIPT=script, HEALTH_CHECK_INTERVAL=0.3
    )
    try:
        host.accept().heartbeat()
        assert heartbeats(host, 6.0) < INTERVAL
        held = [one for one in psutil.Process(guest.popen.pid).children() if one.name() == REAPER]
        runs = len((tmp_path / "runs").read_text().split())
        for words in ("cannot start the health script: ", "cannot be killed"):
            wait_for(lambda words=words: words in guest.log(), words)
        assert 2 <= len(held) <= KILLED_MAX
        time.sleep(1.0)
        assert len((tmp_path / "runs").read_text().split()) == runs, "it is not run meanwhile"
        thaw()
        wait_for(lambda: not any(one.is_running() for one in held), "they are gone")
        wait_for(lambda: len((tmp_path / "runs").read_text().split()) > runs, "it is run again")
    finally:
        thaw()
        guest.stop()


def the_writer():
    named = [child for child in psutil.Process().children() if child.name() == "guestClient-log"]
    return [child for child in named if child.status() != psutil.STATUS_ZOMBIE][-1]


# --- the log's writer ------------------------------------------------------------------------------


def test_a_line_reaches_the_file_by_a_process_that_holds_nothing_else(tmp_path):
    other = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(other, True)
    with open(tmp_path / "log", "w+", encoding="ascii") as file:
        write = log_to(file.fileno(), 0)
        write("one")
        wait_for(lambda: "one" in (tmp_path / "log").read_text(), "it is written")
        writer = the_writer()
        assert writer.num_fds() == 2 and writer.name() == "guestClient-log"
        writer.terminate()  # whoever ends the client by its group wants its last lines
        write("two")
        wait_for(lambda: "two" in (tmp_path / "log").read_text(), "it is written")
        assert writer.is_running()
        writer.kill()
        writer.wait(60)
    os.close(other)


def test_a_writer_that_was_killed_is_replaced_and_its_line_counted(tmp_path):
    with open(tmp_path / "log", "w+", encoding="ascii") as file:
        log = log_to(file.fileno(), 0)
        log("one")
        wait_for(lambda: "one" in (tmp_path / "log").read_text(), "it is written")
        first = the_writer()
        first.kill()
        wait_for(lambda: first.status() == psutil.STATUS_ZOMBIE, "it is gone")
        log("two")
        log("three")
        wait_for(
            lambda: "three (1 lines before it were lost)" in (tmp_path / "log").read_text(), "it goes on"
        )
        second = the_writer()
        second.kill()
        second.wait(60)
