"""The HTTP server beside clients that are idle, slow, greedy or gone: what costs a worker, and the bounds."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from guestmtce.agent.http import http_server
from guestmtce.agent.http.http_connections import Caller
from guestmtce.agent.http.http_server import HttpServer
from guestmtce.agent.http.vim_commands import Commands
from guestmtce.agent.inventory import Inventory
from guestmtce.agent.settings import AgentSettings
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import within
from guestmtce.lab.ports import free_ports
from guestmtce.wire import vim_http
from guestmtce.wire.datagram import HostRecord
from guestmtce.wire.http_request import build_json_response
from guestmtce.wire.vim_http import Failure

LOCAL = "127.0.0.1"
HOST = HostRecord("compute-0", "aaaaaaaa-0000-4000-8000-000000000000", "10.0.0.1")
GET = b"GET /v1/hosts/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % HOST.uuid.encode()
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"
WAIT = 10  # s


def answer_at_once(request, client):
    return build_json_response(200, {"path": request.path, "size": len(request.body)})


class Bench:
    """A server, and clients that are closed with it."""

    def __init__(self, stack, threads=1, timeout=WAIT, answer=answer_at_once, identify=lambda _: Caller("x")):
        self.port = free_ports(1)[0]
        self.server = HttpServer(threads, timeout, answer, identify)
        self.server.start(LOCAL, self.port)
        self._stack = stack
        stack.callback(self.server.close)

    def connect(self, data=b""):
        connection = self._stack.enter_context(socket.create_connection((LOCAL, self.port), WAIT))
        connection.sendall(data)
        return connection

    def ask(self, data=GET + b"\r\n"):
        return read_reply(self.connect(data))


@pytest.fixture
def bench():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        yield lambda **options: Bench(stack, **options)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_reply(connection):
    """Status and JSON of what comes until the server closes; None for a close without a byte."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            more = connection.recv(65536)
            if not more:
                break
            data += more
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if head else None


def until(condition, what):
    wait_for(condition, what, WAIT)


def seconds(act):
    began = time.monotonic()
    assert act()[0] == 200
    return time.monotonic() - began


# --- what costs no worker ---


def test_commands_beside_500_idle_and_50_dripping_connections(bench):
    """With CherryPy and one worker."""
    inventory, port = Inventory(), free_ports(1)[0]
    inventory.note_host(HOST)
    settings = AgentSettings(http_address=LOCAL, http_port=port, http_threads=1)
    commands = Commands(settings, lambda act: act(inventory))
    commands.start()
    stop = threading.Event()

    def connect(data=b""):
        connection = socket.create_connection((LOCAL, port), WAIT)
        connection.sendall(data)
        return connection

    def drip():
        while not stop.wait(0.02):
            for connection in dripping:
                connection.sendall(b"x")

    idle = [connect() for _ in range(500)]
    dripping = [connect(GET + b"X: ") for _ in range(50)]
    dripper = threading.Thread(target=drip)
    dripper.start()
    try:
        until(lambda: commands.connections == 550, "all are accepted")
        for _ in range(10):
            assert within(1, seconds(lambda: read_reply(connect(GET + b"\r\n"))))
        assert commands.connections == 560
    finally:
        stop.set()
        dripper.join()
        commands.close()
        for connection in idle + dripping:
            connection.close()


@pytest.mark.parametrize("part", [b"", b"G", GET, POST], ids=["idle", "a byte", "headers", "a body"])
def test_four_half_requests_hold_up_nobody(bench, part):
    one = bench(threads=4)
    half = [one.connect(part) for _ in range(4)]
    until(lambda: one.server.accepted == len(half), "they are accepted")
    assert within(1, seconds(one.ask))


LARGE = build_json_response(200, {"x": "x" * 40_000_000})  # more than a socket's buffers hold


def answer_much(request, client):
    return LARGE if request.path == "/" else answer_at_once(request, client)


def test_a_client_that_does_not_read_costs_no_worker_and_is_dropped(bench, monkeypatch):
    monkeypatch.setattr(http_server, "DEPARTURE_TIME", 1.0)
    one = bench(answer=answer_much)
    silent = one.connect(b"GET / HTTP/1.1\r\n\r\n")
    assert within(1, seconds(one.ask))
    until(lambda: one.server.departing == 1, "it has not taken all")
    until(lambda: one.server.departing == 0, "it is dropped")
    assert len(read_all(silent)) < len(LARGE)


def test_a_client_that_reads_late_gets_all(bench):
    one = bench(answer=answer_much)
    slow = one.connect(b"GET / HTTP/1.1\r\n\r\n")
    assert within(1, seconds(one.ask))
    until(lambda: one.server.departing == 1, "it has not taken all")
    assert len(read_all(slow)) == len(LARGE)


def read_all(connection):
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while True:
            more = connection.recv(1 << 20)
            if not more:
                break
            data += more
    return data


def test_an_answer_that_hangs_holds_up_its_worker_only(bench):
    go_on = threading.Event()

    def answer(request, client):
        if request.path == "/":
            go_on.wait(WAIT)
        return answer_at_once(request, client)

    one = bench(threads=2, answer=answer)
    hanging = one.connect(b"GET / HTTP/1.1\r\n\r\n")
    assert within(1, seconds(one.ask))
    go_on.set()
    assert read_reply(hanging)[0] == 200


# --- one deadline for a whole request ---


def test_half_a_request_is_told_when_its_time_is_over(bench):
    one = bench(timeout=0.3)
    half, idle = one.connect(POST), one.connect()
    assert read_reply(half) == (408, {"status": "fail", "reason": "command parse error"})
    assert read_reply(idle) is None
    assert one.server.unfinished == 1


def test_dripping_prolongs_nothing(bench):
    one = bench(timeout=0.5)
    dripping = one.connect(POST[:-1])
    began = time.monotonic()
    with contextlib.suppress(OSError):  # it is closed at last
        while time.monotonic() - began < WAIT and not select_readable(dripping):
            dripping.sendall(b" ")
            time.sleep(0.1)
    assert read_reply(dripping)[0] == 408


def select_readable(connection):
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(WAIT)


# --- what is bounded ---


def test_one_connection_too_many_closes_the_oldest(bench, monkeypatch):
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 5)
    one = bench()
    idle = [one.connect() for _ in range(6)]
    assert read_reply(idle[0]) is None
    assert one.ask()[0] == 200 and one.server.pushed_out == 2
    assert [not select_open(connection) for connection in idle] == [True] * 2 + [False] * 4


def select_open(connection):
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(WAIT)


def test_too_many_bytes_close_the_oldest(bench, monkeypatch):
    monkeypatch.setattr(http_server, "BYTES_MAX", 100_000)
    one = bench()
    greedy = [one.connect(b"POST / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + b"x" * 50_000) for _ in "abc"]
    assert read_reply(greedy[0]) is None
    assert one.ask()[0] == 200
    greedy[2].sendall(b"x" * 10_000)
    assert read_reply(greedy[2]) == (200, {"path": "/", "size": 60_000})


@pytest.mark.parametrize("length", ["-1", "1048576", "9" * 30, "1e3", "2, 3"])
def test_a_body_is_bounded_whatever_its_length_says(bench, length):
    one = bench()
    data = b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % length.encode() + b"x" * 1024 * 1024
    status, reply = one.ask(data)
    assert status in (400, 413) and reply["status"] == "fail"


def test_who_sends_a_large_body_first_and_reads_then_gets_the_answer(bench):
    one = bench()
    client = http.client.HTTPConnection(LOCAL, one.port, timeout=WAIT)
    client.request("POST", "/", b"x" * 1_500_000)
    assert client.getresponse().status == 413
    client.close()


def test_what_follows_a_request_destroys_no_response(bench):
    one = bench()
    for _ in range(20):
        assert one.ask(GET + b"\r\n" + b"x" * 10_000)[0] == 200


def test_who_wants_to_hear_continue_does(bench):
    one = bench()
    client = one.connect(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"{}")
    assert read_reply(client) == (200, {"path": "/", "size": 2})


SHORT_OF_DESCRIPTORS = """
import resource, sys, time
from guestmtce.agent.http.http_connections import Caller
from guestmtce.agent.http.http_server import HttpServer
from guestmtce.wire.http_request import build_json_response
server = HttpServer(1, 60, lambda *_: build_json_response(200, {}), lambda _: Caller("x"))
server.start("127.0.0.1", 0)
files = [open("/dev/null") for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (files[-1].fileno() + 1 + int(sys.argv[1]),) * 2)
print(server.port, flush=True)
sys.stdin.readline()
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before, flush=True)
files[0].close()
sys.stdin.readline()
"""


@contextlib.contextmanager
def short_of_descriptors(free):
    """A server in a process that has only so many descriptors more. Gives the process and the port."""
    command = [sys.executable, "-c", SHORT_OF_DESCRIPTORS, str(free)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child, int(child.stdout.readline())
        child.communicate("\n\n", WAIT)


def test_without_descriptors_the_oldest_connection_is_closed():
    with short_of_descriptors(8) as (_, port), contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection((LOCAL, port), WAIT))
        client = stack.enter_context(socket.create_connection((LOCAL, port), WAIT))
        client.sendall(GET + b"\r\n")
        assert read_reply(client)[0] == 200


def test_without_any_descriptor_it_waits_for_one_and_does_not_spin():
    with short_of_descriptors(0) as (child, port), socket.create_connection((LOCAL, port), WAIT) as client:
        client.sendall(GET + b"\r\n")
        child.stdin.write("\n")
        child.stdin.flush()
        assert within(0.2, float(child.stdout.readline()))
        assert read_reply(client)[0] == 200


# --- strangers ---


def refuse(_):
    return Caller("uid 7", Failure(403, vim_http.PARSE_ERROR, "not allowed"))


def test_strangers_are_answered_without_being_understood(bench):
    one = bench(identify=refuse)
    for data in (GET + b"\r\n", GET, b"\x16\x03", b"x" * 200_000):
        assert one.ask(data) == (403, {"status": "fail", "reason": "command parse error"})
    assert (one.server.served, one.server.refused) == (0, 4)


def test_strangers_push_out_each_other_only(bench, monkeypatch):
    monkeypatch.setattr(http_server, "STRANGERS_MAX", 3)
    names = iter(["known"] + ["stranger"] * 5 + ["known"])
    one = bench(identify=lambda sock: Caller("x") if next(names) == "known" else refuse(sock))
    half = one.connect(POST)
    until(lambda: one.server.accepted == 1, "it is accepted")
    strangers = [one.connect() for _ in range(5)]
    assert read_reply(strangers[0]) is None
    half.sendall(b"x" * 9)
    assert read_reply(half)[0] == one.ask()[0] == 200


# --- life ---


def test_a_defect_of_ours_is_answered_and_costs_no_worker(bench, caplog):
    one = bench(answer=lambda request, _: 1 // 0)
    for _ in range(3):
        assert one.ask() == (500, {"status": "fail", "reason": "bad state"})
    assert "a defect in guestmtce" in caplog.text


def test_close_ends_everything(bench):
    one = bench()
    idle = one.connect()
    until(lambda: one.server.accepted == 1, "it is accepted")
    one.server.close()
    assert read_reply(idle) is None
    with pytest.raises(OSError):
        one.connect()
    until(
        lambda: not any(t.name.startswith("http") and t.is_alive() for t in threading.enumerate()), "threads"
    )
    one.server.close()
