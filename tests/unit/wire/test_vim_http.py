"""REST bodies between the VIM and guestAgent, against docs/protocol/3-vim-http.md#commands."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiers import examples

from guestmtce.wire import guest_channel, vim_http
from guestmtce.wire.vim_http import Failure

PATIENT = settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
U = "3ab5e2a6-ce80-4d7c-b2e5-8b7d1d3f0c11"
OTHER = "11111111-2222-3333-4444-555555555555"
NAMED = {"uuid": U, "hostname": "compute-0"}
SERVICE = {"service": "heartbeat", "state": "enabled"}
CREATE = {**NAMED, "services": ["heartbeat"]}
SET = {**NAMED, "services": [SERVICE]}
ACTION = {**NAMED, "action": "stop"}
PARSERS = [
    (vim_http.parse_named, NAMED), (vim_http.parse_create, CREATE), (vim_http.parse_set, SET),
    (vim_http.parse_action, ACTION),
]  # fmt: skip


def encode(value):
    return json.dumps(value).encode()


def failure(parse, data, uuid=U):
    with pytest.raises(Failure) as caught:
        parse(uuid, data)
    return caught.value.status, caught.value.reason


# --- commands ---


def test_commands_are_read():
    for parse, body in PARSERS[:2]:
        assert parse(U, encode(body)) == (U, "compute-0", body)
    for state in ("enabled", "disabled"):
        body = {**NAMED, "services": [{"service": "heartbeat", "state": state, "more": 1}]}
        assert vim_http.parse_set(U, encode(body)) == ((U, "compute-0", body), state == "enabled")
    for action in guest_channel.EVENT_TYPES:
        named, taken = vim_http.parse_action(U, encode({**NAMED, "action": action}))
        assert (named[:2], taken) == ((U, "compute-0"), action)


@pytest.mark.parametrize("parse, body", PARSERS)
def test_the_uuid_is_the_paths_and_unknown_fields_are_ignored(parse, body):
    less = {name: value for name, value in body.items() if name != "uuid"}
    assert parse(U, encode({**less, "x": [1]})) is not None
    for uuid in (OTHER, "", None, 1, [U]):
        assert failure(parse, encode({**body, "uuid": uuid})) == (400, vim_http.INVALID)
    for path in ("", "x", U + "0", U + "\n", U[:-1] + "g"):
        assert failure(parse, encode(less), path) == (400, vim_http.INVALID)


@pytest.mark.parametrize("parse, body", PARSERS)
@pytest.mark.parametrize("hostname", [None, True, 1, 1.5, [], {}, "", "h" * 256])
def test_a_hostname_that_is_none(parse, body, hostname):
    assert failure(parse, encode({**body, "hostname": hostname})) == (400, vim_http.INVALID)
    less = {name: value for name, value in body.items() if name != "hostname"}
    assert failure(parse, encode(less)) == (400, vim_http.INVALID)


def test_a_hostname_holds_no_lone_surrogate():
    assert vim_http.parse_named(U, encode({**NAMED, "hostname": "c\ud800"})).hostname == "c?"
    listed = vim_http.parse_instances(
        {"instances": [{"uuid": U, "hostname": "c\ud800", "services": [SERVICE]}]}
    )
    assert listed == [vim_http.Listed(U, "c?", True)]


@pytest.mark.parametrize("parse, body", PARSERS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello", b"{", b"\xff{}", b"[]", b"null", b"1", b'"x"', b"{}{}", b"[" * 65536,
     b'{"a":' * 13000, b'{"a":"\t"}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_a_body_that_is_no_json_object(parse, body, data):
    assert failure(parse, data) == (400, vim_http.PARSE_ERROR)


@pytest.mark.parametrize(
    "services", [None, "heartbeat", {}, ["other"], ["heartbeat", "other"], [None], [SERVICE]]
)
def test_a_create_with_other_services(services):
    assert failure(vim_http.parse_create, encode({**NAMED, "services": services})) == (400, vim_http.INVALID)


@pytest.mark.parametrize(
    "services",
    [
        None, "heartbeat", {}, [], ["heartbeat"], [[]], [None], [SERVICE, SERVICE], SERVICE, [{}],
        [{"service": "other", "state": "enabled"}], [{"service": ["heartbeat"], "state": "enabled"}],
        [{"service": "heartbeat"}], [{"state": "enabled"}],
        *([{"service": "heartbeat", "state": bad}] for bad in (None, True, 1, "", "Enabled", ["enabled"])),
    ],
)  # fmt: skip
def test_a_set_of_another_service_or_state(services):
    assert failure(vim_http.parse_set, encode({**NAMED, "services": services})) == (400, vim_http.INVALID)
    assert failure(vim_http.parse_set, encode(NAMED)) == (400, vim_http.INVALID)


@pytest.mark.parametrize("action", [None, True, 1, "", "Stop", "unknown", "stop ", ["stop"], {}])
def test_an_unknown_action(action):
    for body in ({**NAMED, "action": action}, NAMED):
        assert failure(vim_http.parse_action, encode(body)) == (400, vim_http.INVALID)


@pytest.mark.parametrize(
    "reason",
    [
        "command parse error",
        "no buffer",
        "entity not found",
        "invalid data",
        "bad state",
        "unsupported http command",
    ],
)
def test_the_body_of_a_failure_is_an_object(reason):
    known = (
        vim_http.PARSE_ERROR,
        vim_http.NO_BUFFER,
        vim_http.NOT_FOUND,
        vim_http.INVALID,
        vim_http.BAD_STATE,
        vim_http.UNSUPPORTED,
    )
    assert reason in known
    refused = Failure(404, reason, "for the log only")
    assert (refused.status, refused.body()) == (404, {"status": "fail", "reason": reason})


# --- replies and events ---


def test_replies():
    service = {"service": "heartbeat", "state": "disabled", "restart-timeout": "601", "status": "enabled"}
    assert vim_http.PASS == {"status": "pass"}
    assert vim_http.services_reply(U, "c0", False, True, 601) == {
        "uuid": U,
        "hostname": "c0",
        "services": [service],
    }
    assert vim_http.host_reply(U, "c0", True) == {"uuid": U, "hostname": "c0", "state": "enabled"}
    assert vim_http.host_reply(U, "c0", False)["state"] == "disabled"
    expected = {"uuid": U, "hostname": "c0", "action": "stop", "timeout": "9"}
    assert vim_http.action_reply(U, "c0", "stop", 9) == expected
    assert vim_http.action_reply(U, "c0", "stop", 0)["timeout"] == "0"


@pytest.mark.parametrize("reporting", [True, False])
@pytest.mark.parametrize("heartbeating, timeout", [(True, "601"), (False, "0")])
def test_the_restart_timeout_is_the_guests_only_while_it_beats(reporting, heartbeating, timeout):
    words = {True: "enabled", False: "disabled"}
    service = {
        "service": "heartbeat", "state": words[reporting], "status": words[heartbeating],
        "restart-timeout": timeout,
    }  # fmt: skip
    assert vim_http.services_reply(U, "c0", reporting, heartbeating, 601)["services"] == [service]
    assert vim_http.service_event(U, "c0", reporting, heartbeating, 601) == {
        "uuid": U, "hostname": "c0", "event-type": "service", "event-data": {"services": [service]},
    }  # fmt: skip


@pytest.mark.parametrize("state", ["failed", "unhealthy"])
def test_alarms(state):
    assert vim_http.alarm_event(U, "c0", state, "reboot") == {
        "uuid": U, "hostname": "c0", "event-type": "alarm",
        "event-data": {"services": [{"service": "heartbeat", "state": state, "repair-action": "reboot"}]},
    }  # fmt: skip


@pytest.mark.parametrize("kind, consent", [("revocable", "allow"), ("irrevocable", "proceed")])
@pytest.mark.parametrize(
    "vote, text, is_no, reason",
    [
        ("accept", "", False, ""), ("accept", "fine", False, "fine"), ("complete", "", False, ""),
        ("reject", "busy", True, "busy"), ("reject", "", True, ""), ("timeout", "", False, "timeout"),
        ("timeout", "slow", False, "slow"), ("error", "script", False, "script"),
        ("error", "", False, "error"),
        ("unknown", "", False, "unknown"), ("unknown", "exit 3", False, "exit 3"),
    ],
)  # fmt: skip
def test_only_a_reject_is_a_no(kind, consent, vote, text, is_no, reason):
    assert vim_http.action_event(U, kind, "stop", vote, text) == {
        "uuid": U, "event-type": "action",
        "event-data": {"action": "stop", "guest-response": "reject" if is_no else consent, "reason": reason},
    }  # fmt: skip


# --- what the VIM answers ---


@pytest.mark.parametrize(
    "reply, state",
    [({**NAMED, "state": "enabled"}, True), ({"state": "disabled"}, False)]
    + [({"state": bad}, None) for bad in (None, True, 1, "", "Enabled", ["enabled"], {})]
    + [(bad, None) for bad in (None, [], "enabled", 1, {}, [{"state": "enabled"}])],
)
def test_host_state(reply, state):
    assert vim_http.parse_host_state(reply) is state


@pytest.mark.parametrize(
    "reply", [None, [], "x", 1, {}, {"instances": None}, {"instances": {}}, {"instances": "x"}]
)
def test_a_reply_that_is_no_list_is_no_empty_list(reply):
    assert vim_http.parse_instances(reply) is None
    assert vim_http.parse_instances({"instances": []}) == []


@pytest.mark.parametrize(
    "change",
    [{"uuid": bad} for bad in (None, 1, [], "", U[:-1], U + "\n")]
    + [{"hostname": bad} for bad in (1, [], "h" * 256)]
    + [
        {"services": bad}
        for bad in (None, 1, {}, [], "heartbeat", ["heartbeat"], [{"service": "other"}], [None])
    ],
)
def test_an_entry_that_cannot_be_read_does_not_hurt_the_others(change):
    good = {"uuid": OTHER, "hostname": "c1", "services": [{"service": "heartbeat", "state": "disabled"}]}
    entry = {**NAMED, "services": [{"service": "other", "state": "disabled"}, SERVICE]}
    expected = [vim_http.Listed(U, "compute-0", True), vim_http.Listed(OTHER, "c1", False)]
    assert vim_http.parse_instances({"instances": [entry, good]}) == expected
    for bad in ({**entry, **change}, None, 1, []):
        assert vim_http.parse_instances({"instances": [bad, good]}) == expected[1:]


@pytest.mark.parametrize("change", [{"hostname": None}, {"hostname": ""}, {}])
def test_an_entry_without_a_host_name_is_of_the_host_that_was_asked_for(change):
    entry = {"uuid": U.upper(), "services": [SERVICE], **change}
    assert vim_http.parse_instances({"instances": [entry]}) == [vim_http.Listed(U, "", True)]


# --- whatever arrives ---

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([U, "heartbeat"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["service", "state", "uuid", "hostname", "services"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
bodies = st.builds(
    lambda body, changes: encode({**body, **changes}),
    st.sampled_from([body for _, body in PARSERS]),
    st.dictionaries(st.sampled_from(["uuid", "hostname", "services", "action"]), values, max_size=2),
)


@PATIENT
@given(st.sampled_from([U, ""]) | st.text(max_size=9), st.binary(max_size=99) | bodies)
def test_any_body_gives_a_command_or_a_failure(uuid, data):
    for parse, _ in PARSERS:
        try:
            taken = parse(uuid, data)
        except Failure as refused:
            assert refused.status == 400
            assert refused.body() == {"status": "fail", "reason": refused.reason}
            continue
        named = taken if isinstance(taken, vim_http.Named) else taken[0]
        assert (named.uuid, len(named.hostname.encode()) <= 255) == (U, True)


@PATIENT
@given(values | st.builds(lambda entries: {"instances": entries}, st.lists(values, max_size=3)))
def test_any_reply_gives_values_or_none(reply):
    assert vim_http.parse_host_state(reply) in (True, False, None)
    for listed in vim_http.parse_instances(reply) or ():
        assert (type(listed.hostname.encode()), type(listed.reporting)) == (bytes, bool)


def test_a_body_may_have_64_kib():
    assert vim_http.BODY_MAX == 65536


@pytest.mark.parametrize(("size", "listed"), [(255, True), (256, False)])
def test_a_listed_host_name_may_have_255_characters(size, listed):
    entry = {"uuid": U, "hostname": "h" * size, "services": [SERVICE]}
    assert vim_http.parse_instances({"instances": [entry]}) == [vim_http.Listed(U, "h" * size, True)] * listed


def test_a_host_name_may_have_255_characters():
    assert vim_http.parse_named(U, encode({**NAMED, "hostname": "h" * 255})).hostname == "h" * 255


def test_the_user_agents_of_the_specification():
    assert (vim_http.VIM_USER_AGENT, vim_http.AGENT_USER_AGENT) == ("vim/1.0", "guest-agent/1.0")
