"""guestAgent's calls to the VIM (docs/protocol/3-vim-http.md#events), over real HTTP."""

import json
import socket
import threading
import tracemalloc

import pytest
from vimlink_bench import NAME, H, U, V, closing, ill, loss, outcome, service

from guestmtce.agent import vim_call, vim_client
from guestmtce.agent.effects import AskVim, Withdraw
from guestmtce.agent.model import Origin
from guestmtce.lab.cluster import TimedOut, wait_for
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import Vim
from guestmtce.wire import guest_channel
from guestmtce.wire.datagram import HOSTNAME_MAX

PATH = "/nfvi-plugins/v1/instances/"


@pytest.fixture
def bench():
    yield from closing()


@pytest.fixture
def real():
    """A VIM as the real one behaves."""
    stand_in = Vim()
    stand_in.start()
    yield stand_in
    stand_in.stop()


class Raw:
    """A server that answers each request with the next of `replies` (the last one for ever) and closes."""

    def __init__(self, *replies):
        self.requests = []
        self._replies = list(replies)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            peer, _ = self._socket.accept()
            with peer:
                data = b""
                while b"\r\n\r\n" not in data:
                    more = peer.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, body = data.partition(b"\r\n\r\n")
                lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
                while len(body) < int(lines[0].split(b":")[1] if lines else 0):
                    body += peer.recv(65536)
                self.requests.append(head + b"\r\n\r\n" + body)
                peer.sendall(self._replies.pop(0) if len(self._replies) > 1 else self._replies[0])

    def stop(self):
        with socket.create_connection(self._socket.getsockname()) as waker:
            waker.shutdown(socket.SHUT_WR)
            self._thread.join(5)
        self._socket.close()


@pytest.fixture
def raw():
    servers = []

    def make(*replies):
        servers.append(Raw(*replies))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def answered(status, body=b"", headers=b""):
    return b"HTTP/1.0 %d X\r\n%sContent-Type: application/json\r\n\r\n%s" % (status, headers, body)


# --- what is on the wire ---


def services(**fields):
    return {"services": [{"service": "heartbeat", **fields}]}


def said(response, reason="", action="stop"):
    return {"action": action, "guest-response": response, "reason": reason}


NAMED = {"uuid": U, "hostname": NAME}
TABLE = {
    "started": (service(), {**NAMED, "event-type": "service", "event-data": services(
        **{"state": "enabled", "status": "enabled", "restart-timeout": "601"})}),
    "stopped": (service(heartbeating=False), {**NAMED, "event-type": "service", "event-data": services(
        **{"state": "enabled", "status": "disabled", "restart-timeout": "0"})}),
    "loss": (loss(), {**NAMED, "event-type": "alarm", "event-data": services(
        **{"state": "failed", "repair-action": "reboot"})}),
    "ill": (ill(), {**NAMED, "event-type": "alarm", "event-data": services(
        **{"state": "unhealthy", "repair-action": "stop"})}),
    "yes": (outcome(), {"uuid": U, "event-type": "action", "event-data": said("allow")}),
    "done": (outcome("complete", guest_channel.NOTICE),
             {"uuid": U, "event-type": "action", "event-data": said("proceed")}),
    "no": (outcome("reject", reason='"nö"\n'),
           {"uuid": U, "event-type": "action", "event-data": said("reject", '"nö"\n')}),
    "timeout": (outcome("timeout"),
                {"uuid": U, "event-type": "action", "event-data": said("allow", "timeout")}),
    "error": (outcome("error", guest_channel.NOTICE, "script fails"),
              {"uuid": U, "event-type": "action", "event-data": said("proceed", "script fails")}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_events_on_the_wire(bench, real, name):
    effect, body = TABLE[name]
    one = bench(real.url)
    one.tell(effect)
    one.until_told(1)
    (entry,) = real.record
    assert (entry["method"], entry["path"], entry["body"]) == ("PATCH", PATH + U, body)
    headers = {key.lower(): value for key, value in entry["headers"].items()}
    assert headers["user-agent"] == "guest-agent/1.0"
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["content-length"].isdigit() and "transfer-encoding" not in headers


def test_questions_on_the_wire(bench, real):
    real.hosts = {H: False}
    real.instances = {H: [(U, NAME, True)]}
    one = bench(real.url)
    one.tell(AskVim(H, NAME, False), AskVim(H, NAME, True))
    wait_for(lambda: len(one.replies) == 2, "both replies")
    listed = {**NAMED, "services": [{"service": "heartbeat", "state": "enabled"}]}
    assert one.replies == [
        (NAME, "state", {"uuid": H, "hostname": NAME, "state": "disabled"}),
        (NAME, "instances", {"instances": [listed]}),
    ]
    first, second = [(entry["method"], entry["path"], entry["body"]) for entry in real.record]
    assert first == ("GET", "/nfvi-plugins/v1/hosts/" + H, {"hostname": NAME, "uuid": H})
    assert second == ("GET", PATH + "?host_uuid=" + H, {})
    assert real.record[0]["headers"]["Content-Length"].isdigit()


def test_no_proxy_stands_between(bench, real, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    one = bench(real.url)
    one.tell(loss())
    one.until_told(1)
    assert len(real.events("alarm")) == 1


# --- what it does about a VIM that is not well ---


def test_a_silent_close_is_success_for_all_but_an_alarm(bench, real):
    real.known = [V]
    one = bench(real.url)
    one.tell(service(), outcome(), loss())
    wait_for(lambda: len(real.events("alarm")) >= 3, "the alarm is repeated")
    assert [len(real.events(kind)) for kind in ("service", "action")] == [1, 1]
    assert one.outbox.delivered == 2 and one.link.reachable
    real.known = [U]
    one.until_told(3)
    assert one.outbox.given_up == 0


def test_what_the_vim_has_is_settled_and_nothing_else(bench, real):
    real.known = [V]
    one = bench(real.url)
    numbered = {1: loss(), 2: service(), 3: outcome(), 4: loss(V)}
    one.tell(*(what._replace(origin=Origin("10.0.0.1", 7, number)) for number, what in numbered.items()))
    wait_for(lambda: len(real.events("alarm", U)) >= 3, "the refused alarm is repeated")
    assert sorted(one.settled) == [2, 3, 4]
    real.known = [U]
    one.until_told(4)
    wait_for(lambda: sorted(one.settled) == [1, 2, 3, 4], "all is settled")


def test_a_question_that_gets_silence_is_answered_with_none(bench, real):
    one = bench(real.url)
    one.tell(AskVim(H, NAME, False), AskVim(H, NAME, True))
    wait_for(lambda: len(one.replies) == 2, "both replies")
    assert one.replies == [(NAME, "state", None), (NAME, "instances", None)]


def test_what_a_vim_missed_while_it_was_down_comes_in_order(bench):
    stand_in = Vim(port=free_ports(1)[0])
    one = bench(stand_in.url)
    one.tell(service(), outcome(), AskVim(H, NAME, False))
    wait_for(lambda: not one.link.reachable, "it is unreachable")
    one.tell(loss(), loss(V), service(heartbeating=False))
    stand_in.start()
    try:
        one.until_told(4)
        told = [(entry["body"]["uuid"], entry["body"]["event-type"]) for entry in stand_in.events()]
        assert [kind for uuid, kind in told if uuid == U] == ["action", "alarm", "service"]
        assert [kind for uuid, kind in told if uuid == V] == ["alarm"]
        status = stand_in.events("service")[0]["body"]["event-data"]["services"][0]["status"]
        assert status == "disabled" and one.link.reachable
        stand_in.stop()
        one.tell(loss())
        wait_for(lambda: not one.link.reachable, "it is unreachable again")
        stand_in.start()
        one.until_told(5)
    finally:
        stand_in.stop()


@pytest.mark.parametrize("trouble", ["hang", "reset"])
def test_a_vim_that_hangs_or_resets_is_told_again(bench, real, trouble):
    setattr(real, trouble, True)
    one = bench(real.url, timeout=0.1, alarm_timeout=0.1)
    one.tell(service(), loss())
    wait_for(lambda: not one.link.reachable, "it is unreachable")
    assert one.outbox.delivered == 0 and len(one.outbox) == 2
    setattr(real, trouble, False)
    one.until_told(2)
    wait_for(lambda: real.events("service") and real.events("alarm"), "both arrived")


def test_a_slow_serial_vim_hears_each_alarm_once(bench, real):
    real.delay = 0.05
    one = bench(real.url)
    one.tell(*(loss("%08x-0000-4000-8000-000000000000" % number) for number in range(5)))
    one.until_told(5)
    times = [entry["at"] for entry in real.events("alarm")]
    assert len(times) == 5 and all(b - a >= 0.04 for a, b in zip(times, times[1:]))


def test_the_lock_is_free_while_the_vim_handles_our_call(bench, real):
    """It calls us back before it answers."""
    got, one = [], bench(real.url)
    answer = real.answer

    def calls_back(*arguments):
        got.append(one.lock.acquire(timeout=2))
        if got == [True]:
            one.outbox.accept_effect(service(V))
        if got[-1]:
            one.lock.release()
        return answer(*arguments)

    real.answer = calls_back
    one.tell(loss())
    one.until_told(2)
    assert got == [True, True]


BROKEN = b'{"uuid'
REPLIES = {
    "200": (answered(200, b"{}"), 1),
    "200 without a body": (answered(200), 1),
    "204": (answered(204), 1),
    "200 with rubbish": (answered(200, b"\xff\xfe<html>"), 1),
    "200 with a list": (answered(200, b"[1]"), 1),
    "200 that breaks off": (answered(200, BROKEN, b"Content-Length: 99\r\n"), 1),
    "200, broken chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + BROKEN, 1),
    "400": (answered(400), 2), "404": (answered(404), 2), "408": (answered(408), 2),
    "429": (answered(429), 2), "500": (answered(500, b"{}"), 2),
    "503": (answered(503), 2),
    "302": (answered(302, b"", b"Location: http://127.0.0.1:9/\r\n"), 2),
    "silence": (b"", 2),
    "no HTTP": (b"220 smtp\r\n", 2),
    "half a head": (b"HTTP/1.0 200 OK\r\nContent-Le", 1),  # it has said yes
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_an_alarm_is_told_until_it_is_taken_and_then_never_again(bench, raw, name):
    """A repeated loss could be a second reboot; one that was never taken is a guest nobody repairs."""
    reply, times = REPLIES[name]
    server = raw(reply, answered(200, b"{}"))
    one = bench(server.url)
    one.tell(loss())
    one.until_told(1)
    one.tell(loss(V))
    one.until_told(2)
    assert [U.encode() in request for request in server.requests] == [True] * times + [False]
    assert server.requests[0].startswith(b"PATCH /nfvi-plugins/v1/instances/" + U.encode() + b" HTTP/1.1\r\n")


AGAIN = ("302", "408", "429", "500", "503", "no HTTP")


@pytest.mark.parametrize("name", REPLIES)
def test_an_outcome_is_told_until_it_is_taken(bench, raw, name):
    server = raw(REPLIES[name][0], b"")
    one = bench(server.url)
    one.tell(outcome("reject"))
    one.until_told(1)
    assert len(server.requests) == (2 if name in AGAIN else 1)


@pytest.mark.parametrize("name", REPLIES)
def test_a_service_event_is_not_repeated_blindly(bench, raw, name):
    server = raw(REPLIES[name][0], b"")
    one = bench(server.url)
    one.tell(service())
    one.until_told(1)
    assert len(server.requests) == (2 if name in AGAIN else 1)


@pytest.mark.parametrize("name", REPLIES)
def test_whatever_answers_a_question_the_link_lives_on(bench, raw, name):
    server = raw(REPLIES[name][0], answered(200, b'{"state":"enabled"}'))
    one = bench(server.url)
    one.tell(AskVim(H, NAME, False))
    wait_for(lambda: one.replies, "an answer")
    assert one.replies[0][2] in (None, {}, [1])
    one.tell(AskVim(H, NAME, False))
    wait_for(lambda: len(one.replies) == 2, "the next answer")
    assert one.replies[1][2] == {"state": "enabled"}


def test_names_in_a_long_list_are_read_as_utf8_and_at_once(bench, raw):
    body = b'{"instances":[' + b",".join([b'{"hostname":"caf\xc3\xa9"}'] * 5000) + b"]}"
    one = bench(raw(answered(200, body)).url)
    one.tell(AskVim(H, NAME, True))
    wait_for(lambda: one.replies, "the list", seconds=1)
    assert one.replies[0][2]["instances"][4999] == {"hostname": "caf\u00e9"}


def test_a_list_of_ten_thousand_instances_with_the_longest_names_fits(bench, raw):
    services = [{"service": "heartbeat", "state": "disabled"}]
    entry = {"uuid": U, "hostname": "h" * HOSTNAME_MAX, "services": services}
    body = json.dumps({"instances": [entry] * 10_000}).encode()
    assert len(body) < vim_call.ANSWER_MAX
    one = bench(raw(answered(200, body)).url)
    one.tell(AskVim(H, NAME, True))
    wait_for(lambda: one.replies, "the list")
    assert len(one.replies[0][2]["instances"]) == 10_000


ENDLESS = {
    "body": b"HTTP/1.0 200 OK\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "head": b"HTTP/1.0 200 OK\r\n",
    "status": b"HTTP/1.0 2",
    "continue": b"",
}
MORE = {
    "body": b"x" * 65536,
    "chunks": b"10000\r\n" + b"x" * 65536 + b"\r\n",
    "head": b"X-More: 1\r\n" * 100,
    "status": b"0" * 65536,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_is_left_in_bounded_memory_and_time(bench, name):
    """As fast as it is read."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server, server.accept()[0] as peer:
            try:
                peer.sendall(ENDLESS[name])
                while True:
                    peer.sendall(MORE[name])
            except OSError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    one = bench("http://127.0.0.1:%d" % server.getsockname()[1], timeout=1.0)
    tracemalloc.start()
    try:
        one.tell(AskVim(H, NAME, True))
        wait_for(lambda: one.replies, "no list", 5)
        assert tracemalloc.get_traced_memory()[1] < 4 * vim_call.ANSWER_MAX
    finally:
        tracemalloc.stop()
    assert one.replies == [(NAME, "instances", None)]
    thread.join(5)
    assert not thread.is_alive()


def test_a_defect_of_ours_delays_but_does_not_end_the_deliveries(bench, real):
    one = bench(real.url)
    one.link._on_reply = lambda item, reply: 1 // 0
    one.tell(AskVim(H, NAME, False))
    wait_for(lambda: real.record, "the question")
    one.tell(loss())
    one.until_told(1)


def test_nothing_is_begun_before_what_can_be_read_was_read(bench, real):
    """What was not read yet may say that the failure is over."""
    read = []
    one = bench(real.url, may_begin=lambda: bool(read))
    one.tell(loss(), service())
    one.tell(Withdraw(U, "the guest heartbeats again"))
    read.append(1)
    one.link.resume()
    one.until_told(1)
    assert [event["body"]["event-type"] for event in real.record] == ["service"]


def test_who_never_comes_to_read_delays_an_alarm_and_no_more(bench, real, monkeypatch):
    monkeypatch.setattr(vim_client, "HELD_MAX", 0.1)
    one = bench(real.url, may_begin=lambda: False)
    one.tell(loss())
    one.until_told(1)


def test_after_close_nothing_is_told(bench, real):
    one = bench(real.url)
    one.link.close()
    one.tell(loss())
    with pytest.raises(TimedOut):
        wait_for(lambda: real.record, "a request", seconds=0.05)
