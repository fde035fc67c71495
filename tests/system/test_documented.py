"""What the documentation lists is what the code has: actions, events, counters, keys, defaults, options."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
from documents import DATAGRAMS, DOCUMENTS, ROOT, between, in_code, rows, text_of

from guestmtce.agent.settings import AgentSettings
from guestmtce.daemon.config import MAIN
from guestmtce.guest import config as guest_config
from guestmtce.guest.settings import Settings as GuestSettings
from guestmtce.lab.cluster import Cluster
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram, datagram_ext, guest_channel

DAEMONS = {"guestServer": ServerSettings, "guestAgent": AgentSettings}
MODULES = {
    "guestServer": "guestmtce.server.master",
    "guestAgent": "guestmtce.agent.main",
    "guestClient": "guestmtce.guest.main",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def fields(kind):
    """`section.key` → default, of the daemon's own file."""
    places = ((field.metadata["place"], field.default) for field in dataclasses.fields(kind))
    return {"%s.%s" % place[1:]: default for place, default in places if place and place.file == MAIN}


# --- the guest -----------------------------------------------------------------------------------------


def test_every_event_of_the_event_script_is_named_and_no_other():
    sentence = between("docs/guest-client.md", "a notice; events\n  are", ". Exit status")
    assert in_code(sentence) == set(guest_channel.EVENT_TYPES)


def test_every_corrective_action_is_named():
    assert in_code(guest_rows()["CORRECTIVE_ACTION"][0]) == set(guest_config.ACTIONS)
    row = rows(between("docs/guest-client.md", "What a process says", "What it is told"))["register`, first"][
        0
    ]
    actions = row.split("when it fails or is ill:")[1].split(";")[0]
    assert in_code(actions) == set(guest_channel.CORRECTIVE_ACTIONS) - {guest_channel.UNKNOWN}


def guest_rows():
    return rows(between("docs/guest-client.md", "## Configure", "## Scripts"))


def test_every_key_of_the_guest_stands_in_its_table_with_its_default():
    keys = guest_config._keys(GuestSettings())
    assert set(guest_rows()) == set(keys)
    for key, cells in guest_rows().items():
        default = getattr(guest_config.Config(), keys[key][0])
        shown = {"": "none", False: "no", True: "yes"}.get(default, default)
        assert cells[1] == ("%g" % shown if isinstance(shown, float) else str(shown)), key


def test_every_key_of_the_guest_stands_in_the_file_that_it_gets():
    text = text_of("scripts/guest/guest_heartbeat.conf")
    shown = set(re.findall(r"^#?\s?([A-Z_]+)=", text, re.M))
    assert shown == set(guest_config._keys(GuestSettings()))


# --- between the daemons -------------------------------------------------------------------------------


def test_the_datagrams_are_called_by_names_that_there_are():
    text = text_of(DATAGRAMS)
    names = set(datagram.NAMES.values())
    said = set(
        re.findall(r"\b(?:[A-Z]+_(?:INST|HOST|READY|NOTIFY)|RUNNING|STOPPED|LOSS|ILLHEALTH|LOOPBACK)\b", text)
    )
    assert said == names


def test_the_flags_and_commands_of_the_extension_are_all_there():
    (row,) = [line for line in text_of(DATAGRAMS).splitlines() if "| `rev` | flags:" in line]
    said = {int(value) for value in re.findall(r"(?:flags:|,) (\d+) ", row)}
    source = text_of("guestmtce/wire/datagram_ext.py").split("\nEXTENSION_VERSION = ")[1].split("\nACK = ")[0]
    flags = {int(value) for value in re.findall(r"^[A-Z_]+ = (\d+)\b", source, re.M)}
    assert said == flags
    for command in (datagram_ext.ACK, datagram_ext.MARK):
        assert "0x%X" % command in text_of(DATAGRAMS)


# --- the daemons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DAEMONS)
def test_a_setting_that_the_readme_shows_has_the_default_that_it_shows(name):
    table = between("README.md", "| what | guestServer | guestAgent |", "`guestServer --help`")
    column, settings = 1 + list(DAEMONS).index(name), fields(DAEMONS[name])
    cells = [line.strip("|").split("|")[column] for line in table.splitlines()[2:] if line]
    shown = re.findall(r"`\[(\w+)\] (\w+) = ([0-9]+)", " ".join(cells))
    assert len(shown) >= 3
    for section, key, value in shown:
        assert settings["%s.%s" % (section, key)] == int(value) or key == "debug_level"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_setting_that_is_named_exists(path):
    known = {**fields(ServerSettings), **fields(AgentSettings)}
    sections = {place.split(".")[0] for place in known}
    for section, key in re.findall(r"`\[(\w+)\] (\w+)", text_of(path)):
        assert section not in sections or "%s.%s" % (section, key) in known


@pytest.fixture(scope="module")
def options():
    """The options of every program, as it says them."""
    found = {}
    for name, module in {**MODULES, "guestmtce": "guestmtce.cli.main"}.items():
        words = [["--help"]]
        if name == "guestmtce":
            words += [["bench", "--help"], ["lab", "guests", "--help"], ["lab", "vim", "--help"]]
            words += [["lab", "mtcagent", "--help"], ["files", "--help"]]
        said = "".join(_said(module, each) for each in words)
        found[name] = set(OPTION.findall(said))
    return found


def _said(module, words):
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, check=True, timeout=60).stdout.decode()


# Options of commands of others, and of scripts of the checkout, that documents name.
OTHERS = {
    "docs/install.md": {
        "--upgrade", "--prefix", "--now", "--del-subuids", "--add-subuids", "--version",
        "--uninstall", "--grep",
    },
    "docs/operate.md": {"--grep", "--since"},
    "docs/virtual-machines.md": {"--property"},
    "docs/protocol/4-host.md": {"--active", "--verbose", "--test"},  # of the original, and not shown
    "docs/guest-images.md": None,  # those of the makers of images
    "README.md": {"--all", "--jobs", "--upgrade"},
    "docs/performance.md": None,  # those of the bench's driver, with the figures
}  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS)
def test_an_option_that_is_named_exists(path, options):
    others = OTHERS.get(path, set())
    if others is not None:
        known = set().union(*options.values()) | others
        assert set(OPTION.findall(text_of(path))) - known == set()


# --- what they say of themselves -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports():
    """Health reports and dumps of two daemons that serve a guest."""
    with Cluster(1) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        server, agent = cluster.hosts[0].server, cluster.agent
        yield {
            "guestServer": server.health(),
            "guestAgent": agent.health(),
            "guest": server.dump("guest"),
            "host": agent.dump("host"),
            "instance": agent.dump("instance"),
        }


@pytest.mark.parametrize("name", DAEMONS)
def test_every_line_and_counter_of_a_health_report_is_explained(reports, name):
    section = text_of("docs/reports.md").split("## The health report of %s\n" % name)[1].split("\n## ")[0]
    explained = rows(section)
    assert set(explained) == set(reports[name])
    for subject, line in reports[name].items():
        said = set(re.findall("[a-z-]+", " ".join(in_code(" ".join(explained[subject]))))) | {subject}
        counters = set(re.findall("([a-z-]+) [0-9]", line))
        assert counters <= said, subject


def _keys_shown(text):
    return re.findall(r"(\w+)=", text)


def test_every_key_of_a_dump_is_shown_in_its_order(reports):
    def keys_of(kind):
        (row,) = reports[kind].values()
        return list(row)

    shown = between("README.md", "    guest 00000000-", "\n\n")
    assert _keys_shown(shown) == keys_of("guest")
    for kind in ("host", "instance"):
        (line,) = re.findall("^    %s .*$" % kind, text_of("docs/reports.md"), re.M)
        assert _keys_shown(line) == keys_of(kind)
