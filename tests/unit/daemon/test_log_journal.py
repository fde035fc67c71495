"""The log in systemd's journal: levels, and no time stamp of ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from guestmtce.daemon import log_writer

LOGS = """
import logging, os
from guestmtce.daemon import log
log.set_up("guestServer", True, False, "/nowhere", logging.DEBUG)
for level in (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
    logging.getLogger().log(level, "line of\\n%d", level)
log.flush(5)
"""


def logged(stream):
    """What a daemon in the foreground writes to stderr, with this JOURNAL_STREAM (None: that of stderr)."""
    ours, its = socket.socketpair()
    with ours, its:
        there = os.fstat(its.fileno())
        stream = "%d:%d" % (there.st_dev, there.st_ino) if stream is None else stream
        environment = {**os.environ, "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", LOGS], stderr=its, env=environment, check=True, timeout=60)
        return ours.recv(65536).decode().splitlines()


def test_each_line_in_the_journal_has_its_level_and_no_time_stamp():
    assert logged(None) == [
        "<2>CRITICAL line of", "<2>50", "<3>ERROR line of", "<3>40", "<4>WARNING line of", "<4>30",
        "<6>INFO line of", "<6>20", "<7>DEBUG line of", "<7>10",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense", "8:x"])
def test_a_stderr_that_is_not_the_journal_has_lines_with_the_time(stream):
    first = logged(stream)[0]
    assert first.endswith(" guestServer CRITICAL line of") and first[0].isdigit()


def test_a_closed_descriptor_is_no_journal(monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not log_writer.is_journal(9999)
