"""The table of a guest's states says what three facts and a flag, kept each for itself, would say."""

from __future__ import annotations

import itertools

import pytest

from guestmtce.server.state import guest, liveness

INPUTS = sorted(liveness.TRANSITIONS)
FACTS = {
    liveness.BEATING: (True, True, True, False),
    liveness.UNPROVEN: (True, True, False, False),
    liveness.INTERRUPTED: (False, True, True, False),
    liveness.LEAVING: (False, True, False, False),
    liveness.OVERDUE: (False, False, True, False),
    liveness.SILENT: (False, False, False, False),
    liveness.LOST: (False, False, False, True),
}


def facts_after(happening, running, heartbeating, owes, lost):
    """What each fact of its own becomes; none if it cannot happen then."""
    if happening == liveness.ANSWERED:
        return True, True, True, False
    if happening == liveness.ANSWERED_TOO_EARLY:
        return True, True, False, False
    if happening == liveness.CHILD_GONE:
        return False, heartbeating, owes, lost
    if happening == liveness.EXCUSED:
        return running, heartbeating, False, lost
    if happening == liveness.GRACE_OVER:
        return (running, heartbeating, owes, lost) if running else (False, False, owes, lost)
    if happening == liveness.SAID_STOPPED:
        return False, False, owes, False
    if happening == liveness.SAID_HEALTH:
        return running, heartbeating, owes, False
    if happening == liveness.JUDGED_LOST:
        return False, False, False, True
    assert happening == liveness.MADE_ANEW
    return running, heartbeating, False, False


def facts_of(row):
    return (row.running, row.heartbeating, row.owes_answer, row.failure == guest.LOST)


@pytest.mark.parametrize(
    ("state", "happening"),
    list(itertools.product(liveness.STATES, INPUTS)),
    ids=lambda each: each.split(":")[0],
)
def test_every_input_in_every_state_changes_the_facts_as_it_should(state, happening):
    row = guest.Liveness()
    row.state = state
    assert facts_of(row) == FACTS[state]
    row.note(happening)
    assert facts_of(row) == facts_after(happening, *FACTS[state])


def test_no_state_is_named_that_there_is_not_and_each_can_be_reached():
    named = {state for arrows in liveness.TRANSITIONS.values() for state in (*arrows, *arrows.values())}
    assert named == set(liveness.STATES) == set(FACTS)
    reached, fresh = set(), {guest.Liveness().state}
    while fresh:
        reached |= fresh
        arrows = liveness.TRANSITIONS.values()
        fresh = {each[state] for each in arrows for state in fresh if state in each} - reached
    assert reached == set(liveness.STATES)


@pytest.mark.parametrize(("heartbeating", "owes"), list(itertools.product((True, False), repeat=2)))
def test_a_guest_is_recalled_as_it_was_without_its_child(heartbeating, owes):
    state = liveness.recalled_state(heartbeating, owes)
    assert FACTS[state] == (False, heartbeating, owes, False)


def test_an_illness_shows_unless_the_guest_is_lost():
    row = guest.Liveness()
    row.ill = True
    assert row.failure == guest.ILL
    row.note(liveness.JUDGED_LOST)
    assert row.failure == guest.LOST
