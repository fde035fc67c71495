"""Names are looked up beside the loop; a name service that hangs or lies holds up nothing."""

import logging
import threading
import time

import pytest

from guestmtce.daemon.loop import Loop
from guestmtce.daemon.resolver import ADDRESSES_MAX, Resolver, is_address, look_up, spelled
from guestmtce.lab.cluster import wait_for
from guestmtce.lab.pace import within

FIRST, PERIOD = 0.01, 0.04
PROMPT = 0.5  # s; a loop that waited for a name service would take as long as the service


class Service:
    """A name service that the test plays, and a resolver that asks it."""

    def __init__(self):
        self.names, self.asked = {}, []
        self.hang = threading.Event()
        self.hang.set()
        self.loop = Loop()
        self.resolver = Resolver(self.loop, FIRST, PERIOD, self.look_up)

    def look_up(self, name):
        self.asked.append(name)
        self.hang.wait()
        if name not in self.names:
            raise OSError("Name or service not known")
        return self.names[name]

    def turn(self):
        self.loop.after(0.002, lambda: None)
        self.loop.run_once()

    def until(self, condition):
        wait_for(lambda: self.turn() or condition(), "in the loop", step=0)

    def asked_again(self, name, times=3):
        until = self.asked.count(name) + times
        self.until(lambda: self.asked.count(name) >= until)

    def close(self):
        self.hang.set()
        self.resolver.close()
        self.loop.close()


@pytest.fixture
def service():
    one = Service()
    yield one
    assert one.loop.defects == 0
    one.close()


def lines(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_a_name_service_that_hangs_holds_up_nothing(service):
    service.hang.clear()
    start = time.monotonic()
    service.resolver.watch("one")
    service.resolver.watch("two")
    service.until(lambda: service.asked)
    for _ in range(20):
        service.turn()
        assert service.resolver.addresses("one") == ()
    service.resolver.close()
    assert within(PROMPT, time.monotonic() - start)
    assert service.asked == ["one"]  # the next one waits its turn, in the thread


def test_all_addresses_of_a_name_are_known_and_refreshed(service, caplog):
    caplog.set_level(logging.INFO)
    service.names["one"] = ["10.0.0.1", "fd00::1"]
    told = []
    service.resolver.watch("one", lambda: told.append(service.resolver.addresses("one")))
    service.until(lambda: told)
    assert told[0] == ("10.0.0.1", "fd00::1")
    service.asked_again("one")
    service.names["one"] = ["fd00::1", "10.0.0.1"]  # in turn, as name services do
    service.asked_again("one")
    assert lines(caplog, "one is at") == ["one is at 10.0.0.1, fd00::1"]
    service.names["one"] = ["10.0.0.2"]
    service.until(lambda: service.resolver.addresses("one") == ("10.0.0.2",))


def test_a_look_up_that_fails_takes_nothing_away_and_costs_one_line(service, caplog):
    service.names["one"] = ["10.0.0.1"]
    service.resolver.watch("one")
    service.until(lambda: service.resolver.addresses("one"))
    for answer in (None, []):  # no such name, and a name without addresses
        service.names.pop("one", None)
        if answer is not None:
            service.names["one"] = answer
        service.asked_again("one", 4)
        assert service.resolver.addresses("one") == ("10.0.0.1",)
    assert len(lines(caplog, "cannot resolve one")) == 1
    assert "10.0.0.1" in lines(caplog, "cannot resolve one")[0]


@pytest.mark.parametrize("quiet", [False, True])
def test_an_unknown_name_costs_one_line_or_none_and_is_asked_for_ever_less_often(service, caplog, quiet):
    service.resolver.watch("one", quiet=quiet)
    service.asked_again("one", 5)
    assert len(lines(caplog, "cannot resolve")) == (0 if quiet else 1)
    assert service.resolver._names["one"].back_off.delay == PERIOD
    service.names["one"] = ["10.0.0.1"]
    service.until(lambda: service.resolver.addresses("one"))


@pytest.mark.parametrize("address, spelling", [("10.0.0.1", "10.0.0.1"), ("FD00:0::0001", "fd00::1")])
def test_an_address_needs_no_name_service(service, address, spelling):
    service.hang.clear()
    service.resolver.watch(address)
    assert service.resolver.addresses(address) == (spelling,)
    assert service.resolver._thread is None


def test_nobody_is_looked_up_who_is_not_watched(service):
    assert service.resolver.addresses("a.stranger") == ()
    assert service.asked == []


def test_a_name_of_very_many_addresses_is_cut(service):
    service.names["one"] = ["10.0.%d.%d" % divmod(number, 256) for number in range(1000)]
    service.resolver.watch("one")
    service.until(lambda: service.resolver.addresses("one"))
    assert len(service.resolver.addresses("one")) == ADDRESSES_MAX


def test_more_names_than_may_wait_are_looked_up_later(service, monkeypatch):
    monkeypatch.setattr(service.resolver._queue, "maxsize", 2)
    service.hang.clear()
    names = ["name-%d" % number for number in range(8)]
    service.names.update({name: ["10.0.0.1"] for name in names})
    for name in names:
        service.resolver.watch(name)
    assert service.resolver._queue.qsize() <= 2
    service.hang.set()
    service.until(lambda: all(service.resolver.addresses(name) for name in names))


@pytest.mark.parametrize("name", ["x" * 64 + ".invalid", "no such name.invalid", "\u2024..a", ""])
def test_what_is_no_name_at_all_is_an_error_like_others(service, name):
    service.resolver._look_up = look_up
    service.resolver.watch(name)
    service.until(lambda: service.resolver._names[name].failing or service.resolver.addresses(name))


def test_what_is_an_address():
    assert all(map(is_address, ["10.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]))
    assert not any(map(is_address, ["", "..", "localhost", "256.1.1.1", "1.2.3", "a" * 70, ":", "1\0"]))
    assert not is_address("10.0.0.1%a.name")  # a socket would have it looked up
    assert spelled("::ffff:10.0.0.1") == "10.0.0.1"
    assert "127.0.0.1" in look_up("127.0.0.1")
