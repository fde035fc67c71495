"""The outbox with several requests under way: what may go beside what, and how each may end."""

import heapq

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.agent import vim_lanes, vim_pace, vim_queue
from guestmtce.agent.effects import (
    NEVER,
    AskVim,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Withdraw,
)
from guestmtce.agent.model import Origin
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import ACTION, ALARM, SERVICE, VIM_QUERY

FIRST, MOST = 0.5, 10.0
NOW = 1000.0
LIST = AskVim("h-uuid", "h", True)


def origin(number):
    return Origin("10.0.0.1", 7, number)


def failed(uuid="U", number=0):
    return ReportAlarm(uuid, "failed", {"failed": number}, origin(number) if number else None)


def service(uuid="U"):
    return ReportService(uuid, {"service": 0})


def action(uuid="U", until=NEVER, number=0):
    return ReportAction(uuid, {"action": number}, origin(number) if number else None, until)


def outbox(*effects):
    made = VimQueue(FIRST, MOST)
    for effect in effects:
        made.accept_effect(effect)
    return made


def start_all(made, now=NOW):
    """All that may be under way at once, each when the one before has not been answered for a while."""
    items = []
    while True:
        item = made.next_request(now)
        if item is not None:
            items.append(item)
        elif now < made.next_due() < now + 1:
            now = made.next_due()
        else:
            return items


# --- beside each other ---


def test_four_alarms_at_once_and_the_next_when_one_has_ended():
    made = outbox(*(failed("U%d" % number) for number in range(6)))
    items = start_all(made)
    assert [item.uuid for item in items] == ["U0", "U1", "U2", "U3"] and made.next_due() == NEVER
    made.note_delivered(items[2])
    assert [item.uuid for item in start_all(made)] == ["U4"]


def test_one_place_is_for_what_is_no_alarm():
    made = outbox(service("U"), action("V"), LIST, service("W"))
    (item,) = start_all(made)
    assert item.kind == ACTION
    for number in range(6):
        made.accept_effect(failed("U%d" % number))
    assert [one.uuid for one in start_all(made)] == ["U0", "U1", "U2"]
    made.note_delivered(item)
    assert [one.uuid for one in start_all(made)] == ["U3"]  # an alarm takes that place, too


def test_a_question_is_under_way_beside_alarms_and_asked_once():
    made = outbox(LIST)
    (item,) = start_all(made)
    assert item.kind == VIM_QUERY
    made.accept_effect(LIST)
    made.accept_effect(failed())
    assert [one.kind for one in start_all(made)] == [ALARM]
    made.note_refused(item, NOW)
    assert made.next_request(NOW + 1) is None
    made.accept_effect(LIST)
    assert made.next_request(NOW + 1).kind == VIM_QUERY


def test_a_question_bears_its_latest_serial_until_it_is_under_way():
    made = outbox(LIST, LIST._replace(hostname="i"), LIST._replace(serial=7))
    first = made.next_request(NOW)
    assert first.serial == 7
    made.accept_effect(LIST._replace(serial=8))
    made.accept_effect(LIST._replace(hostname="i", serial=9))
    made.note_delivered(first)
    second = made.next_request(NOW)
    assert (second.uuid, second.serial) == ("i", 9)
    made.note_delivered(second)
    assert made.next_request(NOW) is None


def test_nothing_else_of_an_instance_while_one_is_under_way():
    made = outbox(action("U"), failed("U"), service("U"), service("V"))
    items = start_all(made)
    assert [(item.uuid, item.kind) for item in items] == [("U", ACTION), ("V", SERVICE)]
    made.accept_effect(failed("U", 2))
    assert start_all(made) == []
    made.note_delivered(items[0])
    (alarm,) = start_all(made)
    assert alarm.body == {"failed": 2}
    made.accept_effect(ForgetVimEvents("U"))
    made.accept_effect(failed("U", 3))  # made anew while the old one's alarm is under way
    assert start_all(made) == [] and made.holds_origin(origin(3))
    made.note_delivered(alarm)
    assert [item.body for item in start_all(made)] == [{"failed": 3}]


def test_the_outcome_before_an_alarm_takes_an_alarms_place():
    made = outbox(service("V"))
    start_all(made)
    made.accept_effect(action("U"))
    made.accept_effect(failed("U"))
    assert [item.kind for item in start_all(made)] == [ACTION]


def test_the_same_failure_again_does_not_take_the_place_of_the_one_under_way():
    made = outbox(failed("U", 1))
    (item,) = start_all(made)
    made.accept_effect(failed("U", 1))
    made.note_unanswered(item, NOW, 5)
    made.accept_effect(failed("U", 1))
    (asks,) = start_all(made, NOW + MOST)
    assert asks.asks and len(made) == 1
    made.note_delivered(asks)
    assert made.take_confirmable() == [origin(1)]


def test_a_failure_that_its_server_repeats_is_offered_no_sooner_and_no_more_often():
    made = outbox(failed("U", 1))
    now, waits = NOW, []
    for _ in range(3):
        made.note_refused(made.next_request(now), now)
        made.accept_effect(failed("U", 1))
        assert made.next_request(now) is None
        waits.append(made.next_due() - now)
        now = made.next_due()
    assert waits == [0.5, 1, 2]


def test_what_is_under_way_of_another_failure_keeps_none_that_is_over():
    made = outbox(failed("V"), ReportAlarm("U", "unhealthy", {}))
    items = start_all(made)
    made.accept_effect(failed("U"))
    made.accept_effect(OVER._replace(states=("failed",)))
    assert [item.order for item in items] == [0, 1] and len(made) == 2


def test_a_failure_that_an_agent_before_this_one_was_sending_is_asked_about_first():
    made = VimQueue(FIRST, MOST)
    made.add_alarm(failed("U", 1), 5)
    item = made.next_request(NOW)
    assert (item.method, item.body, item.asks, item.sent_to) == ("GET", {}, True, 5)
    made.note_unsent(item)
    item = made.next_request(NOW + MOST)
    assert (item.method, item.body, item.asks) == ("PATCH", {"failed": 1}, False)


def test_another_is_begun_at_once_when_one_ends_and_else_after_a_while():
    made = outbox(*map(failed, "ABCDEF"))
    first = made.next_request(NOW)
    assert made.next_request(NOW) is None and made.next_due() == NOW + vim_pace.BESIDE_AFTER
    made.note_delivered(first)
    second = made.next_request(NOW)
    assert second.uuid == "B"
    late = NOW + vim_pace.BESIDE_AFTER
    assert made.next_request(late).uuid == "C" and made.next_request(late) is None
    made.note_delivered(second)  # the younger one is still awaited
    assert made.next_request(late) is None and made.next_due() == late + vim_pace.BESIDE_AFTER


# --- how it may end ---


def test_an_unanswered_alarm_is_asked_about_until_there_is_an_answer():
    made, now = outbox(failed("U", 1)), NOW
    made.note_unanswered(made.next_request(now), now, 5)
    waits = []
    for end in (VimQueue.note_unanswered, VimQueue.note_refused, VimQueue.note_put_off) * 3:
        assert made.next_request(now) is None
        waits.append(made.next_due() - now)
        now = made.next_due()
        item = made.next_request(now)
        assert item[4:7] == ("GET", "/nfvi-plugins/v1/instances/U", {})
        assert (item.asks, item.sent_to, item.origin) == (True, 5, origin(1))
        end(made, item, now)
    assert max(waits) <= MOST and waits[0] == FIRST
    made.note_delivered(made.next_request(made.next_due()))
    assert made.delivered == 1 and made.take_confirmable() == [origin(1)] and made.next_due() == NEVER


@pytest.mark.parametrize("end", [VimQueue.note_unreached, lambda made, item, _: made.note_unsent(item)])
def test_one_that_was_asked_about_is_sent_to_a_vim_that_has_it_not(end):
    made = outbox(failed("U", 1))
    made.note_unanswered(made.next_request(NOW), NOW, 5)
    end(made, made.next_request(NOW + FIRST), NOW + FIRST)
    item = made.next_request(NOW + MOST)
    assert (item.method, item.body, item.asks) == ("PATCH", {"failed": 1}, False)


# --- a failure that is over while the VIM may have its alarm ---

OVER = Withdraw("U", "why")


def anew(number):
    """The same words from another datagram: the guest has failed again."""
    return failed("U", 0)._replace(origin=origin(number))


def unanswered_at(made, now):
    made.note_unanswered(made.next_request(now), now, 5)


@pytest.mark.parametrize("has_timed_out", [False, True])
def test_a_new_failure_is_told_by_the_alarm_of_the_one_before_that_the_vim_processes_now(has_timed_out):
    """A VIM that goes on after a while reads all that has come: a second alarm would restart its repair."""
    made = outbox(anew(1))
    item = made.next_request(NOW)
    if has_timed_out:
        made.note_unanswered(item, NOW, 5)
    made.accept_effect(OVER)
    assert made.take_confirmable() == [origin(1)] and made.withdrawn == 1
    made.accept_effect(anew(2))
    assert made.next_request(NOW) is None and made.holds_origin(origin(2))
    if has_timed_out:
        item = made.next_request(NOW + FIRST)
        assert item.asks and item.sent_to == 5
    made.note_delivered(item)
    assert made.take_confirmable() == [origin(2)] and len(made) == 0


@pytest.mark.parametrize("between", [[], [OVER]])
@pytest.mark.parametrize("end", [VimQueue.note_unreached, lambda made, item, _: made.note_unsent(item)])
def test_a_new_failure_is_told_if_the_vim_has_not_the_one_before(between, end):
    made = outbox(anew(1))
    item = made.next_request(NOW)
    for effect in [*between, anew(2)]:
        made.accept_effect(effect)
    end(made, item, NOW)
    item = made.next_request(NOW + MOST)
    assert (item.method, item.origin) == ("PATCH", origin(2))


def test_a_new_failure_with_another_repair_action_is_told_in_any_case():
    made = outbox(anew(1))
    item = made.next_request(NOW)
    made.accept_effect(OVER)
    made.accept_effect(failed("U", 2))
    made.note_delivered(item)
    assert made.next_request(NOW).body == {"failed": 2}


def test_an_alarm_is_asked_about_ever_more_seldom():
    made, now, waits = outbox(failed()), NOW, []
    for _ in range(7):
        made.note_unanswered(made.next_request(now), now, 5)
        waits.append(made.next_due() - now)
        now = made.next_due()
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]


def test_a_new_failure_with_another_repair_action_is_not_asked_about():
    made = outbox(anew(1))
    unanswered_at(made, NOW)
    made.accept_effect(failed("U", 2))
    item = made.next_request(NOW + FIRST)
    assert (item.method, item.body) == ("PATCH", {"failed": 2})


def test_a_new_failure_in_the_same_words_is_sent_if_none_was():
    made = outbox(anew(1), anew(2))
    item = made.next_request(NOW)
    assert (item.method, item.origin) == ("PATCH", origin(2))


def test_a_new_failure_after_the_vim_has_acted_is_told():
    """It disabled reporting: it has read what there was, and enabled it again since."""
    made = outbox(anew(1))
    item = made.next_request(NOW)
    made.accept_effect(OVER._replace(unwanted=True))
    made.accept_effect(anew(2))
    made.note_delivered(item)
    assert made.next_request(NOW).origin == origin(2)


def test_what_is_over_is_asked_about_until_it_is_known_and_never_sent():
    made = outbox(anew(1))
    unanswered_at(made, NOW)
    made.accept_effect(OVER)
    made.accept_effect(OVER)
    assert made.withdrawn == 1
    now = NOW
    for end in (VimQueue.note_refused, VimQueue.note_put_off, VimQueue.note_unanswered):
        now = made.next_due()
        item = made.next_request(now)
        assert item.asks and made.is_wanted(item, now)
        end(made, item, now)
    now = made.next_due()
    made.note_unsent(made.next_request(now))
    assert len(made) == 0 and made.next_request(now + MOST) is None


def test_what_is_over_twice_is_withdrawn_once():
    made = outbox(anew(1))
    unanswered_at(made, NOW)
    made.accept_effect(OVER)
    made.accept_effect(OVER._replace(unwanted=True))
    assert made.withdrawn == 1 and len(made) == 0


@pytest.mark.parametrize("end", [VimQueue.note_refused, VimQueue.note_put_off, VimQueue.note_unreached])
def test_what_is_over_and_was_turned_down_is_done(end):
    made = outbox(anew(1))
    item = made.next_request(NOW)
    made.accept_effect(OVER)
    assert not made.is_wanted(item, NOW), "if it was not sent yet, it is not to be"
    end(made, item, NOW)
    assert len(made) == 0


@pytest.mark.parametrize("effect", [failed(), service(), action()])
def test_what_is_put_off_comes_again_and_holds_up_nobody(effect):
    made, now, waits = outbox(effect._replace(uuid="U")), NOW, []
    for _ in range(7):
        made.note_put_off(made.next_request(now), now)
        made.accept_effect(service("V"))
        item = made.next_request(now)
        assert item.uuid == "V"
        made.note_delivered(item)
        waits.append(made.next_due() - now)
        now = made.next_due()
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]
    made.note_delivered(made.next_request(now))
    assert len(made) == 0


def test_a_put_off_alarm_is_never_given_up():
    made, now = outbox(failed()), NOW
    for _ in range(2 * vim_queue.REFUSALS_MAX):
        made.note_put_off(made.next_request(now), now)
        now = made.next_due()
    assert made.given_up == 0 and made.next_request(now) is not None


def test_several_that_find_the_vim_away_at_once_count_as_one():
    made = outbox(*map(failed, "ABCD"))
    for item in start_all(made):
        made.note_unreached(item, NOW)
    assert made.next_due() == NOW + FIRST
    assert len(start_all(made, NOW + FIRST)) == 4


@pytest.mark.parametrize(("effect", "left"), [(service(), 1), (action(), 0)])
def test_an_unanswered_state_is_told_again_and_an_outcome_is_not(effect, left):
    made = outbox(effect)
    made.note_unanswered(made.next_request(NOW), NOW)
    assert len(made) == left and made.delivered == 1 - left


# --- outcomes and their end ---


def test_an_outcome_is_dropped_at_its_end_and_its_server_hears():
    made = outbox(action(until=NOW + 11, number=1), action(until=NOW + 20, number=2))
    made.note_unreached(made.next_request(NOW), NOW)
    now = NOW
    while now < NOW + 11:
        assert made.take_confirmable() == []
        item = made.next_request(now)
        if item is not None:
            made.note_unreached(item, now)
        now = made.next_due()
    assert now == NOW + 11 and made.next_request(now) is None
    assert made.take_confirmable() == [origin(1)] and (made.expired, len(made)) == (1, 1)
    assert made.next_request(NOW + 18).body == {"action": 2}


def test_an_outcome_that_comes_too_late_is_not_told():
    made = outbox(action(until=NOW - 1, number=1))
    assert made.next_due() <= NOW and made.next_request(NOW) is None
    assert made.take_confirmable() == [origin(1)] and made.expired == 1


def test_the_outcomes_of_every_instance_have_their_end():
    made = outbox(*(action(uuid, until=NOW + 1) for uuid in "UVW"), ForgetVimEvents("U"))
    assert made.next_request(NOW + 3) is None and (made.expired, len(made)) == (2, 0)


WANTED = {
    "still true": (action("U", NOW + 2), None, 1.9, True),
    "at its end": (action("U", NOW + 2), None, 2.0, False),
    "dropped": (action("U"), ForgetVimEvents("U"), 0, False),
    "dropped, and another has come": (failed("U"), [ForgetVimEvents("U"), service("U")], 0, False),
    "replaced": (failed("U", 1), failed("U", 2), 0, False),
    "withdrawn": (failed("U"), Withdraw("U", "why"), 0, False),
    "a question": (LIST, LIST, 0, True),
}


@pytest.mark.parametrize("name", WANTED)
def test_what_is_still_wanted_when_its_connection_is_made(name):
    effect, meanwhile, later, wanted = WANTED[name]
    made = outbox(effect)
    item = made.next_request(NOW)
    for one in meanwhile if isinstance(meanwhile, list) else [meanwhile]:
        made.accept_effect(one)
    assert made.is_wanted(item, NOW + later) is wanted


def test_a_request_ends_once():
    made = outbox(failed())
    item = made.next_request(NOW)
    made.note_delivered(item)
    for _ in range(2):
        made.note_unsent(item)
    assert len(made) == 0 and made.next_due() == NEVER


# --- what it costs ---


def test_the_heap_does_not_grow_with_what_is_replaced():
    made, longest = outbox(failed("V")), 0
    under_way = made.next_request(NOW)
    for number in range(1000):
        made.accept_effect(service("U%d" % (number % 10)))
        made.accept_effect(failed("U%d" % (number % 10)))
        longest = max(longest, len(made._lanes._ready))
    assert len(made) == 21 and longest <= vim_lanes.STALE_MAX + 2 * 11 and made._lanes._timed == []
    made.note_delivered(under_way)
    count = 0
    while len(made):  # each is still there
        made.note_delivered(made.next_request(NOW))
        count += 1
    assert count == 20


def test_the_heap_is_made_anew_only_after_many_changes(monkeypatch):
    made, anew_at, heapify = outbox(*(failed("U%d" % number) for number in range(200))), [], heapq.heapify
    monkeypatch.setattr(heapq, "heapify", lambda heap: (anew_at.append(1), heapify(heap)))
    for number in range(1000):
        made.accept_effect(failed("U%d" % (number % 200)))
    assert len(anew_at) <= 1000 // 200


def test_a_hundred_thousand_that_wait_cost_no_more_than_their_delivery():
    """Places are looked up, not searched: every lane is looked at a constant number of times."""
    made = outbox(*(failed("U%d" % number) for number in range(1000)))
    looked, place = [0], made._lanes.update_place

    def counted(*arguments):
        looked[0] += 1
        return place(*arguments)

    made._lanes.update_place = counted
    for _ in range(100):
        made.note_delivered(made.next_request(NOW))
    assert looked[0] <= 300


# --- whatever happens ---

UUIDS = "UVW"
ENDS = ["delivered", "refused", "put_off", "unanswered", "unreached", "unsent"]
NEWS = st.one_of(
    st.builds(failed, st.sampled_from(UUIDS), st.integers(0, 99)),
    st.builds(service, st.sampled_from(UUIDS)),
    st.builds(action, st.sampled_from(UUIDS), st.sampled_from([NEVER, NOW + 2])),
    st.builds(ForgetVimEvents, st.sampled_from(UUIDS)),
    st.sampled_from(UUIDS).map(lambda uuid: Withdraw(uuid, "why")),
    st.just(LIST),
)
STEP = st.one_of(NEWS, st.just("next"), st.tuples(st.sampled_from(ENDS), st.integers(0, 3)), st.floats(0, 3))


@settings(deadline=None, max_examples=examples(400), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, max_size=60))
def test_the_rules_hold_whatever_happens(steps):
    made, now, out = outbox(), NOW, []
    for step in steps:
        if step == "next":
            item = made.next_request(now)
            if item is not None:
                assert item.uuid not in [
                    one.uuid for one in out if one.kind != VIM_QUERY or item.kind == VIM_QUERY
                ]
                out.append(item)
                assert len(out) <= vim_pace.CONNECTIONS
        elif isinstance(step, float):
            now += step
        elif isinstance(step, tuple) and step[0] in ENDS:
            if out:
                item = out.pop(step[1] % len(out))
                end = getattr(made, "note_" + step[0])
                end(item) if step[0] in ("delivered", "unsent") else end(item, now)
        else:
            made.accept_effect(step)
        lanes, pace = made._lanes._lanes.values(), made._pace
        assert len(made) == sum(len(lane.pending) for lane in lanes)
        assert pace.alarms_out + pace.others_out == len(out)
        assert all(lane.pending or lane.out is not None for lane in lanes)
    for item in out:
        made.note_unsent(item)
    # Whatever is left is delivered in the end.
    for _ in range(200):
        item = made.next_request(now)
        if item is None:
            if made.next_due() == NEVER:
                break
            now = max(now, made.next_due())
        else:
            made.note_delivered(item)
    assert len(made) == 0 and made._pace.alarms_out == made._pace.others_out == 0
