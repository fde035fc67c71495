"""Settings from INI files and the command line: what wins, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmtce.agent import settings as agent
from guestmtce.daemon import config
from guestmtce.daemon.config import MAIN, ConfigError, setting
from guestmtce.server import settings as server

OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Sample:
    port: int = setting(2401, "agent.rx_port", 1, 65535, "--port", "a port")
    delay: float = setting(1.0, "timeouts.delay", 0, 60)
    where: str = setting("controller", "agent.where")
    quiet: bool = setting(False, "debug.quiet", flag="-q --quiet")
    level: int = setting(0, "debug.level", 0, 255, "-d --debug")
    foreign: int = setting(7, "agent.foreign", 0, 9, file=OTHER)
    no_place: str = setting("x", flag="--no-place")
    stable_after: float = setting(1.0, "timeouts.stable_after", 0, 60, formerly="timers.settled")


def load(folder, text="", *arguments, other=""):
    paths = {MAIN: str(folder / "main.ini"), OTHER: str(folder / "other.ini")}
    for path, content in zip(paths.values(), (text, other)):
        if content is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
    return config.load(Sample, "sample", paths, list(arguments))


def refused(folder, *words, **options):
    with pytest.raises(ConfigError) as caught:
        load(folder, *words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TAKEN = {
    "plain": ("[agent]\nrx_port=99", "port", 99),
    "spaces": ("[agent]\n  rx_port  =  99  ", "port", 99),
    "another comment at the line's end": ("[agent]\nrx_port = 99 # its port", "port", 99),
    "a comment at the line's end": ("[agent] ; the agent\nrx_port = 99   ; its port", "port", 99),
    "comment lines": ("; one\n# two\n[agent]\n; three\nrx_port=99", "port", 99),
    "the key in capitals": ("[agent]\nRX_PORT=99", "port", 99),
    "twice: the last": ("[agent]\nrx_port=98\n[agent]\nrx_port=99", "port", 99),
    "a percent sign is only that": ("[agent]\nwhere=%(x)s%", "where", "%(x)s%"),
    "text is stripped": ("[agent]\nwhere=  box  ; which", "where", "box"),
    "no text": ("[agent]\nwhere=", "where", ""),
    "unknown keys and sections": ("[agent]\ncolour=red\nrx_port=99\n[x]\ny=z", "port", 99),
    "lowest": ("[agent]\nrx_port=1", "port", 1),
    "highest": ("[agent]\nrx_port=65535", "port", 65535),
    "a fraction": ("[timeouts]\ndelay=0.25", "delay", 0.25),
    "whole seconds": ("[timeouts]\ndelay=2", "delay", 2.0),
    "lowest fraction": ("[timeouts]\ndelay=0", "delay", 0.0),
    "1": ("[debug]\nquiet=1", "quiet", True),
    "Yes": ("[debug]\nquiet=Yes", "quiet", True),
    "false": ("[debug]\nquiet=false", "quiet", False),
    "nothing": ("", "port", 2401),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_from_the_file(tmp_path, name):
    text, field, value = TAKEN[name]
    found = getattr(load(tmp_path, text)[0], field)
    assert (found, type(found)) == (value, type(value))


# What is refused → what the one line must name besides the file.
REFUSED = {
    "[agent]\nrx_port=many": ("[agent]", "rx_port", "many", "no number"),
    "[agent]\nrx_port=": ("[agent]", "rx_port", "no number"),
    "[agent]\nrx_port=1.5": ("[agent]", "rx_port", "1.5", "no number"),
    "[agent]\nrx_port=2401;glued": ("[agent]", "rx_port", "2401;glued"),
    "[agent]\nrx_port=0": ("[agent]", "rx_port", "= 0", "1 to 65535"),
    "[agent]\nrx_port=65536": ("[agent]", "rx_port", "65536", "1 to 65535"),
    "[agent]\nrx_port=2401\n  more=2": ("[agent]", "rx_port", "2401 more=2"),
    "[timeouts]\ndelay=-0.1": ("[timeouts]", "delay", "-0.1", "0 to 60"),
    "[timeouts]\ndelay=nan": ("[timeouts]", "delay", "nan"),
    "[timeouts]\ndelay=inf": ("[timeouts]", "delay", "inf"),
    "[debug]\nquiet=maybe": ("[debug]", "quiet", "maybe"),
    "[agent]\nrx_port=2_401": ("[agent]", "rx_port", "2_401", "no number"),
    "[agent]\nrx_port=\u0661\u0662": ("[agent]", "rx_port", "no number"),
    "[agent]\nrx_port=" + "9" * 5000: ("[agent]", "rx_port", "999...", "no number"),
    "[timeouts]\ndelay=1_0.5": ("[timeouts]", "delay", "1_0.5", "no number"),
    "[timeouts]\ndelay=1e999": ("[timeouts]", "delay", "1e999", "0 to 60"),
    "[timeouts]\ndelay=infinity": ("[timeouts]", "delay", "no number"),
    "rx_port=2401": ("line 1 (rx_port=2401) is before the first [section]",),
    "; x\n\nrx_port=2401\nmore\n": ("lines 3, 4 are before the first [section]",),
    "[agent]\nnonsense": ("line 2 (nonsense) is neither a [section] nor KEY = VALUE",),
    "[agent]\n" + "x\n" * 9: ("lines 2, 3, 4, 5, 6, ... are neither",),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_refused_file_is_named_with_section_key_and_value(tmp_path, text):
    said = refused(tmp_path, text)
    assert str(tmp_path / "main.ini") in said
    for word in REFUSED[text]:
        assert word in said


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "main.ini").mkdir()
    assert str(tmp_path / "main.ini") in refused(tmp_path, None)
    (tmp_path / "bytes.ini").write_bytes(b"[agent]\nwhere=\xff\xfe\n")
    assert "bytes.ini" in refused(tmp_path, None, "--config", str(tmp_path / "bytes.ini"))


def test_a_terminal_on_which_nothing_was_typed_is_an_empty_file(tmp_path):
    master, slave = os.openpty()
    try:
        assert load(tmp_path, None, "--config", os.ttyname(slave))[0].port == 2401
    finally:
        os.close(master)
        os.close(slave)


def test_a_pipe_or_a_huge_file_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: it is no plain file" in refused(tmp_path, None, "--config", str(tmp_path / "pipe"))
    (tmp_path / "huge").write_bytes(b"; x\n" * 300_000)
    assert "huge: it is larger than" in refused(tmp_path, None, "--config", str(tmp_path / "huge"))


# What others write into their files, or an editor into ours: what is taken, and what the note says.
ODD = {
    "a byte order mark": (b"\xef\xbb\xbf[agent]\nKEY = 5\n", 5, None),
    "a comment in Latin-1": (b"; gr\xf6\xdfe\n[agent]\nKEY = 5\n", 5, "line 1 is no UTF-8"),
    "a comment in Latin-1 at a line's end": (b"[agent]\nKEY = 5 ; gr\xf6\xdfe\n", 5, "line 2 is no UTF-8"),
    "both": (b"\xef\xbb\xbf[agent]\n# \xf6\nKEY = 5\n", 5, "line 2 is no UTF-8"),
    "lines of Windows": (b"[agent]\r\nKEY = 5\r\n", 5, None),
}
OTHERS = {
    **ODD,
    "Latin-1 in another value": (b"[x]\npass = p\xe4ss\n[agent]\nKEY = 5\n", 5, "line 2 is no UTF-8"),
    "a stray line": (b"[agent]\noops\nKEY = 5\n", 5, "line 2 (oops) is no INI, ignored"),
    "a stray line at the end": (b"[agent]\nKEY = 5\n[x\n", 5, "no INI, ignored"),
    "a key before all sections": (b"x = 1\n[agent]\nKEY = 5\n", 5, "line 1 (x = 1) is no INI, ignored"),
    "a continuation of nothing": (b"   more\n[agent]\nKEY = 5\n", 5, "line 1 (more) is no INI"),
    "no number": (b"[agent]\nKEY = five\n", 7, "[agent] foreign = five: no number: ignored, 7 is taken"),
    "no value": (b"[agent]\nKEY =\n", 7, "[agent] foreign = : no number: ignored, 7 is taken"),
    "no section at all": (b"KEY = 5\n", 7, "line 1 (foreign = 5) is no INI, ignored"),
    "no text at all": (bytes(range(256)) * 20, 7, "no INI, ignored"),
    "nothing": (b"", 7, None),
    "a section twice": (b"[agent]\nx = 1\n[agent]\nKEY = 5\n", 5, None),
    "a section without a name": (b"[]\nx = 1\n[agent]\nKEY = 5\n", 5, "no INI, ignored"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_in_another_s_file_stops_us(tmp_path, name):
    data, value, note = OTHERS[name]
    path = tmp_path / "other.ini"
    path.write_bytes(data.replace(b"KEY", b"foreign"))
    settings, notes = load(tmp_path, other=None)
    assert settings.foreign == value
    said = [line for line in notes if line.startswith(str(path))]
    assert len(said) <= 2 and all(len(line.splitlines()) == 1 for line in said)
    assert note is None and said == [] or any(note in line for line in said)


@pytest.mark.parametrize("name", ODD)
def test_odd_bytes_in_our_own_file_are_taken(tmp_path, name):
    data, value, note = ODD[name]
    path = tmp_path / "main.ini"
    path.write_bytes(data.replace(b"KEY", b"rx_port"))
    settings, notes = load(tmp_path, None)
    assert settings.port == value
    assert ["%s: %s" % (path, note)] * (note is not None) == [each for each in notes if "UTF-8" in each]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_another_s_file_that_cannot_be_read_is_named_and_defaults_hold(tmp_path, make):
    make(tmp_path / "other.ini")
    settings, notes = load(tmp_path, other=None)
    assert settings.foreign == 7
    assert "%s: it is no plain file: defaults" % (tmp_path / "other.ini") in notes
    assert "agent.foreign" not in notes[-1]


@given(st.binary(max_size=200))
def test_no_bytes_in_another_s_file_stop_us(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        settings, notes = config.load(Sample, "sample", {MAIN: os.devnull, OTHER: file.name}, [])
    assert 0 <= settings.foreign <= 9
    assert all(note.isprintable() for note in notes)


def test_a_value_that_was_the_default_once_is_named(tmp_path):
    kind = server.ServerSettings
    path = tmp_path / "main.ini"
    old = {place: values[0] for place, values in kind.OLD_DEFAULTS.items()}
    fields = {"%s.%s" % f.metadata["place"][1:]: f for f in dataclasses.fields(kind) if f.metadata["place"]}
    text = "".join("[%s]\n%s = %s\n" % (*place.split("."), value) for place, value in old.items())
    path.write_text(text)
    settings, notes = config.load(kind, server.NAME, {MAIN: str(path)}, [])
    for place, value in old.items():
        field = fields[place]
        assert getattr(settings, field.name) == value
        said = [note for note in notes if "%s = %s was the default" % (field.name, value) in note]
        assert len(said) == (value != field.default)
        assert all("is %s now: remove the line" % field.default in note for note in said)


def test_missing_files_and_keys_are_defaults_and_said_once(tmp_path):
    settings, notes = load(tmp_path, None, other=None)
    assert settings == Sample()
    assert notes == ["%s is not there: defaults" % (tmp_path / name) for name in ("main.ini", "other.ini")]
    settings, notes = load(tmp_path, "[agent]\nrx_port=9\n[debug]\nquiet=1\nlevel=0", other=None)
    assert notes[1:] == ["not configured, default taken: timeouts.delay, agent.where, timeouts.stable_after"]


def test_every_file_has_its_own_keys(tmp_path):
    settings, notes = load(tmp_path, "[agent]\nforeign=1", other="[agent]\nforeign=2\nrx_port=3")
    assert (settings.foreign, settings.port) == (2, 2401)
    assert "agent.rx_port" in notes[-1]
    settings, notes = load(tmp_path, other="[agent]\nforeign=10")
    assert settings.foreign == 7
    text = "%s: [agent] foreign = 10: not in 0 to 9: ignored, 7 is taken"
    assert text % (tmp_path / "other.ini") in notes


def test_the_command_line_wins_over_set_and_set_over_the_file(tmp_path):
    text = "[agent]\nrx_port=1\nwhere=file\n[timeouts]\ndelay=1"
    words = ["--set", "agent.rx_port=2", "--set", "agent.where=a=b", "--port", "3", "--no-place", "y"]
    settings, _ = load(tmp_path, text, *words)
    assert settings == Sample(port=3, where="a=b", no_place="y")


def test_a_flag_turns_its_default_over(tmp_path):
    assert load(tmp_path, "[debug]\nquiet=0", "-q")[0].quiet is True
    assert load(tmp_path, "[debug]\nquiet=1")[0].quiet is True


WRONG_WORDS = {
    ("--port", "x"): "--port = x: no number",
    ("--port", "70000"): "--port = 70000: not in 1 to 65535",
    ("--set", "agent.rx_port=x"): "--set agent.rx_port = x: no number",
    ("--set", "agent.rx_port"): "SECTION.KEY=VALUE expected",
    ("--set", "agent.colour=red"): "agent.rx_port",
    ("--set", "=1"): "SECTION.KEY=VALUE expected",
    ("--config", "/nowhere/x.ini"): "/nowhere/x.ini: there is no such file",
}


@pytest.mark.parametrize("words", WRONG_WORDS)
def test_wrong_words_are_refused_with_what_would_be_right(tmp_path, words):
    assert WRONG_WORDS[words] in refused(tmp_path, "", *words)


def test_config_replaces_the_main_file(tmp_path):
    mine = tmp_path / "mine.ini"
    mine.write_text("[agent]\nrx_port=9\n")
    assert load(tmp_path, "[agent]\nrx_port=8", "--config", str(mine))[0].port == 9


@pytest.mark.parametrize("letter", "mniupcg")
@pytest.mark.parametrize("more", [[], ["x"], ["-q"]])
def test_flags_of_every_daemon_of_the_kind_are_taken_and_mean_nothing(tmp_path, letter, more):
    settings, _ = load(tmp_path, "", "-" + letter, *more, "--port", "5")
    assert settings == Sample(port=5, quiet=more == ["-q"])


@pytest.mark.parametrize("words", [["--nonsense"], ["--por", "1"], ["word"], ["--port"]])
def test_a_wrong_command_line_exits_with_2(tmp_path, words, capsys):
    with pytest.raises(SystemExit) as caught:
        load(tmp_path, "", *words)
    assert caught.value.code == 2
    assert "usage: sample" in capsys.readouterr().err


@pytest.mark.parametrize("module", [server, agent], ids=["guestServer", "guestAgent"])
def test_the_old_flags_are_accepted(module, capsys):
    kind = server.ServerSettings if module is server else agent.AgentSettings
    words = ["-f", "-l", "-a", "-d", "3", "-v", "-V", "-t"]
    settings, _ = config.load(kind, module.NAME, dict.fromkeys(module.FILES, os.devnull), words)
    assert (settings.foreground, settings.log_file, settings.debug_level) == (True, True, 3)
    long = ["--foreground", "--log", "--active", "--debug", "3", "--verbose", "--Virtual", "--test"]
    assert config.load(kind, module.NAME, dict.fromkeys(module.FILES, os.devnull), long)[0] == settings
    with pytest.raises(SystemExit) as caught:
        config.load(kind, module.NAME, module.FILES, ["-h"])
    assert caught.value.code == 0
    assert "usage: " + module.NAME in capsys.readouterr().out


SHIPPED = {
    server: """[agent]                     ; Agent Configuration
rx_port = 2401              ; TCP port
vim_cmd_port = 2410
hbs_failure_threshold = 1
[client]
rx_port = 2411
hbs_failure_threshold = 3   ; misses
hbs_pulse_period = 500      ; ms
[timeouts]
start_delay = 2
[debug]                     ; SysLog Config and Debug
debug_json = 0
debug_level = 0
flush = 1
""",
    agent: "[agent]\nrx_port = 2405 ; x"
    "\nvim_cmd_port = 2410\n[client]\nrx_port = 2411\n[debug]\ndebug_all=0\n",
}


def test_the_shipped_files_are_understood(tmp_path):
    path = tmp_path / "daemon.ini"
    path.write_text(SHIPPED[server])
    settings, _ = config.load(server.ServerSettings, server.NAME, {MAIN: str(path)}, [])
    wanted = {"agent_port": 2401, "rx_port": 2411, "failure_threshold": 3, "pulse_period_ms": 500}
    assert {name: getattr(settings, name) for name in wanted} == wanted
    path.write_text(SHIPPED[agent])
    files = {MAIN: str(path), agent.MTC: str(tmp_path / "none"), agent.VIM: str(tmp_path / "none")}
    settings, notes = config.load(agent.AgentSettings, agent.NAME, files, [])
    assert (settings.rx_port, settings.mtc_cmd_port, settings.vim_port) == (2405, 2108, 30002)
    assert len([note for note in notes if "none is not there" in note]) == 2


def wide(kind):
    """The fields that a file can set, with a value at each end of their range."""
    for field in dataclasses.fields(kind):
        for end in ("low", "high"):
            if field.metadata["place"] and field.metadata[end] is not None:
                yield field, field.metadata[end]


@pytest.mark.parametrize("kind", [server.ServerSettings, agent.AgentSettings])
def test_defaults_and_bounds_of_every_setting_are_accepted(kind):
    files = {MAIN: os.devnull, agent.MTC: os.devnull, agent.VIM: os.devnull}
    defaults, _ = config.load(kind, "daemon", files, [])
    assert defaults == kind()
    for field, value in wide(kind):
        assert field.metadata["low"] <= field.default <= field.metadata["high"]
        word = "%s.%s=%s" % (*field.metadata["place"][1:], value)
        assert getattr(config.load(kind, "daemon", files, ["--set", word])[0], field.name) == value


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_number_in_any_words_is_in_range_or_refused_in_one_line(text):
    try:
        settings, _ = config.load(Sample, "sample", {MAIN: os.devnull, OTHER: os.devnull},
                                  ["--set", "agent.rx_port=" + text])  # fmt: skip
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert 1 <= settings.port <= 65535


def test_what_is_not_used_is_said_in_one_line(tmp_path):
    path = tmp_path / "daemon.ini"
    path.write_text("[client]\nrx_port=2411\nhbs_pulse_perod=500\n[debug]\ndebug_all=1\n[old]\nkey=1\n")
    _, lines = config.load(server.ServerSettings, "guestServer", {MAIN: str(path)}, [])
    assert lines[0] == "%s: not used: client.hbs_pulse_perod, debug.debug_all, old.key" % path


# --- a key of an earlier release -------------------------------------------------------------------


def test_an_old_key_goes_on_working_and_is_named(tmp_path):
    settings, notes = load(tmp_path, "[timers]\nsettled=2")
    assert settings.stable_after == 2
    path = tmp_path / "main.ini"
    assert (
        "%s: [timers] settled is old and still works: write [timeouts] stable_after instead" % path in notes
    )
    assert not any("not used" in note for note in notes)
    assert not any("default taken" in note and "stable_after" in note for note in notes)


def test_a_new_key_goes_before_the_old_one(tmp_path):
    settings, notes = load(tmp_path, "[timers]\nsettled=2\n[timeouts]\nstable_after=3")
    assert settings.stable_after == 3
    assert not any("settled" in note for note in notes)


def test_an_old_key_s_value_is_judged_under_its_own_name(tmp_path):
    assert "[timers] settled = 61: not in 0 to 60" in refused(tmp_path, "[timers]\nsettled=61")


def test_an_old_key_can_be_set_on_the_command_line(tmp_path):
    assert load(tmp_path, "", "--set", "timers.settled=4")[0].stable_after == 4
