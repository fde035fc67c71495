"""Which guests' sockets exist, by the kernel's own inotify."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import time

import pytest

from guestmtce.daemon.loop import Loop
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.server import discovery as channels_module
from guestmtce.server.discovery import Discovery
from guestmtce.server.settings import ServerSettings

ONE, TWO = uuid_of(1), uuid_of(2)
LETTERS = "abcdef00-0000-4000-8000-00000000abcd"
OVERFLOW_LIMIT = "/proc/sys/fs/inotify/max_queued_events"


class Bench:
    """A folder, a loop, and everything that was said of the folder, in order."""

    def __init__(self, folder, **settings):
        self.folder = str(folder / "qemu")
        self.loop = Loop()
        self.said = []
        values = {"rescan": 3600.0, "folder_retry": 0.01, **settings}
        self.channels = Discovery(
            self.loop, ServerSettings(channel_dir=self.folder, **values), self._found, self._gone
        )

    def _found(self, uuid, path, identity, fresh):
        self.said.append(("fresh" if fresh else "found", uuid, os.path.basename(path)))
        self.identity = identity

    def _gone(self, uuid, path):
        self.said.append(("gone", uuid, os.path.basename(path)))

    def path(self, name):
        return os.path.join(self.folder, name)

    def until(self, condition, what="it is said", seconds=5.0):
        """Run the loop until `condition()`."""

        def turn():
            self.loop.after(0.002, lambda: None)
            self.loop.run_once()
            return condition()

        return wait_for(turn, what, seconds, step=0)

    def settle(self):
        """Everything that happened so far is served: a mark made now is seen after it."""
        mark = self.path(name_of(uuid_of(999999)))
        make(mark)
        self.until(lambda: any(word[1] == uuid_of(999999) for word in self.said))
        os.unlink(mark)
        self.until(lambda: self.said[-1][:2] == ("gone", uuid_of(999999)))
        said = [word for word in self.said if word[1] != uuid_of(999999)]
        self.said.clear()
        return said


@pytest.fixture
def bench(tmp_path):
    one = Bench(tmp_path)
    os.mkdir(one.folder)
    yield one
    one.channels.close()
    one.loop.close()


def name_of(uuid):
    return "cgcs.heartbeat.%s.sock" % uuid


def old_name_of(uuid):
    return "wrs.heartbeat.agent.0.%s.sock" % uuid


def make(path):
    """A socket's file, which stays as a killed QEMU's does; its path may be too long to be bound."""
    folder = os.open(os.path.dirname(path), os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("/proc/self/fd/%d/%s" % (folder, os.path.basename(path)))
    os.close(folder)


def test_what_is_there_at_the_start_is_found(bench):
    make(bench.path(name_of(ONE)))
    make(bench.path(old_name_of(TWO)))
    bench.channels.start()
    assert sorted(bench.said) == [("found", ONE, name_of(ONE)), ("found", TWO, old_name_of(TWO))]


def test_a_socket_s_life(bench):
    bench.channels.start()
    make(bench.path(name_of(ONE)))
    assert bench.settle() == [("fresh", ONE, name_of(ONE))]
    os.unlink(bench.path(name_of(ONE)))
    make(bench.path(name_of(ONE)))
    assert bench.settle() == [("gone", ONE, name_of(ONE)), ("fresh", ONE, name_of(ONE))]
    os.unlink(bench.path(name_of(ONE)))
    assert bench.settle() == [("gone", ONE, name_of(ONE))]


def test_the_identity_is_the_file_s(bench):
    bench.channels.start()
    make(bench.path(name_of(ONE)))
    bench.until(lambda: bench.said)
    status = os.stat(bench.path(name_of(ONE)))
    assert bench.identity[:2] == (status.st_dev, status.st_ino)


def test_renames_in_over_and_out(bench):
    bench.channels.start()
    make(bench.path("temporary"))
    os.rename(bench.path("temporary"), bench.path(name_of(ONE)))
    make(bench.path("temporary"))
    os.rename(bench.path("temporary"), bench.path(name_of(ONE)))
    assert bench.settle() == [("fresh", ONE, name_of(ONE))] * 2
    os.rename(bench.path(name_of(ONE)), bench.path(old_name_of(ONE)))
    assert bench.settle() == [("gone", ONE, name_of(ONE)), ("fresh", ONE, old_name_of(ONE))]
    os.rename(bench.path(old_name_of(ONE)), bench.path("temporary"))
    assert bench.settle() == [("gone", ONE, old_name_of(ONE))]


def test_modify_is_like_new(bench):
    """The kernel says MODIFY of no socket; of a file it does, and what is there then decides."""
    path = bench.path(name_of(ONE))
    bench.channels.start()
    with open(path, "w") as file:
        make(path + ".new")
        file.write("x")
        file.flush()
        os.rename(path + ".new", path)
    said = bench.settle()
    assert set(said) == {("fresh", ONE, name_of(ONE))}


@pytest.mark.parametrize("what", ["plain file", "link", "folder"])
def test_what_takes_a_socket_s_place_ends_it(bench, what):
    path = bench.path(name_of(ONE))
    make(path)
    bench.channels.start()
    bench.said.clear()
    if what == "plain file":
        open(bench.path("temporary"), "w").close()
        os.rename(bench.path("temporary"), path)
    elif what == "link":
        os.symlink("/dev/null", bench.path("temporary"))
        os.rename(bench.path("temporary"), path)
    else:
        os.unlink(path)
        os.mkdir(path)
    assert bench.settle() == [("gone", ONE, name_of(ONE))]


@pytest.mark.parametrize("name_in", [name_of, old_name_of])
def test_a_uuid_in_upper_case_is_reported_in_lower_case_and_found_again(bench, name_in):
    upper, mixed = name_in(LETTERS.upper()), name_in(LETTERS.capitalize())
    make(bench.path(upper))
    bench.channels.start()
    assert bench.settle() == [("found", LETTERS, upper)]
    make(bench.path(mixed))
    assert bench.settle() == [("fresh", LETTERS, mixed)]
    bench.channels.look_for(LETTERS)
    bench.channels.scan()
    assert sorted(bench.said) == sorted([("found", LETTERS, upper), ("found", LETTERS, mixed)] * 2)
    bench.said.clear()
    os.unlink(bench.path(upper))
    assert bench.settle() == [("gone", LETTERS, upper)]
    bench.channels.look_for(LETTERS)
    assert bench.settle() == [("found", LETTERS, mixed)]
    os.unlink(bench.path(mixed))
    assert bench.settle() == [("gone", LETTERS, mixed)]
    bench.channels.look_for(LETTERS)
    assert bench.settle() == [] and not bench.channels._oddly_spelled


NOT_OURS = [
    "cgcs.heartbeat.%s.sock.tmp" % ONE,
    "x.cgcs.heartbeat.%s.sock" % ONE,
    "cgcs.heartbeat.%s" % ONE,
    "cgcs.heartbeat.%s.sock" % ONE[:-1],
    "cgcs.heartbeat.%s0.sock" % ONE,
    "cgcs.heartbeat.%s.sock" % ("z" + ONE[1:]),
    "cgcsxheartbeat.%s.sock" % ONE,
    "cgcs.heartbeat.%s.sock\n" % ONE,
    "wrs.heartbeat.agent.1.%s.sock" % ONE,
    "wrs.heartbeat.%s.sock" % ONE,
    "org.qemu.guest_agent.0.instance-00000001.sock",
    "cgcs.heartbeat..sock",
    "name \u20ac \x1b[31m",
]


def test_names_that_are_not_ours(bench):
    for name in NOT_OURS[::2]:
        make(bench.path(name))
    bench.channels.start()
    for name in NOT_OURS[1::2]:
        make(bench.path(name))
    os.mkdir(bench.path("domain-1-instance-00000001"))
    assert bench.settle() == []
    for name in NOT_OURS:
        os.unlink(bench.path(name))
    assert bench.settle() == []


def test_only_a_socket_counts(bench):
    bench.channels.start()
    make(bench.path("real"))
    os.symlink(bench.path("real"), bench.path(name_of(ONE)))
    open(bench.path(old_name_of(ONE)), "w").close()
    os.mkdir(bench.path(name_of(TWO)))
    os.mkfifo(bench.path(old_name_of(TWO)))
    assert bench.settle() == []
    bench.channels.scan()
    bench.channels.look_for(ONE)
    assert bench.said == []


def test_an_odd_byte_in_a_name_hides_nobody_else(bench):
    bench.channels.start()
    open(os.path.join(os.fsencode(bench.folder), b"odd \xff\xfe"), "w").close()
    make(bench.path(name_of(ONE)))
    bench.until(lambda: bench.said)
    assert bench.said[-1][1:] == (ONE, name_of(ONE))
    assert bench.loop.defects == 0
    bench.said.clear()
    os.unlink(bench.path(name_of(ONE)))
    assert bench.settle() == [("gone", ONE, name_of(ONE))]


def test_a_socket_that_came_and_went_before_we_looked(bench):
    bench.channels.start()
    make(bench.path(name_of(ONE)))
    os.unlink(bench.path(name_of(ONE)))
    assert bench.settle() == []
    assert bench.loop.defects == 0


def test_a_burst(bench):
    bench.channels.start()
    for number in range(200):
        make(bench.path(name_of(uuid_of(number))))
    assert bench.settle() == [("fresh", uuid_of(n), name_of(uuid_of(n))) for n in range(200)]
    for number in range(200):
        os.unlink(bench.path(name_of(uuid_of(number))))
    assert bench.settle() == [("gone", uuid_of(n), name_of(uuid_of(n))) for n in range(200)]


# --- the scan --------------------------------------------------------------------------------------


def test_a_scan_tells_of_what_is_and_of_what_is_no_more(bench):
    for uuid in (ONE, TWO):
        make(bench.path(name_of(uuid)))
    bench.channels.start()
    bench.channels.close()
    bench.said.clear()
    os.unlink(bench.path(name_of(ONE)))
    bench.channels.scan()
    assert bench.said == [("gone", ONE, name_of(ONE)), ("found", TWO, name_of(TWO))]


def test_it_scans_again_every_rescan(tmp_path):
    bench = Bench(tmp_path, rescan=0.02)
    os.mkdir(bench.folder)
    make(bench.path(name_of(ONE)))
    bench.channels.start()
    bench.until(lambda: len(bench.said) >= 4)
    assert set(bench.said) == {("found", ONE, name_of(ONE))}
    bench.channels.close()
    bench.loop.close()


def test_a_queue_overflow_leads_to_a_scan(bench):
    with open(OVERFLOW_LIMIT) as file:
        limit = int(file.read())
    if limit > 50000:
        pytest.skip("the queue holds %d events" % limit)
    bench.channels.start()
    for number in range(limit // 2 + 10):
        path = bench.path("filler-%d" % (number % 2))
        os.close(os.open(path, os.O_CREAT))
        os.unlink(path)
    make(bench.path(name_of(ONE)))
    bench.until(lambda: bench.said)
    assert bench.said[0] == ("found", ONE, name_of(ONE))
    bench.settle()
    make(bench.path(name_of(TWO)))
    assert bench.settle() == [("fresh", TWO, name_of(TWO))]


def test_looking_for_one_finds_both_names(bench):
    bench.channels.start()
    bench.channels.close()
    bench.channels.look_for(ONE)
    assert bench.said == []
    make(bench.path(name_of(ONE)))
    make(bench.path(old_name_of(ONE)))
    make(bench.path(name_of(TWO)))
    bench.channels.look_for(ONE)
    assert bench.said == [("found", ONE, name_of(ONE)), ("found", ONE, old_name_of(ONE))]


def test_a_folder_that_cannot_be_read_for_a_moment_costs_nobody_the_channel(bench, monkeypatch):
    make(bench.path(name_of(ONE)))
    bench.channels.start()
    bench.said.clear()

    def no_descriptors(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(channels_module.os, "listdir", no_descriptors)
    bench.channels.scan()
    assert bench.said == []


# --- the folder ------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_yet(bench):
    os.rmdir(bench.folder)
    bench.channels.start()
    assert not bench.channels.watching
    descriptors = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    bench.until(lambda: time.monotonic() - began > 0.1)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    os.mkdir(bench.folder)
    make(bench.path(name_of(ONE)))
    bench.until(lambda: bench.channels.watching)
    assert bench.said[-1] == ("found", ONE, name_of(ONE))
    assert set(bench.settle()) == {("found", ONE, name_of(ONE))}


@pytest.mark.parametrize("how", ["deleted", "renamed", "deleted and made again at once"])
def test_a_folder_that_goes_and_comes_back(bench, how):
    for _ in range(3):
        bench.channels.start() if not bench.channels.watching else None
        make(bench.path(name_of(ONE)))
        bench.until(lambda: ("fresh", ONE, name_of(ONE)) in bench.said)
        bench.said.clear()
        if how == "renamed":
            os.rename(bench.folder, bench.folder + ".old")
        else:
            shutil.rmtree(bench.folder)
        if "at once" not in how:
            bench.until(lambda: bench.said and not bench.channels.watching)
            assert bench.said == [("gone", ONE, name_of(ONE))]
        os.mkdir(bench.folder)
        make(bench.path(name_of(TWO)))
        bench.until(lambda: any(word[1] == TWO for word in bench.said))
        assert bench.said[0] == ("gone", ONE, name_of(ONE))
        os.unlink(bench.path(name_of(TWO)))
        bench.until(lambda: bench.said[-1] == ("gone", TWO, name_of(TWO)))
        bench.said.clear()
        shutil.rmtree(bench.folder + ".old", ignore_errors=True)
    assert bench.loop.defects == 0


def test_without_inotify_the_folder_is_scanned_all_the_same(bench, monkeypatch):
    """The system's inotify instances are few, and others may have taken them all."""

    def none_left():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(channels_module.pyinotify, "WatchManager", none_left)
    bench.channels.start()
    make(bench.path(name_of(ONE)))
    bench.until(lambda: bench.said)
    assert bench.said[0] == ("found", ONE, name_of(ONE))
    os.unlink(bench.path(name_of(ONE)))
    bench.until(lambda: bench.said[-1] == ("gone", ONE, name_of(ONE)))
    monkeypatch.undo()
    bench.until(lambda: bench.channels.watching)


def test_close_gives_every_descriptor_back(tmp_path):
    before = os.listdir("/proc/self/fd")
    bench = Bench(tmp_path)
    os.mkdir(bench.folder)
    bench.channels.start()
    bench.channels.close()
    bench.loop.close()
    assert os.listdir("/proc/self/fd") == before


HELD = {
    "deleted and made anew": lambda bench: (shutil.rmtree(bench.folder), os.mkdir(bench.folder)),
    "another folder in its place": lambda bench: (
        os.mkdir(bench.folder + ".new"),
        os.rename(bench.folder, bench.folder + ".old"),
        os.rename(bench.folder + ".new", bench.folder),
    ),
    "its parent renamed": lambda bench: (
        os.rename(os.path.dirname(bench.folder), os.path.dirname(bench.folder) + ".old"),
        os.makedirs(bench.folder),
    ),
    "a link switched": lambda bench: (
        os.mkdir(bench.folder + ".new"),
        os.symlink(bench.folder + ".new", bench.folder + ".link"),
        os.rename(bench.folder + ".link", bench.folder),
    ),
}


@pytest.mark.parametrize("how", HELD)
def test_a_folder_that_a_guest_s_socket_holds_is_found_when_it_is_another(tmp_path, how):
    """Nothing is said of it by the kernel: a listening socket holds what is deleted."""
    (tmp_path / "lib").mkdir()
    bench = Bench(tmp_path / "lib", folder_check=0.02)
    if how == "a link switched":
        os.mkdir(bench.folder + ".first")
        os.symlink(bench.folder + ".first", bench.folder)
    else:
        os.mkdir(bench.folder)
    with socket.socket(socket.AF_UNIX) as guest:
        folder = os.open(bench.folder, os.O_DIRECTORY)
        guest.bind("/proc/self/fd/%d/%s" % (folder, name_of(ONE)))
        os.close(folder)
        guest.listen(1)
        bench.channels.start()
        assert bench.said == [("found", ONE, name_of(ONE))]
        bench.said.clear()
        HELD[how](bench)
        make(bench.path(name_of(TWO)))
        bench.until(lambda: any(word[1] == TWO for word in bench.said))
        assert ("gone", ONE, name_of(ONE)) in bench.said
        assert bench.channels.watching
        os.unlink(bench.path(name_of(TWO)))
        bench.until(lambda: bench.said[-1] == ("gone", TWO, name_of(TWO)))
    bench.channels.close()
    bench.loop.close()
    assert bench.loop.defects == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_folder_that_is_mounted_over_and_uncovered_again(bench):
    make(bench.path(name_of(ONE)))
    bench.channels._settings = dataclasses.replace(bench.channels._settings, folder_check=0.02)
    bench.channels.start()
    bench.said.clear()
    if subprocess.run(["mount", "-t", "tmpfs", "none", bench.folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        make(bench.path(name_of(TWO)))
        bench.until(lambda: ("found", TWO, name_of(TWO)) in bench.said)
        assert bench.said[0] == ("gone", ONE, name_of(ONE)) and bench.channels.watching
    finally:
        subprocess.run(["umount", bench.folder], check=True)
    bench.until(lambda: bench.said[-1] == ("found", ONE, name_of(ONE)))
    assert ("gone", TWO, name_of(TWO)) in bench.said


def test_a_folder_that_is_held_and_not_made_again_is_not_watched(tmp_path):
    bench = Bench(tmp_path, folder_check=0.02)
    os.mkdir(bench.folder)
    holder = os.open(bench.folder, os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as guest:
        guest.bind("/proc/self/fd/%d/%s" % (holder, name_of(ONE)))
        bench.channels.start()
        shutil.rmtree(bench.folder)
        bench.until(lambda: not bench.channels.watching)
        assert bench.said[-1] == ("gone", ONE, name_of(ONE))
    os.close(holder)
    bench.channels.close()
    bench.loop.close()


def test_the_same_sockets_under_a_folder_that_came_back_are_not_told_twice(tmp_path):
    """Its parent was renamed for a moment: the files are the same, and who is connected stays so."""
    (tmp_path / "lib").mkdir()
    bench = Bench(tmp_path / "lib", folder_check=0.02)
    os.mkdir(bench.folder)
    make(bench.path(name_of(ONE)))
    bench.channels.start()
    identity = bench.identity
    os.rename(tmp_path / "lib", tmp_path / "away")
    os.rename(tmp_path / "away", tmp_path / "lib")
    until = time.monotonic() + 0.2
    bench.until(lambda: time.monotonic() > until)
    assert bench.said == [("found", ONE, name_of(ONE))] and bench.identity == identity
    bench.channels.close()
    bench.loop.close()
