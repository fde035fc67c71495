"""What is remembered over a restart, and what damaged or foreign files do: nothing."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import stat
import zlib

import pytest

from guestmtce.daemon import atomic_file
from guestmtce.server import state_store as store_module
from guestmtce.server.state.guest import ILLNESS, LOSS, OUTCOME, STATE, GuestMemory, PendingEvent, PendingKey
from guestmtce.server.state_store import ALIVE, HOST, SENDER, Store
from guestmtce.wire import datagram, guest_channel, json_lines

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
INIT = guest_channel.Init(1804289383, 'n"\né', 1000, 8, 9, 11, 13, 120, "reboot")
INFO = datagram.InstanceInfo("host-0", UUID, True, False, "reboot", 120, 9, 11, 13, 8)
VOTE = datagram.VoteResult("host-0", UUID, "revocable", "stop", "reject", 'no "way"\n\u00e9')
PENDING = (
    (PendingKey(UUID, LOSS), PendingEvent(2**32 - 1, datagram.LOSS, INFO)),
    (PendingKey(UUID, STATE), PendingEvent(1, datagram.STOPPED, INFO)),
    (PendingKey(UUID, OUTCOME, 3), PendingEvent(2, datagram.VOTE_NOTIFY, VOTE, until=1034.5)),
)
QUESTIONS = ((1, "revocable", "stop", 77.5), (2, "irrevocable", "pause", 78.0))
MEMORY = GuestMemory(UUID, True, False, INIT, True, True, 1234.5, (1, 2), PENDING, QUESTIONS)
NEVER = -float("inf")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "guestServer.guests"


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path), "guestServer")


@pytest.fixture
def full(monkeypatch):
    """Call it with the names of what fails from then on, without names to make room again."""

    def fail(path, *_):
        raise OSError(28, "No space left on device", path)

    def fill(*names):
        monkeypatch.undo()
        for name in names:
            monkeypatch.setattr(atomic_file, name, fail)

    return fill


def write(path, values, crc=None):
    """A file as the store writes it, with any content."""
    text = values if isinstance(values, str) else json.dumps({"boot": store_module.boot_id(), **values})
    path.write_text("%08x %s\n" % (zlib.crc32(text.encode()) if crc is None else crc, text))


def named(memory, uuid):
    """The same of another guest."""
    pending = tuple((key._replace(uuid=uuid), event) for key, event in memory.pending)
    return memory._replace(uuid=uuid, pending=pending)


def values_of(memory):
    """What stands in a file of it."""
    return store_module._values(memory)


@pytest.mark.parametrize(
    "memory",
    [
        MEMORY,
        MEMORY._replace(init=None, socket_identity=None, silence_until=NEVER),
        GuestMemory(UUID, False, True, INIT, False, False, 0.0),
    ],
)
def test_what_is_saved_is_loaded_by_the_next_daemon(store, tmp_path, memory):
    store.save_guest(MEMORY._replace(owes_answer=False))
    store.save_guest(memory)
    store.save_guest(named(memory, OTHER))
    again = Store(str(tmp_path), "guestServer")
    assert again.load_guests() == [memory, named(memory, OTHER)]
    again.forget_guest(UUID)
    again.forget_guest(UUID)
    assert [one.uuid for one in again.load_guests()] == [OTHER]


def test_a_memory_of_an_earlier_version_is_taken(store, folder):
    values = values_of(MEMORY)
    for name in ("ident", "untold", "questions"):
        del values[name]
    write(folder / UUID, values)
    assert store.load_guests() == [MEMORY._replace(socket_identity=None, pending=(), questions=())]


def test_the_most_that_can_be_pending_is_remembered(store):
    reason = VOTE._replace(reason="\U0001f600" * json_lines.LOG_MSG_MAX)
    shortened = datagram.event_of(datagram.VOTE_NOTIFY, datagram.event_body(reason))
    entries = [
        (PendingKey(UUID, OUTCOME, n), PendingEvent(n, datagram.VOTE_NOTIFY, reason)) for n in range(16)
    ]
    memory = MEMORY._replace(pending=(*PENDING[:2], *entries))
    store.save_guest(memory)
    (loaded,) = store.load_guests()
    assert loaded._replace(pending=()) == memory._replace(pending=())
    assert loaded.pending == (
        *PENDING[:2],
        *((key, event._replace(event=shortened)) for key, event in entries),
    )


def test_the_folder_and_files_are_for_us_alone(store, folder):
    store.save_guest(MEMORY)
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
    store.save_guest(MEMORY)
    (folder / UUID).write_bytes(damage((folder / UUID).read_bytes()))
    assert store.load_guests() == []
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
        {"untold": None},
        {"untold": 5},
        {"untold": ["abcd"]},
        {"untold": [["state", 1, datagram.STOPPED]]},
        {"untold": [["state", 1, datagram.STOPPED, {}]]},
        {"untold": [["state", "x", datagram.STOPPED, datagram.event_body(INFO)]]},
        {"untold": [["state", 1, 0x77, datagram.event_body(INFO)]]},
        {"untold": [["state", 1, float("inf"), datagram.event_body(INFO)]]},
        {"untold": [["state", 1, datagram.STOPPED, {"uuid": UUID}]]},
        {"untold": [["state", 1, datagram.STOPPED, "x"]]},
        {"questions": None},
        {"questions": [[1, "revocable", "stop"]]},
        {"questions": [[1, "revocable", "dance", 1.0]]},
        {"questions": [[1, "rev", "stop", 1.0]]},
        {"questions": [[1, ["revocable"], "stop", 1.0]]},
        {"questions": [[1, "revocable", "stop", "soon"]]},
    ],
)
def test_a_sound_file_with_wrong_content_is_ignored(store, folder, change):
    write(folder / UUID, {**values_of(MEMORY), **change})
    write(folder / OTHER, {**values_of(MEMORY), "uuid": OTHER})
    assert [one.uuid for one in store.load_guests()] == [OTHER]


@pytest.mark.parametrize("text", ["[]", "7", "null", "[" * 5000, '"x"', "{}"])
def test_sound_files_without_our_object_are_ignored(store, folder, text):
    write(folder / UUID, text)
    write(folder / ALIVE, text)
    assert store.load_guests() == []
    assert store.alive_at() == NEVER


def test_an_instance_is_remembered_under_its_uuid_in_lower_case_only(store, folder):
    """A release that took an upper-case name for another instance may have left it."""
    lower, upper = "abcdef00-0000-4000-8000-00000000abcd", "ABCDEF00-0000-4000-8000-00000000ABCD"
    for uuid in (lower, upper):
        write(folder / uuid, values_of(named(MEMORY, uuid)))
    assert [memory.uuid for memory in store.load_guests()] == [lower]
    assert os.listdir(folder) == [lower]


def test_words_are_not_taken_for_truth(store, folder):
    change = {"provisioned": "true", "reporting": 1, "owes_answer": "yes"}
    write(folder / UUID, {**values_of(MEMORY), **change})
    (memory,) = store.load_guests()
    assert (memory.provisioned, memory.reporting, memory.owes_answer) == (False, False, False)


def test_only_plain_files_named_by_a_uuid_are_read(store, folder, tmp_path):
    store.save_guest(MEMORY)
    os.rename(folder / UUID, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / UUID)
    os.mkfifo(folder / OTHER)
    (folder / UUID.replace("1", "2")).mkdir()
    for name in ("x", ".." + UUID, UUID + ".1.tmp", UUID + "\n"):
        (folder / name).write_text((tmp_path / "elsewhere").read_text())
    assert store.load_guests() == []
    assert (tmp_path / "elsewhere").exists()
    assert not (folder / OTHER).exists()


def test_alive(store, tmp_path):
    assert store.alive_at() == NEVER
    store.mark_alive(77.25)
    assert Store(str(tmp_path), "guestServer").alive_at() == 77.25
    store.save_guest(MEMORY)
    assert store.load_guests() == [MEMORY]


@pytest.mark.parametrize("mark", [{"at": "x"}, {}, {"at": None}, {"at": 10**400}, {"at": 5.0, "boot": "old"}])
def test_a_bad_mark_of_life_is_none(store, folder, mark):
    write(folder / ALIVE, mark)
    assert store.alive_at() == NEVER


# --- the host and the numbers ----------------------------------------------------------------------


def test_the_host_reporting_is_enabled_until_it_is_known_to_be_disabled(store, folder, tmp_path):
    assert store.host_reporting() is True
    for reporting in (False, True, False):
        store.save_host(reporting)
        assert Store(str(tmp_path), "guestServer").host_reporting() is reporting
    write(folder / HOST, {"reporting": False, "boot": "old"})
    assert store.host_reporting() is True
    assert store.load_guests() == []


def test_the_sender_stays_and_no_number_is_given_twice(store, tmp_path):
    sender, first = store.sender(), store.reserve_sequences(10)
    assert 0 < sender < 2**32 and first > 0
    assert (store.sender(), store.reserve_sequences(5)) == (sender, first + 10)
    again = Store(str(tmp_path), "guestServer")
    assert (again.sender(), again.reserve_sequences(1)) == (sender, first + 15)


@pytest.mark.parametrize(
    "damage",
    [
        {"boot": "old"}, {"sender": 0}, {"sender": 2**32}, {"sender": "x"}, {"sender": None},
        {"next": 0}, {"next": "x"}, {"next": None}, "[]", None,
    ],
)  # fmt: skip
def test_whose_numbers_are_not_known_is_another_sender(store, folder, tmp_path, damage):
    sender = store.sender()
    store.reserve_sequences(10)
    if damage is None:
        (folder / SENDER).unlink()
    else:
        change = damage if isinstance(damage, str) else {"sender": sender, "next": 11, **damage}
        write(folder / SENDER, change)
    again = Store(str(tmp_path), "guestServer")
    assert again.sender() != sender
    assert again.sender() == Store(str(tmp_path), "guestServer").sender()


def test_numbers_that_cannot_be_reserved_are_not_given_by_the_next_daemon(store, tmp_path, full):
    sender, first = store.sender(), store.reserve_sequences(10)
    full("write_atomically", "write_in_place")
    assert [store.reserve_sequences(10), store.reserve_sequences(10)] == [first + 10, first + 20]
    assert store.sender() == sender
    assert Store(str(tmp_path), "guestServer").sender() != sender


# --- trouble ---------------------------------------------------------------------------------------


NEWER = MEMORY._replace(reporting=True, heartbeating=False)


def test_where_there_is_no_room_for_a_second_file_the_old_one_is_written_over(store, folder, full):
    store.save_guest(MEMORY._replace(pending=()))
    full("write_atomically")
    for memory in (MEMORY, NEWER._replace(pending=())):  # one that is longer, one that is shorter
        store.save_guest(memory)
        assert store.load_guests() == [memory]
    assert (os.listdir(folder), store.unsaved) == ([UUID], {})


def test_what_cannot_be_written_is_not_remembered_wrongly_and_is_written_when_it_can_be(
    store, folder, full, caplog
):
    store.save_guest(MEMORY)
    full("write_atomically", "write_in_place")
    store.save_guest(MEMORY._replace(owes_answer=False))
    store.save_guest(NEWER)
    assert (os.listdir(folder), list(store.unsaved)) == ([], [UUID])
    assert not store.save_again()
    assert (
        "cannot write, trying again: [Errno 28] No space left on device: '%s'" % (folder / UUID)
        in caplog.text
    )
    assert len(caplog.records) == 1
    full()
    assert not store.save_again()
    assert (store.load_guests(), store.unsaved) == ([NEWER], {})


def test_one_guest_forgotten_or_saved_meanwhile_is_not_written_again(store, folder, full):
    full("write_atomically", "write_in_place")
    for uuid in (UUID, OTHER):
        store.save_guest(named(MEMORY, uuid))
    store.forget_guest(UUID)
    full()
    store.save_guest(named(NEWER, OTHER))
    assert store.unsaved == {}
    assert store.load_guests() == [named(NEWER, OTHER)]


def test_what_cannot_be_forgotten_is_forgotten_when_it_can_be(store, folder, full):
    store.save_guest(MEMORY)
    full("remove")
    store.forget_guest(UUID)
    assert (store.unsaved, os.listdir(folder)) == ({UUID: None}, [UUID])
    assert not store.save_again()
    full()
    assert not store.save_again()
    assert (store.unsaved, os.listdir(folder)) == ({}, [])


def uuids(count):
    return ["%08x%s" % (number, UUID[8:]) for number in range(count)]


def test_one_failure_a_look_and_no_more_than_some_files_a_turn(store, folder, full, monkeypatch):
    monkeypatch.setattr(store_module, "SAVED_A_TURN", 4)
    full("write_atomically", "write_in_place")
    for uuid in uuids(10):
        store.save_guest(named(MEMORY, uuid))
    tried = []
    monkeypatch.setattr(
        atomic_file, "write_or_overwrite", lambda path, *_: (tried.append(path), full_disk(path))
    )
    assert not store.save_again()
    assert (len(tried), len(store.unsaved)) == (1, 10)
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "SAVED_A_TURN", 4)
    assert [store.save_again(), len(os.listdir(folder))] == [True, 4]
    assert [store.save_again(), store.save_again(), len(os.listdir(folder))] == [True, False, 10]


def full_disk(path):
    raise OSError(28, "No space left on device", path)


def test_what_was_cleaned_away_is_written_anew_and_once_more(store, folder, tmp_path):
    assert not store.was_cleaned()
    store.mark_alive(1.0)
    store.save_host(False)
    sender, first = store.sender(), store.reserve_sequences(3)
    store.save_guest(MEMORY)
    assert not store.was_cleaned()
    shutil.rmtree(tmp_path)
    for _ in range(2):
        assert store.was_cleaned()
        store.save_anew([MEMORY])
        store.mark_alive(2.0)
        store.save_again()
    assert not store.was_cleaned()
    again = Store(str(tmp_path), "guestServer")
    assert (again.load_guests(), again.host_reporting(), again.alive_at()) == ([MEMORY], False, 2.0)
    assert (again.sender(), again.reserve_sequences(1)) == (sender, first + 3)


def test_what_there_was_no_room_for_was_not_cleaned_away(store, folder, full):
    store.mark_alive(1.0)
    full("write_atomically", "write_in_place")
    store.mark_alive(2.0)
    assert (os.listdir(folder), store.was_cleaned()) == ([], False)
    full()
    shutil.rmtree(folder)
    assert store.was_cleaned()
    store.save_anew([MEMORY])
    store.mark_alive(3.0)
    assert not store.save_again()
    assert store.load_guests() == [MEMORY]


def test_what_a_killed_daemon_has_half_written_is_removed_at_the_start(store, folder, tmp_path):
    store.save_guest(MEMORY)
    for name in (UUID + ".77.tmp", ALIVE + ".1.tmp"):
        (folder / name).write_text("x")
    assert Store(str(tmp_path), "guestServer").load_guests() == [MEMORY]
    assert os.listdir(folder) == [UUID]


def test_later_trouble_with_the_folder_is_survived(store, folder):
    (folder / UUID).mkdir()
    store.save_guest(MEMORY)
    store.forget_guest(UUID)
    assert store.load_guests() == []
    (folder / UUID).rmdir()
    for name in os.listdir(folder):
        (folder / name).unlink()
    folder.rmdir()
    store.save_guest(MEMORY)
    store.mark_alive(1.0)
    store.forget_guest(UUID)
    assert (store.load_guests(), store.alive_at()) == ([], NEVER)


def test_the_constructor_says_when_there_can_be_no_folder(tmp_path):
    (tmp_path / "guestServer.guests").write_text("")
    with pytest.raises(OSError):
        Store(str(tmp_path), "guestServer")


# --- other releases, other kernels -----------------------------------------------------------------

# As the release before keys and kinds had their present names in the code has left it.
RECORDED = pathlib.Path(__file__).parent / "recorded"
BOOT_OF_RECORDED = "btime 1700000000"


def recorded_memories():
    first, second, third = ("1111111%d-2222-3333-4444-555555555555" % last for last in (1, 2, 3))
    note = datagram.VoteResult("host-0", first, "irrevocable", "pause", "complete", "no answer in time")
    ill = INFO._replace(uuid=second, heartbeating=True)
    return [
        GuestMemory(
            first, True, True, INIT, False, False, NEVER, (64768, 1234567, 1700000001),
            (
                (PendingKey(first, OUTCOME, 3), PendingEvent(41, datagram.VOTE_NOTIFY, VOTE, until=1034.5)),
                (PendingKey(first, LOSS), PendingEvent(2**32 - 1, datagram.LOSS, INFO)),
                (PendingKey(first, STATE), PendingEvent(42, datagram.STOPPED, INFO)),
                (PendingKey(first, OUTCOME, 12), PendingEvent(43, datagram.VOTE_NOTIFY, note, until=1040.25)),
            ),
            ((13, "revocable", "stop", 77.5), (14, "irrevocable", "pause", 78.0)), True, 90.5,
        ),
        GuestMemory(
            second, True, True, INIT._replace(corrective_action="stop"), True, True, 1234.5, (64768, 7, 8),
            (
                (PendingKey(second, STATE), PendingEvent(51, datagram.RUNNING, ill)),
                (
                    PendingKey(second, ILLNESS),
                    PendingEvent(52, datagram.ILLHEALTH, ill._replace(repair_action="stop")),
                ),
            ),
            (), True, NEVER, 1200.5,
        ),
        GuestMemory(third, False, False, None, False, False, NEVER),
    ]  # fmt: skip


def test_files_of_the_release_before_the_names_changed_are_read_and_written_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "boot_id", lambda: BOOT_OF_RECORDED)
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    store = Store(str(tmp_path), "guestServer")
    assert store.load_guests() == recorded_memories()
    for memory in recorded_memories():
        store.save_guest(memory)
        name = "guestServer.guests/" + memory.uuid
        assert (tmp_path / name).read_bytes() == (RECORDED / name).read_bytes()


OF_2026_11 = (
    '{"boot": "6f1c", "uuid": "11111111-2222-3333-4444-555555555555", "provisioned": true, '
    '"reporting": true, "init": [7, "g", 1000, 9, 9, 9, 14, 601, "reboot"], "heartbeating": true, '
    '"owes_answer": true, "silence_until": 1234.5, "ident": [1, 2], '
    '"untold": [["failure", 9, 65197, {"hostname": "host-0", '
    '"uuid": "11111111-2222-3333-4444-555555555555", "reporting": "enabled", "heartbeating": "disabled", '
    '"repair-action": "reboot", "restart-to": "120", "shutdown-to": "9", "suspend-to": "11", '
    '"resume-to": "13", "vote-to": "8"}]], "questions": [[1, "revocable", "stop", 77.5]]}'
)


def test_a_file_of_the_release_of_november_2026_is_read(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(store_module, "boot_id", lambda: "6f1c")
    store = Store(str(tmp_path), "guestServer")
    write(folder / UUID, OF_2026_11)
    write(folder / SENDER, '{"boot": "6f1c", "sender": 5, "next": 21}')
    write(folder / ALIVE, '{"boot": "6f1c", "at": 1230.5}')
    write(folder / HOST, '{"boot": "6f1c", "reporting": false}')
    init = guest_channel.Init(7, "g", 1000, 9, 9, 9, 14, 601, "reboot")
    pending = ((PendingKey(UUID, LOSS), PendingEvent(9, datagram.LOSS, INFO)),)
    questions = ((1, "revocable", "stop", 77.5),)
    (memory,) = store.load_guests()
    assert (
        memory[:10]
        == GuestMemory(UUID, True, True, init, True, True, 1234.5, (1, 2), pending, questions)[:10]
    )
    assert (store.sender(), store.alive_at(), store.host_reporting()) == (5, 1230.5, False)


def test_what_a_later_release_has_added_is_ignored(store, folder):
    values = values_of(MEMORY)
    values["untold"] = [[*entry, "more"] for entry in values["untold"]]
    values["questions"] = [[*entry, "more"] for entry in values["questions"]]
    values["init"] = [*values["init"], 5]
    write(folder / UUID, {**values, "mood": "good"})
    assert store.load_guests() == [MEMORY]


def test_without_a_boot_id_the_time_of_the_boot_tells_one_from_another(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "BOOT_ID_FILE", str(tmp_path / "none"))
    store = Store(str(tmp_path), "guestServer")
    store.save_guest(MEMORY)
    assert Store(str(tmp_path), "guestServer").load_guests() == [MEMORY]
    assert "cannot read %s" % (tmp_path / "none") in caplog.text
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 77\n")
    monkeypatch.setattr(store_module, "STATISTICS_FILE", str(tmp_path / "stat"))
    assert Store(str(tmp_path), "guestServer").load_guests() == []
    monkeypatch.setattr(store_module, "STATISTICS_FILE", str(tmp_path / "none"))
    assert store_module.boot_id() != store_module.boot_id()


def test_the_followed_agent_is_remembered(tmp_path):
    one = Store(str(tmp_path), "guestServer")
    assert one.followed_agent() == ""
    one.save_agent("10.0.0.1")
    assert Store(str(tmp_path), "guestServer").followed_agent() == "10.0.0.1"
