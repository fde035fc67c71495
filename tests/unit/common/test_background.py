"""Into the background: a session of its own, no terminal, and what the start came to for who waits."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
from guestmtce.common import background
def wait(descriptor):
    said = os.read(descriptor, 10)
    return 0 if said == b"ready" else 3
where = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
parent = os.getpid()
descriptor = background.go_background(wait)
standard = {os.readlink("/proc/self/fd/%d" % each) for each in background.STANDARD}
os.write(where, repr((os.getsid(0) == os.getpid() != parent, standard)).encode())
if sys.argv[2] == "ready":
    os.write(descriptor, b"ready")
"""


@pytest.mark.parametrize(("word", "status"), [("ready", 0), ("silent", 3)])
def test_the_process_that_was_started_ends_as_the_start_went(tmp_path, word, status):
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "facts"), word]
    assert subprocess.run(words, timeout=60).returncode == status
    if word == "ready":
        assert (tmp_path / "facts").read_text() == repr((True, {os.devnull}))


CLOSED = """
import os, sys
from guestmtce.common import background
os.close(0)
os.close(1)
background.fill_standard_descriptors()
sys.exit(0 if os.open("/", os.O_RDONLY) > 2 and os.readlink("/proc/self/fd/1") == os.devnull else 1)
"""


def test_a_standard_descriptor_that_was_closed_is_not_taken_by_a_file_of_ours():
    assert subprocess.run([sys.executable, "-c", CLOSED], timeout=60).returncode == 0
