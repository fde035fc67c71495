"""Real children: born, confined, heard, punished and reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from children_driver import (
    GUEST,
    IDENTITY,
    NEVER_ASKED,
    ONE,
    TWO,
    Impostor,
    bench,
    confined,
    gone,
    make_bench,
)  # fmt: skip
from titles import has_title

from guestmtce.lab.cluster import wait_for
from guestmtce.server.child import pipe_protocol, process, session_types
from guestmtce.server.child.session_types import DIED, GAVE_UP, PEER_CLOSED
from guestmtce.server.supervise import children as children_module
from guestmtce.wire import guest_channel

__all__ = ["bench", "make_bench"]  # fixtures


# --- birth and confinement -------------------------------------------------------------------------


def test_a_child_is_the_master_s_own_and_bears_its_guest_s_name(bench):
    pid = bench.born()
    assert psutil.Process(pid).ppid() == os.getpid()
    assert (bench.started, bench.ends) == ([ONE], [])
    assert has_title(bench.children.spawner.pid, "guestServer: spawner")
    assert sorted(one.pid for one in psutil.Process().children()) == sorted([pid, bench.children.spawner.pid])


def test_the_master_lets_go_of_the_channel_once_the_child_has_it(bench):
    """Or QEMU would never learn of the child's end."""
    pid = bench.born()
    os.kill(pid, signal.SIGKILL)
    assert bench.far[ONE].recv(1000).strip() == b""
    wait_for(lambda: bench.far[ONE].recv(1000) == b"", "the end of the connection")


MASTER = """
import socket, sys, signal
from guestmtce.daemon.loop import Loop
from guestmtce.server.child import confine, session_types
from guestmtce.server.supervise import seccomp
from guestmtce.server.supervise.children import Children, ChildrenHandlers
from guestmtce.server.supervise.spawner_client import SpawnerSettings
loop = Loop()
identity = confine.Identity(int(sys.argv[2]), int(sys.argv[3])) if int(sys.argv[2]) >= 0 else None
means = confine.Means(identity, seccomp.choose_filter(forbidden=False, required=False))
settings = SpawnerSettings(session_types.SessionSettings(), means, 5.0)
children = Children(loop, settings,
                    ChildrenHandlers(lambda uuid: None, lambda *_: None, lambda *_: None, lambda: None))
children.open()
near, far = socket.socketpair()
while not children.spawner.has_room:
    loop.run_once()
children.start_child(sys.argv[1], near, None)
while not children.list_pids():
    loop.run_once()
print(children.spawner.pid, *children.list_pids().values(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda n: n.name)
def test_all_die_with_their_master(number):
    uid, gid = IDENTITY or (-1, -1)
    words = [sys.executable, "-c", MASTER, ONE, str(uid), str(gid)]
    master = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        pids = [int(word) for word in master.stdout.readline().split()]
        assert len(pids) == 2
        wait_for(lambda: confined(pids[1]) and has_title(pids[1], "guestServer: " + ONE), "it is confined")
        # A child that is stopped cannot notice the end of its pipe: the kernel must end it.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        master.send_signal(number)
        master.wait()
        wait_for(lambda: all(gone(pid) for pid in pids), "they are gone")
    finally:
        master.kill()
        master.communicate()


# --- what is heard of a child ----------------------------------------------------------------------


def test_reports_arrive_in_order(bench):
    bench.born()
    bench.beat()
    assert bench.reports == [session_types.Acknowledged(GUEST), session_types.Running()]


def test_a_question_reaches_the_guest_and_its_answer_comes_back(bench):
    bench.born()
    bench.beat()
    bench.children.send_command(ONE, pipe_protocol.AskGuest(7, guest_channel.VOTE, "stop", 5000))
    data = b""
    while b"action_notify" not in data:
        data += bench.far[ONE].recv(65536)
    answer = guest_channel.ActionResponse(GUEST.invocation_id, "stop", guest_channel.VOTE, "reject", "busy")
    bench.far[ONE].send(guest_channel.build(answer, 3))
    bench.until(lambda: session_types.Answered(7, "reject", "busy") in bench.reports)
    bench.children.send_command(
        TWO, pipe_protocol.AskGuest(8, guest_channel.VOTE, "stop", 5000)
    )  # nobody's: nothing happens


ENDS = {
    "the guest's side closes": (lambda bench, pid: bench.far[ONE].close(), (PEER_CLOSED, "")),
    "killed": (lambda bench, pid: os.kill(pid, signal.SIGKILL), (DIED, " of signal 9")),
    "crashed": (lambda bench, pid: os.kill(pid, signal.SIGSEGV), (DIED, " of signal 11")),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_is_told_once_with_its_reason(bench, name):
    act, wanted = ENDS[name]
    pid = bench.born()
    act(bench, pid)
    bench.until(lambda: bench.ends)
    bench.serve_for(0.05)
    assert bench.ends == [(ONE, *wanted)]
    assert not psutil.pid_exists(pid)
    assert bench.children.list_pids() == {}
    bench.born()  # and the guest can have another


def test_a_child_that_gives_up_says_why_first(make_bench):
    bench = make_bench(settings=session_types.SessionSettings(idle_reconnect=0.05))
    bench.start()
    bench.until(lambda: bench.ends)
    assert bench.ends == [(ONE, GAVE_UP, "")]
    assert type(bench.reports[-1]) is session_types.Reconnect


def test_last_words_come_before_the_end(bench):
    bench.born()
    bench.beat()
    bench.far[ONE].send(guest_channel.build(guest_channel.Exit("bye"), 4))
    bench.far[ONE].close()
    bench.until(lambda: bench.ends)
    assert bench.reports[-1] == session_types.Stopped(1)
    assert bench.ends == [(ONE, PEER_CLOSED, "")]


def test_a_dropped_child_is_silent_whenever_it_is_dropped(bench):
    pid = bench.born()
    bench.beat()
    heard = list(bench.reports)
    bench.far[ONE].send(guest_channel.build(guest_channel.Exit("bye"), 4))
    bench.children.drop_child(ONE)
    bench.start(TWO)
    bench.children.drop_child(TWO)  # its pid is not known yet
    bench.children.drop_child(TWO)
    bench.until(lambda: [one.pid for one in psutil.Process().children()] == [bench.children.spawner.pid])
    assert (bench.reports, bench.ends, bench.started) == (heard, [], [ONE])
    assert not psutil.pid_exists(pid)
    assert bench.far[TWO].recv(1000).strip() == b""


def test_an_interval_that_poll_cannot_wait_for_crashes_no_child(bench):
    """A guest chooses it; resuming, the child waits twice as long."""
    init = GUEST._replace(heartbeat_interval_ms=guest_channel.INT32_MAX)
    pid = bench.born(resume=session_types.Resume(init, True, 0.0))
    bench.answer()
    bench.until(lambda: bench.reports or bench.ends)
    assert (bench.reports, bench.ends, bench.children.list_pids()) == (
        [session_types.Running()],
        [],
        {ONE: pid},
    )


# --- a child that is not what it should be ---------------------------------------------------------


HONEST = pipe_protocol.encode(session_types.Missed(1))
BREACHES = {
    "nonsense": [b"x"],
    "nonsense, then honest again": [b"x", HONEST, HONEST],
    "nothing but nonsense": [b"x"] * 50,
    "a pickle": [b"\x80\x04N."],
    "too long": [pipe_protocol.encode(session_types.Note("n" * pipe_protocol.PACKET_MAX, 0))],
}


@pytest.mark.parametrize("pid_known", [True, False])
@pytest.mark.parametrize("name", BREACHES)
def test_who_breaks_the_rules_is_killed_counted_once_and_not_heard_again(bench, name, pid_known):
    impostor = Impostor(bench, pid_known)
    impostor.say(*BREACHES[name])
    if not pid_known:
        bench.until(lambda: bench.children.rule_breakers)
        del bench.children._awaited[NEVER_ASKED]
        bench.children._adopt_child(impostor.child, impostor.pid)
    bench.until(lambda: bench.ends)
    assert bench.ends == [(ONE, DIED, " of signal 9")]
    assert bench.reports == []
    assert bench.children.rule_breakers == 1
    assert not psutil.pid_exists(impostor.pid)


def test_a_flood_of_reports_is_a_breach(bench):
    impostor = Impostor(bench)
    impostor.pipe.setblocking(False)

    def flood():
        try:
            while not bench.ends:
                impostor.say(HONEST)
        except OSError:
            return bool(bench.ends)  # full, or closed

    bench.until(lambda: flood() or bench.ends)
    assert children_module.REPORTS_BURST <= len(bench.reports) <= children_module.REPORTS_BURST + 40
    assert bench.children.rule_breakers == 1


@pytest.mark.parametrize("last", [b"", None], ids=["an empty packet", "closing its pipe"])
@pytest.mark.parametrize("pid_known", [True, False])
def test_who_says_nothing_any_more_is_ended(bench, last, pid_known):
    impostor = Impostor(bench, pid_known)
    impostor.say(HONEST)
    if last is None:
        impostor.pipe.close()
    else:
        impostor.say(last)
    if not pid_known:
        bench.until(lambda: impostor.child.doomed)
        del bench.children._awaited[NEVER_ASKED]
        bench.children._adopt_child(impostor.child, impostor.pid)
    bench.until(lambda: bench.ends)
    assert bench.reports == [session_types.Missed(1)]
    assert bench.children.rule_breakers == 0


def test_a_child_that_does_not_read_its_commands_blocks_nobody_and_is_replaced(bench):
    Impostor(bench)
    for number in range(5000):
        bench.children.send_command(ONE, pipe_protocol.AskGuest(number, guest_channel.VOTE, "stop", 5000))
    bench.until(lambda: bench.ends)


@pytest.mark.parametrize("bench", [session_types.SessionSettings(ack_period=0.0)], indirect=True)
def test_a_guest_that_makes_its_child_say_much_slows_it_and_does_not_get_it_killed(bench):
    pid = bench.born()
    bench.beat()
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        bench.far[ONE].send(guest_channel.build(guest_channel.Exit("bye"), 1) + guest_channel.build(GUEST, 2))
        bench.answer()
        bench.serve_for(0)
    assert (
        process.REPORTS_BURST < len(bench.reports) < process.REPORTS_BURST + 10 * process.REPORTS_PER_SECOND
    )
    assert bench.children.rule_breakers == 0
    assert bench.ends == []
    assert bench.children.list_pids()[ONE] == pid
