"""A VIM that stands still, drips, or answers with a status: each alarm once, and none that waits for another.

A second of the real VIM is 0.02 s here: it stands still for 25, 45 and 65 s, an alarm has 100 s, others 20 s.
"""

import socket
import threading
import time

import pytest
from vimlink_bench import NAME, H, U, V, closing, loss, outcome, service, uuid_number

from guestmtce.agent import vim_call, vim_listener, vim_pace
from guestmtce.agent.effects import AskVim, Withdraw
from guestmtce.agent.model import Origin
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import stretched, within
from guestmtce.lab.vim import Vim

SCALE = 0.02
ALARM_TIMEOUT, TIMEOUT = 100 * SCALE, 20 * SCALE
SHORT = 0.3  # s; for an alarm that is to be given up


@pytest.fixture
def bench():
    yield from closing()


@pytest.fixture
def real():
    stand_in = Vim()
    stand_in.start()
    yield stand_in
    stand_in.drip = 0.0
    stand_in.stop()


def origin(number):
    return Origin("10.0.0.1", 7, number)


def times(real, kind, uuid=""):
    return [event["processed"] for event in real.events(kind, uuid)]


def asked(real):
    return [entry["path"] for entry in real.record if entry["method"] == "GET"]


# --- a VIM that stands still ---


@pytest.mark.parametrize("seconds", [25, 45, 65])
def test_a_vim_that_stands_still_hears_an_alarm_once(bench, real, seconds):
    one = bench(real.url, TIMEOUT, ALARM_TIMEOUT)
    real.stall(seconds * SCALE)
    one.tell(loss(U, origin=origin(1)), loss(V, origin=origin(2)))
    one.until_told(2)
    assert [len(times(real, "alarm", uuid)) for uuid in (U, V)] == [1, 1]
    assert asked(real) == [] and sorted(one.settled) == [1, 2]
    assert sorted(one.journal.lines) == [(1, "sending"), (1, "told"), (2, "sending"), (2, "told")]


@pytest.mark.parametrize("seconds", [25, 45, 65])
def test_an_alarm_that_was_given_up_after_it_was_sent_is_asked_about(bench, real, seconds):
    one = bench(real.url, TIMEOUT, SHORT)
    real.stall(seconds * SCALE)
    one.tell(loss(origin=origin(1)))
    one.until_told(1)
    assert len(times(real, "alarm")) == 1
    assert set(asked(real)) == {"/nfvi-plugins/v1/instances/" + U}
    assert one.settled == [1] and one.journal.lines == [(1, "sending"), (1, "told")]


def test_others_alarms_go_on_beside_one_that_is_not_answered(bench, real):
    """The answer that does not come is one connection's; the VIM serves the others."""
    real.drip, real.drips = 0.02, "status"
    one = bench(real.url, 5.0, 5.0)
    one.tell(loss(U))
    wait_for(lambda: times(real, "alarm", U), "it is being answered, for ever")
    real.drip = 0.0  # for those that come now
    one.tell(loss(V), service(V))
    wait_for(lambda: times(real, "service", V), "the other's are told", 2)
    wait_for(lambda: one.outbox.delivered == 2 and len(one.outbox) == 1, "that is noted")


def test_four_at_once_and_of_one_instance_one_after_the_other(bench, real):
    """What the VIM has before it at any moment: at most four, of different instances, in their order."""
    inside, most, lock = {}, [0], threading.Lock()
    one = bench(real.url)
    call = vim_call.Caller.call

    def counted(self, method, path, body, *more):
        with lock:
            assert path not in inside, "two of one instance"
            inside[path] = body
            most[0] = max(most[0], len(inside))
        try:
            return call(self, method, path, body, *more)
        finally:
            with lock:
                del inside[path]

    real.delay = 2 * vim_pace.BESIDE_AFTER
    vim_call.Caller.call = counted
    try:
        uuids = [uuid_number(number) for number in range(8)]
        for word in ("accept", "reject"):
            one.tell(*(outcome(word, uuid=uuid) for uuid in uuids))
        one.tell(*map(loss, uuids), *map(service, uuids))
        one.until_told(8 * 4)
    finally:
        vim_call.Caller.call = call
    assert most[0] == vim_pace.CONNECTIONS
    for uuid in uuids:
        told = [event["body"] for event in real.events(uuid=uuid)]
        assert [body["event-type"] for body in told] == ["action", "action", "alarm", "service"]
        answers = [body["event-data"]["guest-response"] for body in told[:2]]
        assert answers == ["allow", "reject"]


def test_questions_and_states_that_are_not_answered_hold_up_no_alarm(bench, real):
    real.hang = True
    one = bench(real.url, timeout=3.0)
    one.tell(AskVim(H, NAME, False), service(U), outcome(uuid=V))
    wait_for(lambda: one.outbox._pace.others_out == 1, "one of them is under way")
    one.tell(*(loss(uuid_number(number)) for number in range(3)))
    wait_for(lambda: one.outbox._pace.alarms_out == 3, "the alarms are under way", 1)
    real.hang = False
    one.until_told(5)
    assert len(times(real, "alarm")) == 3


def test_a_repetition_is_not_forgotten_when_the_thread_that_knows_of_it_gets_an_answer_late(bench, real):
    real.delay, real.status = 0.2, 503
    one = bench(real.url, retry=0.5)
    one.tell(loss(V))
    wait_for(lambda: one.outbox._pace.alarms_out, "it is under way")
    with one.lock:
        one.outbox.accept_effect(loss(U))  # nobody is told: the thread of the first one finds it
    wait_for(lambda: real.turned_down, "the first one is put off")
    real.hang, real.status = True, 0
    wait_for(lambda: one.outbox._pace.alarms_out == 2, "it is told again beside the other", 3)
    real.hang = False
    one.until_told(2)


# --- what is asked, and what that proves ---


def given_up(bench, real):
    """An alarm of U that the VIM has and has not answered."""
    one = bench(real.url, TIMEOUT, SHORT)
    real.hang = True
    one.tell(loss(origin=origin(1)))
    wait_for(lambda: any(p.asks for p in _pending(one)), "it is given up")
    return one


def _pending(one):
    with one.lock:
        return [pending for lane in one.outbox._lanes._lanes.values() for pending in lane.pending.values()]


def test_a_vim_that_died_with_the_alarm_is_told_again(bench, real):
    one = given_up(bench, real)
    real.die()
    assert times(real, "alarm") == []
    real.hang = False
    real.start()
    one.until_told(1)
    assert len(times(real, "alarm")) == 1 and (1, "unsent") in one.journal.lines


def test_a_vim_that_died_and_is_back_before_it_was_asked_is_told_again(bench, real):
    """It would answer the question; but it is another one."""
    one = given_up(bench, real)
    with one.lock:
        one.outbox._pace._not_before = time.monotonic() + stretched(0.5)
    real.die()
    real.hang = False
    real.start()
    one.until_told(1)
    assert len(times(real, "alarm")) == 1 and asked(real) == []


def test_a_close_without_a_byte_answers_nothing(bench, real):
    one = given_up(bench, real)
    real.known = [U]
    answer = real.answer
    real.answer = lambda method, *rest: None if method == "GET" else answer(method, *rest)
    real.hang = False
    wait_for(lambda: len(asked(real)) >= 3, "it is asked again and again")
    assert one.settled == [] and len(times(real, "alarm")) == 1
    real.answer = answer
    one.until_told(1)
    assert len(times(real, "alarm")) == 1


def test_a_proxys_status_answers_nothing(bench, real):
    one = given_up(bench, real)
    real.status = 503
    real.hang = False
    wait_for(lambda: [e for e in real.turned_down if e["method"] == "GET"], "it is asked")
    assert one.outbox.delivered == 0
    real.status = 0
    one.until_told(1)


def test_an_alarm_that_an_agent_before_was_sending_is_asked_about(bench, real):
    one = bench(real.url)
    one.tell(loss(origin=origin(1)), sent_to=vim_listener.identify_listener(real.url))
    one.until_told(1)
    assert times(real, "alarm") == [] and len(asked(real)) == 1
    one.tell(loss(V, origin=origin(2)), sent_to=0)  # it could not tell to which VIM
    one.until_told(2)
    assert times(real, "alarm") == [] and len(asked(real)) == 2


def test_an_alarm_that_an_agent_before_was_sending_to_another_vim_is_sent(bench, real):
    one = bench(real.url)
    one.tell(loss(origin=origin(1)), sent_to=vim_listener.identify_listener(real.url) ^ 1)
    one.until_told(1)
    assert len(times(real, "alarm")) == 1 and asked(real) == []


def test_a_vim_that_is_replaced_while_it_is_asked_is_told(bench, real, monkeypatch):
    """The answer is another one's, and proves nothing."""
    listeners = iter([5, 6])
    monkeypatch.setattr(vim_listener, "identify_listener", lambda base: next(listeners, 6))
    one = bench(real.url)
    one.tell(loss(origin=origin(1)), sent_to=5)
    one.until_told(1)
    assert len(times(real, "alarm")) == len(asked(real)) == 1


def test_the_listener_is_the_one_that_listens(real):
    first = vim_listener.identify_listener(real.url)
    assert first and vim_listener.identify_listener(real.url) == first
    port = real.port
    real.stop()
    assert vim_listener.identify_listener(real.url) == 0
    real.start()
    assert real.port == port and vim_listener.identify_listener(real.url) not in (0, first)
    for other in ("http://[::1]:80", "http://vim:80", "http://192.0.2.1:%d" % port, "", "http://x:y"):
        assert vim_listener.identify_listener(other) == 0


def test_a_vim_that_takes_no_connection_has_nothing(bench):
    """The queue of its connections is full: it stands still."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            one = bench("http://127.0.0.1:%d" % full.getsockname()[1], TIMEOUT, SHORT)
            one.tell(loss(origin=origin(1)))
            wait_for(lambda: len(one.journal.lines) >= 2, "it was tried twice")
            assert set(one.journal.lines) == {(1, "unsent")} and not any(p.asks for p in _pending(one))


def test_what_is_withdrawn_while_its_connection_is_made_is_not_sent(bench):
    """The VIM takes a connection late; what came to the connection meanwhile is not true any more."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler = socket.create_connection(full.getsockname())
        one = bench("http://127.0.0.1:%d" % full.getsockname()[1], 5.0, 5.0)
        one.tell(loss(origin=origin(1)))
        wait_for(lambda: one.outbox._pace._begun, "the connection is being made")
        one.tell(Withdraw(U, "it is over"))
        full.settimeout(60)
        full.accept()[0].close()
        filler.close()
        late, _ = full.accept()
        late.settimeout(60)
        assert late.recv(65536) == b""
        assert one.journal.lines == []
        late.close()
        wait_for(lambda: not one.outbox._pace._begun, "it has ended")


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_the_vims_kernel_has_not_all_of_is_not_sent(size):
    """Its buffer is small, and it reads nothing."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        server.bind(("127.0.0.1", 0))
        server.listen()
        caller = vim_call.Caller("http://127.0.0.1:%d" % server.getsockname()[1])
        with pytest.raises(vim_call.Unanswered) as error:
            caller.call("PATCH", "/", {"x": "y" * size}, vim_call.Wait(SHORT, SHORT))
        assert error.value.has_all is (size == 100)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(60)
            if size == 100:
                assert b"yyy" in connection.recv(65536)
            else:  # nor does it come later
                with pytest.raises(ConnectionResetError):
                    while connection.recv(65536):
                        pass


# --- an answer that drips ---


@pytest.mark.parametrize("what", ["body", "head"])
def test_an_answer_that_drips_is_a_yes_in_the_end(bench, real, what):
    real.drip, real.drips = 0.02, what
    one = bench(real.url, TIMEOUT, 5.0)
    begun = time.monotonic()
    one.tell(loss(origin=origin(1)))
    one.until_told(1)
    took = time.monotonic() - begun
    assert took > TIMEOUT * 0.9 and within(2.0, took)
    assert len(times(real, "alarm")) == 1 and asked(real) == []


def test_a_status_line_that_drips_is_none(bench, real):
    real.drip, real.drips = 0.02, "status"
    one = bench(real.url, TIMEOUT, 5.0)
    one.tell(loss(origin=origin(1)))
    one.until_told(1)
    assert len(times(real, "alarm")) == 1 and len(asked(real)) == 1


# --- a connection for each, and what is noted before it is sent ---


def test_what_is_noted_is_noted_between_head_and_body():
    """Whoever is killed before the note has sent nothing that could be processed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = []

        def look():
            peer, _ = server.accept()
            peer.settimeout(60)
            data = b""
            while b"\r\n\r\n" not in data:
                data += peer.recv(65536)
            seen.append(data)
            peer.close()

        caller = vim_call.Caller("http://127.0.0.1:%d" % server.getsockname()[1])
        with pytest.raises((vim_call.Unreached, vim_call.Silent)):
            caller.call("PATCH", "/", {"a": 1}, vim_call.Wait(1.0, 1.0), vim_call.Steps(before_body=look))
        assert len(seen) == 1 and seen[0].endswith(b"\r\n\r\n")


def test_no_connection_is_used_twice_though_the_other_side_keeps_it():
    """An answer on an older connection would prove nothing, and its silent end would mean a delivery."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(peer):
            data = peer.recv(65536)
            while data:  # it closes first
                if data.endswith(b"}"):
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                data = peer.recv(65536)

        def accept():
            for _ in range(3):
                with server.accept()[0] as peer:
                    serve(peer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        caller = vim_call.Caller("http://127.0.0.1:%d" % server.getsockname()[1])
        bodies = []
        for number in range(3):
            wait = vim_call.Wait(1.0, 1.0)
            reply = caller.call(
                "PATCH", "/", {"a": 1}, wait, vim_call.Steps(before_body=lambda: bodies.append(1))
            )
            assert reply == (200, {}) and len(bodies) == number + 1
        thread.join(5)
        assert not thread.is_alive()


# --- outcomes and their end ---


def test_an_outcome_is_not_told_after_its_question(bench):
    """The VIM is down for 40 s; it waited 10 s for a vote, and goes on by itself 1.1 s later."""
    stand_in = Vim()
    stand_in.start()
    stand_in.stop()
    one = bench(stand_in.url)
    until = time.monotonic() + 11 * SCALE
    stale = outcome("reject", until=until)._replace(origin=origin(1))
    one.tell(stale, service(V))
    wait_for(lambda: one.settled == [1], "its server hears that nobody wants it")
    assert until <= time.monotonic() < until + 0.5
    assert one.outbox.expired == 1 and one.outbox.delivered == 0
    stand_in.start()
    try:
        one.tell(outcome("accept", until=time.monotonic() + 5))
        one.until_told(2)
        told = [event["body"]["event-data"]["guest-response"] for event in stand_in.events("action")]
        assert told == ["allow"]
    finally:
        stand_in.stop()


def test_an_outcome_that_the_vim_has_and_does_not_answer_is_not_repeated(bench, real):
    real.hang = True
    one = bench(real.url, timeout=0.1)
    one.tell(outcome("reject"))
    one.until_told(1)
    real.hang = False
    one.tell(service(V))
    one.until_told(2)
    assert len(times(real, "action")) == 1
