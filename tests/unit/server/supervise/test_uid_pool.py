"""Uids from a range: never one that is in use, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from children_driver import NOBODY, ONE, ROOT, TWO, bench, gone, make_bench

from guestmtce.server.child import confine
from guestmtce.server.child.session_types import FORK_FAILED
from guestmtce.server.supervise import uid_pool

__all__ = ["bench", "make_bench"]  # fixtures

FIRST = 61200  # of a few that no system gives to anybody
IDENTITY = confine.Identity(FIRST, NOBODY.pw_gid)
as_root = pytest.mark.skipif(not ROOT, reason="only root can change its user")


@pytest.fixture
def clock(monkeypatch):
    """Seconds, at the test's will."""
    now = [1000.0]
    monkeypatch.setattr(uid_pool.time, "monotonic", lambda: now[0])
    return now


def test_each_is_taken_once_and_in_turn():
    some = uid_pool.UidPool(FIRST, FIRST + 2)
    assert [some.lease() for _ in range(3)] == [FIRST, FIRST + 1, FIRST + 2]
    with pytest.raises(OSError, match="61200-61202: each of these 3 is in use"):
        some.lease()
    some.give_back(FIRST + 1)
    assert some.lease() == FIRST + 1
    some.give_back(FIRST)
    some.give_back(FIRST + 2)
    assert some.lease() == FIRST + 2  # it is its turn


def test_one_whose_child_s_fate_is_unknown_rests(clock):
    some = uid_pool.UidPool(FIRST, FIRST)
    some.give_back_later(some.lease())
    clock[0] += uid_pool.REST - 0.1
    with pytest.raises(OSError):
        some.lease()
    clock[0] += 0.2
    assert some.lease() == FIRST


@as_root
def test_one_that_some_process_has_is_passed_over():
    sleeper = subprocess.Popen(["sleep", "60"], user=FIRST)
    try:
        some = uid_pool.UidPool(FIRST, FIRST + 1)
        assert (some.lease(), uid_pool.is_in_use(FIRST), uid_pool.is_in_use(FIRST + 1)) == (
            FIRST + 1,
            True,
            False,
        )
    finally:
        sleeper.kill()
        sleeper.wait()
    assert some.lease() == FIRST


def test_our_own_user_is_in_use():
    assert uid_pool.is_in_use(os.getuid() or 0)


def test_nothing_is_no_range():
    assert uid_pool.parse_range("") is None


@pytest.mark.parametrize("text", ["1-1", "5000-6999", "1-%d" % uid_pool.UID_MAX])
def test_a_range_is_taken(text):
    assert uid_pool.parse_range(text).text == text


@pytest.mark.parametrize(
    "text", ["0-10", "7-6", "5", "5-", "-5", "a-b", "5-6-7", "1-4294967295", "5000 - 6000", "0x5-0x9", "٣-٤٤"]
)
def test_a_bad_range_is_refused_with_what_to_write(text):
    with pytest.raises(OSError, match="client.child_uids .*: two uids A-B expected"):
        uid_pool.parse_range(text)


# --- whose range it is -----------------------------------------------------------------------------

SUBUID = """\
# a comment
alice:100000:65536
guestmtce:600000:12000
bob:%s
no such line
:::
carol:-5:x
"""
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nguestmtce:x:998:998::/:/bin/false\ndave:x:%s:100::/home/dave:/bin/sh\n"
)


@pytest.fixture
def files(tmp_path):
    """Writes both files and gives their paths."""

    def write(subuid=SUBUID % "700000:10", passwd=PASSWD % "1000"):
        paths = [tmp_path / "subuid", tmp_path / "passwd"]
        for path, text in zip(paths, (subuid, passwd)):
            path.write_text(text)
        return [str(path) for path in paths]

    return write


def test_auto_takes_the_range_of_guestmtce(files, caplog):
    assert uid_pool.choose_uids("auto", *files()).text == "600000-611999"
    assert caplog.text == ""


def test_where_guestmtce_has_no_range_one_line_says_so_with_the_remedy(files, caplog):
    assert uid_pool.choose_uids("auto", *files(subuid="alice:100000:65536\n")) is None
    assert uid_pool.choose_uids("auto", "/nowhere/subuid", "/nowhere/passwd") is None
    assert len(caplog.records) == 2
    assert (
        "children share one user: run /usr/share/guestmtce/child-uids reserve, or set client.child_uids"
        in caplog.text
    )


OTHERS = {
    "a container's uids": ((SUBUID % "611999:5", PASSWD % "1000"), "bob has uid 611999-612003"),
    "a user": ((SUBUID % "700000:1", PASSWD % "605000"), "dave has uid 605000"),
    "all there are": ((SUBUID % "0:4294967295", PASSWD % "1000"), "bob has uid 0-4294967294"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_range_that_others_have_is_refused_by_their_name(files, caplog, name):
    texts, why = OTHERS[name]
    paths = files(*texts)
    assert uid_pool.choose_uids("auto", *paths) is None
    assert "client.child_uids 600000-611999: %s: children share one user" % why in caplog.text
    with pytest.raises(OSError, match=why):
        uid_pool.choose_uids("600000-611999", *paths)


def test_next_to_others_is_fine(files):
    paths = files(SUBUID % "612000:5", PASSWD % "599999")
    assert uid_pool.choose_uids("600000-611999", *paths).text == "600000-611999"
    assert uid_pool.choose_uids("none", *paths) is uid_pool.choose_uids("", *paths) is None


# --- children with a uid each ----------------------------------------------------------------------


def real_uid(pid):
    with open("/proc/%d/status" % pid) as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))


@as_root
def test_every_child_has_its_own(make_bench):
    bench = make_bench(identity=IDENTITY, uids=uid_pool.UidPool(FIRST, FIRST + 9))
    assert [real_uid(bench.born(uuid)) for uuid in (ONE, TWO)] == [FIRST, FIRST + 1]


@as_root
def test_a_process_of_the_child_user_cannot_kill_a_child_that_has_its_own(make_bench):
    """As it could six times, and the guest rested for 60 s."""
    bench = make_bench(
        identity=confine.Identity(NOBODY.pw_uid, NOBODY.pw_gid), uids=uid_pool.UidPool(FIRST, FIRST + 9)
    )
    pid = bench.born()
    words = ["kill", "-9", str(pid)]
    done = subprocess.run(
        words, user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[], capture_output=True, check=False
    )
    assert done.returncode != 0 and b"not permitted" in done.stderr
    bench.beat()
    assert bench.ends == []


@as_root
def test_a_uid_is_free_again_when_its_child_has_been_reaped(make_bench):
    bench = make_bench(identity=IDENTITY, uids=uid_pool.UidPool(FIRST, FIRST))
    for _ in range(3):
        pid = bench.born()
        assert real_uid(pid) == FIRST
        with pytest.raises(OSError, match="in use"):
            bench.start(TWO)
        assert bench.far[TWO].recv(1) == b""
        os.kill(pid, signal.SIGKILL)
        bench.until(lambda: bench.ends)
        bench.ends.clear()
    pid = bench.born()
    bench.children.drop_child(ONE)
    bench.until(lambda pid=pid: gone(pid) and not bench.children._uid_of)
    bench.start()
    bench.children.drop_child(ONE)  # before its pid is known
    bench.until(lambda: not bench.children._uids._taken)
    assert real_uid(bench.born()) == FIRST


@as_root
def test_a_uid_rests_when_the_spawner_took_its_child_s_fate_along(make_bench):
    bench = make_bench(identity=IDENTITY, uids=uid_pool.UidPool(FIRST, FIRST + 1), spawn_timeout=1.0)
    bench.born()
    spawners = bench.children.spawner.started
    os.kill(bench.children.spawner.pid, signal.SIGSTOP)
    bench.start(TWO)
    bench.until(lambda: bench.ends)
    assert [(uuid, why) for uuid, why, _ in bench.ends] == [(TWO, FORK_FAILED)]
    bench.until(lambda: bench.children.spawner.started > spawners)
    with pytest.raises(OSError, match="in use"):
        bench.start(TWO)


def test_who_is_not_root_keeps_its_user_and_takes_no_uid(make_bench):
    bench = make_bench(identity=None, uids=uid_pool.UidPool(FIRST, FIRST))
    assert [real_uid(bench.born(uuid)) for uuid in (ONE, TWO)] == [os.getuid()] * 2
