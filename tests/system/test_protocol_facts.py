"""docs/protocol: its tables and figures are those of the code."""

from __future__ import annotations

import dataclasses
import re

import pytest
from documents import (
    DATAGRAMS,
    GUEST_CHANNEL,
    HOST,
    VIM_HTTP,
    cells_in,
    in_code,
    section,
    text_of,
)
from places import REPOSITORY

from guestmtce.agent.http.command_routes import ROUTES
from guestmtce.agent.settings import AgentSettings
from guestmtce.server.child import session_types
from guestmtce.server.settings import ServerSettings
from guestmtce.wire import datagram, datagram_ext, guest_channel, json_lines, vim_http

# --- the guest channel ---------------------------------------------------------------------------------


def test_the_messages_have_these_fields_in_this_order():
    table = {name.strip("`"): cells for name, *cells in cells_in(section(GUEST_CHANNEL, "Messages"))}
    shapes = {**guest_channel.FROM_GUEST, **guest_channel.FROM_HOST}
    assert set(table) == set(shapes)
    for name, (sender, fields) in table.items():
        assert sender == ("guest" if name in guest_channel.FROM_GUEST else "host")
        assert re.findall("`([a-z_]+)`", fields) == [field for field, _ in shapes[name][1]], name


def test_the_values_are_those_that_are_known():
    values = {name.strip("`"): in_code(said) for name, said in cells_in(section(GUEST_CHANNEL, "Values"))}
    unknown = {guest_channel.UNKNOWN}
    assert values == {
        "heartbeat_health": {guest_channel.HEALTHY, guest_channel.UNHEALTHY},
        "corrective_action": set(guest_channel.CORRECTIVE_ACTIONS),
        "event_type": set(guest_channel.EVENT_TYPES) | unknown,
        "notification_type": set(guest_channel.NOTIFICATION_TYPES) | unknown,
        "vote_result": set(guest_channel.VOTE_RESULTS),
    }


def test_the_sizes_are_those_that_are_kept():
    cells = cells_in(section(GUEST_CHANNEL, "Sizes and numbers"))
    sizes = (guest_channel.MESSAGE_MAX, guest_channel.NAME_MAX, guest_channel.LOG_MSG_MAX)
    assert [int(size) for _, size in cells] == [*sizes, guest_channel.WORD_MAX]
    assert "above %d " % guest_channel.SECS_MAX in section(GUEST_CHANNEL, "Sizes and numbers")
    assert "at most %d bytes" % json_lines.LINE_MAX in section(GUEST_CHANNEL, "Framing")


def test_the_example_of_a_message_is_what_is_sent():
    (example,) = re.findall(r"`(\\n{.*}\\n)`", section(GUEST_CHANNEL, "Framing"))
    sent = guest_channel.build(guest_channel.Challenge(4711), 7)
    assert example.replace("\\n", "\n").encode("ascii") == sent


@pytest.mark.parametrize("event", guest_channel.EVENT_TYPES)
def test_a_notice_has_the_timeout_of_its_event(event):
    fields = {name: number for number, name in enumerate(guest_channel.Init._fields)}
    numbered = guest_channel.Init(**{**fields, "name": "", "corrective_action": "log"})
    for question, field in cells_in(section(GUEST_CHANNEL, "Votes and notices")):
        kind = guest_channel.VOTE if "vote" in question else guest_channel.NOTICE
        if kind == guest_channel.VOTE or event in in_code(question):
            assert guest_channel.timeout_secs(numbered, kind, event) == fields[field.strip("`")]
            break
    events = [one for question, _ in cells_in(section(GUEST_CHANNEL, "Votes and notices"))[1:]
              for one in in_code(question)]  # fmt: skip
    assert sorted(events) == sorted(guest_channel.EVENT_TYPES)


def test_the_notices_that_silence_a_guest_are_named():
    said = section(GUEST_CHANNEL, "Expected silence")
    (begins,) = re.findall(r"(?s)notice of (.*?) is put to", " ".join(said.split()))
    assert in_code(begins) == set(session_types.SILENCING)


# --- datagrams -----------------------------------------------------------------------------------------


def test_each_datagram_has_its_number():
    said = {}
    for heading in ("Commands", "Events", "mtcAgent"):
        for name, number, *_ in cells_in(section(DATAGRAMS, heading)):
            assert said.setdefault(int(number, 16), name) == name
    assert {datagram.NAMES[number] for number in said} == set(datagram.NAMES.values())
    renamed = {"MOD_HOST", "QRY_INST", "MONITOR_READY"}  # of two pairs of daemons, or of two ways
    assert {number: name for number, name in said.items() if name not in renamed} == {
        number: name for number, name in datagram.NAMES.items() if name not in renamed
    }


def test_the_fields_of_a_datagram_stand_where_they_are_said_to():
    places = [int(cells[0]) for cells in cells_in(section(DATAGRAMS, "Layout"))]
    sizes = [int(cells[1]) for cells in cells_in(section(DATAGRAMS, "Layout"))]
    assert places == [sum(sizes[:number]) for number in range(len(sizes))]
    assert (places[-1], sum(sizes)) == (datagram.HEADER.size, datagram.FULL_SIZE)
    assert "longest JSON has %d bytes" % datagram.JSON_MAX in section(DATAGRAMS, "Layout")


def test_instance_info_has_these_keys_in_this_order():
    (shown,) = re.findall("`({.*})`", section(DATAGRAMS, "Instance info"))
    info = datagram.InstanceInfo("host", "u", True, True, "log", 1, 2, 3, 4, 5)
    assert re.findall('"([a-z-]+)":', shown) == list(datagram.event_body(info))


def test_the_added_fields_stand_where_they_are_said_to():
    tag = datagram_ext.Tag(0x0102, 0x03040506, 0x0708090A, 0x0B0C0D0E, 0x0F101112, 0x13141516, 0x1718191A)
    data = datagram_ext.stamp_tag(bytes(datagram.FULL_SIZE), tag)
    values = {"rev": tag.flags, "res": tag.sender, "num": tag.number, "parm[0]": tag.acked_sender,
              "parm[1]": tag.nonce, "parm[2]": tag.echo, "parm[3]": tag.vim,
              "ver": datagram_ext.EXTENSION_VERSION}  # fmt: skip
    places = {name.strip("`"): (int(place), int(size))
              for place, size, name, _ in cells_in(section(DATAGRAMS, "The added fields"))}  # fmt: skip
    for name, value in values.items():
        place, size = places[name]
        assert int.from_bytes(data[place : place + size], "little") == value, name


# --- HTTP ----------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_have_a_handler():
    said = set()
    for _, requests, *_ in cells_in(section(VIM_HTTP, "Commands")):
        said.update(re.findall(r"([A-Z]+) /v1/(hosts|instances)/U(?:/(\w+))?", requests))
    known = {(method, *path) for path, methods in ROUTES.items() for method in methods}
    assert {(method, what, word or None) for method, what, word in said} == known


FAILURE = re.compile(r"Failure\(\s*(\d{3}), (?:vim_http\.)?([A-Z_]+)")


def test_the_failures_are_those_that_are_raised():
    said = set()
    for statuses, reason, _ in cells_in(section(VIM_HTTP, "Failures")):
        said.update((int(status), reason.strip("`")) for status in statuses.split(", "))
    raised = set()
    for room in ("agent", "wire"):
        for path in (REPOSITORY / "guestmtce" / room).rglob("*.py"):
            for status, name in FAILURE.findall(path.read_text(encoding="utf-8")):
                raised.add((int(status), getattr(vim_http, name)))
    assert raised <= said
    assert {reason for _, reason in said} == {reason for _, reason in raised}


# --- figures -------------------------------------------------------------------------------------------


def defaults():
    """The key of a setting → its defaults, in either daemon."""
    found = {}
    for kind in (ServerSettings, AgentSettings):
        for field in dataclasses.fields(kind):
            if field.metadata["place"]:
                found.setdefault(field.metadata["place"][2], set()).add(field.default)
    return found


BESIDE = re.compile(r"([\d.,]+) (?:ms|s|instances[a-z ]*)\b[^.(]{0,12}\((?:`\[\w+\] |`)([a-z_]+)`")
BEHIND = re.compile(r"`\[\w+\] ([a-z_]+)`(?:,| \() ?([\d.]+)")


@pytest.mark.parametrize("page", [GUEST_CHANNEL, DATAGRAMS, VIM_HTTP, HOST])
def test_a_figure_beside_a_setting_is_its_default(page):
    known, text = defaults(), " ".join(text_of(page).split())
    found = BESIDE.findall(text) + [(number, key) for key, number in BEHIND.findall(text)]
    assert found
    for shown, key in found:
        number = float(shown.rstrip(".").replace(",", ""))
        assert known[key] & {number, number / 1000}, "%s is not %s" % (key, shown)
