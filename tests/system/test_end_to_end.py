"""The whole way, with real daemons: guests on sockets, guestServer, guestAgent, a VIM. Time runs tenfold."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time

import psutil
import pytest
from tiers import PACE
from titles import needs_titles

from guestmtce.lab.cluster import Cluster, wait_for
from guestmtce.lab.pace import stretched, within

GUESTS = 8
INTERVAL = 0.1 * PACE  # s
SECS = str(math.ceil(PACE))  # s, each of the guests' timeouts
SERVER = [
    "client.hbs_pulse_period=50", "timers.stopped_grace=%g" % (0.4 * PACE),
    "timers.guest_patience=%g" % (0.5 * PACE), "timers.reconnect_max=0.2", "timers.rescan=0.5",
    "timers.expected_silence=%g" % (1.5 * PACE), "timers.stable_after=0.05", "timers.state_period=0.02",
]  # fmt: skip
GUESTS_PATIENCE = 0.5 * PACE  # s; 5 s in life
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]


@pytest.fixture(scope="module")
def shared():
    options = ["--scale", "%g" % (0.1 * PACE), "--secs", SECS]
    with Cluster(GUESTS, 1, int(INTERVAL * 1000), SERVER, AGENT, options) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        yield cluster


@pytest.fixture
def cloud(shared, no_tracebacks):
    """The cloud with every guest healthy, and an empty record at the VIM."""
    guests = shared.hosts[0].guests
    guests.say("all", "on")
    guests.say("all", "healthy")
    guests.say("all", "vote", "accept")
    shared.provision()
    shared.await_heartbeats()
    wait_for(lambda: "pending 0" in shared.agent.health()["events"], "the VIM has heard all")
    shared.vim.record.clear()
    yield shared
    no_tracebacks(shared)


def misses(cluster):
    rows = cluster.hosts[0].server.dump("guest")
    return {uuid: int(row["misses"]) for uuid, row in rows.items()}


def links(cluster):
    return {uuid: facts["links"] for uuid, facts in cluster.hosts[0].guests.status().items()}


def alarms(cluster, uuid=""):
    events = cluster.vim.events("alarm", uuid)
    services = [event["body"]["event-data"]["services"][0] for event in events]
    return [(service["state"], service["repair-action"]) for service in services]


def status(cluster, uuid):
    """What the VIM was last told of this instance."""
    events = cluster.vim.events("service", uuid)
    return events[-1]["body"]["event-data"]["services"][0]["status"] if events else None


def outcome(cluster, uuid):
    events = cluster.vim.events("action", uuid)
    return events[-1]["body"]["event-data"] if events else None


# --- failures --------------------------------------------------------------------------------------


def test_a_guest_that_hangs_is_told_after_two_intervals_and_once(cloud):
    uuid, guests = cloud.uuids[0], cloud.hosts[0].guests
    guests.say(uuid, "mute")
    wait_for(lambda: alarms(cloud, uuid), "the alarm")
    took = cloud.vim.events("alarm", uuid)[0]["at"] - guests.status()[uuid]["unanswered_since"]
    assert took >= 2 * INTERVAL - 0.005 and within(2 * INTERVAL + 0.1, took)
    wait_for(lambda: status(cloud, uuid) == "disabled", "the VIM hears that heartbeating stopped")
    assert alarms(cloud) == [("failed", "reboot")]
    guests.say(uuid, "healthy")
    guests.say(uuid, "reset")
    wait_for(lambda: status(cloud, uuid) == "enabled", "the VIM hears that it is back")


def test_a_stopped_machine_is_lost_and_comes_back_by_itself(cloud):
    uuid, guests = cloud.uuids[1], cloud.hosts[0].guests
    guests.say(uuid, "hang")
    wait_for(lambda: alarms(cloud, uuid), "the alarm")
    guests.say(uuid, "healthy")
    wait_for(lambda: status(cloud, uuid) == "enabled", "it heartbeats again")
    assert alarms(cloud) == [("failed", "reboot")]


def test_a_loss_with_reporting_disabled_is_no_alarm(cloud):
    uuid = cloud.uuids[2]
    assert cloud.client.set(uuid, cloud.hosts[0].name, "disabled")[0] == 200
    cloud.hosts[0].guests.say(uuid, "mute")
    wait_for(lambda: status(cloud, uuid) == "disabled", "the VIM hears that heartbeating stopped")
    assert alarms(cloud) == []
    cloud.hosts[0].guests.say(uuid, "healthy")
    wait_for(lambda: status(cloud, uuid) == "enabled", "it heartbeats again")


def test_an_ill_guest_is_told_once_and_heartbeats_on(cloud):
    uuid, guests = cloud.uuids[3], cloud.hosts[0].guests
    guests.say(uuid, "ill", "stop", 'the script said "no"\\x')
    wait_for(lambda: alarms(cloud, uuid), "the alarm")
    answers = guests.status()[uuid]["answers"]
    wait_for(lambda: guests.status()[uuid]["answers"] > answers + 3, "heartbeats go on")
    assert alarms(cloud) == [("unhealthy", "stop")]


def test_a_goodbye_is_no_loss(cloud):
    uuid = cloud.uuids[4]
    cloud.hosts[0].guests.say(uuid, "bye")
    wait_for(lambda: status(cloud, uuid) == "disabled", "stopped")
    cloud.hosts[0].guests.say(uuid, "reset")
    wait_for(lambda: status(cloud, uuid) == "enabled", "back")
    assert alarms(cloud) == []


def test_the_end_of_qemu_is_no_loss_and_a_new_one_is_watched_and_reported_as_before(cloud):
    uuid, guests = cloud.uuids[5], cloud.hosts[0].guests
    for word in ("off", "crash"):
        cloud.vim.record.clear()
        guests.say(uuid, word)
        wait_for(lambda: status(cloud, uuid) == "disabled", "stopped")
        guests.say(uuid, "on")
        wait_for(lambda: status(cloud, uuid) == "enabled", "back")
        assert alarms(cloud) == []
    guests.say(uuid, "mute")
    wait_for(lambda: alarms(cloud, uuid) == [("failed", "reboot")], "the alarm of the new one")


# --- isolation -------------------------------------------------------------------------------------


def test_a_killed_child_concerns_its_guest_alone(cloud):
    uuid = cloud.uuids[6]
    before, missed = links(cloud), misses(cloud)
    cloud.children()[uuid].kill()
    wait_for(lambda: links(cloud)[uuid] == before[uuid] + 1, "a new connection", 1.0)
    answers = cloud.hosts[0].guests.status()[uuid]["answers"]
    wait_for(lambda: cloud.hosts[0].guests.status()[uuid]["answers"] > answers, "it heartbeats", 1.0)
    after = links(cloud)
    assert {one for one in after if after[one] != before[one]} == {uuid}
    assert cloud.vim.events("alarm") == [] and cloud.vim.events("service") == []
    assert misses(cloud) == missed


GARBAGE = [
    b"garbage\n", b"\xff\xfe\xfd\n", b"[" * 3000 + b"\n", b"{" * 9000 + b"\n", b"x" * 20000 + b"\n",
    b'{"version":3}\n', b'{"version":2,"revision":1,"sequence":1,"msg_type":"exit"}\n',
    b'{"version":NaN,"revision":1,"sequence":1,"msg_type":"exit"}\n', b'{"version":1e999}\n',
    b'{"version":3,"revision":1,"sequence":1,"msg_type":"nonsense"}\n',
    b'{"version":3,"revision":1,"sequence":1,"msg_type":"challenge_response","heartbeat_response":'
    + b"9" * 400 + b',"heartbeat_health":[],"corrective_action":{},"log_msg":null}\n',
    b'{"version":3,"version":3,"msg_type":"init","invocation_id":-1}\n', b"null\n", b'"\\ud800"\n',
]  # fmt: skip


def test_garbage_from_one_guest_costs_nobody_a_heartbeat(cloud):
    """A busy machine misses one now and then: of three rounds one costs none."""
    before = links(cloud)
    assert any(costs_no_heartbeat(cloud, cloud.uuids[7]) for _ in range(3))
    assert links(cloud) == before


def costs_no_heartbeat(cloud, uuid):
    missed, guests = misses(cloud), cloud.hosts[0].guests
    for data in GARBAGE:
        guests.say(uuid, "send", json.dumps(data.decode("utf-8", "surrogateescape")))
    answers = guests.status()[uuid]["answers"]
    wait_for(lambda: guests.status()[uuid]["answers"] > answers + 3, "it heartbeats on")
    assert guests.status()[uuid]["nacks"] >= 1
    return misses(cloud) == missed


def test_a_flood_a_half_and_a_hung_guest_leave_the_others_alone(cloud):
    guests = cloud.hosts[0].guests
    missed = misses(cloud)
    guests.say(cloud.uuids[0], "flood", 3)
    guests.say(cloud.uuids[1], "half")
    guests.say(cloud.uuids[2], "hang")
    wait_for(lambda: guests.status()[cloud.uuids[0]].get("flood_left") == 0, "the flood is over", 20)
    wait_for(lambda: {"failed"} == {state for state, _ in alarms(cloud, cloud.uuids[1])}, "half is lost")
    wait_for(lambda: {"failed"} == {state for state, _ in alarms(cloud, cloud.uuids[2])}, "hung is lost")
    others = cloud.uuids[3:]
    assert {one: misses(cloud)[one] for one in others} == {one: missed[one] for one in others}
    for uuid in cloud.uuids[:2]:
        guests.say(uuid, "healthy")
        guests.say(uuid, "reset")


# --- restarts --------------------------------------------------------------------------------------


def gone(process):
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def test_a_killed_master_takes_its_children_along_and_the_next_one_resumes(cloud):
    host = cloud.hosts[0]
    inits = {uuid: facts["inits"] for uuid, facts in host.guests.status().items()}
    children = list(cloud.children().values())
    assert len(children) == GUESTS
    killed = time.monotonic()
    host.server.kill()
    wait_for(lambda: all(gone(child) for child in children), "every child is gone", 1.0)
    cloud.start_server(host)
    before = {uuid: facts["answers"] for uuid, facts in host.guests.status().items()}

    def all_answered():
        return all(facts["answers"] > before[uuid] for uuid, facts in host.guests.status().items())

    wait_for(all_answered, "all heartbeat again", 2.0)
    after = {uuid: facts["inits"] for uuid, facts in host.guests.status().items()}
    # A busy machine may take longer than a guest waits after its last challenge: then it says init again.
    assert after == inits or time.monotonic() - killed > GUESTS_PATIENCE - 2 * INTERVAL
    wait_for(lambda: len(cloud.heartbeating()) == GUESTS, "the agent knows")
    assert cloud.vim.events("alarm") == []


def test_a_restarted_agent_learns_everything_again(cloud):
    cloud.agent.kill()
    uuid, listed = cloud.uuids[0], cloud.uuids[:-1]
    host = cloud.hosts[0]
    cloud.vim.instances = {host.uuid: [(one, host.name, True) for one in listed]}
    cloud.vim.hosts = {host.uuid: True}
    cloud.start_agent()
    try:
        wait_for(lambda: set(cloud.heartbeating()) == set(listed), "the VIM's instances, and no other")
        host.guests.say(uuid, "mute")
        wait_for(lambda: alarms(cloud, uuid) == [("failed", "reboot")], "the alarm")
    finally:
        cloud.vim.instances, cloud.vim.hosts = {}, {}
        host.guests.say(uuid, "healthy")
        host.guests.say(uuid, "reset")


def test_pidof_finds_the_daemon_and_nothing_else(cloud):
    needs_titles()
    assert len(cloud.children()) == GUESTS
    for name, daemon in (("guestServer", cloud.hosts[0].server), ("guestAgent", cloud.agent)):
        printed = subprocess.run(["pidof", name], stdout=subprocess.PIPE, check=True).stdout.split()
        family = {one.pid for one in psutil.Process(daemon.popen.pid).children(recursive=True)}
        assert len(family) >= (GUESTS if name == "guestServer" else 0)
        # Other tests may run daemons of their own meanwhile.
        assert daemon.popen.pid in map(int, printed) and not family & set(map(int, printed))


def test_a_clean_stop_leaves_no_process_and_no_pid_file(cloud):
    host = cloud.hosts[0]
    children = list(cloud.children().values())
    host.server.signal(signal.SIGTERM)
    assert host.server.popen.wait(stretched(2.0)) == 0
    assert all(gone(child) for child in children)
    assert [
        name for name in os.listdir(host.server.folder) if name.endswith((".pid", ".info", ".lock"))
    ] == []
    cloud.start_server(host)


# --- votes and notices -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "word", "expected"),
    [
        (("accept", "0"), "vote", ("allow", "")),
        (("complete", "0"), "vote", ("allow", "")),
        (("reject", "0", 'a "quoted" reason'), "vote", ("reject", 'a "quoted" reason')),
        (("timeout", "0", "script timed out"), "vote", ("allow", "script timed out")),
        (("error", "0", "script failed"), "vote", ("allow", "script failed")),
        (("unknown", "0"), "vote", ("allow", "unknown")),
        (("mute",), "vote", ("allow", "no answer in time")),
        (("accept", str(0.5 + float(SECS))), "vote", ("allow", "no answer in time")),
        (("accept", "0"), "notify", ("proceed", "")),
        (("complete", "0"), "notify", ("proceed", "")),
        (("reject", "0", "no"), "notify", ("reject", "no")),
        (("mute",), "notify", ("proceed", "no answer in time")),
    ],
)
def test_what_the_vim_is_told_of_a_question(cloud, answer, word, expected):
    uuid = cloud.uuids[0]
    cloud.hosts[0].guests.say(uuid, "vote", *answer)
    status_code, reply = cloud.client.ask(word, uuid, cloud.hosts[0].name, "resize_begin")
    assert (status_code, reply["timeout"]) == (200, SECS)
    wait_for(lambda: outcome(cloud, uuid), "the outcome")
    response, reason = expected
    assert outcome(cloud, uuid) == {"action": "resize_begin", "guest-response": response, "reason": reason}
    assert len(cloud.vim.events("action", uuid)) == 1


RESPONSE = (
    '{"version":3,"revision":1,"msg_type":"action_response","sequence":1,"invocation_id":%d,'
    '"event_type":"stop","notification_type":"revocable","vote_result":"reject","log_msg":"%s"}\n'
)


@pytest.mark.parametrize(
    ("log_msg", "reason"),
    [
        ('he said "no",\\nand "never"', 'he said "no",\\nand "never"'),  # unescaped, as the C client sends it
        ('line one\\nline \\"two\\"', 'line one\nline "two"'),
    ],
)
def test_a_reason_with_quotes_and_newlines_arrives(cloud, log_msg, reason):
    uuid, guests = cloud.uuids[1], cloud.hosts[0].guests
    guests.say(uuid, "vote", "mute")
    asked = len(guests.status()[uuid]["asked"])
    cloud.client.ask("vote", uuid, cloud.hosts[0].name, "stop")
    wait_for(lambda: len(guests.status()[uuid]["asked"]) == asked + 1, "the guest was asked")
    guests.say(uuid, "send", json.dumps(RESPONSE % (guests.status()[uuid]["asked_as"], log_msg)))
    wait_for(lambda: outcome(cloud, uuid), "the outcome")
    assert outcome(cloud, uuid)["guest-response"] == "reject"
    assert outcome(cloud, uuid)["reason"] == reason


def test_of_two_questions_at_once_the_first_ends_with_silent_agreement(cloud):
    uuid, guests = cloud.uuids[2], cloud.hosts[0].guests
    guests.say(uuid, "vote", "reject", "0.3", "busy")
    cloud.client.ask("vote", uuid, cloud.hosts[0].name, "live_migrate_begin")
    cloud.client.ask("vote", uuid, cloud.hosts[0].name, "reboot")
    wait_for(lambda: len(cloud.vim.events("action", uuid)) == 2, "both outcomes")
    told = [event["body"]["event-data"] for event in cloud.vim.events("action", uuid)]
    assert [(data["action"], data["guest-response"]) for data in told] == [
        ("live_migrate_begin", "allow"),
        ("reboot", "reject"),
    ]


def test_a_guest_that_goes_while_it_is_asked_agrees(cloud):
    uuid, guests = cloud.uuids[3], cloud.hosts[0].guests
    guests.say(uuid, "vote", "mute")
    cloud.client.ask("vote", uuid, cloud.hosts[0].name, "stop")
    wait_for(lambda: guests.status()[uuid]["asked"], "the guest was asked")
    guests.say(uuid, "off")
    wait_for(lambda: outcome(cloud, uuid), "the outcome", 0.8)
    assert outcome(cloud, uuid) == {
        "action": "stop",
        "guest-response": "allow",
        "reason": "the guest is gone",
    }


def test_a_question_outlives_a_killed_child(cloud):
    uuid, guests = cloud.uuids[4], cloud.hosts[0].guests
    guests.say(uuid, "vote", "mute")
    cloud.client.ask("vote", uuid, cloud.hosts[0].name, "stop")
    wait_for(lambda: guests.status()[uuid]["asked"], "the guest was asked")
    guests.say(uuid, "vote", "reject", "0", "still here")
    cloud.children()[uuid].kill()
    wait_for(lambda: outcome(cloud, uuid), "the outcome")
    assert outcome(cloud, uuid)["guest-response"] == "reject"


def test_a_guest_that_does_not_heartbeat_is_not_asked(cloud):
    uuid = cloud.uuids[5]
    cloud.hosts[0].guests.say(uuid, "bye")
    wait_for(lambda: status(cloud, uuid) == "disabled", "stopped")
    asked = len(cloud.hosts[0].guests.status()[uuid]["asked"])
    reply = cloud.client.ask("notify", uuid, cloud.hosts[0].name, "pause")
    assert (reply[0], reply[1]["timeout"]) == (200, "0")
    assert len(cloud.hosts[0].guests.status()[uuid]["asked"]) == asked
    cloud.hosts[0].guests.say(uuid, "reset")


@pytest.mark.parametrize("event", ["pause", "reboot", "suspend", "live_migrate_begin"])
def test_silence_after_a_notice_is_no_loss(cloud, event):
    uuid, guests = cloud.uuids[6], cloud.hosts[0].guests
    cloud.client.ask("notify", uuid, cloud.hosts[0].name, event)
    wait_for(lambda: outcome(cloud, uuid), "the outcome")
    guests.say(uuid, "hang")
    # Far beyond two intervals; the end of the expected silence is awaited through the guest's state.
    wait_for(
        lambda: cloud.hosts[0].server.dump("guest")[uuid]["heartbeating"] == "disabled",
        "waited for with init",
        step=0.1,
    )
    assert alarms(cloud) == []
    guests.say(uuid, "healthy")
    guests.say(uuid, "reset")
    wait_for(lambda: status(cloud, uuid) == "enabled", "back")
    assert alarms(cloud) == []
