"""The whole guestAgent before a VIM that answers of a moment, and hosts that are spelled otherwise."""

import pytest
from agent_world import HOST, INFO, LOSS, RETRY, U, V, confirmed, told, world
from serverlink_bench import NAME, OurServer

from guestmtce.wire import datagram
from guestmtce.wire.datagram_ext import Tag

KEY = b"sixteen bytes and more"
__all__ = ["world"]  # a fixture

OFTEN = {"audit_first": RETRY, "audit_period": RETRY}


@pytest.mark.parametrize("provisioned", [True, False])
def test_a_guest_that_is_up_before_the_vim_has_it_is_forgotten_only_by_the_word_of_a_new_list(
    world, provisioned
):
    one = world(HOST, **OFTEN)
    one.listed(U)
    server = OurServer(one)
    if provisioned:
        one.vim.instances[HOST.uuid].append((V, NAME, True))
    server.say(datagram.QRY_INST, INFO._replace(uuid=V), Tag(number=1))
    if provisioned:
        one.until(lambda: server.numbers(datagram.ADD_INST), "it is added")
        one.quiet()
    else:
        one.until(lambda: server.numbers(datagram.DEL_INST), "it is forgotten")
    forgotten = [command.uuid for cmd, command, _ in server.listen() if cmd == datagram.DEL_INST]
    assert set(forgotten) == (set() if provisioned else {V})
    assert (V in one.agent._inventory.instances) is provisioned


def test_a_host_that_boots_when_the_agent_starts_has_its_alarms_once_it_is_up(world):
    one = world(**OFTEN)
    one.vim.hosts[HOST.uuid] = False
    one.mtc.say(datagram.ADD_HOST, HOST)
    one.listed(U)
    one.until(lambda: one.agent._inventory.find_host(HOST.uuid).reporting is False, "the VIM says so")
    server = OurServer(one)
    told(server, LOSS, 1)
    one.until(lambda: confirmed(server) == [1], "nobody is to hear it")
    assert one.alarms() == []
    one.vim.hosts[HOST.uuid] = True
    one.until(lambda: one.agent._inventory.find_host(HOST.uuid).reporting, "it is asked again")
    told(server, LOSS, 2)
    one.until(lambda: 2 in confirmed(server), "the VIM has it")
    assert one.alarms() == ["stop"]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("spelling", ["Compute-0", "compute-0.example.com"])
def test_a_guestserver_that_spells_its_host_otherwise_is_believed_and_spoken_to(
    world, tmp_path, sealed, spelling
):
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    one = world(HOST, key_file=str(tmp_path / "key") if sealed else "")
    one.listed(U)
    server = OurServer(one, name=spelling, key=KEY if sealed else b"")
    server.ready()
    one.until(lambda: server.numbers(datagram.MOD_INST), "it is told what it must know")
    server.refused = 0
    told(server, (LOSS[0], LOSS[1]._replace(hostname=spelling)), 1)
    one.until(lambda: confirmed(server) == [1], "the VIM has it")
    assert one.alarms() == ["stop"] and server.refused == 0
    assert [entry["body"]["hostname"] for entry in one.vim.events()] == [NAME]
