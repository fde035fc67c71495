"""One daemon of a name at a time, however the last one ended."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from guestmtce.common import lock_file
from guestmtce.daemon import atomic_file, pid_file
from guestmtce.daemon.pid_file import AlreadyRunning, PidFile
from guestmtce.lab.cluster import wait_for

HOLD = """
import sys
from guestmtce.daemon.pid_file import PidFile
one = PidFile(sys.argv[1], "daemon")
one.claim()
one.write()
print("held", flush=True)
sys.stdin.read()
one.release()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def claimed(folder):
    one = PidFile(str(folder), "daemon")
    one.claim()
    one.write()
    return one


def test_the_file_holds_the_pid_and_goes_with_its_owner(tmp_path):
    one = claimed(tmp_path)
    assert (tmp_path / "daemon.pid").read_text() == "%d\n" % os.getpid()
    one.release()
    assert os.listdir(tmp_path) == []
    one.release()  # twice is once


def test_while_one_runs_there_is_no_other(tmp_path, holder):
    with pytest.raises(AlreadyRunning, match="^%d$" % holder.pid):
        claimed(tmp_path)
    assert (tmp_path / "daemon.pid").read_text() == "%d\n" % holder.pid


def test_one_that_has_not_written_its_pid_yet_is_one_too(tmp_path, holder):
    os.unlink(tmp_path / "daemon.pid")
    with pytest.raises(AlreadyRunning, match=r"^\?$"):
        claimed(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, None], ids=["killed", "released"])
def test_the_next_one_follows_at_once(tmp_path, holder, how):
    if how is None:
        holder.communicate()
        assert os.listdir(tmp_path) == []
    else:
        holder.send_signal(how)
        holder.wait()
        assert (tmp_path / "daemon.pid").exists()
    claimed(tmp_path).release()
    assert os.listdir(tmp_path) == []


STALE = {
    "a pid that nobody has": "%d\n" % (2**22 + 1),
    "somebody else's pid": "1\n",
    "our own pid": "%d\n" % os.getpid(),
    "empty": "",
    "nonsense": "guestServer",
    "zero": "0\n",
    "negative": "-1\n",
    "binary": "\x00\xff",
    "far too long": "9" * 5000,
}


@pytest.mark.parametrize("name", STALE)
def test_a_stale_file_is_taken_over(tmp_path, name):
    (tmp_path / "daemon.pid").write_text(STALE[name], encoding="latin-1")
    one = claimed(tmp_path)
    assert one.read() == os.getpid()
    one.release()


TITLES = {
    "the name": ("daemon", True),
    "the name with its folder": ("/usr/local/bin/daemon", True),
    "another name": ("other", False),
    "one of its children": ("daemon: 1", False),
}


@pytest.mark.parametrize("name", TITLES)
def test_an_old_daemon_that_knows_no_lock_is_known_by_its_title(tmp_path, name):
    title, counts = TITLES[name]
    old = subprocess.Popen([title, "60"], executable="/bin/sleep")
    try:
        wait_for(lambda: pid_file._title(old.pid), "it runs")
        (tmp_path / "daemon.pid").write_text("%d\n" % old.pid)
        if counts:
            with pytest.raises(AlreadyRunning, match="^%d$" % old.pid):
                claimed(tmp_path)
        else:
            claimed(tmp_path).release()
    finally:
        old.kill()
        old.wait()


def test_a_zombie_is_not_running(tmp_path):
    process = subprocess.Popen(["daemon", "0"], executable="/bin/sleep")
    try:
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "it ended")
        (tmp_path / "daemon.pid").write_text("%d\n" % process.pid)
        claimed(tmp_path).release()
    finally:
        process.wait()


def test_what_is_cleaned_away_is_made_again_with_its_lock(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    one = claimed(folder)
    assert not one.restore()
    for clean in (
        lambda: shutil.rmtree(folder),
        lambda: (folder / "daemon.lock").unlink(),
        lambda: (folder / "daemon.pid").unlink(),
        lambda: (folder / "daemon.pid").write_text("nonsense"),
    ):
        clean()
        assert one.restore()
        assert (folder / "daemon.pid").read_text() == "%d\n" % os.getpid()
        with pytest.raises(AlreadyRunning), multiprocess_lock(folder):
            pass
    assert not one.restore()
    one.release()
    assert os.listdir(folder) == []


@contextlib.contextmanager
def multiprocess_lock(folder):
    """As another process would claim it."""
    other = PidFile(str(folder), "daemon")
    os.close(other._open_lock())
    yield


def test_another_that_started_meanwhile_is_left_alone(tmp_path, request):
    one = claimed(tmp_path)
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    holder = request.getfixturevalue("holder")
    with pytest.raises(AlreadyRunning, match="^%d$" % holder.pid):
        one.restore()
    one.release()
    assert (tmp_path / "daemon.pid").read_text() == "%d\n" % holder.pid
    with pytest.raises(AlreadyRunning):
        claimed(tmp_path)


def test_on_a_full_file_system_our_pid_goes_over_a_dead_one(tmp_path, monkeypatch):
    (tmp_path / "daemon.pid").write_text("%d\n" % (2**22 + 1))

    def fail(path, *_):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(atomic_file, "write_atomically", fail)
    one = claimed(tmp_path)
    assert one.read() == os.getpid()
    one.release()
    with pytest.raises(OSError, match="daemon.pid"):
        claimed(tmp_path)


def test_somebody_else_s_file_is_left_alone(tmp_path):
    one = claimed(tmp_path)
    (tmp_path / "daemon.pid").write_text("1\n")
    one.release()
    assert (tmp_path / "daemon.pid").read_text() == "1\n"


def test_a_program_that_we_start_does_not_hold_our_lock(tmp_path):
    one = claimed(tmp_path)
    sleeper = subprocess.Popen(["/bin/sleep", "60"], close_fds=False)
    try:
        one.release()
        claimed(tmp_path).release()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_lock_file_that_was_removed_under_us_is_no_lock(tmp_path, monkeypatch):
    """Between our open and our flock its holder ends and removes it; a third may hold the next one."""
    removed = []
    real = fcntl.flock

    def flock(descriptor, how):
        if not removed:
            removed.append(True)
            os.unlink(tmp_path / "daemon.lock")
        real(descriptor, how)

    monkeypatch.setattr(lock_file.fcntl, "flock", flock)
    one = claimed(tmp_path)
    with pytest.raises(AlreadyRunning):
        claimed(tmp_path)
    one.release()


def contend(folder, wins, losses, go):
    go.wait()
    one = PidFile(folder, "daemon")
    try:
        one.claim()
        one.write()
    except AlreadyRunning:
        with losses.get_lock():
            losses.value += 1
        return
    with wins.get_lock():
        wins.value += 1
    wait_for(lambda: losses.value == 7, "the others lost")
    one.release()


def test_of_many_that_start_at_once_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    wins, losses, go = context.Value("i", 0), context.Value("i", 0), context.Event()
    racers = [context.Process(target=contend, args=(str(tmp_path), wins, losses, go)) for _ in range(8)]
    for racer in racers:
        racer.start()
    go.set()
    for racer in racers:
        racer.join(15)
    assert [racer.exitcode for racer in racers] == [0] * 8
    assert (wins.value, losses.value) == (1, 7)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        claimed(tmp_path / "nowhere")


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path):
    os.symlink(tmp_path / "target", tmp_path / "daemon.lock")
    with pytest.raises(OSError, match="daemon.lock"):
        claimed(tmp_path)
    assert not (tmp_path / "target").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / "report")
    atomic_file.write_atomically(path, "old\n", 0o600)
    assert os.stat(path).st_mode & 0o777 == 0o600
    before = os.stat(path).st_ino
    atomic_file.write_atomically(path, "new\n")
    assert os.stat(path).st_ino != before
    with pytest.raises(OSError, match="Is a directory"):
        atomic_file.write_atomically(str(tmp_path), "text")
    with pytest.raises(UnicodeEncodeError):
        atomic_file.write_atomically(path, "\ud800")
    with open(path) as file:
        assert file.read() == "new\n"
    assert os.listdir(tmp_path) == ["report"]
    atomic_file.remove(path)
    atomic_file.remove(path)
