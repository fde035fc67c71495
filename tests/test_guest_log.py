"""The guest client's log: lost lines are counted, and nothing it writes to makes it wait."""

from __future__ import annotations

import os
import socket

import pytest

from guestmtce.guest import log as logs
from guestmtce.guest.daemon import PidFile
from guestmtce.guest.log import Log, log_to, open_log, to_syslog

WAIT = 5.0  # s


def test_lost_lines_are_counted_and_the_next_one_says_so():
    reader, writer = os.pipe()
    log = log_to(writer, 0)
    for _ in range(2000):
        log("x" * 200)
    lost = 2000 - os.read(reader, 1 << 20).count(b"\n")
    assert lost > 0
    log("the next")
    log("the one after it")
    first, second = os.read(reader, 4096).decode().splitlines()
    assert first.endswith("the next (%d lines before it were lost)" % lost)
    assert second.endswith("the one after it")
    for end in (reader, writer):
        os.close(end)


def test_a_pipe_that_nobody_reads_is_refused_as_log(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="log"):
        open_log(False, str(tmp_path / "log"), 10)


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """The socket of a syslog daemon such as syslog-ng."""
    path = str(tmp_path / "syslog")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.bind(path)
        daemon.listen(0)
        daemon.settimeout(WAIT)
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
        yield daemon


def test_a_syslog_daemon_with_a_stream_socket_hears_us(stream):
    Log(to_syslog, 10)("a line")
    link, _ = stream.accept()
    with link:
        assert link.recv(1000) == b"<30>guestClient[%d]: a line\0" % os.getpid()


def test_a_syslog_daemon_that_stands_still_costs_lines_only(stream):
    log = Log(to_syslog, 10)
    for number in range(10):
        log("line %d" % number)
    stream.accept()[0].close()
    log("it reads again")
    texts = []
    while b"it reads again" not in b"".join(texts):
        link, _ = stream.accept()
        texts.append(link.recv(1000))
        link.close()
    assert texts[-1].endswith(b" lines before it were lost)\0")


def test_a_pid_file_that_was_cleaned_away_or_is_another_s_is_left_alone(tmp_path):
    path = tmp_path / "pid"
    for text in (None, "77\n"):
        pid_file = PidFile(str(path))
        pid_file.write()
        path.unlink()
        if text is not None:
            path.write_text(text)
        pid_file.remove()
        assert path.exists() == (text is not None)
