"""The configuration is read by a process of its own: whatever its file is, no answer waits for it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from guest_process import FAST, INTERVAL, GuestProcess, as_root, heartbeats, host, write_script
from guest_rig import Rig
from places import REPOSITORY
from pythons import find_python
from slow_open import FAN_OPEN_PERM, SlowOpen

from guestmtce.guest import config_file as config_file_module
from guestmtce.guest import errand, log
from guestmtce.guest.config import DEFAULTS, Config
from guestmtce.guest.config_file import FILE_MAX, NOT_READ, ConfigFile
from guestmtce.guest.errand import Errand
from guestmtce.guest.settings import Settings
from guestmtce.lab.cluster import wait_for
from guestmtce.wire import guest_channel
from guestmtce.wire.guest_channel import Init

__all__ = ["host"]  # a fixture

STANDS_STILL = 5.0  # s


def write(path, text):
    """Another file in its place: who reads the one before is not disturbed."""
    new = Path(str(path) + ".new")
    new.write_text(text)
    new.rename(path)


@as_root
def test_a_configuration_that_stands_still_at_hup_delays_no_answer(host, tmp_path):
    guest = GuestProcess(
        tmp_path / "guest", host.path, [*FAST, "config_patience=0.5"], CORRECTIVE_ACTION="log"
    )
    conf = Path(guest.folder) / "conf"
    try:
        host.accept().heartbeat()
        with SlowOpen(conf, FAN_OPEN_PERM) as slow:
            for _ in range(3):
                guest.signal(signal.SIGHUP)
                latest = heartbeats(host, STANDS_STILL / 3)
                assert latest < INTERVAL
            assert slow.waiting.is_set()
            readers = [one for one in psutil.Process(guest.popen.pid).children() if one.name() == errand.NAME]
            assert len(readers) == 1
            said = "%s: its file system stands still: what is in effect stays until it is read" % conf
            wait_for(lambda: said in guest.log(), "it says so")
            write(conf, "CORRECTIVE_ACTION=stop\n")  # what is read first is the file before
            slow.allow()
            assert host.hear(Init).corrective_action == "stop"
        print("\nthe latest answer while the configuration stood still: %.1f ms" % (1000 * latest))
        wait_for(lambda: not readers[0].is_running(), "the reader is gone, and reaped")
    finally:
        guest.stop()


@as_root
def test_a_client_starts_though_its_configuration_stands_still_and_asks_for_no_reboot(host, tmp_path):
    folder = tmp_path / "guest"
    folder.mkdir()
    conf = tmp_path / "conf"
    conf.write_text("CORRECTIVE_ACTION=stop\nVOTE=5\n")
    with SlowOpen(conf, FAN_OPEN_PERM) as slow:
        began = time.monotonic()
        guest = GuestProcess(folder, host.path, FAST, ["--config", str(conf)])
        try:
            init = host.accept().hear(Init)
            print("\ninit after %.2f s" % (time.monotonic() - began))
            assert (init.corrective_action, init.vote_secs) == ("log", 9)
            said = "until it is read the defaults are taken, but CORRECTIVE_ACTION=log"
            wait_for(lambda: said in guest.log(), "it says so")
            slow.allow()
            init = host.hear(Init)
            while init.corrective_action == "log":
                init = host.hear(Init)
            assert (init.corrective_action, init.vote_secs) == ("stop", 6)
        finally:
            slow.allow()
            guest.stop()


@pytest.mark.skipif(find_python("3.6") is None, reason="no Python 3.6 in the path, of pyenv or of uv")
def test_the_oldest_python_reads_it_again_at_hup(host, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    more = ["--log", str(tmp_path / "log")]
    guest = GuestProcess(tmp_path / "guest", host.path, FAST, more, find_python("3.6"), VOTE=5)
    try:
        host.accept()
        while host.hear(Init).vote_secs != 6:
            pass  # on a busy machine the file is late
        write(Path(guest.folder) / "conf", "VOTE=7\n")
        guest.signal(signal.SIGHUP)
        init = host.hear(Init)
        while init.vote_secs == 6:
            init = host.hear(Init)
        assert init.vote_secs == 8
        log_file = tmp_path / "log"
        wait_for(lambda: log_file.exists() and "VOTE=7" in log_file.read_text(), "it says so")
    finally:
        guest.stop()
    assert guest.log() == ""


@pytest.fixture
def rig():
    one = Rig()
    one.loop.on_signal(signal.SIGCHLD, errand.reap)
    yield one
    one.close()
    wait_for(lambda: errand.reap() or not errand._running, "all errands are done")


def config_file(rig, path, **settings):
    read = []
    one = ConfigFile(rig.loop, str(path), Settings(**settings), rig.log, lambda: read.append(one.config))
    rig.loop.parts.append(one)
    return one, read


def test_a_file_that_is_read_in_time_is_the_configuration(rig, tmp_path):
    (tmp_path / "conf").write_text("VOTE=5\n")
    one, read = config_file(rig, tmp_path / "conf")
    one.load()
    assert (one.config, read) == (Config(vote=5), [])
    assert rig.lines[0].startswith("configuration: HB_INTERVAL=1000 CORRECTIVE_ACTION=reboot VOTE=5 ")


def test_a_file_that_is_late_is_taken_when_it_comes_with_the_defaults_for_what_is_wrong(rig, tmp_path):
    (tmp_path / "conf").write_text("CORRECTIVE_ACTION=nonsense\n")
    one, read = config_file(rig, tmp_path / "conf", config_wait=0.0)
    one.load()
    assert one.config == NOT_READ == DEFAULTS._replace(corrective_action="log")
    rig.serve(lambda: read, "it is read")
    assert one.config == DEFAULTS


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/zero", "it has more than %d bytes" % FILE_MAX),
        ("/", "Is a directory"),
        ("/none", "No such file"),
    ],
)
def test_what_is_no_configuration_changes_nothing(rig, tmp_path, path, why):
    one, read = config_file(rig, path)
    one.load()
    assert one.config == DEFAULTS and "the defaults are taken" in rig.lines[0]
    one.config = Config(vote=5)
    one.reload()
    rig.serve(lambda: read, "it is read")
    assert (
        one.config == Config(vote=5) and "what is in effect stays" in rig.lines[-2] and why in rig.lines[-2]
    )


def test_a_pipe_in_its_place_is_refused_at_hup(rig, tmp_path):
    os.mkfifo(tmp_path / "conf")
    one, read = config_file(rig, tmp_path / "conf")
    one.config = Config(vote=5)
    one.reload()
    rig.serve(lambda: read, "it is read")
    assert "it is a pipe, and no file: what is in effect stays" in rig.lines[0]


def test_a_guest_without_a_process_to_spare_reads_it_at_the_start_and_keeps_what_it_has_at_hup(
    rig, tmp_path, monkeypatch
):
    def fork():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    (tmp_path / "conf").write_text("VOTE=5\n")
    before = len(os.listdir("/proc/self/fd"))
    one, read = config_file(rig, tmp_path / "conf")
    one.load()
    assert one.config == Config(vote=5)
    (tmp_path / "conf").write_text("VOTE=6\n")
    one.reload()
    assert one.config == Config(vote=5)
    assert "cannot be read now: Resource temporarily unavailable: what is in effect stays" in rig.lines[-1]
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    one.reload()
    rig.serve(lambda: read, "it is read")
    assert one.config == Config(vote=6)


def test_a_change_while_it_is_read_is_read_too(rig, tmp_path, monkeypatch):
    """Who asks again means the file as it is now."""
    contents = iter([b"VOTE=5", b"VOTE=6", b"VOTE=7"])
    one, read = config_file(rig, tmp_path / "conf")

    def errand_with_the_next(_work):
        content = next(contents)
        return Errand(lambda: content)

    monkeypatch.setattr(config_file_module, "Errand", errand_with_the_next)
    for _ in range(3):
        one.reload()
    rig.serve(lambda: len(read) == 2, "both are read")
    rig.rest(0.1)
    assert [taken.vote for taken in read] == [5, 6]


# --- errands ---------------------------------------------------------------------------------------


def test_an_errand_has_a_long_result_or_says_why_not(rig):
    def fail():
        raise OSError(errno.ENOENT, "none here")

    one = Errand(lambda: b"x" * 200_000)
    assert one.wait(10) and one.result() == b"x" * 200_000
    one.close()
    one = Errand(fail)
    assert one.wait(10)
    with pytest.raises(OSError) as raised:
        one.result()
    assert raised.value.strerror == "none here"
    one.close()


def test_an_errand_that_is_late_is_not_waited_for_and_one_that_is_killed_says_so(rig):
    one = Errand(lambda: time.sleep(600))
    began = time.monotonic()
    assert not one.wait(0.05)
    assert time.monotonic() - began < 5
    assert not one.receive()
    os.kill(errand._running[-1], signal.SIGKILL)
    assert one.wait(10)
    with pytest.raises(OSError) as raised:
        one.result()
    assert raised.value.strerror == "the process that was to do it was killed"
    one.close()


def test_an_errand_holds_nothing_of_the_clients(rig):
    keep = os.open("/dev/null", os.O_RDONLY)
    one = Errand(lambda: " ".join(sorted(os.listdir("/proc/self/fd"))).encode())
    assert one.wait(10)
    assert len(one.result().split()) == 2  # its pipe, and the folder that it lists
    one.close()
    os.close(keep)


def test_a_log_whose_place_does_not_answer_is_opened_by_its_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_may_be_written", lambda path: time.sleep(1))
    monkeypatch.setattr(log, "OPEN_WAIT", 0.05)
    one = log.open_log(False, str(tmp_path / "log"), 0)
    one("words")
    wait_for(lambda: (tmp_path / "log").exists() and "words" in (tmp_path / "log").read_text(), "it is there")
    one.close()
    wait_for(lambda: errand.reap() or not errand._running, "it is reaped")


# --- the loop --------------------------------------------------------------------------------------

# Tells of every file that the client itself opens or lists, and every module that it imports.
TELL = """import os, sys
own = os.getpid()
def tell(event, words):
    if event in ("open", "os.listdir", "import") and os.getpid() == own:
        sys.stderr.write("OPENED %s %r\\n" % (event, words[0]))
sys.addaudithook(tell)
from guestmtce.guest.main import main
sys.exit(main())
"""


def test_the_loop_opens_no_file(host, tmp_path):
    """But what it opens could wait: HUP, USR1, a health script, a vote and the end are served meanwhile."""
    conf, said = tmp_path / "conf", tmp_path / "said"
    script = write_script(tmp_path / "script", "exit 0")
    text = "HEALTH_CHECK_SCRIPT=%s\nEVENT_NOTIFICATION_SCRIPT=%s\nHEALTH_CHECK_INTERVAL=1\n" % (
        script,
        script,
    )
    conf.write_text(text)
    words = [sys.executable, "-c", TELL, "-f", "--device", host.path, "--config", str(conf), "--socket", ""]
    words += ["--set", "log_period=0"]
    with open(said, "wb") as file:
        client = subprocess.Popen(words, cwd=REPOSITORY, stderr=file)
    try:
        host.accept().heartbeat()
        client.send_signal(signal.SIGHUP)
        client.send_signal(signal.SIGUSR1)
        host.say(guest_channel.ActionNotify(1, "stop", guest_channel.VOTE, 8000))
        host.hear(guest_channel.ActionResponse)
        wait_for(lambda: said.read_text().count(" HB_INTERVAL=") == 3, "all was served")
        assert heartbeats(host, 1.2) < INTERVAL
        client.terminate()
        assert client.wait(10) == 0
    finally:
        client.kill()
        client.wait()
    served = said.read_text().partition(" started, pid")[2].splitlines()
    assert [line for line in served if line.startswith("OPENED")] == []
