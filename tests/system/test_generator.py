"""The systemd generator: it says Restart=no where pmon.service exists, and only there."""

from __future__ import annotations

import os
import subprocess

import pytest
from places import SCRIPTS

GENERATOR = str(SCRIPTS / "host" / "systemd-generator")


@pytest.fixture
def generate(tmp_path):
    """Gives a function that runs it, installed as guestServer's, on these unit folders; what it has made."""
    os.symlink(GENERATOR, tmp_path / "guestServer")

    def run(*folders):
        environment = {**os.environ, "UNIT_DIRS": " ".join(map(str, folders))}
        out = tmp_path / "out"
        subprocess.run([str(tmp_path / "guestServer"), str(out), "x", "y"], env=environment, check=True)
        made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        return made, [(out / path).read_text() for path in made]

    return run


def test_without_pmon_nothing_is_made(generate, tmp_path):
    (tmp_path / "units").mkdir()
    assert generate(tmp_path / "units", tmp_path / "nowhere") == ([], [])


def test_where_pmon_is_systemd_does_not_restart(generate, tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "units/pmon.service").touch()
    made, texts = generate(tmp_path / "nowhere", tmp_path / "units")
    assert made == ["guestServer.service.d/10-pmon.conf"]
    assert "[Service]\nRestart=no\n" in texts[0]


def test_a_pmon_that_is_masked_is_none(generate, tmp_path):
    for name in ("etc", "lib"):
        (tmp_path / name).mkdir()
    os.symlink("/dev/null", tmp_path / "etc/pmon.service")
    (tmp_path / "lib/pmon.service").touch()
    assert generate(tmp_path / "etc", tmp_path / "lib") == ([], [])
