"""A datagram may be confirmed once all that it has brought is done."""

from guestmtce.agent.held_origins import HeldOrigins, is_same_datagram
from guestmtce.agent.model import Origin

ORIGIN = Origin("10.0.0.1", 7, 1)


def test_the_last_event_of_a_datagram_makes_it_confirmable_once():
    held = HeldOrigins()
    held.hold_origin(ORIGIN)
    held.hold_origin(ORIGIN)
    held.release_origin(ORIGIN)
    assert held.holds(ORIGIN) and held.take_confirmable() == []
    held.release_origin(ORIGIN._replace(ip="10.0.0.2"))
    assert not held.holds(ORIGIN)
    assert [one[1:] for one in held.take_confirmable()] == [ORIGIN[1:]]
    assert held.take_confirmable() == []


def test_an_old_guestserver_waits_for_nothing():
    held = HeldOrigins()
    held.hold_origin(None)
    held.release_origin(None)
    assert held.take_confirmable() == []


def test_a_datagram_is_the_same_from_another_address_and_none_is_no_datagram():
    assert is_same_datagram(ORIGIN, ORIGIN._replace(ip="::1"))
    assert not is_same_datagram(ORIGIN, ORIGIN._replace(sequence=2))
    assert not is_same_datagram(ORIGIN, ORIGIN._replace(sender=8))
    assert not is_same_datagram(None, None) and not is_same_datagram(ORIGIN, None)
