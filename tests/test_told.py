"""What the VIM has been told, over a restart of guestAgent."""

import os

import pytest

from guestmtce.agent import told
from guestmtce.agent.rows import Origin
from guestmtce.agent.told import Told

NAME = "guestAgent"


def origin(number, sender=7, ip="10.0.0.1"):
    return Origin(ip, sender, number)


def path(folder):
    return os.path.join(str(folder), NAME + ".told")


def test_what_one_told_the_next_knows_whatever_the_address(tmp_path):
    first = Told(str(tmp_path), NAME)
    for number in (1, 2, 2**32 - 1):
        first.add(origin(number))
    after = Told(str(tmp_path), NAME)
    assert origin(1) in after and origin(2**32 - 1, ip="10.9.9.9") in after
    assert origin(3) not in after and origin(1, sender=8) not in after
    assert os.stat(path(tmp_path)).st_mode & 0o777 == 0o600


def test_the_file_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(told, "KEPT", 10)
    for first in (1, 36):
        one = Told(str(tmp_path), NAME)
        for number in range(first, first + 35):
            one.add(origin(number))
            with open(path(tmp_path), encoding="ascii") as file:
                assert len(file.readlines()) <= 30
    after = Told(str(tmp_path), NAME)
    assert all(origin(number) in after for number in range(61, 71))
    assert origin(40) not in after


@pytest.mark.parametrize(
    "text",
    [b"", b"7", b"7 1", b"7 x\n", b"7 1 1\n", b"\xff\xfe\n\n", b"7 1\x00\n", b"7\n1\n", b"x" * 1_000_000],
)
def test_a_damaged_file_is_read_as_far_as_it_is_whole(tmp_path, text):
    with open(path(tmp_path), "wb") as file:
        file.write(b"7 5\n" + text)
    one = Told(str(tmp_path), NAME)
    assert origin(5) in one and origin(1) not in one
    one.add(origin(6))


@pytest.mark.parametrize("trouble", ["a folder", "a link", "no folder"])
def test_trouble_with_the_file_is_logged_and_costs_nothing_else(tmp_path, caplog, trouble):
    folder = tmp_path / "run"
    if trouble != "no folder":
        folder.mkdir()
    if trouble == "a folder":
        os.mkdir(path(folder))
    elif trouble == "a link":
        os.symlink("/etc/hostname", path(folder))
    one = Told(str(folder), NAME)
    for number in range(3):
        one.add(origin(number))
    assert sum("cannot write" in record.message for record in caplog.records) == 1
