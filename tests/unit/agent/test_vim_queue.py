"""The outbox: what the VIM must be told (docs/protocol/3-vim-http.md#how-events-are-delivered)."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.agent import vim_queue
from guestmtce.agent.effects import (
    AskVim,
    DropHost,
    ForgetVimEvents,
    ReportAction,
    ReportAlarm,
    ReportService,
    Send,
    Withdraw,
)
from guestmtce.agent.vim_queue import VimQueue
from guestmtce.agent.vim_request import ALARM, SERVICE, VIM_QUERY

FIRST, MOST = 0.5, 10.0
NOW = 1000.0
NEVER = float("inf")
PATHS = {"U": "/nfvi-plugins/v1/instances/U", "V": "/nfvi-plugins/v1/instances/V"}


def service(uuid="U", number=0):
    return ReportService(uuid, {"service": number})


def failed(uuid="U", number=0):
    return ReportAlarm(uuid, "failed", {"failed": number})


def ill(uuid="U", number=0):
    return ReportAlarm(uuid, "unhealthy", {"unhealthy": number})


def action(uuid="U", number=0):
    return ReportAction(uuid, {"action": number})


STATE_BODY = {"hostname": "h", "uuid": "h-uuid"}
STATE, LIST = AskVim("h-uuid", "h", False), AskVim("h-uuid", "h", True)


def outbox(*effects):
    made = VimQueue(FIRST, MOST)
    for effect in effects:
        made.accept_effect(effect)
    return made


def drain(made, now=NOW):
    """Deliver all that is there: what each item says of itself."""
    told = []
    while True:
        item = made.next_request(now)
        if item is None:
            return told
        told.append((item.uuid, item.body))
        made.note_delivered(item)


# --- order ---

ORDERS = {
    "alarms first, across instances": (
        [service("U"), action("V"), failed("W"), STATE, ill("X")],
        [("W", {"failed": 0}), ("X", {"unhealthy": 0}), ("V", {"action": 0}), ("U", {"service": 0}),
         ("h", {"hostname": "h", "uuid": "h-uuid"})],
    ),
    "the oldest first": (
        [failed("V"), failed("U"), action("V"), action("U"), service("V"), service("U")],
        [("V", {"failed": 0}), ("U", {"failed": 0}), ("V", {"action": 0}), ("U", {"action": 0}),
         ("V", {"service": 0}), ("U", {"service": 0})],
    ),
    "an instance's own order": (
        [service("U"), action("U"), failed("U"), action("U", 1), failed("V"), service("V")],
        [("U", {"action": 0}), ("U", {"failed": 0}), ("V", {"failed": 0}), ("U", {"service": 0}),
         ("U", {"action": 1}), ("V", {"service": 0})],
    ),
    "an outcome after the state that came before it": (
        [service("U"), action("U"), service("V"), action("V"), action("W")],
        [("U", {"service": 0}), ("U", {"action": 0}), ("V", {"service": 0}), ("V", {"action": 0}),
         ("W", {"action": 0})],
    ),
    "the latest state after the failure": (
        [service("U", 1), failed("U"), service("U", 2)],
        [("U", {"failed": 0}), ("U", {"service": 2})],
    ),
    "only the latest of a kind": (
        [service("U", 1), service("U", 2), failed("U", 1), failed("U", 2), ill("U", 3)],
        [("U", {"failed": 2}), ("U", {"unhealthy": 3}), ("U", {"service": 2})],
    ),
    "every outcome": (
        [action("U", 1), action("U", 1), action("U", 2)],
        [("U", {"action": 1}), ("U", {"action": 1}), ("U", {"action": 2})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_order(name):
    effects, told = ORDERS[name]
    made = outbox(*effects)
    assert drain(made) == told
    assert len(made) == 0 and made.next_due() == NEVER
    assert made.delivered == sum(uuid != "h" for uuid, _ in told)


def test_the_requests():
    made = outbox(service("U"))
    item = made.next_request(NOW)
    assert (item.kind, item.method, item.path, item.body) == (SERVICE, "PATCH", PATHS["U"], {"service": 0})
    questions = outbox(STATE, LIST)
    first = questions.next_request(NOW)
    assert first[0] == VIM_QUERY and first[4:7] == ("GET", "/nfvi-plugins/v1/hosts/h-uuid", STATE_BODY)
    questions.note_delivered(first)
    assert questions.next_request(NOW)[4:7] == ("GET", "/nfvi-plugins/v1/instances/?host_uuid=h-uuid", {})


def test_what_is_none_of_the_vims_is_not_taken():
    made = outbox(Send("h", "10.0.0.1", 1, None), DropHost("10.0.0.1"))
    assert len(made) == 0 and made.next_request(NOW) is None


def test_a_question_waits_once_per_host():
    made = outbox(STATE, LIST, STATE, LIST, AskVim("i-uuid", "i", True))
    assert [uuid for uuid, _ in drain(made)] == ["h", "h", "i"]
    assert made.delivered == 0
    made.accept_effect(STATE)
    assert len(drain(made)) == 1


# --- level, not edge ---


def test_nothing_new_is_lost_while_the_old_is_on_its_way():
    for newer in (service("U", 2), failed("U", 2)):
        made = outbox(newer._replace(body={"old": 1}))
        sent = made.next_request(NOW)
        made.accept_effect(newer)
        made.note_delivered(sent)
        assert drain(made) == [("U", newer.body)]


WITHDRAWALS = {
    "all": (Withdraw("U", "why"), 2, [{"service": 0}, {"action": 0}]),
    "the loss": (Withdraw("U", "why", ("failed",)), 1, [{"unhealthy": 0}, {"service": 0}, {"action": 0}]),
    "of another": (Withdraw("V", "why"), 0, [{"failed": 0}, {"unhealthy": 0}, {"service": 0}, {"action": 0}]),
}


@pytest.mark.parametrize("name", WITHDRAWALS)
def test_a_failure_that_is_over_is_withdrawn(name):
    effect, count, left = WITHDRAWALS[name]
    made = outbox(failed(), ill(), service(), action(), effect, effect)
    assert [body for _, body in drain(made)] == left
    assert made.withdrawn == count


def test_a_failure_after_its_withdrawal_is_told():
    made = outbox(failed("U", 1), Withdraw("U", "why"), failed("U", 2))
    assert drain(made) == [("U", {"failed": 2})]


def test_a_drop_forgets_one_instance_and_what_is_on_its_way():
    made = outbox(failed("U"), service("U"), action("U"), service("V"), STATE)
    sent = made.next_request(NOW)
    made.accept_effect(ForgetVimEvents("U"))
    made.note_unreached(sent, NOW)
    assert drain(made, NOW + FIRST) == [("V", {"service": 0}), ("h", STATE_BODY)]


STATE_BODY = {"hostname": "h", "uuid": "h-uuid"}


def test_outcomes_are_bounded_and_the_newest_stay():
    made = outbox(*(action("U", number) for number in range(vim_queue.ACTIONS_MAX + 5)), action("V"))
    told = [body["action"] for uuid, body in drain(made) if uuid == "U"]
    assert told == list(range(5, vim_queue.ACTIONS_MAX + 5))


# --- a VIM that is away ---


def test_back_off_doubles_up_to_its_limit_and_ends_with_an_answer():
    made = outbox(failed(), service("V"))
    now, waits = NOW, []
    for _ in range(7):
        item = made.next_request(now)
        assert item.body == {"failed": 0}
        made.note_unreached(item, now)
        assert made.next_request(now) is None
        waits.append(made.next_due() - now)
        assert made.next_request(made.next_due() - 0.001) is None
        now = made.next_due()
    assert waits == [0.5, 1, 2, 4, 8, 10, 10]
    made.note_delivered(made.next_request(now))
    item = made.next_request(now)
    made.note_unreached(item, now)
    assert made.next_due() == now + FIRST


def test_a_vim_that_does_not_listen_is_tried_every_four_seconds_at_least():
    made, now, waits = outbox(failed()), NOW, []
    for _ in range(6):
        made.note_unreached(made.next_request(now), now, down=True)
        waits.append(made.next_due() - now)
        now = made.next_due()
    assert waits == [0.5, 1, 2, 4, 4, 4]


@pytest.mark.parametrize(
    "answer", [lambda made, item, _: made.note_delivered(item), VimQueue.note_refused, VimQueue.note_put_off]
)
def test_whatever_the_vim_answers_ends_the_back_off(answer):
    made, now = outbox(failed("U"), failed("V")), NOW
    for _ in range(3):
        made.note_unreached(made.next_request(now), now)
        now = made.next_due()
    answer(made, made.next_request(now), now)
    made.note_unreached(made.next_request(now), now)
    assert made.next_request(now + FIRST - 0.001) is None and made.next_request(now + FIRST) is not None


def test_news_do_not_break_the_back_off_but_are_kept():
    made = outbox(service("U"))
    made.note_unreached(made.next_request(NOW), NOW)
    made.accept_effect(failed("V"))
    assert made.next_request(NOW) is None and made.next_due() == NOW + FIRST
    assert drain(made, NOW + FIRST) == [("V", {"failed": 0}), ("U", {"service": 0})]


def test_a_question_that_fails_is_left_to_the_next_audit():
    for fail in (VimQueue.note_unreached, VimQueue.note_refused):
        made = outbox(STATE)
        fail(made, made.next_request(NOW), NOW)
        assert made.next_request(NOW + MOST) is None and made.next_due() == NEVER
        made.accept_effect(STATE)
        assert made.next_request(NOW + MOST).body == STATE_BODY


# --- a VIM that refuses ---


@pytest.mark.parametrize("effect", [service(), action()])
def test_silence_is_success_for_all_but_an_alarm(effect):
    made = outbox(effect)
    made.note_refused(made.next_request(NOW), NOW)
    assert len(made) == 0 and made.delivered == 1 and made.next_due() == NEVER


def test_a_refused_alarm_is_offered_again_and_holds_nothing_up():
    made = outbox(failed("U"), service("V"), service("U"))
    made.note_refused(made.next_request(NOW), NOW)
    assert drain(made) == [("V", {"service": 0}), ("U", {"service": 0})]
    assert made.next_due() == NOW + FIRST and made.next_request(NOW + FIRST - 0.001) is None
    made.note_refused(made.next_request(NOW + FIRST), NOW + FIRST)
    assert made.next_due() == NOW + FIRST + 2 * FIRST
    assert drain(made, made.next_due()) == [("U", {"failed": 0})]
    assert made.given_up == 0


def test_a_refused_alarm_outlives_the_start_of_a_vim_but_not_for_ever():
    made, now, refusals = outbox(failed()), NOW, 0
    while True:
        item = made.next_request(now)
        if item is None:
            break
        made.note_refused(item, now)
        refusals += 1
        now = min(made.next_due(), now + 3600)
    assert refusals == vim_queue.REFUSALS_MAX == 64 and made.given_up == 1 and len(made) == 0
    assert now - NOW - 3600 > 300  # "It may be down for minutes"
    made.accept_effect(failed("U", 2))  # a new failure is news again
    made.accept_effect(failed("V"))
    while len(made) > 1:
        made.note_refused(made.next_request(now), now)
        now = max(now, made.next_due())
    assert made.given_up == 2


def test_a_refusal_of_what_was_withdrawn_or_replaced_changes_nothing():
    made = outbox(failed("U", 1))
    sent = made.next_request(NOW)
    made.accept_effect(Withdraw("U", "why"))
    made.note_refused(sent, NOW)
    assert made.next_due() == NEVER
    made.accept_effect(failed("U", 2))
    assert made.next_request(NOW).body == {"failed": 2}


def test_a_newer_failure_is_offered_as_if_no_other_had_been_refused():
    made, now = outbox(failed("U", 1)), NOW
    for _ in range(vim_queue.REFUSALS_MAX - 1):
        made.note_refused(made.next_request(now), now)
        now = made.next_due()
    made.accept_effect(failed("U", 2))
    made.note_refused(made.next_request(now), now)
    assert made.given_up == 0 and made.next_due() == now + FIRST
    assert drain(made, now + FIRST) == [("U", {"failed": 2})]


# --- whatever happens ---

NEWS = st.one_of(
    st.builds(service, st.sampled_from("UV"), st.integers(0, 99)),
    st.builds(failed, st.sampled_from("UV"), st.integers(0, 99)),
    st.builds(ill, st.sampled_from("UV"), st.integers(0, 99)),
    st.builds(action, st.sampled_from("UV"), st.integers(0, 99)),
    st.sampled_from("UV").map(lambda uuid: Withdraw(uuid, "why")),
    st.builds(ForgetVimEvents, st.sampled_from("UV")),
    st.sampled_from([STATE, LIST]),
)
TURN = st.tuples(NEWS, st.sampled_from(["delivered", "refused", "unreached", None]), st.floats(0, 3))


@settings(deadline=None, max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TURN, max_size=30))
def test_an_alarm_or_state_that_is_still_true_arrives(turns):
    made, now, open_news = outbox(), NOW, {}
    for news, outcome, seconds in turns:
        made.accept_effect(news)
        if isinstance(news, (Withdraw, ForgetVimEvents)):
            gone = [key for key in open_news if key[0] == news.uuid]
            for key in gone:
                if isinstance(news, ForgetVimEvents) or key[1] in ("failed", "unhealthy"):
                    del open_news[key]
        elif not isinstance(news, (AskVim, ReportAction)):
            open_news[news.uuid, getattr(news, "state", "service")] = news.body
        now += seconds
        item = made.next_request(now)
        assert item is not None or made.next_due() > now
        if item is None or outcome is None:
            if item is not None:
                made.note_unsent(item)
            continue
        if outcome == "delivered":
            made.note_delivered(item)
        else:
            getattr(made, "note_" + outcome)(item, now)
        silence_is_success = item.kind == SERVICE and outcome == "refused"
        if item.kind in (ALARM, SERVICE) and (outcome == "delivered" or silence_is_success):
            assert open_news.pop((item.uuid, item.topic or "service")) == item.body
    told = [(uuid, body) for uuid, body in drain(made, now + 3600) if uuid in "UV" and "action" not in body]
    assert sorted(map(repr, told)) == sorted(repr((key[0], body)) for key, body in open_news.items())
    assert len(made) == 0 and made.next_due() == NEVER
