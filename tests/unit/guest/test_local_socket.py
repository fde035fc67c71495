"""The socket for local processes, with real ones: the example of the documentation, and hostile ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest
from guest_rig import Rig
from places import SCRIPTS

from guestmtce.guest import ask, local_socket
from guestmtce.guest.health import Illness
from guestmtce.guest.local_socket import CONNECTIONS_MAX, CONNECTIONS_OF_A_USER, LocalSocket, SocketListener
from guestmtce.guest.member import Peer
from guestmtce.guest.settings import Settings

EXAMPLE = SCRIPTS / "guest" / "process_example.py"
INTERVAL_MS = 100


class World(Rig):
    """The socket, served, and what came of it."""

    def __init__(self, folder):
        super().__init__()
        self.path = str(folder / "run" / "processes.sock")
        self.votes, self.left = [], []
        listener = SocketListener(lambda: None, lambda *vote: self.votes.append(vote), self.left.append)
        settings = Settings(register_within=0.3)
        self.apps = LocalSocket(self.loop, self.path, "", settings, self.log, listener)
        self.loop.parts.append(self.apps)

    def connect(self):
        link = socket.socket(socket.AF_UNIX)
        link.setblocking(False)
        link.connect(self.path)
        return link

    def register(self, name, **more):
        link = self.connect()
        say(link, type="register", name=name, **more)
        assert self.hear(link)["type"] == "registered"
        return link

    def hear(self, link):
        """The next line that is said to the process; None when it was closed."""
        line = b""
        while not line.endswith(b"\n"):
            self.serve(lambda: self._readable(link), "a word to the process")
            byte = link.recv(1)
            if not byte:
                return None
            line += byte
        return json.loads(line)

    def _readable(self, link):
        try:
            link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    @property
    def ill(self):
        return self.apps.registry.illnesses


def say(link, **message):
    link.sendall(json.dumps(message).encode() + b"\n")


@pytest.fixture
def world(tmp_path):
    one = World(tmp_path)
    yield one
    one.apps.close()
    one.close()


@pytest.fixture
def example(world):
    """The example of the documentation, registered and heartbeating."""
    text = EXAMPLE.read_text(encoding="utf-8").replace('"interval_ms":1000', '"interval_ms":%d' % INTERVAL_MS)
    process = subprocess.Popen([sys.executable, "-c", text, world.path])
    world.serve(lambda: world.apps.registry.voters, "the example is registered")
    yield process
    process.kill()
    process.wait()


def test_the_example_has_about_ten_lines():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    code = [one for one in lines if one and not one.startswith(("import", '"""'))]
    assert len(code) <= 10


def test_the_example_heartbeats_and_votes(world, example):
    member = world.apps.registry._members["example"]
    world.serve(lambda: member.sequence > 3 and member.answered, "it heartbeats")
    world.apps.ask_members(5, "revocable", "stop", 7.0)
    world.serve(lambda: world.votes, "it votes")
    assert world.votes == [(5, "process example", "reject", "a backup is running")]
    assert world.ill == []


def test_a_process_that_is_stopped_makes_the_guest_ill_until_it_goes_on(world, example):
    example.send_signal(signal.SIGSTOP)
    world.serve(lambda: world.ill, "it is missed")
    assert world.ill == [Illness("log", "example: no answer for 2 heartbeats")]
    example.send_signal(signal.SIGCONT)
    world.serve(lambda: not world.ill, "it is back")


def test_a_process_that_is_killed_makes_the_guest_ill_and_is_no_voter(world, example):
    example.kill()
    world.serve(lambda: world.ill, "it is missed")
    assert world.ill == [Illness("log", "example: its connection ended")]
    assert world.left == ["process example"]
    assert world.apps.registry.voters == frozenset()


def test_only_root_or_who_made_it_can_connect_and_the_folder_is_ours(world):
    assert stat.S_IMODE(os.stat(world.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(world.path)).st_mode) == 0o755


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    rig = Rig()
    with pytest.raises(OSError, match="writable by us alone"):
        LocalSocket(rig.loop, str(tmp_path / "socket"), "", Settings(), rig.log)
    rig.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a socket to another group")
def test_a_group_may_be_let_in(tmp_path):
    rig = Rig()
    path = str(tmp_path / "run" / "socket")
    one = LocalSocket(rig.loop, path, "daemon", Settings(), rig.log)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660 and os.stat(path).st_gid != 0
    assert os.stat(path).st_uid == os.geteuid()
    one.close()
    rig.close()


def test_a_socket_left_behind_is_replaced_and_ours_is_removed(tmp_path):
    world = World(tmp_path)
    world.apps._server.close()
    again = World(tmp_path)
    again.register("a").close()
    again.apps.close()
    assert not os.path.exists(again.path)
    world.close(), again.close()


def test_another_client_leaves_the_socket_to_the_first(tmp_path):
    world = World(tmp_path)
    with pytest.raises(OSError, match="another guest client"):
        LocalSocket(world.loop, world.path, "", Settings(), world.log)
    world.register("a").close()
    world.apps.close()
    assert not os.path.exists(world.path)
    world.close()


def test_a_client_that_has_many_to_listen_to_is_there_all_the_same(tmp_path):
    rig, path = Rig(), str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waits:
        busy.bind(path)
        busy.listen(0)
        waits.connect(path)
        tmp_path.chmod(0o755)
        with pytest.raises(OSError, match="another guest client"):
            LocalSocket(rig.loop, path, "", Settings(), rig.log)
    rig.close()


def test_a_socket_that_others_have_removed_or_replaced_is_none_of_ours(tmp_path):
    world = World(tmp_path)
    os.unlink(world.path)
    with open(world.path, "w"):
        world.apps.close()
    assert os.path.exists(world.path)
    world.close()


# --- hostile and broken processes ------------------------------------------------------------------


def test_a_flood_of_bytes_or_lines_ends_its_connection_and_no_other(world):
    good = world.register("good", interval_ms=INTERVAL_MS)
    for flood in (b"x" * 100000, b"{}\n" * 30000, b'{"type":"register","name":"f"}\n' * 3000):
        link = world.connect()
        try:
            link.send(flood)
            world.serve(lambda link=link: closed(link), "the flood is ended")
        finally:
            link.close()
    answers(world, good, 3)
    assert world.ill == []


def answers(world, link, count):
    """The process answers so many heartbeats."""
    while count:
        message = world.hear(link)
        if message["type"] == "heartbeat":
            say(link, type="alive", number=message["number"])
            count -= 1


def closed(link):
    try:
        while link.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_a_process_that_does_not_read_is_dropped_and_has_failed(world):
    link = world.register("deaf", interval_ms=INTERVAL_MS, votes=True)
    for asked in range(100000):
        world.apps.ask_members(asked, "revocable", "stop", 1.0)
        if world.ill:
            break
    assert world.ill == [Illness("log", "deaf: it does not read")]
    assert world.left == ["process deaf"]
    link.close()


def test_a_process_that_ends_with_words_unread_has_failed(world):
    """Its kernel says "connection reset"."""
    link = world.register("db", interval_ms=INTERVAL_MS)
    world.serve(lambda: world._readable(link), "a heartbeat is there")
    link.close()
    world.serve(lambda: world.ill, "it is missed")
    assert world.ill == [Illness("log", "db: its connection ended")] and world.apps._connections == {}


def test_a_connection_that_has_gone_again_is_not_waited_for(world):
    world.apps._accept_connection()
    assert world.lines == []


def as_uid(monkeypatch, *uids):
    """The users of the next connections, in turn; the last one of all that follow."""
    left = list(uids)
    monkeypatch.setattr(
        local_socket, "_peer_of", lambda link: Peer(1, left.pop(0) if len(left) > 1 else left[0])
    )


def test_a_user_has_so_many_connections_and_others_have_theirs(world, monkeypatch):
    as_uid(monkeypatch, 1000)
    links = [world.connect() for _ in range(CONNECTIONS_OF_A_USER)]
    world.serve(lambda: len(world.apps._connections) == CONNECTIONS_OF_A_USER, "as many as a user may have")
    one_more = world.connect()
    assert world.hear(one_more) == {"type": "refused", "reason": "uid 1000 has 8 connections"}
    assert world.hear(one_more) is None and "pid 1, uid 1000" in world.lines[-1]
    as_uid(monkeypatch, 1001)
    world.register("another").close()
    world.serve(lambda: all(closed(link) for link in links), "each is closed, as it did not register")
    as_uid(monkeypatch, 1000)
    world.register("late").close()
    for link in [*links, one_more]:
        link.close()


def test_root_gets_in_however_many_others_there_are(world, monkeypatch):
    as_uid(monkeypatch, *range(1000, 1000 + CONNECTIONS_MAX), 2000)
    links = [world.connect() for _ in range(CONNECTIONS_MAX)]
    world.serve(lambda: len(world.apps._connections) == CONNECTIONS_MAX, "as many as there is room for")
    one_more = world.connect()
    assert world.hear(one_more) == {"type": "refused", "reason": "there are 16 connections"}
    as_uid(monkeypatch, 0)
    world.register("roots").close()
    for link in [*links, one_more]:
        link.close()


def test_connections_are_taken_again_when_the_pause_is_over_and_no_sooner(world):
    listener, watched = world.apps._server.fileno(), world.loop._selector.get_map()
    world.apps._pause_accepting(OSError(errno.EMFILE, "Too many open files"))
    again = world.apps.deadline
    world.apps.tick(again - 0.01)
    assert listener not in watched and world.apps.deadline == again
    world.apps.tick(again)
    assert listener in watched
    world.apps._pause_accepting(OSError(errno.EMFILE, "Too many open files"))
    world.apps.close()
    assert world.apps.deadline == float("inf")


def test_root_has_so_many_connections_too(world, monkeypatch):
    as_uid(monkeypatch, 0)
    links = [world.connect() for _ in range(CONNECTIONS_MAX + 1)]
    assert world.hear(links[-1]) == {"type": "refused", "reason": "there are 16 connections"}
    for link in links:
        link.close()


def test_who_connects_is_known_from_the_kernel(world):
    ours, theirs = socket.socketpair()
    assert local_socket._peer_of(ours) == Peer(os.getpid(), os.geteuid())
    ours.close()
    theirs.close()


def test_without_a_path_there_is_no_socket():
    rig = Rig()
    one = local_socket.LocalSocket(rig.loop, "", "", Settings(), rig.log)
    assert one.deadline == float("inf")
    one.close()
    assert one.deadline == float("inf")
    rig.close()


# --- the command that asks a client for its processes ----------------------------------------------


def answered(tmp_path, *pieces):
    """What a client is asked that answers so, and what the command makes of it."""
    path, question = str(tmp_path / "socket"), []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def answer():
            link, _ = listener.accept()
            with link:
                question.append(link.recv(4096))
                for piece in pieces:
                    link.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            return ask.ask(path, {"type": "members"})
        finally:
            thread.join()
            assert question == [b'{"type": "members"}\n']


def test_the_clients_answer_is_one_line_in_however_many_pieces(tmp_path):
    wanted = {"type": "members", "members": [{"name": "x" * 9000}]}
    line = json.dumps(wanted).encode() + b"\n"
    assert answered(tmp_path, line[:10], line[10:5000], line[5000:]) == wanted


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"type":"refused","reason":"it is connected"}\n', "^it is connected$"),
        (b'{"type":"nonsense"}\n', "nonsense"),
        (b'{"type":"mem', "hung up"),
        (b"\xff\n", "Expecting"),
        (b"5\n", "^5$"),
    ],
)
def test_what_the_client_refuses_is_said(tmp_path, line, why):
    with pytest.raises(ValueError, match=why):
        answered(tmp_path, line)


def test_a_client_that_says_too_much_is_not_listened_to_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "ANSWER_MAX", 8)
    with pytest.raises(ValueError, match="Expecting"):  # it is no JSON
        answered(tmp_path, b"{1234567")


def test_a_client_that_stands_still_is_not_waited_for(tmp_path, monkeypatch):
    assert 0 < ask.WAIT <= 10
    monkeypatch.setattr(ask, "WAIT", 0.01)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        with pytest.raises(OSError, match="timed out"):
            ask.ask(str(tmp_path / "socket"), {})


def test_the_table_of_processes(monkeypatch, capsys):
    row = {"name": "db", "pid": 12, "uid": 0, "connected": True, "corrective_action": "log", "illness": ""}
    gone = {**row, "name": "web", "connected": False, "corrective_action": "reboot", "illness": "web: gone"}
    asked = []
    monkeypatch.setattr(ask, "ask", lambda *words: asked.append(words) or {"members": [row, gone]})
    ask.print_members("PATH", "")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "PID", "UID", "CONNECTED", "ACTION", "ILLNESS"],
        ["db", "12", "0", "yes", "log", "healthy"],
        ["web", "12", "0", "no", "reboot", "web:", "gone"],
    ]
    ask.print_members("PATH", "web")
    assert asked == [("PATH", {"type": "members"}), ("PATH", {"type": "forget", "name": "web"})]
