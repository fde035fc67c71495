"""One process at a time holds the file at a path, whatever others do between open and lock."""

import errno
import fcntl
import os

import pytest

from guestmtce.common import lock_file


def test_the_second_is_refused_and_the_next_one_follows_at_once(tmp_path):
    path = str(tmp_path / "lock")
    first = lock_file.open_locked(path, 0o600)
    assert os.stat(path).st_mode & 0o777 == 0o600
    before = os.listdir("/proc/self/fd")
    with pytest.raises(lock_file.Held):
        lock_file.open_locked(path, 0o600)
    assert os.listdir("/proc/self/fd") == before
    os.close(first)
    os.close(lock_file.open_locked(path, 0o600))


def test_a_file_that_was_removed_between_open_and_lock_is_no_lock(tmp_path, monkeypatch):
    path = str(tmp_path / "lock")
    real, removed = fcntl.flock, []

    def flock(descriptor, how):
        if not removed:
            removed.append(os.unlink(path))
        real(descriptor, how)

    monkeypatch.setattr(lock_file.fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    first = lock_file.open_locked(path, 0o600)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert lock_file.is_at(first, path)
    with pytest.raises(lock_file.Held):
        lock_file.open_locked(path, 0o600)
    os.unlink(path)
    assert not lock_file.is_at(first, path)
    os.close(first)


def test_a_link_is_not_followed_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("precious")
    os.symlink(tmp_path / "target", tmp_path / "lock")
    with pytest.raises(OSError, match="lock") as caught:
        lock_file.open_locked(str(tmp_path / "lock"), 0o600)
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "target").read_text() == "precious"


def test_a_file_system_without_locks_is_an_error_and_leaves_nothing_open(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock_file.fcntl, "flock", flock)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no locks"):
        lock_file.open_locked(str(tmp_path / "lock"), 0o600)
    assert os.listdir("/proc/self/fd") == before
