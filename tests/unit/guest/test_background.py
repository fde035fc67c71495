"""The guest client's pid file: one client at a time, however they follow each other."""

from __future__ import annotations

import fcntl
import os

import pytest

from guestmtce.guest.background import AlreadyRunning, PidFile


def test_a_second_client_is_refused_with_the_pid_of_the_first(tmp_path):
    path = str(tmp_path / "pid")
    first = PidFile(path)
    with pytest.raises(AlreadyRunning, match="with pid $"):
        PidFile(path)
    first.write()
    with pytest.raises(AlreadyRunning, match="with pid %d$" % os.getpid()):
        PidFile(path)
    first.remove()
    assert not os.path.exists(path)


def test_one_that_ends_between_another_s_open_and_lock_lets_no_two_in(tmp_path, monkeypatch):
    """A removes the file that B has opened: a lock on that keeps nobody out, and C would be the second."""
    path = str(tmp_path / "pid")
    a = PidFile(path)
    real, ended = fcntl.flock, []

    def flock(descriptor, how):
        if not ended:
            ended.append(a.remove())
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    b = PidFile(path)
    b.write()
    with pytest.raises(AlreadyRunning, match="with pid %d$" % os.getpid()):
        PidFile(path)
    b.remove()


def test_what_a_link_in_its_place_points_to_stays_as_it_is(tmp_path):
    (tmp_path / "target").write_text("a long and precious text\n")
    os.symlink(tmp_path / "target", tmp_path / "pid")
    with pytest.raises(OSError, match="pid"):
        PidFile(str(tmp_path / "pid")).write()
    assert (tmp_path / "target").read_text() == "a long and precious text\n"
