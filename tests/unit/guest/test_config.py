"""The guest client's configuration, command line and settings."""

from __future__ import annotations

import os
import re
import signal
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import SCRIPTS

from guestmtce.guest import config, config_file, options
from guestmtce.guest.config import Config, describe
from guestmtce.guest.health import GRAVITY
from guestmtce.guest.log import Log
from guestmtce.guest.log_text import escape
from guestmtce.guest.settings import Settings, overridden
from guestmtce.wire import guest_channel

SAMPLE = SCRIPTS / "guest" / "guest_heartbeat.conf"


def read(text):
    return config.parse(text, "FILE", Settings())


def test_the_defaults_are_those_of_the_deployed_client():
    expected = (1000, "reboot", 8, 8, 8, 13, 600, 30.0, "", "", False)
    assert tuple(Config()) == expected


def test_every_action_has_its_gravity():
    """One without would be found when a guest that is configured to it is ill."""
    assert set(GRAVITY) == set(guest_channel.CORRECTIVE_ACTIONS) - {"unknown"}
    assert set(config.ACTIONS) <= set(GRAVITY)


def test_every_key_is_taken():
    text = (
        "HB_INTERVAL=2000\nCORRECTIVE_ACTION=stop\nVOTE=1\nSHUTDOWN_NOTICE=2\nSUSPEND_NOTICE=3\n"
        "RESUME_NOTICE=4\nRESTART=5\nHEALTH_CHECK_INTERVAL=6\nHEALTH_CHECK_SCRIPT=/bin/a\n"
        "EVENT_NOTIFICATION_SCRIPT=/bin/b\n"
    )
    assert read(text) == (Config(2000, "stop", 1, 2, 3, 4, 5, 6.0, "/bin/a", "/bin/b"), [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CORRECTIVE_ACTION='log'", "log"),
        ('CORRECTIVE_ACTION="log"   # as a shell', "log"),
        ("  CORRECTIVE_ACTION=log  ", "log"),
        ("CORRECTIVE_ACTION=stop\r\nCORRECTIVE_ACTION=log", "log"),
        ("# CORRECTIVE_ACTION=stop\n\n", "reboot"),
    ],
)
def test_lines_are_read_as_a_shell_would(line, expected):
    assert read(line) == (Config(corrective_action=expected), [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("HB_INTERVAL=0", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("HB_INTERVAL=1000.", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("HB_INTERVAL=٥٠٠", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("HEALTH_CHECK_INTERVAL=1e3", "a number from 1 to 86400 expected; 30.0 is taken"),
        ("HB_INTERVAL=soon", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("HB_INTERVAL=2_000", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("HB_INTERVAL=", "a number from 1 to 2147483647 expected; 1000 is taken"),
        ("VOTE=0", "a number from 1 to 2147482 expected; 8 is taken"),
        ("VOTE=99999999999", "a number from 1 to 2147482 expected; 8 is taken"),
        ("HEALTH_CHECK_INTERVAL=nan", "a number from 1 to 86400 expected; 30.0 is taken"),
        ("CORRECTIVE_ACTION=explode", "one of log, reboot, stop expected; 'reboot' is taken"),
        ("CORRECTIVE_ACTION=log stop", "one word expected, or quotes around all of it; 'reboot' is taken"),
        ('CORRECTIVE_ACTION="log', "a quote is missing; 'reboot' is taken"),
        ("HEALTH_CHECK_SCRIPT=check.sh", "a full path expected; '' is taken"),
    ],
)
def test_a_wrong_value_is_named_with_key_value_and_line_and_the_default_taken(line, why):
    taken, notes = read("\nRESTART=5\n" + line)
    assert taken == Config(restart=5)
    assert notes == ["FILE, line 3: %s: %s" % (line, why)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HB_INTERVAL=2147483647", Config(interval_ms=2147483647)),
        ("VOTE=1", Config(vote=1)),
        ("VOTE=2147482", Config(vote=2147482)),
        ("RESTART=2147482", Config(restart=2147482)),
        ("HEALTH_CHECK_INTERVAL=1", Config(health_check_interval=1.0)),
        ("HEALTH_CHECK_INTERVAL=86400", Config(health_check_interval=86400.0)),
    ],
)
def test_the_least_and_the_most_that_can_be_used(line, expected):
    taken, notes = read(line)
    assert (taken, notes) == (expected, [])
    assert guest_channel.build(taken.init(1, "vm"), 1)


def test_the_files_of_the_deployed_client_are_found():
    """An image in the field has them there, and docs/protocol/1-guest-channel.md#transport names the port."""
    given = options.parse([])
    assert given.config == "/etc/guest-client/heartbeat/guest_heartbeat.conf"
    assert given.device == "/dev/virtio-ports/cgcs.heartbeat"
    assert given.socket == "/run/guest-client/processes.sock"  # docs/guest-client.md


def test_a_wrong_value_undoes_an_earlier_right_one():
    taken, notes = read("VOTE=5\nVOTE=x")
    assert (taken.vote, len(notes)) == (8, 1)


@pytest.mark.parametrize("line", ["NONSENSE=1", "just words", "=1"])
def test_what_is_unknown_is_named_and_ignored(line):
    taken, notes = read(line)
    assert taken == Config() and len(notes) == 1 and "unknown key" in notes[0]


def test_a_file_that_is_not_there_means_the_defaults(tmp_path):
    taken, notes = config_file.load(str(tmp_path / "none"), Settings())
    assert taken == Config() and "No such file" in notes[0]


def test_what_an_editor_leaves_in_a_file_is_no_word_of_it(tmp_path):
    """A byte order mark, lines of Windows, a comment in Latin-1."""
    path = tmp_path / "conf"
    path.write_bytes(b"\xef\xbb\xbfHB_INTERVAL=2000\r\n# gr\xf6\xdfe\r\nVOTE=3\r\n")
    taken, notes = config_file.load(str(path), Settings())
    assert (taken, notes) == (Config(interval_ms=2000, vote=3), [])


def test_the_sample_shows_the_defaults_and_can_be_uncommented():
    text = SAMPLE.read_text(encoding="utf-8")
    assert read(text) == (Config(), [])
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and line[1:2].isupper()]
    assert len(lines) == len(Config._fields)
    taken, notes = read("\n".join(lines))
    assert notes == []
    assert taken[:8] == Config()[:8]


@given(st.text())
def test_nothing_in_a_file_raises_and_what_is_taken_can_be_said(text):
    taken, _ = read(text)
    guest_channel.build(taken.init(1, "vm"), 1)


# --- command line ----------------------------------------------------------------------------------


def test_the_command_line():
    given_words = "-f -l LOG --device=D --set a=1 --set b=2 --socket S --pid-file P --config C --group G"
    taken = options.parse(given_words.split())
    assert taken == options.Options("D", "C", "S", "G", "P", True, "LOG", ["a=1", "b=2"], False)
    assert options.parse([]) == options.Options(settings=[])
    assert options.parse(["-h"]).help


@pytest.mark.parametrize("words", [["--nonsense"], ["--device"], ["word"]])
def test_a_wrong_command_line_is_refused(words):
    with pytest.raises(ValueError):
        options.parse(words)


def test_every_option_is_in_the_help():
    assert all("--" + name.rstrip("=") in options.HELP for name in options.NAMES)


def test_settings():
    assert overridden(["patience=0.5", "interval_floor_ms=1"]) == Settings(patience=0.5, interval_floor_ms=1)
    for word in ("nonsense=1", "patience=x", "patience"):
        with pytest.raises(ValueError, match="--set " + word):
            overridden([word])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "conf")
    with time_limit(5):
        taken, notes = config_file.load(str(tmp_path / "conf"), Settings())
    assert taken == Config()
    assert notes == ["%s: it is a pipe, and no file: the defaults are taken" % (tmp_path / "conf")]


@contextmanager
def time_limit(seconds):
    """What waits longer is interrupted by an AssertionError."""

    def interrupt(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("value", [1, 300, 399])
def test_an_interval_that_is_too_short_is_the_shortest_and_that_is_said(value):
    taken, notes = read("HB_INTERVAL=%d" % value)
    assert taken == Config(interval_ms=400)
    assert notes == ["FILE, line 1: HB_INTERVAL=%d is too short: 400 is taken" % value]


@pytest.mark.parametrize("line", ["export VOTE=5", "export\tVOTE='5'", "  export  VOTE=5"])
def test_a_shells_export_is_taken(line):
    assert read(line) == (Config(vote=5), [])


@pytest.mark.parametrize("key", ["HB_INIT_RETRY", "HB_MIN_TIMEOUT"])
def test_keys_of_the_deployed_client_are_known_and_said_to_mean_nothing(key):
    taken, (note,) = read(key + "=1000\nVOTE=9")
    assert taken == Config(vote=9) and note.startswith("FILE, line 1: %s is not used: this client" % key)


def test_the_configuration_is_described_in_the_words_of_its_file():
    given = Config(2000, "stop", 1, 2, 3, 4, 5, 6.5, "/bin/a", "/bin/b", True)
    assert read("\n".join(describe(given)).replace(" ", "\n")) == (given, [])
    assert read("\n".join(describe(Config())).replace(" ", "\n")) == (Config(), [])


@pytest.mark.parametrize("length", [1, 250, 299, 300, 301, 1500])
@pytest.mark.parametrize("letter", ["x", "é", "\t"])
def test_no_line_that_describes_the_configuration_is_cut_by_the_log(length, letter):
    path = "/" + letter * (length - 1)
    given = Config(health_check_script=path, event_notification_script=path)
    logged = []
    for line in describe(given):
        Log(logged.append, 0)("configuration: " + line)
    assert [line for line in logged if line.endswith("...") or len(line) > 400] == []
    said = "".join(re.sub(r"^configuration: ", " ", line) for line in logged)
    assert len(escape(path)) < 600 or len(logged) > 3
    whole = re.sub(r" \w+ \(going on\)=", "", said)
    escaped = escape(path)
    assert " HEALTH_CHECK_SCRIPT=%s " % escaped in whole
    assert " EVENT_NOTIFICATION_SCRIPT=%s " % escaped in whole
