"""What is logged, where it goes, and that nobody forges lines or fills the disk."""

from __future__ import annotations

import logging
import os
import re
import resource
import select
import socket
import sys
import threading
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.common.log_line import LogLine
from guestmtce.daemon import log as logs
from guestmtce.daemon import log_writer
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import within

WAIT = 5.0  # s, for the log's own thread

PRINTABLE = {
    "plain text": "plain text",
    "two\nlines": "two\\nlines",
    "\x1b[31mred": "\\x1b[31mred",
    "nul\x00 cr\r tab\t": "nul\\x00 cr\\r tab\\t",
    "gäst €": "g\\xe4st \\u20ac",
    "a\\nb": "a\\\\nb",
    "\u2028line separator": "\\u2028line separator",
    "\ud800": "\\ud800",
    "%s %d": "%s %d",
    "": "",
    7: "7",
}


@pytest.fixture
def root():
    """The root logger, given back as it was."""
    one = logging.getLogger()
    saved = list(one.handlers), one.level, logging.raiseExceptions
    yield one
    for handler in one.handlers:
        if handler not in saved[0]:
            handler.close()
    one.handlers[:], level, logging.raiseExceptions = saved
    one.setLevel(level)


@pytest.mark.parametrize("text", PRINTABLE, ids=repr)
def test_foreign_text_is_made_harmless(text):
    assert logs.printable(text) == PRINTABLE[text]


def test_foreign_text_is_cut():
    assert logs.printable("x" * 200) == "x" * 200
    assert logs.printable("x" * 201) == "x" * 200 + "..."
    assert logs.printable("xyz", 2) == "xy..."
    assert logs.printable("\n" * 150) == "\\n" * 100 + "..."


@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
def test_nothing_foreign_has_control_characters_or_length(text):
    shown = logs.printable(text, 40)
    assert shown.isascii()
    assert shown == "" or shown.isprintable()
    assert len(shown) <= 43


# --- the throttle ----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """What the log takes for the time, in s: a list of one."""
    now = [5000.0]
    monkeypatch.setattr(logs, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_one_line_per_subject_and_period_with_the_number_of_those_held_back(caplog, clock):
    throttle = logs.Throttle(logging.getLogger("sample"), 10)
    for count in range(5):
        throttle.warning("a", "trouble %d of %s", count, "x\ny")
    throttle.warning("b", "other trouble")
    assert [record.getMessage() for record in caplog.records] == ["trouble 0 of x\\ny", "other trouble"]
    clock[0] += 9.9
    throttle.warning("a", "trouble %d", 8)
    assert len(caplog.records) == 2
    clock[0] += 0.1
    throttle.warning("a", "trouble %d", 9)
    assert caplog.records[2].getMessage() == "trouble 9 (and 5 more like it)"
    throttle.warning("a", "trouble")
    clock[0] += 10
    throttle.warning("a", "trouble")
    assert caplog.records[3].getMessage() == "trouble (and 1 more like it)"


def test_a_line_without_a_subject_is_never_held_back(caplog, clock):
    throttle = logs.Throttle(logging.getLogger("sample"), 10)
    for _ in range(3):
        throttle.write(LogLine(logging.WARNING, "each of them"))
    assert [record.getMessage() for record in caplog.records] == ["each of them"] * 3


def test_the_words_of_an_exception_are_foreign_too(caplog):
    logs.Throttle(logging.getLogger("sample")).warning("a", "no: %s", OSError("x\nguestServer: forged"))
    assert caplog.records[0].getMessage() == "no: x\\nguestServer: forged"


def test_the_throttle_s_memory_is_bounded(caplog):
    caplog.set_level(logging.ERROR)
    throttle = logs.Throttle(logging.getLogger("sample"), 60)
    for subject in range(3 * logs.THROTTLE_SUBJECTS):
        throttle.warning(str(subject), "trouble")
    assert len(throttle._throttle._passed) <= logs.THROTTLE_SUBJECTS


# --- where it goes ---------------------------------------------------------------------------------


def test_in_the_foreground_lines_go_to_stderr_under_the_name(root, capfd):
    logs.set_up("guestServer", True, True, "/nowhere", logging.INFO)
    logging.getLogger("a.b").info("a line of %s", "it")
    logging.getLogger("a.b").debug("not this")
    logs.flush(WAIT)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("guestServer INFO a line of it")


def drained(reader):
    """All that stands in a pipe."""
    text = b""
    while select.select([reader], [], [], 0)[0]:
        text += os.read(reader, 65536)
    return text


@pytest.mark.ci
def test_a_stderr_that_nobody_reads_costs_lines_and_no_time(root, monkeypatch):
    monkeypatch.setattr(log_writer, "LINES_MAX", 500)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.set_up("guestServer", True, False, "/nowhere", logging.INFO)
        began = time.monotonic()
        for number in range(5000):
            logging.getLogger("x").info("%d %s", number, "y" * 100)
        assert within(WAIT, time.monotonic() - began)
        assert logs.lost() > 3000
        text = b""
        while b"the last" not in text:
            text += drained(reader)
            logs.flush(WAIT)
            logging.getLogger("x").info("the last")
        counts = re.findall(rb"WARNING (\d+) lines of this log were lost before the next one\n", text)
        assert sum(map(int, counts)) == logs.lost()
    os.close(reader)


def test_to_a_file_and_on_to_a_new_one_after_its_rotation(root, tmp_path):
    logs.set_up("guestServer", False, True, str(tmp_path), logging.DEBUG)
    path = tmp_path / "guestServer.log"
    logging.getLogger("x").debug("one")
    logs.flush(WAIT)
    os.rename(path, tmp_path / "guestServer.log.1")
    logging.getLogger("x").debug("two")
    logs.flush(WAIT)
    assert "one" in (tmp_path / "guestServer.log.1").read_text()
    (line,) = path.read_text().splitlines()
    assert line.endswith("guestServer DEBUG two")


def test_a_file_is_opened_again_where_a_thousand_guests_have_descriptors(root, tmp_path):
    """While its folder was away its low descriptor went to a guest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("a limit of %d open files" % hard)
    folder, away = tmp_path / "log", tmp_path / "away"
    folder.mkdir()
    logs.set_up("guestServer", False, True, str(folder), logging.INFO)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = []
    try:
        folder.rename(away)
        logging.getLogger("x").info("lost")
        logs.flush(WAIT)
        taken += [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        away.rename(folder)
        logging.getLogger("x").info("heard")
        logs.flush(WAIT)
        text = (folder / "guestServer.log").read_text()
        assert "1 lines of this log were lost" in text and "heard" in text
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_setting_up_again_replaces_what_was_there(root, tmp_path, capfd):
    logs.set_up("guestServer", True, False, str(tmp_path), logging.INFO)
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("once")
    logs.flush(WAIT)
    assert (tmp_path / "guestServer.log").read_text().count("once") == 1
    assert capfd.readouterr().err == ""


def test_a_line_that_cannot_be_formatted_fails_nobody(root, tmp_path):
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("%d guests", "no number")
    logs.flush(WAIT)
    assert "this line cannot be formatted: '%d guests'" in (tmp_path / "guestServer.log").read_text()


def test_without_a_folder_there_is_no_log_and_that_is_said(root, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        logs.set_up("guestServer", False, True, str(tmp_path / "nowhere"), logging.INFO)


@pytest.fixture
def syslog(tmp_path, monkeypatch):
    """A syslog daemon's socket."""
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        daemon.settimeout(60)
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
        yield daemon


LOCAL5 = 21
SEVERITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def test_to_syslog_facility_local5_under_the_exact_name(root, syslog, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.DEBUG)
    for level, severity in SEVERITIES.items():
        logging.getLogger("x").log(level, "a line")
        wanted = "<%d>guestServer: %s a line" % (LOCAL5 * 8 + severity, logging.getLevelName(level))
        assert syslog.recv(1000).rstrip(b"\0").decode() == wanted


def test_syslog_is_not_used_where_a_file_was_asked_for(root, syslog, tmp_path):
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    assert (tmp_path / "guestServer.log").exists()


def test_a_file_that_takes_nothing_costs_lines_and_no_time_and_holds_no_lock(root, tmp_path, monkeypatch):
    """As on a server that hangs."""
    go = threading.Event()
    monkeypatch.setattr(log_writer, "_write_all", lambda *_: go.wait(10 * WAIT))
    monkeypatch.setattr(log_writer, "LINES_MAX", 100)
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    began = time.monotonic()
    for number in range(300):
        logging.getLogger("x").info("line %d", number)
    logs.flush(0.01)
    assert within(WAIT, time.monotonic() - began)
    assert 150 < logs.lost() <= 200
    go.set()


def test_a_file_that_cannot_be_opened_in_time_does_not_hold_up_the_start(root, tmp_path, monkeypatch):
    go, open_file = threading.Event(), log_writer._open_file
    monkeypatch.setattr(log_writer, "OPEN_WAIT", 0.01)
    monkeypatch.setattr(log_writer, "_open_file", lambda path: go.wait(10 * WAIT) and open_file(path))
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("a line")
    go.set()
    logs.flush(WAIT)
    assert "a line" in (tmp_path / "guestServer.log").read_text()


@pytest.mark.parametrize("read", [False, True])
def test_a_log_that_is_a_pipe_is_refused_at_once(root, tmp_path, read):
    path = tmp_path / "guestServer.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read else None
    with pytest.raises(OSError, match="the log must be a plain file or a device: '%s'" % path):
        logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    if reader is not None:
        os.close(reader)


def test_a_syslog_daemon_that_hangs_does_not_hang_us(root, syslog, tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, "LINES_MAX", 100)
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    began = time.monotonic()
    for number in range(2000):
        logging.getLogger("x").info("line %d %s", number, "x" * 200)
    assert within(WAIT, time.monotonic() - began)
    assert logs.lost() > 500
    text = ""
    while "lost before the next one" not in text:
        logging.getLogger("x").info("another")
        text = syslog.recv(1000).decode()
    assert text.startswith("<%d>guestServer: WARNING " % (LOCAL5 * 8 + 4))


def test_a_syslog_daemon_that_starts_again_is_found_again(root, syslog, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    syslog.close()
    os.unlink(logs.SYSLOG_SOCKET)
    logging.getLogger("x").info("nobody hears this")
    logs.flush(WAIT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fresh:
        fresh.bind(logs.SYSLOG_SOCKET)
        fresh.settimeout(60)
        logging.getLogger("x").info("this is heard")
        assert b"1 lines of this log were lost" in fresh.recv(1000)
        assert b"this is heard" in fresh.recv(1000)


# --- a syslog daemon with a stream socket, as syslog-ng may have ------------------------------------


@pytest.fixture
def stream(tmp_path, monkeypatch):
    path = str(tmp_path / "stream")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.bind(path)
        daemon.listen(0)
        daemon.settimeout(WAIT)
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", path)
        yield daemon


def heard(link, count):
    """The next messages on a stream."""
    text = b""
    while text.count(b"\0") < count:
        text += link.recv(65536)
    return text.decode().split("\0")[:-1]


def test_to_a_stream_each_line_is_a_message(root, stream, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    logging.getLogger("x").warning("one\ntwo")
    link, _ = stream.accept()
    prefix = "<%d>guestServer: " % (LOCAL5 * 8 + 4)
    with link:
        assert heard(link, 2) == [prefix + "WARNING one", prefix + "two"]


def test_a_stream_that_nobody_accepts_costs_lines_only(root, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, "PATIENCE", 0.05)
    crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for each in crowd:
        each.setblocking(False)
        try:
            each.connect(logs.SYSLOG_SOCKET)
        except BlockingIOError:
            pass
    began = time.monotonic()
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("nobody accepts this")
    logs.flush(WAIT)
    assert within(WAIT, time.monotonic() - began)
    assert logs.lost() == 1
    for each in crowd:
        each.close()


def test_a_stream_that_nobody_reads_costs_lines_only(root, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(log_writer, "PATIENCE", 0.05)
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    began = time.monotonic()
    for number in range(3000):
        logging.getLogger("x").info("%d %s", number, "x" * 500)
    assert within(WAIT, time.monotonic() - began)
    wait_for(lambda: logs.lost() > 0, "it is full", WAIT)


def test_a_stream_daemon_that_starts_again_is_found_again(root, stream, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("one")
    link, _ = stream.accept()
    assert "INFO one" in heard(link, 1)[0]
    link.close()
    logging.getLogger("x").info("two")
    fresh, _ = stream.accept()
    with fresh:
        assert "INFO two" in heard(fresh, 1)[0]
