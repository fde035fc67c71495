"""scripts/dev/measure-house counts what it says that it counts."""

from __future__ import annotations

import subprocess
import sys

from places import SCRIPTS

ONE = '''"""A module."""

import os  # no comment line


class Box:
    """Two fields, and one of its methods."""

    __slots__ = ("size", "lid")

    def __init__(self, size, lid, colour, weight, price, owner):
        # A comment line.
        self.size = size
        self.lid = lid
        self.owner = owner


def open_box(box):
    """Its body has four statements."""
    lid = box.lid
    if lid:
        box.lid = None
    return lid
'''
TWO = """def _close(jar):
    top = jar.top
    if top:
        jar.top = None
    return top


def fill(jar):
    jar.level = 1
"""


def measure(folder):
    command = [sys.executable, str(SCRIPTS / "dev" / "measure-house"), str(folder)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)


def test_the_counts_of_two_small_files(tmp_path):
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "two.py").write_text(TWO)
    done = measure(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.strip().replace(str(tmp_path), "~") for line in done.stdout.splitlines()]
    lengths = ONE.count("\n"), TWO.count("\n")
    assert lines == [
        "files 2, lines %d" % sum(lengths),
        "largest file: %d lines, ~/one.py" % lengths[0],
        "files over 400 lines: 0",
        "1  ~",
        "1  ~/room",
        "functions 4: body median 3.5, p90 4, max 4 lines; over 20 lines 0.0 %",
        "one-word function names 67 % (2 of 3)",
        "comment lines %.1f %% (1 of %d)" % (100 / sum(lengths), sum(lengths)),
        "fields of the largest classes:",
        "3  ~/one.py:Box",
        "functions with over 5 parameters: 1",
        "6  ~/one.py:Box.__init__",
        "pairs of functions with the same body of 4 statements or more: 1",
        "pairs of functions with the same body of 3 statements or more: 1",
        "~/one.py:open_box = ~/room/two.py:_close",
    ]


def test_a_folder_without_python_is_refused(tmp_path):
    done = measure(tmp_path)
    assert done.returncode == 1 and "there is no Python file in it" in done.stderr
