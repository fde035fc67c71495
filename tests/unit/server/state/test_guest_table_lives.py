"""The master's table in random lives: whatever happens in whatever order, the rules hold."""

from __future__ import annotations

from guests_driver import UUID
from guests_world import BEGINNING, STEPS, World
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.server.state import guest as row


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_random_lives_keep_the_rules(steps):
    world = World()
    for step in [*BEGINNING, *steps]:
        world.step(*step)
    world.step("wait", 30)
    assert +world.asked == {}, "every question is settled in bounded time"
    world.step("confirm", "")
    if UUID in world.table.guests:
        assert world.link() != row.ABSENT or world.guest.provisioned
        assert world.child or not world.guest.liveness.heartbeating
