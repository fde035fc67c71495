"""How long the VIM waits for the outcome of a vote or notice (docs/protocol/3-vim-http.md#outcomes)."""

import pytest
from inventory_facts import NOW, A, U, answer_list, drain_effects, enabled, info, inventory, named, of, origin

from guestmtce.agent.effects import ReportAction
from guestmtce.wire import datagram, guest_channel
from guestmtce.wire.vim_http import Listed

VOTE, NOTICE = guest_channel.VOTE, guest_channel.NOTICE


def outcome(kind=VOTE, event="stop"):
    return datagram.VoteResult(A.hostname, U, kind, event, "reject", "busy")


def until(made, event, now):
    """When the outcome that comes now is of no use any more."""
    drain_effects(made)
    assert made.events.note_outcome(event, now, origin(1))
    (told,) = of(ReportAction, drain_effects(made))
    return told.until


@pytest.mark.parametrize(("kind", "event", "seconds"), [(VOTE, "stop", 14), (NOTICE, "stop", 11)])
def test_an_outcome_ends_one_second_after_the_timeout_that_the_vim_was_told(kind, event, seconds):
    made = enabled()
    assert made.ask_guest(named(), kind, event, NOW)["timeout"] == str(seconds)
    for later in (0, 5, 100):
        assert until(made, outcome(kind, event), NOW + later) == NOW + seconds + 1


def test_the_latest_question_of_its_kind_counts():
    made = enabled()
    made.ask_guest(named(), VOTE, "stop", NOW)
    made.ask_guest(named(), NOTICE, "stop", NOW + 20)
    made.ask_guest(named(), VOTE, "reboot", NOW + 30)
    assert until(made, outcome(), NOW) == NOW + 15
    made.ask_guest(named(), VOTE, "stop", NOW + 40)
    assert until(made, outcome(), NOW + 41) == NOW + 55


def test_a_question_that_was_not_put_to_the_guest_has_no_end():
    made = enabled(heartbeating=False)
    assert made.ask_guest(named(), VOTE, "stop", NOW)["timeout"] == "0"
    assert made.instances[U].outcome_until == {}


@pytest.mark.parametrize("event", guest_channel.EVENT_TYPES)
@pytest.mark.parametrize("kind", [VOTE, NOTICE])
def test_the_outcome_of_a_guest_that_nothing_is_known_of_lasts_the_default_timeout(kind, event):
    """Before its init each timeout is 10 s (docs/protocol/1-guest-channel.md#init-and-acknowledgement)."""
    made = inventory()
    made.set_instance(named(), True, NOW)
    assert until(made, outcome(kind, event), NOW) == NOW + 11


@pytest.mark.parametrize(
    ("kind", "event", "seconds"),
    [
        (VOTE, "stop", 14),
        (NOTICE, "stop", 11),
        (NOTICE, "unheard_of", 14),
        (guest_channel.UNKNOWN, "pause", 12),
    ],
)
def test_the_outcome_of_another_agents_question_lasts_its_whole_timeout_at_most(kind, event, seconds):
    made = inventory(listed=False)
    made.events.note_answer(info())
    answer_list(made, A.hostname, [Listed(U, A.hostname, True)])
    assert until(made, outcome(kind, event), NOW) == NOW + seconds + 1
