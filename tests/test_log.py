"""What is logged, where it goes, and that nobody forges lines or fills the disk."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.daemon import log as logs
from guestmtce.lab.cluster import wait_for

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


def test_one_line_per_key_and_period_with_the_number_of_those_held_back(caplog):
    throttle = logs.Throttle(logging.getLogger("sample"), 0.05)
    for number in range(5):
        throttle.warning("a", "trouble %d of %s", number, "x\ny")
    throttle.warning("b", "other trouble")
    assert [record.getMessage() for record in caplog.records] == ["trouble 0 of x\\ny", "other trouble"]
    assert throttle.held_back == 4

    def again():
        throttle.warning("a", "trouble %d", 9)
        return len(caplog.records) > 2

    wait_for(again, "the period ended", 2)
    assert "trouble 9 (and " in caplog.records[2].getMessage()
    held_back = throttle.held_back
    assert "(and %d more like it)" % held_back in caplog.records[2].getMessage()
    throttle.warning("a", "trouble")
    assert throttle.held_back == held_back + 1


def test_the_words_of_an_exception_are_foreign_too(caplog):
    logs.Throttle(logging.getLogger("sample")).warning("a", "no: %s", OSError("x\nguestServer: forged"))
    assert caplog.records[0].getMessage() == "no: x\\nguestServer: forged"


def test_the_throttle_s_memory_is_bounded(caplog):
    caplog.set_level(logging.ERROR)
    throttle = logs.Throttle(logging.getLogger("sample"), 60)
    for number in range(3 * logs.THROTTLE_KEYS):
        throttle.warning(str(number), "trouble")
    assert len(throttle._keys) <= logs.THROTTLE_KEYS


# --- where it goes ---------------------------------------------------------------------------------


def test_in_the_foreground_lines_go_to_stderr_under_the_name(root, capfd):
    logs.set_up("guestServer", True, True, "/nowhere", logging.INFO)
    logging.getLogger("a.b").info("a line of %s", "it")
    logging.getLogger("a.b").debug("not this")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("guestServer INFO a line of it")


def test_a_stderr_that_nobody_reads_costs_lines_and_no_time(root, monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logs.set_up("guestServer", True, False, "/nowhere", logging.INFO)
        for number in range(5000):
            logging.getLogger("x").info("%d %s", number, "y" * 100)
        assert b"guestServer INFO 0 y" in os.read(reader, 4096)
        while len(os.read(reader, 65536)) == 65536:
            pass
        logging.getLogger("x").info("the last")
        assert os.read(reader, 65536).endswith(b"the last\n")
    logging.getLogger("x").info("it is closed")
    os.close(reader)


def test_to_a_file_and_on_to_a_new_one_after_its_rotation(root, tmp_path):
    logs.set_up("guestServer", False, True, str(tmp_path), logging.DEBUG)
    path = tmp_path / "guestServer.log"
    logging.getLogger("x").debug("one")
    os.rename(path, tmp_path / "guestServer.log.1")
    logging.getLogger("x").debug("two")
    assert "one" in (tmp_path / "guestServer.log.1").read_text()
    (line,) = path.read_text().splitlines()
    assert line.endswith("guestServer DEBUG two")


def test_setting_up_again_replaces_what_was_there(root, tmp_path, capsys):
    logs.set_up("guestServer", True, False, str(tmp_path), logging.INFO)
    logs.set_up("guestServer", False, True, str(tmp_path), logging.INFO)
    logging.getLogger("x").info("once")
    assert (tmp_path / "guestServer.log").read_text().count("once") == 1
    assert capsys.readouterr().err == ""


def test_without_a_folder_there_is_no_log_and_that_is_said(root, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        logs.set_up("guestServer", False, True, str(tmp_path / "nowhere"), logging.INFO)


@pytest.fixture
def syslog(tmp_path, monkeypatch):
    """A syslog daemon's socket."""
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        daemon.settimeout(5)
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


def test_a_syslog_daemon_that_hangs_does_not_hang_us(root, syslog, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    began = time.monotonic()
    for number in range(2000):
        logging.getLogger("x").info("line %d %s", number, "x" * 200)
    assert time.monotonic() - began < 2
    syslog.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            syslog.recv(1000)
    logging.getLogger("x").info("the last")
    assert b"the last" in syslog.recv(1000)


def test_a_syslog_daemon_that_starts_again_is_found_again(root, syslog, tmp_path):
    logs.set_up("guestServer", False, False, str(tmp_path), logging.INFO)
    syslog.close()
    os.unlink(logs.SYSLOG_SOCKET)
    logging.getLogger("x").info("nobody hears this")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fresh:
        fresh.bind(logs.SYSLOG_SOCKET)
        fresh.settimeout(5)
        logging.getLogger("x").info("this is heard")
        assert b"this is heard" in fresh.recv(1000)
