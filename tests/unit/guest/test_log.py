"""The guest client's log: lost lines are counted, and nothing it writes to makes it wait."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from guestmtce.guest import log as logs
from guestmtce.guest import writer as writers
from guestmtce.guest.background import PidFile
from guestmtce.guest.log import Log, log_to, open_log, to_syslog
from guestmtce.guest.writer import FileWriter, keep_open
from guestmtce.lab.cluster import wait_for

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


# --- a file, by a process of its own ---------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """The last lines have all the time that they need."""
    monkeypatch.setattr(writers, "CLOSE_WAIT", WAIT)


def opener(path):
    return lambda: os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)


def test_what_is_said_stands_in_the_file_when_the_log_is_closed(tmp_path, patient):
    path = tmp_path / "log"
    before = len(os.listdir("/proc/self/fd"))
    writer = FileWriter(opener(path))
    assert writer.pid == 0
    for number in range(100):
        writer.write(b"%d\n" % number)
    pid = writer.pid
    writer.close()
    assert path.read_text().split() == [str(number) for number in range(100)]
    assert writer.pid == 0 and len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)  # it has ended, and was waited for
    writer.write(b"more\n")  # a line after that is no line lost
    writer.close()
    assert path.read_text().endswith("99\nmore\n")


def test_a_writer_that_was_killed_is_replaced(tmp_path, patient):
    writer = FileWriter(opener(tmp_path / "log"))
    writer.write(b"first\n")
    wait_for((tmp_path / "log").exists, "it writes")
    first = writer.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError):
        writer.write(b"lost\n")
    assert writer.pid == 0
    writer.write(b"third\n")
    assert writer.pid not in (0, first)
    writer.close()
    assert (tmp_path / "log").read_text().split()[-1] == "third"


def test_a_file_that_stands_still_costs_lines_and_no_time(monkeypatch):
    monkeypatch.setattr(writers, "CLOSE_WAIT", 0.05)
    writer = FileWriter(lambda: time.sleep(30) or 0)
    begun, written = time.monotonic(), 0
    with pytest.raises(BlockingIOError):
        while True:
            writer.write(b"x" * 1000)
            written += 1
    assert written >= 60 and time.monotonic() - begun < 5
    pid = writer.pid
    begun = time.monotonic()
    writer.close()
    assert 0.05 <= time.monotonic() - begun < 5
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_who_ends_the_client_does_not_end_its_last_lines(tmp_path, patient):
    writer = FileWriter(opener(tmp_path / "log"))
    writer.write(b"first\n")
    wait_for(lambda: (tmp_path / "log").exists(), "it writes")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(writer.pid, number)
    assert os.getsid(writer.pid) == writer.pid
    with open("/proc/%d/comm" % writer.pid, encoding="ascii") as file:
        assert file.read() == "guestClient-log\n"
    writer.write(b"last\n")
    writer.close()
    assert (tmp_path / "log").read_text() == "first\nlast\n"


def test_a_full_disk_costs_lines_only(tmp_path, patient):
    writer = FileWriter(lambda: os.open("/dev/full", os.O_WRONLY))
    writer.write(b"lost\n")
    pid = writer.pid
    writer.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_no_process_for_the_writer_is_a_line_lost_and_no_more(monkeypatch, tmp_path):
    writer, before = FileWriter(opener(tmp_path / "log")), len(os.listdir("/proc/self/fd"))

    def no_process():
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", no_process)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            writer.write(b"lost\n")
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    writer.write(b"word\n")
    monkeypatch.setattr(writers, "CLOSE_WAIT", WAIT)
    writer.close()
    assert (tmp_path / "log").read_text() == "word\n"


def test_an_open_file_is_kept_beyond_the_standard_ones(tmp_path):
    descriptor = os.open(str(tmp_path / "log"), os.O_WRONLY | os.O_CREAT)
    kept = keep_open(descriptor)()
    os.close(descriptor)
    os.write(kept, b"word")
    assert kept >= 3 and not os.get_inheritable(kept) and (tmp_path / "log").read_text() == "word"
    os.close(kept)
