"""What a slip of an operator, or a hostile user of the guest, must not bring about in the guest client."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time

import pytest
from guest_process import GuestProcess, host, write_script
from guest_rig import Rig

from guestmtce.common.log_line import LogLine
from guestmtce.guest import ask, options
from guestmtce.guest.local_processes import REMEMBERED_MAX, CloseConnection, Registry, SendLine
from guestmtce.guest.local_socket import LocalSocket
from guestmtce.guest.member import Peer
from guestmtce.guest.settings import Settings
from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import ChallengeResponse, Init, InitAck

__all__ = ["host"]  # a fixture

USER = 1000


# --- HUP -------------------------------------------------------------------------------------------


def reread(guest, text):
    """The configuration is `text`, or gone, and is read again."""
    path = os.path.join(guest.folder, "conf")
    os.unlink(path)
    if text is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    guest.signal(signal.SIGHUP)


def test_a_health_script_that_runs_at_hup_makes_nobody_ill(tmp_path, host):
    mark = tmp_path / "runs"
    script = write_script(tmp_path / "health", "echo >>%s; exec sleep 2\n" % mark)
    guest = GuestProcess(tmp_path / "guest", host.path, HEALTH_CHECK_SCRIPT=script)
    try:
        host.accept().heartbeat()
        wait_for(mark.exists, "the script runs", 10)
        reread(guest, "HEALTH_CHECK_SCRIPT=%s\nVOTE=9\n" % script)
        init = host.hear(Init)
        assert init.vote_secs == 10
        host.say(InitAck(init.invocation_id))
        host.say(guest_channel.Challenge(1))
        assert host.hear(ChallengeResponse).heartbeat_health == guest_channel.HEALTHY
        assert mark.read_text() == "\n"
    finally:
        guest.stop()


@pytest.mark.parametrize("text", [None, "CORRECTIVE_ACTION=lgo\nVOTE=9\n"], ids=["no file", "wrong value"])
def test_what_cannot_be_used_at_hup_changes_no_action(tmp_path, host, text):
    guest = GuestProcess(tmp_path / "guest", host.path, CORRECTIVE_ACTION="log")
    try:
        host.accept().heartbeat()
        reread(guest, text)
        if text is None:
            wait_for(lambda: "what is in effect stays" in guest.log(), "the log says so", 10)
            host.say(guest_channel.Challenge(1))
            assert host.hear(ChallengeResponse).corrective_action == "log"
        else:
            init = host.hear(Init)
            assert (init.corrective_action, init.vote_secs) == ("log", 10)
    finally:
        guest.stop()


# --- descriptors -----------------------------------------------------------------------------------


def test_a_connection_for_which_no_descriptor_is_left_does_not_spin_and_is_taken_later(tmp_path):
    rig, path = Rig(), str(tmp_path / "run" / "socket")
    apps = LocalSocket(rig.loop, path, "", Settings(accept_pause=0.2), rig.log)
    rig.loop.parts.append(apps)
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (link.fileno() + 1, limits[1]))
    filled = []
    try:
        with pytest.raises(OSError):
            while True:
                filled.append(os.dup(0))
        rig.serve(lambda: any("no local process can connect" in line for line in rig.lines), "it is said")
        begun = time.process_time()
        rig.rest(0.5)
        assert time.process_time() - begun < 0.25
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in filled:
            os.close(descriptor)
    rig.serve(lambda: apps._connections, "it is taken")
    apps.close()
    rig.close()
    link.close()


# --- root and the others ---------------------------------------------------------------------------


def register(registry, key, name, uid, action="log", now=0.0):
    registry.note_opened(key, now, Peer(100 + key, uid))
    message = {"type": "register", "name": name, "interval_ms": 1000, "corrective_action": action}
    registry.receive(key, json.dumps(message).encode() + b"\n", now)


def said(registry, key):
    reports = registry.drain_effects()
    return [json.loads(one.line) for one in reports if isinstance(one, SendLine) and one.key == key], reports


@pytest.mark.parametrize("victim", [0, USER + 1])
def test_nobody_has_the_failure_of_another_user_forgotten(victim):
    registry = Registry(Settings())
    register(registry, 1, "db", victim, "reboot")
    registry.note_closed(1, "its connection ended", 0.0)
    for number in range(3 * REMEMBERED_MAX):
        register(registry, 2, "x%d" % number, USER, now=1.0)
        registry.note_closed(2, "its connection ended", 1.0)
    assert "db: its connection ended" in [illness.reason for illness in registry.illnesses]
    assert len(registry.illnesses) <= REMEMBERED_MAX + 1


def test_root_takes_its_name_over_and_nobody_takes_one_from_root():
    registry = Registry(Settings())
    register(registry, 1, "db", USER)
    register(registry, 2, "db", 0)
    lines, reports = said(registry, 1)
    assert lines[-1] == {"type": "refused", "reason": "a process of root's has this name now"}
    assert CloseConnection(1) in reports
    registry.note_closed(1, "its connection ended", 0.0)
    assert registry.illnesses == [] and registry.described[0]["uid"] == 0
    register(registry, 3, "db", USER)
    assert said(registry, 3)[0][-1]["reason"] == "a process of this name is registered"


def test_a_wrong_registration_of_root_ousts_nobody():
    registry = Registry(Settings())
    register(registry, 1, "db", USER)
    register(registry, 2, "db", 0, action="explode")
    assert registry.described[0]["uid"] == USER and registry.described[0]["connected"]


def test_what_one_user_does_hides_no_line_of_another_and_no_failure():
    registry = Registry(Settings())
    register(registry, 1, "noisy", USER)
    register(registry, 2, "db", 0)
    registry.note_closed(2, "its connection ended", 0.0)
    abouts = [report.subject for report in registry.drain_effects() if isinstance(report, LogLine)]
    assert len(abouts) == len(set(abouts)) == 3


# --- the command in the guest ----------------------------------------------------------------------


def test_forgetting_no_name_starts_no_daemon():
    with pytest.raises(ValueError, match="name"):
        options.parse(["--forget", ""])


def test_what_a_process_says_commands_no_terminal(monkeypatch, capsys):
    row = {"name": "a", "pid": 1, "uid": USER, "connected": True, "corrective_action": "log"}
    answer = {"members": [{**row, "illness": "a: \x1b[2J\x9b \u00e9"}]}
    monkeypatch.setattr(ask, "ask", lambda path, question: answer)
    ask.print_members("", "")
    assert capsys.readouterr().out.replace("\n", "").isprintable()


# --- the port --------------------------------------------------------------------------------------


def test_a_port_that_is_none_is_named_once(tmp_path):
    (tmp_path / "port").write_text("no device")
    guest = GuestProcess(tmp_path / "guest", tmp_path / "port")
    try:
        wait_for(lambda: "no device and no socket" in guest.log(), "it is named", 10)
        time.sleep(0.5)  # ten more tries at least; that there is no line cannot be waited for
        assert guest.log().count("no device and no socket") == 1
    finally:
        guest.stop()
