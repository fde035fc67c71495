"""The trial at the start: a host on which no child could work is refused with the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
from children_driver import IDENTITY, NOBODY, ONE, ROOT, bench, make_bench, status
from tiers import PACE

from guestmtce.server.child import spawner
from guestmtce.server.supervise import confinement_trial, uid_pool

__all__ = ["bench", "make_bench"]  # fixtures

as_root = pytest.mark.skipif(not ROOT, reason="only root changes users")
FIRST = 61400
# A child that may be of one user only, as in a namespace that maps no other.
ONE_USER = """
from guestmtce.server.child import confine
real = confine.setresuid
def setresuid(*uids):
    if uids[0] != %d:
        raise OSError(22, "Invalid argument")
    real(*uids)
confine.setresuid = setresuid
"""


def test_where_a_child_works_nothing_is_said_and_nothing_stays(bench):
    bench.children.prove_confinement()
    assert (bench.started, bench.reports, bench.ends) == ([], [], [])
    bench.born()
    assert bench.children.spawner.started == 1


def patch_boot(monkeypatch, text):
    monkeypatch.setattr(spawner, "BOOT", spawner.BOOT.replace("; main(", "\n" + text + "main("))


@as_root
def test_a_user_that_cannot_be_had_is_named(make_bench, monkeypatch):
    patch_boot(monkeypatch, ONE_USER % 1)
    bench = make_bench(identity=IDENTITY)
    with pytest.raises(OSError, match="cannot work here: .*user %d: Invalid argument" % NOBODY.pw_uid):
        bench.children.prove_confinement()


@as_root
def test_uids_that_cannot_be_had_are_given_up_if_nobody_asked_for_them(make_bench, monkeypatch, caplog):
    patch_boot(monkeypatch, ONE_USER % NOBODY.pw_uid)
    bench = make_bench(identity=IDENTITY, uids=uid_pool.UidPool(FIRST, FIRST + 9))
    bench.children._uids_required = False
    bench.children.prove_confinement()
    assert bench.children.uids == ""
    assert "client.child_uids 61400-61409: a guest's process cannot work here" in caplog.text
    assert int(status(bench.born(ONE))["Uid"].split()[0]) == NOBODY.pw_uid


@as_root
def test_uids_that_were_asked_for_and_cannot_be_had_are_refused(make_bench, monkeypatch):
    patch_boot(monkeypatch, ONE_USER % NOBODY.pw_uid)
    bench = make_bench(identity=IDENTITY, uids=uid_pool.UidPool(FIRST, FIRST + 9))
    with pytest.raises(OSError, match="user 61400: Invalid argument"):
        bench.children.prove_confinement()


def test_a_step_that_fails_is_the_reason(make_bench, monkeypatch):
    patch_boot(
        monkeypatch, "import guestmtce.server.child.confine as c\nc.Confinement.apply = lambda *_: 1 / 0\n"
    )
    with pytest.raises(OSError, match="cannot work here: .*ZeroDivisionError"):
        make_bench().children.prove_confinement()


DIE = """
import os
from guestmtce.server.child import confine
confine.Confinement.apply = lambda *_: os.kill(os.getpid(), 9)
"""


def test_a_child_that_dies_at_once_is_told_by_its_end(make_bench, monkeypatch):
    patch_boot(monkeypatch, DIE)
    with pytest.raises(OSError, match="cannot work here: it ended with -9"):
        make_bench().children.prove_confinement()


STATUS = b"Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t%016x\nCapBnd:\t0\n"
ALL = (1 << 41) - 1


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (ALL, []),
        (ALL & ~(1 << 7), ["CAP_SETUID"]),
        (1 << 7, ["CAP_KILL", "CAP_SETGID"]),
        (0, ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"]),
    ],
)
def test_the_capabilities_that_are_missing_are_named(effective, missing):
    assert (
        confinement_trial.missing_capabilities(STATUS % effective, confinement_trial.CAPABILITIES) == missing
    )


ENDED = 124  # timeout(1)'s word for a program that it had to end


def start(folder, *prefix):
    """guestServer's exit status, and all it says; it ends by itself or after 3 s."""
    words = [
        *prefix,
        *("timeout", "%g" % (3 * PACE)),
        sys.executable,
        "-m",
        "guestmtce.server.master",
        "-f",
        "--no-wait",
    ]
    words += ["--run-dir", str(folder), "--log-dir", str(folder), "--channel-dir", str(folder)]
    words += ["--set", "client.rx_port=29411", "--bind", "127.0.0.9"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@as_root
@pytest.mark.parametrize("name", ["setuid", "setgid", "kill", "all"])
def test_root_without_a_capability_refuses_to_start_and_names_it(tmp_path, name):
    code, text = start(tmp_path, "setpriv", "--bounding-set=-" + name, "--inh-caps=-all")
    assert code == 1
    (refusal,) = [line for line in text.split("\n") if line.startswith("guestServer: root without ")]
    assert "CAP_" + name.upper() in refusal or (name == "all" and "CAP_SETUID" in refusal)
    assert "Traceback" not in text


@pytest.mark.ci
@pytest.mark.parametrize("name", ["PYTHONWARNINGS=error", "PYTHONMALLOC=malloc"])
def test_python_s_own_settings_end_nobody(tmp_path, name):
    code, text = start(tmp_path, "env", name)
    assert code == ENDED and "started, pid" in text and "Traceback" not in text


@as_root
def test_root_that_qemu_s_sockets_may_refuse_is_warned(tmp_path):
    code, text = start(tmp_path, "setpriv", "--bounding-set=-dac_override", "--inh-caps=-all")
    assert code == ENDED and text.count("root without CAP_DAC_OVERRIDE: sockets of QEMU's user") == 1


@as_root
def test_root_of_a_namespace_that_maps_no_other_user_refuses_to_start(tmp_path):
    if subprocess.run(["unshare", "-U", "-r", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    code, text = start(tmp_path, "unshare", "-U", "-r")
    assert code == 1
    assert "guestServer: a guest's process cannot work here: " in text and "Traceback" not in text
