"""What is remembered over a restart, and what damaged or foreign files do: nothing."""

from __future__ import annotations

import json
import os
import stat
import zlib

import pytest

from guestmtce.daemon import files
from guestmtce.server import store as store_module
from guestmtce.server.store import ALIVE, Memory, Store
from guestmtce.wire import channel

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
INIT = channel.Init(1804289383, 'n"\né', 1000, 8, 9, 11, 13, 120, "reboot")
MEMORY = Memory(UUID, True, False, INIT, True, 1234.5, (1, 2))
NEVER = -float("inf")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "guestServer.guests"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path), "guestServer")


def write(path, values, crc=None):
    """A file as the store writes it, with any content."""
    text = values if isinstance(values, str) else json.dumps({"boot": store_module.boot_id(), **values})
    path.write_text("%08x %s\n" % (zlib.crc32(text.encode()) if crc is None else crc, text))


def values_of(memory):
    return {**memory._asdict(), "init": list(memory.init) if memory.init else None}


@pytest.mark.parametrize(
    "memory",
    [
        MEMORY,
        MEMORY._replace(init=None, ident=None, silence_until=NEVER),
        Memory(UUID, False, True, INIT, False, 0.0),
    ],
)
def test_what_is_saved_is_loaded_by_the_next_daemon(store, tmp_path, memory):
    store.save(MEMORY._replace(owes_answer=False))
    store.save(memory)
    store.save(memory._replace(uuid=OTHER))
    again = Store(str(tmp_path), "guestServer")
    assert again.load() == [memory, memory._replace(uuid=OTHER)]
    again.forget(UUID)
    again.forget(UUID)
    assert [one.uuid for one in again.load()] == [OTHER]


def test_a_memory_without_an_identity_is_taken(store, folder):
    values = values_of(MEMORY)
    del values["ident"]
    write(folder / UUID, values)
    assert store.load() == [MEMORY._replace(ident=None)]


def test_the_folder_and_files_are_for_us_alone(store, folder):
    store.save(MEMORY)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / UUID).stat().st_mode) == 0o600
    assert os.listdir(folder) == [UUID]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: data.replace(b"true", b"fals"),
        lambda data: b"00000000" + data[8:],
        lambda data: b"zz" + data,
        lambda data: data[9:],
        lambda data: b"\xff" * 100,
        lambda data: b"\0" * 9000,
        lambda data: data + b" " * 9000 + b"x",
    ],
)
def test_a_damaged_file_is_ignored_and_removed(store, folder, damage):
    store.save(MEMORY)
    (folder / UUID).write_bytes(damage((folder / UUID).read_bytes()))
    assert store.load() == []
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "change",
    [
        {"boot": "another"},
        {"uuid": OTHER},
        {"uuid": None},
        {"init": 7},
        {"init": list(INIT)[:-1]},
        {"init": [str(value) for value in INIT]},
        {"init": [*list(INIT)[:3], -1, *list(INIT)[4:]]},
        {"silence_until": "soon"},
        {"silence_until": None},
        {"silence_until": 10**400},
        {"ident": 5},
        {"ident": ["x"]},
        {"ident": [float("inf")]},
    ],
)
def test_a_sound_file_with_wrong_content_is_ignored(store, folder, change):
    write(folder / UUID, {**values_of(MEMORY), **change})
    write(folder / OTHER, {**values_of(MEMORY), "uuid": OTHER})
    assert [one.uuid for one in store.load()] == [OTHER]


@pytest.mark.parametrize("text", ["[]", "7", "null", "[" * 5000, '"x"', "{}"])
def test_sound_files_without_our_object_are_ignored(store, folder, text):
    write(folder / UUID, text)
    write(folder / ALIVE, text)
    assert store.load() == []
    assert store.alive_at() == NEVER


def test_words_are_not_taken_for_truth(store, folder):
    change = {"provisioned": "true", "reporting": 1, "owes_answer": "yes"}
    write(folder / UUID, {**values_of(MEMORY), **change})
    (memory,) = store.load()
    assert (memory.provisioned, memory.reporting, memory.owes_answer) == (False, False, False)


def test_only_plain_files_named_by_a_uuid_are_read(store, folder, tmp_path):
    store.save(MEMORY)
    os.rename(folder / UUID, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / UUID)
    os.mkfifo(folder / OTHER)
    (folder / UUID.replace("1", "2")).mkdir()
    for name in ("x", ".." + UUID, UUID + ".1.tmp", UUID + "\n"):
        (folder / name).write_text((tmp_path / "elsewhere").read_text())
    assert store.load() == []
    assert (tmp_path / "elsewhere").exists()
    assert not (folder / OTHER).exists()


def test_alive(store, tmp_path):
    assert store.alive_at() == NEVER
    store.mark_alive(77.25)
    assert Store(str(tmp_path), "guestServer").alive_at() == 77.25
    store.save(MEMORY)
    assert store.load() == [MEMORY]


@pytest.mark.parametrize("mark", [{"at": "x"}, {}, {"at": None}, {"at": 10**400}, {"at": 5.0, "boot": "old"}])
def test_a_bad_mark_of_life_is_none(store, folder, mark):
    write(folder / ALIVE, mark)
    assert store.alive_at() == NEVER


def test_a_failed_write_leaves_the_old_memory(store, folder, monkeypatch):
    store.save(MEMORY)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    store.save(MEMORY._replace(reporting=True))
    assert store.load() == [MEMORY]
    assert os.listdir(folder) == [UUID]


def test_later_trouble_with_the_folder_is_survived(store, folder):
    (folder / UUID).mkdir()
    store.save(MEMORY)
    store.forget(UUID)
    assert store.load() == []
    (folder / UUID).rmdir()
    for name in os.listdir(folder):
        (folder / name).unlink()
    folder.rmdir()
    store.save(MEMORY)
    store.mark_alive(1.0)
    store.forget(UUID)
    assert (store.load(), store.alive_at()) == ([], NEVER)


def test_the_constructor_says_when_there_can_be_no_folder(tmp_path):
    (tmp_path / "guestServer.guests").write_text("")
    with pytest.raises(OSError):
        Store(str(tmp_path), "guestServer")
