"""The spawner: what it must not hold, and what becomes of its children when it fails; and life over time."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from children_driver import MEANS, ONE, ROOT, TWO, Impostor, bench, make_bench
from titles import has_title

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.guest import uuid_of
from guestmtce.lab.pace import within
from guestmtce.server.child import page_layout, session_types, spawner
from guestmtce.server.child.session_types import FORK_FAILED
from guestmtce.server.supervise import spawner_client, spawner_code

__all__ = ["bench", "make_bench"]  # fixtures


ARGUMENTS = [
    json.dumps(vars(session_types.SessionSettings())),
    spawner.encode_means(MEANS._replace(identity=None)),
    page_layout.LAID_OUT,
]

HOOKS = """
import os, sys
hooks, real = [], os.register_at_fork
def register(**hook):
    hooks.append(sys._getframe(1).f_globals["__name__"])
    real(**hook)
os.register_at_fork = register
%s
import json
print(json.dumps([hooks, sorted(sys.modules)]))
"""


def test_the_spawner_has_no_fork_hooks_and_none_of_the_master_s_modules():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.set_inheritable(theirs.fileno(), True)
    ours.close()  # it serves nobody, and returns
    words = [sys.executable, "-I", "-S", "-c", HOOKS % spawner.BOOT, spawner_code.import_path()]
    words += [str(theirs.fileno()), str(os.getpid()), *ARGUMENTS]
    done = subprocess.run(words, capture_output=True, close_fds=False, timeout=60, check=False)
    theirs.close()
    assert done.stderr == b""
    hooks, modules = json.loads(done.stdout)
    assert hooks == []
    unwanted = {"random", "pyinotify", "cherrypy", "requests", "psutil", "subprocess", "multiprocessing"}
    assert unwanted & set(modules) == set()
    assert {name for name in modules if name.partition(".")[0] == "guestmtce"} == set(spawner_code.MODULES)


def test_what_an_imported_module_registers_for_a_fork_is_dropped(tmp_path):
    """As modules of a later Python may do."""
    (tmp_path / "setproctitle.py").write_text("import os; os.register_at_fork(before=id); setproctitle = id")
    load = "import sys; sys.path[:0] = sys.argv[1].split(':'); from guestmtce.server.child import preload"
    path = "%s:%s" % (tmp_path, spawner_code.import_path())
    words = [sys.executable, "-I", "-S", "-c", HOOKS % load, path]
    done = subprocess.run(words, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)[0] == []


# --- a spawner that is not what it should be -------------------------------------------------------


def test_a_killed_spawner_is_replaced_and_its_children_live_on(bench):
    pid = bench.born()
    bench.beat()
    old = bench.children.spawner.pid
    os.kill(old, signal.SIGKILL)
    bench.until(lambda: bench.children.spawner.pid not in (old, 0))
    assert bench.children.spawner.started == 2
    bench.answer()
    bench.born(TWO)
    assert bench.children.list_pids()[ONE] == pid
    assert bench.ends == []


def test_while_there_is_no_spawner_a_start_fails_at_once_and_closes_the_channel(bench):
    os.kill(bench.children.spawner.pid, signal.SIGKILL)
    bench.until(lambda: bench.children.spawner.pid == 0)
    with pytest.raises(OSError, match="no spawner"):
        bench.start()
    assert bench.far[ONE].recv(1) == b""
    bench.until(lambda: bench.children.spawner.pid)
    bench.born()


def test_a_spawner_that_cannot_be_started_is_tried_again(bench, monkeypatch):
    starts, real = [], os.posix_spawn

    def spawn(*arguments, **named):
        starts.append(time.monotonic())
        if len(starts) < 3:
            raise BlockingIOError(errno.EAGAIN, "no memory for now")
        return real(*arguments, **named)

    monkeypatch.setattr(os, "posix_spawn", spawn)
    os.kill(bench.children.spawner.pid, signal.SIGKILL)
    bench.until(lambda: bench.children.spawner.has_room and len(starts) == 3)
    assert bench.loop.defects == 0
    bench.born()


NO_FORK = """
import errno, guestmtce.server.child.spawner as spawner
real, calls = spawner.fork_sibling, []
def fork_sibling():
    calls.append(1)
    if len(calls) == 2:
        raise BlockingIOError(errno.EAGAIN, "no process for now")
    return real()
spawner.fork_sibling = fork_sibling
"""


def test_a_fork_that_fails_costs_only_the_one_it_was_for(make_bench, monkeypatch):
    monkeypatch.setattr(spawner, "BOOT", spawner.BOOT.replace("; main(", "\n" + NO_FORK + "main("))
    bench = make_bench()
    pid = bench.born()
    bench.start(TWO)
    bench.until(lambda: bench.ends)
    why = ": it could not be forked: " + os.strerror(errno.EAGAIN)
    assert bench.ends == [(TWO, FORK_FAILED, why)]
    bench.born(TWO)
    assert bench.children.list_pids()[ONE] == pid
    assert bench.children.spawner.started == 1


def test_a_spawner_that_hangs_is_replaced_and_who_waited_is_told(make_bench):
    bench = make_bench(spawn_timeout=1.0)
    bench.born()
    old = bench.children.spawner.pid
    os.kill(old, signal.SIGSTOP)
    bench.start(TWO)
    began = time.monotonic()
    bench.until(lambda: bench.ends)
    took = time.monotonic() - began
    assert took > bench.spawn_timeout - 0.05 and within(bench.spawn_timeout + 2, took)
    assert bench.ends == [(TWO, FORK_FAILED, ": the spawner failed")]
    bench.until(lambda: bench.children.spawner.pid not in (old, 0))
    assert not psutil.pid_exists(old)
    bench.born(TWO)
    assert bench.ends[1:] == []


def test_a_spawner_that_answers_is_not_replaced_because_many_wait(make_bench):
    bench = make_bench(spawn_timeout=1.0)
    bench.born()
    impostor = Impostor(bench, False, uuid_of(3))  # one who waits for ever
    until = time.monotonic() + 2.5 * bench.spawn_timeout
    while time.monotonic() < until:
        bench.born(TWO)
        bench.children.drop_child(TWO)
    assert bench.children.spawner.started == 1
    bench.until(lambda: bench.children.spawner.started == 2)
    assert [(uuid, why) for uuid, why, _ in bench.ends] == [(uuid_of(3), FORK_FAILED)]
    os.kill(impostor.pid, signal.SIGKILL)


def test_a_spawner_that_dies_with_the_stop_takes_nobody_along(bench):
    """Its pid is 0 then, and 0 is a process group: ours."""
    os.kill(bench.children.spawner.pid, signal.SIGKILL)
    bench.loop.stop()
    bench.children.spawner.handle_end()
    bench.children.spawner.read_answer()
    assert bench.children.spawner.pid == 0
    bench.serve_for(0.1)
    assert bench.children.spawner.started == 1


def test_a_spawner_whose_master_did_not_listen_ends_quietly():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.set_inheritable(theirs.fileno(), True)
    words = [sys.executable, "-I", "-S", "-c", spawner.BOOT, spawner_code.import_path()]
    words += [str(theirs.fileno()), str(os.getpid()), *ARGUMENTS]
    with subprocess.Popen(words, stderr=subprocess.PIPE, close_fds=False) as one:
        theirs.close()
        assert ours.recv(4096, socket.MSG_PEEK).startswith(b'{"')
        ours.close()
        assert one.communicate(timeout=60)[1] == b""
    assert one.returncode == 0


def test_time_in_which_we_stood_still_is_no_silence_of_the_spawner(make_bench):
    """Its answer came while we did not read."""
    bench = make_bench(spawn_timeout=1.0)
    bench.until(lambda: bench.children.confinement)
    bench.born()
    bench.start(TWO)
    time.sleep(2.5 * bench.spawn_timeout)
    bench.until(lambda: TWO in bench.children.list_pids())
    assert (bench.children.spawner.started, bench.ends) == (1, [])


def test_a_spawner_that_stood_still_with_us_is_given_its_time(make_bench):
    """A host that was paused: both were, and its answer is still to come when we judge."""
    bench = make_bench(spawn_timeout=1.0)
    bench.until(lambda: bench.children.confinement)
    bench.born()
    os.kill(bench.children.spawner.pid, signal.SIGSTOP)
    bench.start(TWO)
    time.sleep(2.5 * bench.spawn_timeout)
    bench.serve_for(0.2)
    os.kill(bench.children.spawner.pid, signal.SIGCONT)
    bench.until(lambda: TWO in bench.children.list_pids())
    assert (bench.children.spawner.started, bench.ends) == (1, [])


# --- an upgrade, and a spawner that cannot start -----------------------------------------------------


@pytest.fixture
def other_code(monkeypatch, tmp_path):
    """Our package in a folder of its own, which can be changed, and the master's modules as if from there."""
    parent = os.path.dirname(os.path.dirname(spawner_code.guestmtce.__file__))
    shutil.copytree(os.path.join(parent, "guestmtce"), tmp_path / "guestmtce")
    for name in spawner_code.MODULES:
        module = sys.modules[name]
        place = tmp_path / os.path.relpath(module.__file__, parent)
        monkeypatch.setattr(module, "__file__", str(place))
    return tmp_path


def test_after_an_upgrade_a_new_spawner_runs_the_code_of_its_master(other_code, make_bench, caplog):
    bench = make_bench()
    pid = bench.born()
    for path in (
        other_code / "guestmtce/server/child/pipe_protocol.py",
        other_code / "guestmtce/server/child/process.py",
    ):
        path.write_text("raise RuntimeError('of another version')\n")
    (other_code / "guestmtce/server/child/fork_sibling.py").unlink()
    os.kill(bench.children.spawner.pid, signal.SIGKILL)
    bench.until(lambda: bench.children.spawner.started == 2 and bench.children.spawner._greeted)
    bench.born(TWO)
    bench.beat(TWO)
    assert bench.children.list_pids()[ONE] == pid
    assert not bench.children.spawner._code.is_copied  # removed when it was read


def test_an_upgrade_between_the_spawner_s_imports_is_found_by_its_greeting(other_code, make_bench, caplog):
    bench = make_bench()
    path = other_code / "guestmtce/server/child/process.py"
    path.write_text(path.read_text() + "\n# of another version\n")
    bench.until(lambda: bench.children.confinement)
    bench.born()
    assert bench.children.spawner.started == 2
    assert "guestServer was upgraded on disk" in caplog.text


def test_a_spawner_that_cannot_start_says_why_and_is_tried_a_few_times(make_bench, monkeypatch):
    monkeypatch.setattr(spawner, "BOOT", "import sys; sys.exit('no memory for a spawner')")
    bench = make_bench()
    with pytest.raises(OSError, match="does not start: no memory for a spawner"):
        bench.children.prove_confinement()
    assert bench.children.spawner.started == spawner_client.START_TRIES


def test_a_spawner_that_says_nothing_is_told_by_its_end(make_bench, monkeypatch):
    monkeypatch.setattr(spawner, "BOOT", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(OSError, match="does not start: exit status -9"):
        make_bench().children.prove_confinement()


def test_one_that_starts_at_the_second_try_is_taken(make_bench, monkeypatch, tmp_path):
    once = "import os\nif not os.path.exists(%r): open(%r, 'w'); os._exit(1)\n" % ((str(tmp_path / "x"),) * 2)
    monkeypatch.setattr(spawner, "BOOT", once + spawner.BOOT)
    bench = make_bench()
    bench.children.prove_confinement()
    assert bench.children.spawner.started == 2
    bench.born()


def test_a_spawner_that_dies_again_and_again_is_one_line_with_its_reason(make_bench, monkeypatch, caplog):
    monkeypatch.setattr(spawner, "BOOT", "raise ValueError('no\\x1b[31m luck')")
    bench = make_bench()
    bench.until(lambda: bench.children.spawner.started > 4)
    told = [record.message for record in caplog.records if "the spawner ended" in record.message]
    assert told == [r"the spawner ended (ValueError: no\x1b[31m luck): replacing it"]


# --- over time -------------------------------------------------------------------------------------


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def test_fifty_connections_leave_nothing_behind(bench):
    bench.born()
    mine = descriptors(os.getpid())
    theirs = descriptors(bench.children.spawner.pid) if ROOT else 0
    for number in range(50):
        bench.start(TWO)
        if number % 3 == 0:
            bench.children.drop_child(TWO)
        else:
            bench.until(lambda: TWO in bench.children.list_pids())
            if number % 3 == 1:
                os.kill(bench.children.list_pids()[TWO], signal.SIGKILL)
        bench.far.pop(TWO).close()
        bench.until(lambda: len(psutil.Process().children()) == 2)
        bench.until(lambda: TWO not in bench.children._by_uuid)
    assert descriptors(os.getpid()) == mine
    if ROOT:
        assert descriptors(bench.children.spawner.pid) == theirs
    assert not bench.children._reaped_early
    assert not bench.children._abandoned
    assert bench.children.spawner.started == 1
    assert bench.loop.defects == 0


def test_a_hundred_at_once(bench):
    for number in range(100):
        bench.start(uuid_of(number))
    bench.until(lambda: len(bench.children.list_pids()) == 100)
    assert sorted(bench.started) == [uuid_of(number) for number in range(100)]
    titles = {uuid: "guestServer: " + uuid for uuid in bench.children.list_pids()}
    for uuid, pid in bench.children.list_pids().items():
        wait_for(lambda uuid=uuid, pid=pid: has_title(pid, titles[uuid]), "its own title")


# --- many at once ----------------------------------------------------------------------------------


@pytest.fixture
def room_for_thousands():
    """Two descriptors for each of those who are asked for, and our own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_there_is_room_thousands_can_be_asked_for(room_for_thousands, make_bench):
    bench = make_bench()
    uuids = [uuid_of(number) for number in range(100, 700)]
    for number, uuid in enumerate(uuids):
        bench.until(lambda: bench.children.spawner.has_room)
        bench.start(uuid)
        if number % 3 == 0:
            bench.children.drop_child(uuid)
    left = [uuid for number, uuid in enumerate(uuids) if number % 3]
    bench.until(lambda: sorted(bench.children.list_pids()) == left, seconds=30)
    assert bench.ends == [] and bench.children.spawner.started == 1
    bench.until(lambda: len(psutil.Process().children()) == len(left) + 1)


def test_there_is_room_for_a_few_while_the_spawner_does_not_answer_and_none_without_it(bench):
    bench.until(lambda: bench.children.confinement)
    os.kill(bench.children.spawner.pid, signal.SIGSTOP)
    for number in range(spawner_client.IN_FLIGHT_MAX):
        assert bench.children.spawner.has_room
        bench.start(uuid_of(number))
    assert not bench.children.spawner.has_room
    os.kill(bench.children.spawner.pid, signal.SIGKILL)
    bench.until(lambda: bench.children.spawner.pid == 0)
    assert not bench.children.spawner.has_room
    bench.until(lambda: bench.children.spawner.has_room)
