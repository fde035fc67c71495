"""What the VIM has been told, over a restart of guestAgent."""

import errno
import os

import pytest

from guestmtce.agent import delivered_log
from guestmtce.agent.delivered_log import DeliveredLog
from guestmtce.agent.model import Origin
from guestmtce.daemon import atomic_file

NAME = "guestAgent"


def origin(number, sender=7, ip="10.0.0.1"):
    return Origin(ip, sender, number)


def path(folder):
    return os.path.join(str(folder), NAME + ".told")


def test_what_one_told_the_next_knows_whatever_the_address(tmp_path):
    first = DeliveredLog(str(tmp_path), NAME)
    for number in (1, 2, 2**32 - 1):
        first.note_delivered(origin(number))
    after = DeliveredLog(str(tmp_path), NAME)
    assert origin(1) in after and origin(2**32 - 1, ip="10.9.9.9") in after
    assert origin(3) not in after and origin(1, sender=8) not in after
    assert os.stat(path(tmp_path)).st_mode & 0o777 == 0o600


def test_what_one_was_sending_the_next_asks_about(tmp_path):
    first = DeliveredLog(str(tmp_path), NAME)
    for number in (1, 2, 3, 4):
        first.note_sending(origin(number), 10 * number)
    first.note_delivered(origin(2))
    first.note_unsent(origin(3))
    first.note_unsent(origin(5))
    assert [first.under_way(origin(number)) for number in range(1, 6)] == [10, 0, 0, 40, 0]
    assert first.sent_to(origin(1)) is None  # it is this one that sends it
    after = DeliveredLog(str(tmp_path), NAME)
    assert [after.sent_to(origin(number)) for number in range(1, 6)] == [10, None, None, 40, None]
    assert [origin(number) in after for number in range(1, 6)] == [False, True, False, False, False]
    assert after.sent_to(None) is None
    after.note_delivered(origin(1))
    assert DeliveredLog(str(tmp_path), NAME).sent_to(origin(1)) is None


def test_of_which_disabling_no_server_has_heard_the_next_knows(tmp_path, monkeypatch):
    first = DeliveredLog(str(tmp_path), NAME)
    uuids = ["%08x-0000-4000-8000-000000000000" % number for number in range(4)]
    for uuid in uuids[:3]:
        first.note_disabling(uuid)
    first.note_disabling(uuids[0])
    first.note_disabling_heard(uuids[1])
    first.note_disabling_heard(uuids[3])
    first.note_delivered(origin(1))
    after = DeliveredLog(str(tmp_path), NAME)
    assert after.unheard_before == {uuids[0], uuids[2]} and origin(1) in after
    monkeypatch.setattr(delivered_log, "KEPT", 2)
    for number in range(20):
        after.note_delivered(origin(number))
    after.note_disabling(uuids[3])  # the oldest makes room
    again = DeliveredLog(str(tmp_path), NAME)
    assert again.unheard_before == {uuids[2], uuids[3]}
    with open(path(tmp_path), "a", encoding="ascii") as file:
        file.write("on %s\noff %s\noff %s" % (uuids[2], uuids[1][:9], uuids[1][:9]))
    assert DeliveredLog(str(tmp_path), NAME).unheard_before == {uuids[3]}


def test_what_another_controller_was_sending_is_known_until_the_end(tmp_path):
    one = DeliveredLog(str(tmp_path), NAME)
    one.note_sending_elsewhere(origin(1), 10)
    assert one.sent_to(origin(1)) == one.under_way(origin(1)) == 10
    assert DeliveredLog(str(tmp_path), NAME).sent_to(origin(1)) == 10
    one.note_delivered(origin(2))
    after = DeliveredLog(str(tmp_path), NAME)
    after.note_sending_elsewhere(origin(2), 10)  # this controller has told it
    assert origin(2) in after and after.sent_to(origin(2)) is None


@pytest.mark.parametrize("trouble", ["removed", "broken off"])
def test_a_file_that_was_removed_or_broken_is_written_anew(tmp_path, trouble):
    one = DeliveredLog(str(tmp_path), NAME)
    one.note_sending(origin(1), 10)
    if trouble == "removed":
        os.unlink(path(tmp_path))
    else:
        with open(path(tmp_path), "a", encoding="ascii") as file:
            file.write("7 2 sen")
        one = DeliveredLog(str(tmp_path), NAME)
    one.note_delivered(origin(3))
    after = DeliveredLog(str(tmp_path), NAME)
    assert after.sent_to(origin(1)) == 10 and origin(3) in after and origin(2) not in after


def test_a_full_disk_leaves_the_file_to_be_written_anew(tmp_path, monkeypatch):
    one = DeliveredLog(str(tmp_path), NAME)
    one.note_sending(origin(1), 10)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: 3)
        full.setattr(delivered_log.atomic_file, "write_atomically", _full)
        one.note_delivered(origin(2))
    one.note_delivered(origin(3))
    after = DeliveredLog(str(tmp_path), NAME)
    assert after.sent_to(origin(1)) == 10 and origin(2) in after and origin(3) in after


def _full(*_):
    raise OSError(28, "No space left on device")


def test_the_file_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(delivered_log, "KEPT", 10)
    for first in (1, 36):
        one = DeliveredLog(str(tmp_path), NAME)
        for number in range(first, first + 35):
            one.note_delivered(origin(number))
            with open(path(tmp_path), encoding="ascii") as file:
                assert len(file.readlines()) <= 30
    after = DeliveredLog(str(tmp_path), NAME)
    assert all(origin(number) in after for number in range(61, 71))
    assert origin(40) not in after


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"7",
        b"7 1",
        b"7 1 sent\n",
        b"7 1 sending x\n",
        b"7 1 sending\n",
        b"7 x\n",
        b"7 1 1\n",
        b"\xff\xfe\n\n",
        b"7 1\x00\n",
        b"7\n1\n",
        b"x" * 1_000_000,
    ],
)
def test_a_damaged_file_is_read_as_far_as_it_is_whole(tmp_path, text):
    with open(path(tmp_path), "wb") as file:
        file.write(b"7 5\n" + text)
    one = DeliveredLog(str(tmp_path), NAME)
    assert origin(5) in one and origin(1) not in one
    one.note_delivered(origin(6))


@pytest.mark.parametrize("trouble", ["a folder", "a link", "no folder"])
def test_trouble_with_the_file_is_logged_and_costs_nothing_else(tmp_path, caplog, trouble):
    folder = tmp_path / "run"
    if trouble != "no folder":
        folder.mkdir()
    if trouble == "a folder":
        os.mkdir(path(folder))
    elif trouble == "a link":
        os.symlink("/etc/hostname", path(folder))
    one = DeliveredLog(str(folder), NAME)
    for number in range(3):
        one.note_delivered(origin(number))
    troubles = sum("cannot write" in record.message for record in caplog.records)
    assert troubles == (0 if trouble == "a link" else 1)
    assert not os.path.islink(path(folder))  # it was replaced, and what it names was not touched


def test_on_a_full_file_system_no_alarm_stays_noted_as_under_way(tmp_path, monkeypatch):
    """The next agent would ask about it, and take the VIM's answer for a proof that the VIM has it."""
    one = DeliveredLog(str(tmp_path), NAME)
    one.note_sending(origin(1), 5)

    def no_room(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(atomic_file, "write_atomically", no_room)
    monkeypatch.setattr(DeliveredLog, "_append_line", lambda *_: False)
    one.note_unsent(origin(1))
    assert DeliveredLog(str(tmp_path), NAME).sent_to(origin(1)) is None
