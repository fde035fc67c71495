"""What a guestServer can make guestAgent remember has a bound."""

from __future__ import annotations

from inventory_facts import DEL, A, B, U, info, inventory

from guestmtce.agent import inventory as module


def test_only_so_many_instances_are_adopted_from_one_host(monkeypatch, caplog):
    monkeypatch.setattr(module, "ADOPTED_MAX", 3)
    made = inventory(A, B, listed=False)
    uuids = ["%08d%s" % (number, U[8:]) for number in range(50)]
    for uuid in uuids:
        made.server_answer(info(A, uuid))
    assert list(made.instances) == uuids[:3]
    made.server_answer(info(B, U))
    assert U in made.instances
    lines = [record.getMessage() for record in caplog.records if "not adopted" in record.getMessage()]
    assert len(lines) == 1 and A.hostname in lines[0]
    deleted = [effect for effect in made.take_effects() if getattr(effect, "cmd", 0) == DEL]
    assert deleted == []  # it may be the VIM's
    made.vim_instances(A.hostname, [])
    assert set(made.instances) == {U}
