"""The walls of the house: which room imports which, and what pure rooms know nothing of."""

from __future__ import annotations

import ast
import time

import pytest
from pure_rooms import PACKAGE, PURE, LookedAtTheWorld

# What each room may import of ours, beside itself; a room is a folder, and what is not named is its parent's.
# `cli`, `lab` and `bench` are for people and tests: no daemon imports them.
ROOMS = {
    "common": set(),
    "wire": set(),
    "daemon": {"common"},
    "peer": {"common", "wire", "daemon"},
    "guest": {"common", "wire"},
    "server/child": {"common", "wire"},
    "server/state": {"common", "wire", "server/child"},
    "server/supervise": {"common", "wire", "daemon", "server/child"},
    "server": {"common", "wire", "daemon", "peer", "server/child", "server/state", "server/supervise"},
    "agent/http": {"common", "wire", "daemon", "agent"},
    "agent": {"common", "wire", "daemon", "peer", "agent/http"},
    "lab": {"common", "wire", "daemon", "server/child"},
    "bench": {"lab", "server"},
    "cli": {"agent", "bench", "daemon", "guest", "lab", "server", "wire"},
}

# Of a room of ours these modules alone may be imported from these rooms.
DOORS = {
    ("server/state", "server/child"): {"pipe_protocol", "session_types"},
    ("agent/http", "agent"): {"inventory", "settings"},
    ("lab", "server/child"): {"confine"},
    ("bench", "server"): {"settings"},
    ("cli", "agent"): {"settings"},
    ("cli", "server"): {"settings"},
}

IMPURE = {
    *("asyncio", "io", "logging", "multiprocessing", "os", "pathlib", "select", "selectors", "signal"),
    *("socket", "subprocess", "syslog", "tempfile", "threading", "time"),
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile"}

# Only rooms that are not there yet may: guard and watch.
OPTIONAL = {"libvirt", "prometheus_client"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room_of(dotted):
    """The room of a module of ours, by its dotted name without `guestmtce`; the longest that fits."""
    parts = dotted.split(".")
    for count in (2, 1):
        room = "/".join(parts[:count])
        if room in ROOMS:
            return room
    return ""


def imports_of(path):
    """Dotted names of all that a module imports, at its top or in a function."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("%s.%s" % (node.module, alias.name) for alias in node.names)


def is_ours(parts):
    return PACKAGE.joinpath(*parts).with_suffix(".py").exists() or PACKAGE.joinpath(*parts).is_dir()


def ours(path):
    """Dotted names, without `guestmtce`, of the modules of ours that it imports."""
    for name in imports_of(path):
        parts = name.split(".")
        if parts.pop(0) != "guestmtce":
            continue
        while parts and not is_ours(parts):
            parts.pop()
        if parts:
            yield ".".join(parts)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_room_imports_only_what_it_may(path):
    room = room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for imported in ours(path):
        other = room_of(imported)
        if not room or not other or other == room:
            continue
        assert other in ROOMS[room], "%s imports %s" % (name_of(path), imported)
        allowed = DOORS.get((room, other))
        assert allowed is None or imported.split(".")[-1] in allowed, "%s imports %s" % (
            name_of(path),
            imported,
        )


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_knows_no_clock_socket_file_or_log(path):
    assert {name.split(".")[0] for name in imports_of(path)} & IMPURE == set()
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls & IMPURE_CALLS == set()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nobody_needs_libvirt_or_prometheus(path):
    assert {name.split(".")[0] for name in imports_of(path)} & OPTIONAL == set()


def test_what_the_guest_imports_is_old_python():
    """The guest client runs on Python 3.6, which knows no annotations to come."""
    for room in ("common", "guest"):
        for path in sorted((PACKAGE / room).glob("*.py")):
            assert "__future__.annotations" not in set(imports_of(path)), name_of(path)


def test_every_folder_is_a_room():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in modules()} - {"."}
    assert folders == set(ROOMS)


def test_a_pure_module_that_looks_at_the_clock_is_found_out(monkeypatch, world_that_raises):
    """What the tests of the pure rooms run in (tests/conftest.py)."""
    look = eval("lambda: __import__('time').monotonic()", {"__name__": "guestmtce.wire.datagram"})
    with pytest.raises(LookedAtTheWorld, match="guestmtce.wire.datagram calls monotonic"):
        look()
    assert time.monotonic() > 0
