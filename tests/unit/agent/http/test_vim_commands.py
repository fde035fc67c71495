"""The VIM's commands (docs/protocol/3-vim-http.md#commands), over real HTTP as the VIM speaks it."""

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from guestmtce.agent.effects import Send
from guestmtce.agent.http import command_app, vim_commands
from guestmtce.agent.http.vim_commands import Commands
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.settings import AgentSettings
from guestmtce.lab.pace import within
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import CommandClient
from guestmtce.wire import datagram, guest_channel
from guestmtce.wire.datagram import Ask, DeleteInstance, HostRecord, InstanceInfo, SetHost, SetInstance

U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
V = "11111111-2222-3333-4444-555555555555"
A = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
B = HostRecord("compute-1", "aaaaaaaa-0000-4000-8000-000000000001", "10.0.0.2")
NOBODY = "aaaaaaaa-0000-4000-8000-000000000009"
PASS = (200, {"status": "pass"})
LOCAL = "127.0.0.1"


def fail(status, reason):
    return status, {"status": "fail", "reason": reason}


PARSE = fail(400, "command parse error")
INVALID = fail(400, "invalid data")
FORBIDDEN = fail(403, "command parse error")
UNKNOWN = fail(404, "entity not found")
METHOD = fail(405, "unsupported http command")
NO_BODY = fail(411, "no buffer")
TOO_LARGE = fail(413, "no buffer")


class Bench:
    """The server on an inventory with two hosts, and the VIM's client."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inventory = Inventory()
        self.effects = []
        self.port = free_ports(1)[0]
        self.commands = Commands(AgentSettings(http_address=LOCAL, http_port=self.port), self.apply)
        self.commands.start()
        self.vim = CommandClient(LOCAL, self.port)

    def apply(self, act):
        with self.lock:
            try:
                return act(self.inventory)
            finally:
                self.effects += self.inventory.take_effects()

    def sent(self):
        """What was sent to guestServers since the last time."""
        effects, self.effects = self.effects, []
        return [effect for effect in effects if isinstance(effect, Send)]

    def running(self, uuid=U, heartbeating=True):
        info = InstanceInfo(A.hostname, uuid, True, heartbeating, "reboot", 601, 11, 12, 13, 14)
        self.apply(lambda inventory: inventory.events.note_state(info))


@pytest.fixture(scope="module")
def server():
    one = Bench()
    yield one
    one.commands.close()


@pytest.fixture
def bench(server):
    server.inventory = Inventory()
    for host in (A, B):
        server.inventory.note_host(host)
        server.inventory.note_list(host.hostname, [], 1 << 40, 0.0)
    server.inventory.take_effects()
    server.effects = []
    return server


def services(uuid=U, host=A, state="enabled", status="disabled", restart="0"):
    service = {"service": "heartbeat", "state": state, "restart-timeout": restart, "status": status}
    return 200, {"uuid": uuid, "hostname": host.hostname, "services": [service]}


def named(uuid=U, host=A.hostname, **fields):
    return {"uuid": uuid, "hostname": host, **fields}


# --- every row of the table ---


def test_hosts(bench):
    vim = bench.vim
    assert vim.host("POST", A.uuid, A.hostname) == PASS
    assert vim.command("POST", "hosts/" + A.uuid) == PASS  # no body is fine here
    assert bench.sent() == []
    for word in ("enable", "disable"):
        assert vim.host("PUT", A.uuid, A.hostname, word) == PASS
        assert bench.sent() == [Send(A.hostname, A.ip, datagram.MOD_HOST, SetHost(A.uuid, word == "enable"))]
        state = 200, {"uuid": A.uuid, "hostname": A.hostname, "state": word + "d"}
        assert vim.host("GET", A.uuid, A.hostname) == state
        assert vim.command("GET", "hosts/" + A.uuid) == state
    assert vim.host("DELETE", A.uuid, A.hostname) == vim.host("DELETE", NOBODY, "x") == (204, None)
    assert vim.host("GET", A.uuid, A.hostname)[0] == 200 and bench.sent() == []


@pytest.mark.parametrize("body", [named(A.uuid), None])
def test_the_vims_odd_query_disables_nothing(bench, body):
    assert bench.vim.host("PUT", A.uuid, A.hostname, "enable") == PASS
    bench.sent()
    state = {"uuid": A.uuid, "hostname": A.hostname, "state": "enabled"}
    for _ in range(2):
        assert bench.vim.command("GET", "hosts/%s/disable" % A.uuid, body) == (200, state)
    assert bench.sent() == []


def test_an_instance_from_create_to_delete(bench):
    vim = bench.vim
    assert vim.create(U, A.hostname) == PASS
    assert bench.sent() == [Send(A.hostname, A.ip, datagram.ADD_INST, SetInstance(U, False))]
    assert vim.query(U) == services(state="disabled")
    assert vim.set(U, A.hostname, "enabled") == services() == vim.query(U)
    assert bench.sent() == [Send(A.hostname, A.ip, datagram.MOD_INST, SetInstance(U, True))]
    bench.running()
    beating = services(status="enabled", restart="601")
    assert vim.query(U) == beating == vim.set(U, A.hostname, "enabled")
    assert vim.create(U, A.hostname) == PASS and vim.query(U) == beating
    bench.sent()
    assert vim.set(U, B.hostname, "enabled") == services(host=B)
    moved = [
        Send(A.hostname, A.ip, datagram.DEL_INST, DeleteInstance(U)),
        Send(B.hostname, B.ip, datagram.ADD_INST, SetInstance(U, True)),
    ]
    assert bench.sent() == moved
    assert vim.delete(U) == (204, None)
    assert bench.sent() == [Send(B.hostname, B.ip, datagram.DEL_INST, DeleteInstance(U))]
    assert vim.delete(U) == vim.query(U) == UNKNOWN


@pytest.mark.parametrize("state", ["enabled", "disabled"])
def test_a_set_of_the_unknown_adds_it(bench, state):
    """After our restart the VIM never creates it again."""
    assert bench.vim.set(U, A.hostname, state) == services(state=state)
    on = state == "enabled"
    assert bench.sent() == [Send(A.hostname, A.ip, datagram.ADD_INST, SetInstance(U, on), anew=on)]


@pytest.mark.parametrize("word, kind, cmd", [
    ("vote", guest_channel.VOTE, datagram.VOTE_INST), ("notify", guest_channel.NOTICE, datagram.NOTIFY_INST),
])  # fmt: skip
def test_votes_and_notices(bench, word, kind, cmd):
    bench.vim.set(U, A.hostname, "enabled")
    for event in guest_channel.EVENT_TYPES:
        reply = {"uuid": U, "hostname": A.hostname, "action": event, "timeout": "0"}
        bench.running(heartbeating=False)
        bench.sent()
        assert bench.vim.ask(word, U, A.hostname, event) == (200, reply)
        assert bench.sent() == []
        bench.running()
        status, reply = bench.vim.ask(word, U, A.hostname, event)
        seconds = int(reply["timeout"])
        assert (status, reply["action"]) == (200, event)
        assert seconds in ((14,) if word == "vote" else (11, 12, 13))
        assert bench.sent() == [Send(A.hostname, A.ip, cmd, Ask(U, kind, event), seconds)]


# --- every failure ---

INSTANCE, HOST = "instances/" + U, "hosts/" + A.uuid
SET = named(services=[{"service": "heartbeat", "state": "enabled"}])


def set_of(*services):
    return named(services=list(services))


FAILURES = {
    "create on an unknown host": ("POST", INSTANCE, named(host="x"), fail(400, "entity not found")),
    "set on an unknown host": ("PATCH", INSTANCE, {**SET, "hostname": "x"}, UNKNOWN),
    "query of the unknown": ("GET", INSTANCE, None, UNKNOWN),
    "delete of the unknown": ("DELETE", INSTANCE, None, UNKNOWN),
    "vote of the unknown": ("POST", INSTANCE + "/vote", named(action="stop"), UNKNOWN),
    "notice to the unknown": ("POST", INSTANCE + "/notify", named(action="stop"), UNKNOWN),
    "unknown host created": ("POST", "hosts/" + NOBODY, named(NOBODY), UNKNOWN),
    "unknown host enabled": ("PUT", "hosts/%s/enable" % NOBODY, named(NOBODY), UNKNOWN),
    "unknown host queried": ("GET", "hosts/" + NOBODY, None, UNKNOWN),
    "another service": ("PATCH", INSTANCE, set_of({"service": "x", "state": "enabled"}), INVALID),
    "another state": ("PATCH", INSTANCE, set_of({"service": "heartbeat", "state": "on"}), INVALID),
    "no service": ("PATCH", INSTANCE, set_of(), INVALID),
    "created with another service": ("POST", INSTANCE, named(services=["x"]), INVALID),
    "no hostname": ("POST", INSTANCE, {"uuid": U}, INVALID),
    "an empty hostname": ("POST", INSTANCE, named(host=""), INVALID),
    "another uuid": ("POST", INSTANCE, named(V), INVALID),
    "a path without a uuid": ("POST", "instances/x", {"hostname": A.hostname}, INVALID),
    "an unknown action": ("POST", INSTANCE + "/vote", named(action="explode"), INVALID),
    "no body to set": ("PATCH", INSTANCE, None, NO_BODY),
    "no body to create": ("POST", INSTANCE, None, NO_BODY),
    "no body to vote": ("POST", INSTANCE + "/vote", None, NO_BODY),
    "no body to enable": ("PUT", HOST + "/enable", None, NO_BODY),
    "put an instance": ("PUT", INSTANCE, SET, METHOD),
    "patch a host": ("PATCH", HOST, named(A.uuid), METHOD),
    "get a vote": ("GET", INSTANCE + "/vote", None, METHOD),
    "delete a disable": ("DELETE", HOST + "/disable", None, METHOD),
    "an unheard method": ("BREW", INSTANCE, None, METHOD),
    "options": ("OPTIONS", HOST, None, METHOD),
    "an unknown word": ("POST", INSTANCE + "/explode", SET, FORBIDDEN),
    "a host's vote": ("POST", HOST + "/vote", SET, FORBIDDEN),
    "no uuid": ("GET", "instances/", None, FORBIDDEN),
    "other things": ("GET", "volumes/" + U, None, FORBIDDEN),
    "too deep": ("GET", INSTANCE + "/vote/more", None, FORBIDDEN),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures(bench, name):
    method, path, body, expected = FAILURES[name]
    assert bench.vim.command(method, path, body) == expected
    assert bench.sent() == [] and bench.inventory.instances == {}


BODIES = {
    "no JSON": (b"{", PARSE),
    "a word": (b"hello", PARSE),
    "white space": (b"  ", PARSE),
    "a list": (b"[]", PARSE),
    "a string": (b'"x"', PARSE),
    "NaN": (b"NaN", PARSE),
    "null": (b"null", PARSE),
    "two objects": (b"{}{}", PARSE),
    "invalid UTF-8": (b'{"hostname":"\xff"}', PARSE),
    "UTF-16": (json.dumps(SET).encode("utf-16"), PARSE),
    "NUL": (b"\0" * 10, PARSE),
    "deep": (b'{"a":' * 10_000, PARSE),
    "deep lists": (b"[" * 60_000, PARSE),
    "an endless number": (b'{"hostname":' + b"9" * 60_000 + b"}", (400, None)),
    "NaN for a hostname": (b'{"uuid":"%s","hostname":NaN}' % U.encode(), INVALID),
    "a lone surrogate": (b'{"uuid":"%s","hostname":"\\ud800"}' % U.encode(), (400, None)),
    "the longest body": (b'{"hostname":"'.ljust(64 * 1024, b"x"), PARSE),
    "64 KiB and 1": (b'{"hostname":"'.ljust(64 * 1024 + 1, b"x"), TOO_LARGE),
    "1 MB": (b"x" * 1_000_000, TOO_LARGE),
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_bodies(bench, name, chunked):
    data, (status, body) = BODIES[name]
    for method in ("POST", "PATCH"):
        reply = bench.vim.command(method, INSTANCE, data=iter([data]) if chunked else data)
        assert reply == (status, body or reply[1]) and isinstance(reply[1], dict)
        assert reply[1]["status"] == "fail"
    assert bench.sent() == [] and bench.inventory.instances == {}


def test_good_bodies_in_odd_clothes(bench):
    data = json.dumps({**SET, "more": {"x": [1]}}, indent=4).encode()
    chunks = iter([data[:7], data[7:]])
    assert bench.vim.command("PATCH", INSTANCE, data=chunks) == services()
    assert bench.vim.command("PATCH", INSTANCE, SET, {"Content-Type": "text/plain"}) == services()
    assert bench.vim.command("PATCH", INSTANCE, SET, {"Content-Type": "", "Accept": ""}) == services()
    assert bench.vim.command("PATCH", INSTANCE + "/", SET) == services()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert bench.vim.command("PATCH", INSTANCE, SET, form) == services()
    assert bench.vim.command("DELETE", INSTANCE, named()) == (204, None)


@pytest.mark.parametrize("agent, allowed", [
    ("vim/1.0", True), ("", True), ("curl/7", False), ("vim/1.1", False), ("VIM/1.0", False),
])  # fmt: skip
def test_who_may_ask(bench, agent, allowed):
    reply = bench.vim.command("GET", HOST, headers={"User-Agent": agent})
    assert (reply[0] == 200) == allowed and (allowed or reply == FORBIDDEN)
    assert bench.vim.command("PUT", HOST + "/disable", named(A.uuid), {"User-Agent": "x"}) == FORBIDDEN
    assert bench.sent() == []


# --- the reply's own form ---


def raw(port, data):
    """Status, headers and body of what comes until the server closes."""
    with socket.create_connection((LOCAL, port), 10) as connection:
        connection.sendall(data)
        answer = b""
        while True:
            more = connection.recv(65536)
            if not more:
                break
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:]}
    return int(lines[0].split()[1]), headers, body


CLOSE = b"Host: x\r\nConnection: close\r\n"
GET, PATCH = b"GET /v1/" + HOST.encode(), b"PATCH /v1/" + INSTANCE.encode() + b" HTTP/1.1\r\n" + CLOSE
RAW = {
    "good": (GET + b" HTTP/1.1\r\n" + CLOSE, 200),
    "HTTP/1.0": (GET + b" HTTP/1.0\r\n", 200),
    "a query": (GET + b"?a=b&c HTTP/1.1\r\n" + CLOSE, 200),
    "basic authorisation": (GET + b" HTTP/1.1\r\nAuthorization: Basic !!\r\n" + CLOSE, 200),
    "no Host": (GET + b" HTTP/1.1\r\nConnection: close\r\n", 400),
    "a query that is no UTF-8": (GET + b"?%ff HTTP/1.1\r\n" + CLOSE, 404),
    "a path that is no UTF-8": (b"GET /v1/hosts/%ff HTTP/1.1\r\n" + CLOSE, 404),
    "the root": (b"GET / HTTP/1.1\r\n" + CLOSE, 403),
    "broken chunks": (PATCH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", 400),
    "a negative length": (PATCH + b"Content-Length: -5\r\n", 400),
    "two lengths": (PATCH + b"Content-Length: 2\r\nContent-Length: 3\r\n", 400),
    "a length and chunks": (PATCH + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
    "headers of 70 kB": (PATCH + b"X: y\r\n" * 12_000, 431),
    "no HTTP": (b"\x16\x03\x01\r\n", 400),
    "HTTP/0.9": (GET + b"\r\n", 400),
    "an absolute URI": (GET.replace(b"/v1", b"http://x:2410/v1") + b" HTTP/1.1\r\n" + CLOSE, 200),
    "a cookie that is none": (GET + b" HTTP/1.1\r\nCookie: a\x80[=;=\r\n" + CLOSE, 200),
    "a charset that is none": (GET + b" HTTP/1.1\r\nX: =?bogus?q?x?=\r\n" + CLOSE, 500),
    "User_Agent": (GET + b" HTTP/1.1\r\nUser_Agent: curl\r\n" + CLOSE, 200),
}


@pytest.mark.parametrize("name", RAW)
def test_replies_are_objects_with_a_length_and_then_the_connection_closes(bench, name):
    data, expected = RAW[name]
    status, headers, body = raw(bench.port, data + b"\r\n")
    assert status == expected and isinstance(json.loads(body), dict)
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body) and "www-authenticate" not in headers


@pytest.mark.parametrize("name", [name for name, (_, status) in RAW.items() if status != 200])
def test_whoever_refuses_a_command_the_log_says_so(bench, caplog, name):
    """Our server, CherryPy or the application."""
    data, expected = RAW[name]
    for throttle in (command_app._throttle, bench.commands._server._throttle):
        throttle._throttle._passed.clear()
    raw(bench.port, data + b"\r\n")
    assert [line for line in caplog.messages if str(expected) in line or "a defect in guestmtce" in line]


def test_head_is_refused_without_a_body(bench):
    status, headers, body = raw(bench.port, GET.replace(b"GET", b"HEAD") + b" HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert (status, body, headers["content-type"]) == (405, b"", "application/json")


def test_a_204_has_no_body(bench):
    status, headers, body = raw(
        bench.port, GET.replace(b"GET", b"DELETE") + b" HTTP/1.1\r\n" + CLOSE + b"\r\n"
    )
    assert (status, body) == (204, b"") and "content-type" not in headers
    assert headers["connection"] == "close"


def test_a_defect_of_ours_is_an_object_too(bench, monkeypatch):
    monkeypatch.setattr(Inventory, "query_instance", lambda self, uuid: 1 // 0)
    assert bench.vim.query(U) == fail(500, "bad state")
    assert bench.vim.host("GET", A.uuid, A.hostname)[0] == 200


def test_cherrypy_is_an_application_and_no_more(bench, capfd):
    """Its bus would take our signals; what is configured for all would be for others in this process, too."""
    import cherrypy

    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    configured = dict(cherrypy.config)
    assert bench.vim.host("GET", A.uuid, A.hostname)[0] == 200 and bench.vim.query(U) == UNKNOWN
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert cherrypy.engine.state == cherrypy.engine.states.STOPPED
    assert dict(cherrypy.config) == configured and not cherrypy.tree.apps
    for path in (Path(vim_commands.__file__).parent).glob("*.py"):
        assert not re.search(
            r"cherrypy\._|cherrypy import _|cherrypy\.config", path.read_text(encoding="utf-8")
        )
    assert capfd.readouterr() == ("", "")  # it logs nothing of its own


# --- time ---


def test_answers_take_milliseconds(bench):
    bench.vim.set(U, A.hostname, "enabled")
    bench.running()
    times = []
    for _ in range(100):
        began = time.monotonic()
        assert bench.vim.ask("vote", U, A.hostname, "stop")[0] == 200
        times.append(time.monotonic() - began)
    assert within(0.02, sorted(times)[50]) and within(1, max(times))


def test_one_that_stalls_does_not_hold_up_the_vim(bench):
    stalled = [socket.create_connection((LOCAL, bench.port), 5) for _ in range(3)]
    for connection in stalled:
        connection.sendall(PATCH + b"Content-Length: 10\r\n\r\n{")
    began = time.monotonic()
    assert bench.vim.host("GET", A.uuid, A.hostname)[0] == 200
    assert within(1, time.monotonic() - began)
    for connection in stalled:
        connection.close()


def test_many_at_once(bench):
    uuids = ["%08x-0000-4000-8000-000000000000" % number for number in range(40)]
    replies = {}

    def one(uuid):
        replies[uuid] = bench.vim.create(uuid, A.hostname), bench.vim.set(uuid, A.hostname, "enabled")

    threads = [threading.Thread(target=one, args=(uuid,)) for uuid in uuids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert replies == {uuid: (PASS, services(uuid)) for uuid in uuids}


# --- life ---


def test_a_port_in_use_is_an_error_that_names_it(bench):
    second = Commands(AgentSettings(http_address=LOCAL, http_port=bench.port), bench.apply)
    with pytest.raises(OSError, match="%s port %d" % (LOCAL, bench.port)):
        second.start()
    second.close()


def test_counts_and_the_end():
    one = Bench()
    try:
        one.vim.host("DELETE", A.uuid, "")
        one.vim.query(U)
        one.vim.query(U)
        assert (one.commands.served, one.commands.refused) == (1, 2)
    finally:
        one.commands.close()
    with pytest.raises(OSError):
        one.vim.query(U)
