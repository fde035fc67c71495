"""Titles of processes, where they can be had: setproctitle's wheel without compiled code changes none."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

_PROBE = "import setproctitle; setproctitle.setproctitle('probe'); print(open('/proc/self/cmdline').read())"


@functools.lru_cache(maxsize=None)
def titles_work():
    """Whether a process of ours can have a title of its own here."""
    done = subprocess.run([sys.executable, "-c", _PROBE], stdout=subprocess.PIPE, check=True, timeout=60)
    return done.stdout.startswith(b"probe")


def title(pid):
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        return file.read().rstrip(b"\0 ").decode()


def has_title(pid, text):
    """Whether the process has it; of one that can have none it is believed."""
    return not titles_work() or title(pid) == text


def needs_titles():
    """For a test of titles alone."""
    if not titles_work():
        pytest.skip("setproctitle has none of its compiled code here: titles have no effect")
