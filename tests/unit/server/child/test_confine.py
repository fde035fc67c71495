"""What a child has given up, as the kernel sees it; and that none serves a guest without having done so."""

from __future__ import annotations

import array
import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios

import psutil
import pytest
from children_driver import (
    FILTER,
    GUEST,
    HAS_FILTER,
    NOBODY,
    ONE,
    ROOT,
    bench,
    make_bench,
    status,
)  # fmt: skip
from places import SUPPORT

from guestmtce.lab.cluster import wait_for
from guestmtce.server.child import confine, pipe_protocol, sandbox, session_types, spawner
from guestmtce.server.child.session_types import DIED
from guestmtce.wire import guest_channel

__all__ = ["bench", "make_bench"]  # fixtures

as_root = pytest.mark.skipif(not ROOT, reason="only root sees into a child that is not dumpable")


def opened(pid):
    folder = "/proc/%d/fd" % pid
    return {int(name): os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)}


def limits(pid):
    """/proc/<pid>/limits: a limit's name → soft, hard."""
    with open("/proc/%d/limits" % pid) as file:
        rows = [line.rstrip() for line in file][1:]
    return {row[:26].strip(): tuple(row[26:].split()[:2]) for row in rows}


def size(pid, name):
    """VmSize, VmPeak … of a process, bytes."""
    return int(status(pid)[name].split()[0]) * 1024


# --- what is left ----------------------------------------------------------------------------------


@as_root
def test_of_all_descriptors_the_socket_and_the_pipe_are_left(bench):
    os.set_inheritable(bench.loop._selector.fileno(), True)  # a leak of ours is not a leak of its
    left = opened(bench.born())
    assert sorted(left) == [0, 1]
    assert all(link.startswith("socket:") for link in left.values())


@as_root
def test_the_spawner_holds_only_what_is_known(bench):
    bench.born()
    held = opened(bench.children.spawner.pid)
    known = [link for number, link in held.items() if number > 2]
    assert {0, 1, 2} <= set(held)
    assert sum(link.startswith("socket:") for link in known) == 1
    assert all(link.startswith(("socket:", "anon_inode:[landlock", "anon_inode:landlock")) for link in known)


CLOSED = """
import os, sys
os.closerange(0, 3)
sys.path.insert(0, sys.argv[1])
from children_driver import Bench
bench = Bench()
pid = bench.born()
left = sorted(os.listdir("/proc/%d/fd" % pid))
bench.beat()
bench.close()
os.write(int(sys.argv[2]), " ".join(left).encode())
"""


@as_root
def test_a_master_without_standard_descriptors_has_children_as_any():
    near, far = os.pipe()
    words = [sys.executable, "-c", CLOSED, str(SUPPORT), str(far)]
    subprocess.run(words, pass_fds=[far], timeout=60, check=True)
    assert os.read(near, 100) == b"0 1"
    os.close(near)
    os.close(far)


@as_root
def test_a_child_has_no_rank(bench):
    pid = bench.born()
    process = psutil.Process(pid)
    assert set(process.uids()) == {NOBODY.pw_uid}
    assert set(process.gids()) == {NOBODY.pw_gid}
    facts = status(pid)
    assert facts["Groups"] == ""
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == int(facts["CapAmb"], 16) == 0
    assert os.stat("/proc/%d/environ" % pid).st_uid == 0  # not dumpable: no sibling can look inside


def test_a_child_gains_no_privileges_and_has_no_handlers_of_ours(bench):
    facts = status(bench.born())
    assert facts["NoNewPrivs"] == "1"
    # Nothing of the handlers of the master: INT is that of Python, 32 and 33 are those of an older C library.
    assert int(facts["SigCgt"], 16) & ~(1 << 1 | 3 << 31) == 0


def test_a_child_s_limits_leave_room_for_nothing_else(bench):
    pid = bench.born()
    found = limits(pid)
    for name, most in (
        ("Max open files", 2), ("Max processes", 0), ("Max core file size", 0), ("Max file size", 0)
    ):  # fmt: skip
        assert found[name] == (str(most),) * 2, name
    memory = int(found["Max address space"][1])
    assert found["Max address space"] == (str(memory),) * 2
    headroom = memory - size(bench.children.spawner.pid, "VmSize")
    assert abs(headroom - confine.MEMORY_HEADROOM) < 2**20


@pytest.mark.skipif(not HAS_FILTER, reason="this kernel has no filter")
def test_a_child_has_its_filter_and_the_spawner_none(bench):
    pid = bench.born()
    assert status(pid)["Seccomp"] == "2"
    assert status(bench.children.spawner.pid)["Seccomp"] == status(os.getpid())["Seccomp"]


def score(pid):
    with open("/proc/%s/oom_score_adj" % pid) as file:
        return int(file.read())


def test_a_child_goes_before_its_master_when_memory_is_short(bench):
    pid = bench.born()
    assert score(pid) == min(score("self") + confine.OOM_ABOVE_MASTER, confine.OOM_MOST)


def test_a_score_that_cannot_be_set_is_told(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert confine.prefer_as_oom_victim() == "no (Permission denied)"


# --- what is told ----------------------------------------------------------------------------------


def test_the_master_hears_once_what_can_be_had(bench, caplog):
    bench.until(lambda: bench.children.confinement)
    words = bench.children.confinement
    assert sorted(words) == ["landlock", "oom", "rlimits", "seccomp"]
    assert all(word == "yes" or word.startswith("no (") for word in words.values())
    told = [record for record in caplog.records if "confined without" in record.message]
    assert len(told) == any(word != "yes" for word in words.values())


def test_what_is_missing_is_logged_once_for_all_spawners(bench, caplog):
    for _ in range(3):
        bench.children._keep_confinement(
            {"seccomp": "yes", "landlock": "no (not in this kernel)", "oom": "yes"}
        )
    told = [record.message for record in caplog.records if "landlock" in record.message]
    assert told[-1:] == ["children are confined without: landlock no (not in this kernel)"]
    bench.children._keep_confinement({"seccomp": "yes"})
    assert len(told) == 1


# --- a step that fails -----------------------------------------------------------------------------

FAIL = """
from guestmtce.server.child import confine
real, refuse = confine.run_steps, confine.libc.close
def run_steps(steps):
    real([s._replace(call=lambda *_: refuse(-1)) if s.name == %r else s for s in steps])
confine.run_steps = run_steps
"""


def step_names():
    """Of every step that a child takes here."""
    before = set(os.listdir("/proc/self/fd"))
    confinement = confine.Confinement(os.getppid(), confine.Means(None, FILTER))
    for descriptor in set(os.listdir("/proc/self/fd")) - before:
        try:
            os.close(int(descriptor))
        except OSError:
            pass  # the listing's own
    return [step.name for step in confinement._steps]


@pytest.mark.parametrize("name", step_names())
def test_a_step_that_fails_ends_the_child_before_it_reads_a_byte(make_bench, monkeypatch, name):
    monkeypatch.setattr(spawner, "BOOT", spawner.BOOT.replace("; main(", "\n" + FAIL % name + "main("))
    bench = make_bench()
    bench.start()
    bench.far[ONE].send(guest_channel.build(GUEST, 1))
    bench.until(lambda: bench.ends)
    assert bench.ends == [(ONE, DIED, ": it could not start")]
    (note,) = bench.reports
    assert type(note) is session_types.Note
    assert "Unconfined" in note.text
    assert name in note.text
    with pytest.raises(ConnectionResetError):  # what it was sent was never read
        assert bench.far[ONE].recv(1000) == b""


def test_a_child_that_cannot_be_confined_serves_nobody(make_bench):
    identity = confine.Identity(2**40, 2**40) if ROOT else confine.Identity(0, 0)
    bench = make_bench(identity=identity)
    bench.start()
    bench.until(lambda: bench.ends)
    assert bench.ends == [(ONE, DIED, ": it could not start")]
    assert bench.far[ONE].recv(1000) == b""


def test_whose_master_went_at_the_wrong_moment_is_not_confined():
    with pytest.raises(confine.Unconfined, match="the parent has gone"):
        confine.die_with(1)
    confine.prctl(confine.PR_SET_PDEATHSIG, 0)


def test_last_words_are_a_report_whatever_they_are():
    near, far = os.pipe()
    spawner.send_last_words(far, OSError("\ud800" * 5000))
    report = pipe_protocol.decode_report(os.read(near, 100_000))
    assert report.text.startswith("the child failed: OSError(")
    os.close(near)
    os.close(far)


# --- what an honest child needs --------------------------------------------------------------------


def test_all_that_a_guest_can_say_at_once_fits_into_a_quarter_of_the_memory(bench):
    """A master that does not listen, so that reports pile up; a guest that says what costs most."""
    pid = bench.born()
    before = size(pid, "VmSize")
    far = bench.far[ONE]
    far.send(guest_channel.build(GUEST, 1))
    lines = [
        b"[" * 4000,
        b"{" * 4000,
        b"[]," * 1300,
        b'{"a":' * 700,
        b'"' + b"\\u0001" * 600 + b'"',
        b"1" * 4000,
    ]
    lines += [guest_channel.build(guest_channel.Exit("x" * 200), 1), guest_channel.build(GUEST, 1)]
    for _ in range(60):
        for line in lines:
            far.sendall(line.rstrip(b"\n") + b"\n")
    wait_for(lambda: far.fileno() and not _unread(far), "it has read all", 20)
    grown = size(pid, "VmPeak") - before
    assert status(pid)["Seccomp"] == ("2" if HAS_FILTER else "0")
    assert grown < confine.MEMORY_HEADROOM / 4
    bench.until(lambda: len(bench.reports) > 5)
    assert bench.ends == []


def _unread(far):
    """Bytes that the other side of a UNIX socket has not taken: SIOCOUTQ, which has TIOCOUTQ's number."""
    waiting = array.array("i", [0])
    fcntl.ioctl(far.fileno(), termios.TIOCOUTQ, waiting)
    return waiting[0] > 0


def test_a_signal_that_is_ignored_interrupts_nothing(bench):
    pid = bench.born()
    bench.beat()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    bench.answer()
    bench.serve_for(0.1)
    assert (bench.ends, bench.children.list_pids()) == ([], {ONE: pid})


def test_where_the_kernel_gives_no_random_bytes_a_file_does(monkeypatch):
    def missing(_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "getrandom", missing, raising=False)
    descriptor = confine._open_random()
    monkeypatch.setattr(confine, "RANDOM_AT", descriptor)
    assert len({confine._read_random(8) for _ in range(10)}) == 10
    os.close(descriptor)


def test_the_numbers_of_the_limits_are_the_system_s():
    for name in ("FSIZE", "CORE", "NPROC", "NOFILE", "AS"):
        assert getattr(confine, "RLIMIT_" + name) == getattr(resource, "RLIMIT_" + name)


def test_the_ruleset_is_what_the_kernel_calls_one():
    try:
        descriptor = sandbox.landlock_ruleset()
    except sandbox.Missing as why:
        pytest.skip("no Landlock: %s" % why)
    assert "landlock" in os.readlink("/proc/self/fd/%d" % descriptor)
    os.close(descriptor)
