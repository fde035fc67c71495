"""The shipped ini files name every setting of their daemon with its default, and set none."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest
from places import SCRIPTS

from guestmtce.agent import settings as agent
from guestmtce.daemon import config
from guestmtce.daemon.config import MAIN
from guestmtce.server import settings as server

SHIPPED = {server.ServerSettings: "guestServer.ini", agent.AgentSettings: "guestAgent.ini"}
LINE = re.compile(r";(?P<key>\w+) = ?(?P<value>.*?)\s+; (?P<help>.+)")


def shipped(kind):
    return os.path.join(SCRIPTS, "host", SHIPPED[kind])


def commented_out(kind):
    """`section.key` → the value's text, of the lines that show a default."""
    values, section = {}, ""
    with open(shipped(kind), encoding="utf-8") as file:
        for line in file.read().splitlines():
            assert len(line) <= 120
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("; "):
                match = LINE.fullmatch(line)
                assert match is not None, line
                values["%s.%s" % (section, match["key"])] = match["value"]
    return values


def load(kind, *words):
    files = {MAIN: shipped(kind), agent.MTC: os.devnull, agent.VIM: os.devnull}
    return config.load(kind, "daemon", files, words)


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_setting_stands_in_the_shipped_file_and_no_other(kind):
    places = [field.metadata["place"] for field in dataclasses.fields(kind)]
    expected = {"%s.%s" % place[1:] for place in places if place and place.file == MAIN}
    assert set(commented_out(kind)) == expected


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_shipped_file_shows_the_defaults_and_sets_nothing(kind):
    settings, notes = load(kind)
    assert settings == kind()
    assert [note for note in notes if "not used" in note] == []
    words = [word for item in commented_out(kind).items() for word in ("--set", "%s=%s" % item)]
    assert load(kind, *words)[0] == kind()
