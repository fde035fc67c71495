"""Who may command: users by name and uid, what the others are told, and that nothing of theirs is done."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
import time

import pytest
from places import SUPPORT

from guestmtce.agent.http import peer_uid
from guestmtce.agent.http.users import look_up_users
from guestmtce.agent.http.vim_commands import Commands
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.settings import AgentSettings
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import CommandClient
from guestmtce.wire.datagram import HostRecord

OTHER_USER = SUPPORT / "other_user.py"
OTHER = 61234
HOST = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
BODY = '{"uuid":"%s","hostname":"compute-0"}' % HOST.uuid
DISABLE = "PUT /v1/hosts/%s/disable HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
DISABLE = DISABLE % (HOST.uuid, len(BODY), BODY)
WAIT = 10  # s

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


class Bench:
    """The server on an inventory with one host, whose reporting is enabled."""

    def __init__(self, vim_users=""):
        self._lock = threading.Lock()
        self.inventory = Inventory()
        self.inventory.note_host(HOST)
        self.inventory.set_host_reporting(HOST.uuid, True)
        self.port = free_ports(1)[0]
        settings = AgentSettings(http_port=self.port, http_threads=2, vim_users=vim_users)
        self.commands = Commands(settings, self._apply)
        self.commands.start()
        self.vim = CommandClient("127.0.0.1", self.port)

    def _apply(self, act):
        with self._lock:
            return act(self.inventory)

    @property
    def reporting(self):
        return self.vim.host("GET", HOST.uuid, HOST.hostname)[1]["state"]

    def other_user(self, act, data=DISABLE, uid=OTHER):
        """What a client of another user prints."""
        command = [sys.executable, str(OTHER_USER), str(uid), str(self.port), act, data]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=WAIT
        )
        return done.stdout.split()

    def wait_for(self, connections):
        end = time.monotonic() + WAIT
        while self.commands.connections < connections and time.monotonic() < end:
            time.sleep(0.005)


@pytest.fixture
def make_bench():
    benches = []

    def make(vim_users=""):
        benches.append(Bench(vim_users))
        return benches[-1]

    yield make
    for bench in benches:
        bench.commands.close()


@needs_root
def test_another_user_is_refused_and_told_the_settings_name(make_bench, caplog):
    bench = make_bench()
    assert bench.other_user("ask") == ["403", "done"]
    assert bench.reporting == "enabled"
    assert "uid %d" % OTHER in caplog.text and "[agent] vim_users" in caplog.text
    assert bench.other_user("ask") == ["403", "done"]
    assert caplog.text.count("uid %d" % OTHER) == 1
    assert bench.commands.refused == 2


@needs_root
@pytest.mark.parametrize("vim_users", [str(OTHER), "nobody, %d" % OTHER, " %d ,no-such-user," % OTHER])
def test_a_user_that_the_setting_names_may_command(make_bench, vim_users):
    bench = make_bench(vim_users)
    assert bench.other_user("ask") == ["200", "done"]
    assert bench.reporting == "disabled"


@needs_root
@pytest.mark.parametrize("act", ["closed", "reset", "half closed"])
def test_who_sends_and_is_gone_is_not_taken_for_root(make_bench, act):
    bench = make_bench()
    for count in range(1, 6):
        assert bench.other_user(act) == ["done"]
        bench.wait_for(count)
    assert bench.reporting == "enabled" and bench.commands.served == 1


@needs_root
def test_a_kernel_that_names_nobody_does_not_lock_the_vim_out(make_bench, monkeypatch, caplog):
    monkeypatch.setattr(peer_uid.PeerUids, "_query_kernel", lambda *_: None)
    monkeypatch.setattr(peer_uid, "TABLES", ("/nowhere/tcp",))
    bench = make_bench()
    assert bench.other_user("ask") == bench.other_user("ask") == ["200", "done"]
    assert caplog.text.count("vim_users") == 1
    assert "NOTHING" in bench.commands.health()[1]


def test_our_own_user_may_command(make_bench):
    bench = make_bench()
    assert bench.reporting == "enabled"
    uids = ",".join(str(uid) for uid in sorted({0, os.geteuid()}))
    assert bench.commands.health()[1] == "commands are taken from uids %s known by sock_diag" % uids


def test_users_by_name_and_uid(make_bench, caplog):
    root = pwd.getpwuid(0).pw_name
    assert look_up_users("") == look_up_users(" , ") == (frozenset(), [])
    assert look_up_users("%s, 107" % root) == (frozenset({0, 107}), [])
    assert look_up_users("no-such-user,-1, 7 7") == (frozenset(), ["no-such-user", "-1", "7 7"])
    assert AgentSettings().vim_users == ""
    bench = make_bench("no-such-user")
    assert "[agent] vim_users" in caplog.text and "no-such-user" in caplog.text
    assert "unknown no-such-user" in bench.commands.health()[1]
