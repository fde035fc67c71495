"""The sample scripts, and the folder of their flags: root's, and there after guestClient has ended."""

from __future__ import annotations

import os
import subprocess

import pytest
from guest_process import FAST, GuestProcess, host
from guest_rig import Rig
from places import SCRIPTS

from guestmtce.guest.local_socket import SOCKET, LocalSocket
from guestmtce.guest.settings import Settings

__all__ = ["host"]  # a fixture

GUEST = SCRIPTS / "guest"
FLAGS = os.path.dirname(SOCKET)
HEALTH, EVENT = "sample_health_check_script", "sample_event_handling_script"


@pytest.fixture
def sample(tmp_path):
    """Gives a function that runs a sample whose flags lie in `folder`: its status and what it says."""

    def run(name, folder, *words):
        text = (GUEST / name).read_text()
        script = tmp_path / name
        script.write_text(text.replace(FLAGS, str(folder)))
        done = subprocess.run(["sh", str(script), *words], stdout=subprocess.PIPE, timeout=20, check=False)
        return done.returncode, done.stdout.decode().strip()

    return run


@pytest.mark.parametrize("name", [HEALTH, EVENT])
def test_the_flags_lie_in_the_folder_of_the_clients_socket(name):
    assert FLAGS + "/" in (GUEST / name).read_text()


def test_the_samples_obey_their_flags(sample, tmp_path):
    assert sample(HEALTH, tmp_path) == (0, "")
    assert sample(EVENT, tmp_path, "revocable", "stop") == (0, "")
    (tmp_path / "unhealthy").touch()
    (tmp_path / "vote_no_to_stop").write_text("not now\nnor later\n")
    (tmp_path / "vote_no_to_pause").touch()
    assert sample(HEALTH, tmp_path) == (1, "%s/unhealthy exists" % tmp_path)
    assert sample(EVENT, tmp_path, "revocable", "stop") == (1, "not now")
    assert sample(EVENT, tmp_path, "revocable", "pause") == (1, "%s/vote_no_to_pause exists" % tmp_path)
    assert sample(EVENT, tmp_path, "irrevocable", "stop") == (0, "")
    assert sample(EVENT, tmp_path, "nonsense", "stop")[0] == 2


def test_a_flag_is_there_after_the_client_has_ended_and_started_again(host, sample, tmp_path):
    folder = tmp_path / "guest" / "run"
    for already_there in (False, True):
        guest = GuestProcess(tmp_path / "guest", host.path, FAST)
        host.accept().heartbeat()
        assert (folder / "unhealthy").exists() == already_there
        (folder / "unhealthy").touch()
        guest.stop()
        assert sample(HEALTH, folder) == (1, "%s/unhealthy exists" % folder)


def test_only_who_runs_the_client_can_make_a_flag(tmp_path):
    """The folder is made so, and one that others can write to has no socket."""
    rig = Rig()
    before = os.umask(0)
    try:
        apps = LocalSocket(rig.loop, str(tmp_path / "run" / "socket"), "", Settings(), rig.log)
    finally:
        os.umask(before)
    status = (tmp_path / "run").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o755)
    apps.close()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(OSError, match="must be writable by us alone"):
        LocalSocket(rig.loop, str(tmp_path / "run" / "socket"), "", Settings(), rig.log)
    rig.close()


def test_systemd_leaves_the_folder_when_it_ends_the_service():
    lines = (GUEST / "guestClient.service").read_text().splitlines()
    assert "RuntimeDirectory=" + os.path.basename(FLAGS) in lines and os.path.dirname(FLAGS) == "/run"
    assert "RuntimeDirectoryPreserve=yes" in lines
    assert not [line for line in lines if line.startswith("RuntimeDirectoryMode")]  # 755


@pytest.mark.parametrize("name", ["heartbeat_init", "openrc/guestClient"])
def test_no_init_script_takes_the_folder_away(name):
    text = (GUEST / name).read_text()
    assert "rm " not in text and "checkpath" not in text
