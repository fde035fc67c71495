"""With a key nothing is believed that was not made by its holder, for this process, and is new."""

from __future__ import annotations

import pytest
from agentlink_driver import HOST, KEY, SET, Bench, Process, loss, old_command, running

from guestmtce.peer import retransmit
from guestmtce.peer.authentication import Keys
from guestmtce.wire import datagram, datagram_ext
from guestmtce.wire.datagram_ext import Tag


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Gives links with the key, in whose time nothing is repeated of itself."""
    monkeypatch.setattr(retransmit, "REPEAT_FIRST", 1000.0)
    (tmp_path / "key").write_bytes(KEY + b"\n")
    (tmp_path / "key").chmod(0o600)
    made = []

    def make_one(**changes):
        made.append(Bench(key_file=str(tmp_path / "key"), agents="", **changes))
        return made[-1]

    yield make_one
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make):
    return make()


def introduce(bench, agent, where=None):
    """The handshake: the agent says a word that is not believed, and learns from the answer."""
    where = where or bench.first
    where.hear()
    where.heard.clear()
    bench.send(agent.query(), agent=where)
    bench.until(lambda: any(frame.cmd == datagram.MONITOR_READY for frame in where.frames()))
    for data in where.heard:
        agent.meet(data)
    return agent


def test_nobody_is_believed_before_both_know_each_other(bench):
    agent = Process(5, key=KEY)
    bench.send(agent.command())
    bench.until(bench.first.hear)
    assert (bench.commands, bench.link.agent, bench.link.refused) == ([], "", 0)
    assert bench.first.events() == [datagram.Ready(HOST)]
    (frame,) = bench.first.frames()
    assert datagram_ext.read_tag(frame).echo == agent.speaker.nonce
    agent.meet(bench.first.heard[0])
    bench.send(agent.command())
    assert (bench.commands, bench.link.agent, bench.link.refused) == ([SET], "127.0.0.1", 0)
    bench.until(bench.first.acks)
    assert bench.first.acks() == [(5, 2)]


def test_events_are_sealed_and_confirmed(bench):
    agent = introduce(bench, Process(5, key=KEY))
    bench.send(agent.query())
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()))
    data = bench.first.heard[-1]
    agent.meet(data)
    with pytest.raises(datagram_ext.SealRefused, match="replay"):
        agent.meet(data)
    with pytest.raises(datagram_ext.SealRefused, match="wrong"):
        Process(5, key=KEY, host="host-1").meet(data)
    assert datagram_ext.read_tag(datagram.unpack(data)).echo == agent.speaker.nonce
    bench.send(*agent.ack(loss()))
    assert bench.told == [loss().key]


def test_what_was_told_before_the_handshake_is_told_again_after_it(bench):
    bench.link.start()
    bench.report(loss())
    agent = introduce(bench, Process(5, key=KEY))
    assert bench.first.count(loss()) <= 1
    before = bench.first.count(loss())
    bench.send(agent.query())
    bench.until(lambda: bench.first.count(loss()) == before + 1)


@pytest.mark.parametrize("sender", [5, 6])
def test_a_new_agent_process_is_introduced_and_hears_everything_again_at_once(bench, sender):
    agent = introduce(bench, Process(5, key=KEY))
    bench.send(agent.query())
    bench.report(loss())
    bench.until(lambda: bench.first.count(loss()) == 1)
    again = introduce(bench, Process(sender, key=KEY))
    assert bench.first.count(loss()) == 0
    bench.send(again.query())
    bench.until(lambda: bench.first.count(loss()) == 1)


# --- what is dropped -------------------------------------------------------------------------------


def replayed(agent, used):
    return used


def altered(agent, used):
    data = bytearray(agent.command())
    data[data.index(b"enabled")] ^= 1
    return bytes(data)


def readdressed(agent, used):
    """From another process, by its nonce, with the seal of this one."""
    data = bytearray(agent.command())
    data[84] ^= 1
    return bytes(data)


def seal_taken_off(agent, used):
    return agent.command()[:32] + bytes(32) + agent.command()[64:]


def unsealed(agent, used):
    return Process(5, agent.speaker.nonce).command()


def plain(agent, used):
    return old_command()


def plain_ack(agent, used):
    return Process(5, agent.speaker.nonce).ack(running())[0]


def of_another_host(agent, used):
    other = Process(5, agent.speaker.nonce, KEY, "host-1")
    other.speaker._peer_nonce = agent.speaker._peer_nonce
    return other.command()


def of_another_key(agent, used):
    other = Process(5, agent.speaker.nonce, KEY + b"x")
    other.speaker._peer_nonce = agent.speaker._peer_nonce
    return other.command()


def of_the_server(agent, used):
    """The server's own words, sent back to it."""
    return agent.speaker.tag_and_seal(
        old_command(), Tag(datagram_ext.WANTS_ACK, number=9), b"server>" + HOST.encode()
    )


def of_a_wrong_echo(agent, used):
    agent.speaker._peer_nonce ^= 2
    return agent.command()


DROPPED = [
    replayed, altered, readdressed, seal_taken_off, unsealed, plain, plain_ack, of_another_host,
    of_another_key, of_the_server, of_a_wrong_echo,
]  # fmt: skip


@pytest.mark.parametrize("dropped", DROPPED)
def test_what_is_not_proven_is_counted_and_changes_nothing(bench, dropped):
    agent = introduce(bench, Process(5, key=KEY))
    used = agent.command()
    bench.send(used)
    bench.report(running())
    bench.until(lambda: bench.first.acks() and bench.first.count(running()))
    bench.first.heard.clear()
    bench.send(dropped(agent, used), agent=bench.second)
    assert (bench.commands, bench.told, bench.link.waiting) == ([SET], [], 1)
    assert (bench.link.refused, bench.link.agent) == (1, "127.0.0.1")
    bench.quiet(0.05)
    assert bench.first.hear() == []
    assert not [frame for frame in bench.second.frames() if frame.cmd != datagram.MONITOR_READY]
    # The genuine one is heard all the same.
    agent.speaker._peer_nonce = bench.link._speaker.nonce
    bench.send(*agent.ack(running()))
    assert bench.told == [running().key]


def test_a_recording_finds_nobody_after_a_restart(make):
    old = make()
    agent = introduce(old, Process(5, key=KEY))
    recording = [agent.command(), agent.query(), *agent.ack(running()), agent.command()]
    old.send(*recording)
    assert len(old.commands) == 3
    new = make()
    new.report(running())
    new.send(*recording)
    assert (new.commands, new.told, new.link.agent, new.link.refused) == ([], [], "", 4)
    # Nor does it keep the agent of today from being heard.
    today = introduce(new, Process(6, key=KEY))
    new.send(today.command())
    assert new.commands == [SET]


def test_any_address_may_command_that_has_the_key(bench):
    agent = introduce(bench, Process(5, key=KEY), bench.third)
    bench.send(agent.command(), agent=bench.third)
    assert (bench.commands, bench.link.agent) == ([SET], "127.0.0.3")


def test_a_change_of_keys_on_both_sides_disturbs_nobody(bench):
    old, new = KEY, b"another key of 16 bytes"
    agent = introduce(bench, Process(5, key=old))
    bench.send(agent.command())
    for keys in [Keys(old, new), Keys(new, old), Keys(new)]:
        bench.link.reload_keys(keys)
        bench.send(agent.command())
        agent.speaker._seal.change_keys(*keys)
        bench.send(agent.command())
    assert (len(bench.commands), bench.link.refused) == (7, 0)
    bench.send(Process(5, agent.speaker.nonce, old).command())
    assert bench.link.refused == 1
