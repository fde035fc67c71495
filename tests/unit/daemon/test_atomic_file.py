"""Files that are written whole, or over the old one, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from guestmtce.daemon import atomic_file

ON_A_FULL_FILE_SYSTEM = """
import os, sys
from guestmtce.daemon import atomic_file
os.chdir(sys.argv[1])
atomic_file.write_atomically("old", "x" * 3000)
with open("fill", "wb", 0) as fill:
    try:
        while True:
            fill.write(b"x" * 4096)
    except OSError:
        pass
for text in ("y" * 4000, "short"):
    atomic_file.write_or_overwrite("old", text)
    assert open("old").read() == text
for name, text in (("old", "y" * 5000), ("new", "y")):
    try:
        atomic_file.write_or_overwrite(name, text)
    except OSError as error:
        assert (error.errno, error.filename) == (28, name)
    else:
        raise AssertionError(name)
assert sorted(os.listdir(".")) in (["fill", "old"], ["fill", "new", "old"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_on_a_full_file_system_a_file_that_exists_can_be_changed(tmp_path):
    script = 'mount -t tmpfs -o size=64k x "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, ON_A_FULL_FILE_SYSTEM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    for path in (tmp_path / "none" / "x", tmp_path):
        for write in (atomic_file.write_atomically, atomic_file.write_or_overwrite):
            with pytest.raises(OSError) as caught:
                write(str(path), "text")
            assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_neither_a_link_nor_a_pipe_is_written_to_in_place(tmp_path):
    (tmp_path / "file").write_text("text")
    os.symlink(tmp_path / "file", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "none"):
        with pytest.raises(OSError):
            atomic_file.write_in_place(str(tmp_path / name), "other")
    assert (tmp_path / "file").read_text() == "text"


def test_leftovers_of_a_name_are_removed_and_nothing_else(tmp_path):
    for name in ("a.pid", "a.pid.7.tmp", "a.info.99.tmp", "b.pid.7.tmp", "a.x.tmp", "a.tmp"):
        (tmp_path / name).write_text("")
    atomic_file.remove_leftovers(str(tmp_path), "a.")
    assert sorted(os.listdir(tmp_path)) == ["a.pid", "a.tmp", "a.x.tmp", "b.pid.7.tmp"]
    atomic_file.remove_leftovers(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["a.pid", "a.tmp", "a.x.tmp"]
    atomic_file.remove_leftovers(str(tmp_path / "none"))
