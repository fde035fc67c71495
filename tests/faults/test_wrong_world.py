"""A daemon in a world that is not as it should be, or changes under it: folders, names, files, rights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import apart

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, Daemon, host_uuid, wait_for
from guestmtce.lab.guest import uuid_of

INTERVAL = 0.2  # s
SERVER = ["client.hbs_pulse_period=50", "timers.guest_patience=0.5", "timers.stopped_grace=0.4"]
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]
FOUND_WITHIN = 5.0  # s, a folder that was changed
BACK_WITHIN = 10.0  # s, a run folder that was cleaned

pytestmark = pytest.mark.ci  # whole daemons, and many of them


def cloud(guests=1):
    return Cluster(guests, 1, int(INTERVAL * 1000), SERVER, AGENT, ["--scale", "0.1", "--secs", "1"])


@pytest.fixture
def alone():
    """A guestServer's part of a cluster: nobody listens to it."""
    cluster = cloud()
    yield cluster
    cluster.stop()


def challenged(guests, within=5.0):
    began = time.monotonic()
    wait_for(
        lambda: all(facts["last_challenge"] > began for facts in guests.status().values()),
        "the guests are challenged",
        within,
    )


# --- the folder of the sockets ---------------------------------------------------------------------


def remade(folder):
    shutil.rmtree(folder)
    os.mkdir(folder)


def parent_renamed(folder):
    parent = os.path.dirname(folder)
    os.rename(parent, parent + ".old")
    os.makedirs(folder)


def link_switched(folder):
    os.mkdir(folder + ".new")
    os.symlink(folder + ".new", folder + ".link")
    os.rename(folder + ".link", folder)


def mounted_over(folder):
    subprocess.run(["mount", "-t", "tmpfs", "over", folder], check=True)


ci = pytest.mark.ci
CHANGES = [remade, pytest.param(parent_renamed, marks=ci), pytest.param(link_switched, marks=ci)]
CHANGES += [pytest.param(mounted_over, marks=[ci, apart.needs_root])]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changes_under_a_guest_is_watched_anew(alone, change):
    """A socket that listens holds the folder: no event tells of its end."""
    host, folder = alone.hosts[0], os.path.join(alone.folder, "libvirt", "qemu")
    os.makedirs(os.path.dirname(folder))
    if change is link_switched:
        os.mkdir(folder + ".old")
        os.symlink(folder + ".old", folder)
    alone.start_guests(host, folder)
    alone.start_server(host)
    challenged(host.guests)
    try:
        change(folder)
        alone.start_guests(host, folder, first=2)
        challenged(host.guests, FOUND_WITHIN)
        alone.start_guests(host, folder, first=3)  # and the next one by the new watch
        challenged(host.guests, FOUND_WITHIN)
    finally:
        if change is mounted_over:
            subprocess.run(["umount", "--lazy", folder], check=True)


# --- names -----------------------------------------------------------------------------------------


@apart.needs_root
def test_a_host_that_gets_its_name_while_the_server_waits_is_called_by_it(tmp_path):
    cluster = cloud()
    host = cluster.hosts[0]
    etc, run = apart.etc(tmp_path), tmp_path / "var-run"
    (etc / "platform").mkdir(exist_ok=True)
    run.mkdir()
    before = apart.mounted(
        "hostname localhost", apart.bind(etc, "/etc"), apart.bind(run, os.path.realpath("/var/run"))
    )
    before.insert(1, "--uts")
    try:
        cluster.start_neighbours()
        cluster.start_guests(host)
        cluster.start_agent()
        words = ["--channel-dir", host.guests.folder, "--bind", host.address, "--controller", AGENT_ADDRESS]
        words += ["--rx-port", str(cluster.server_port), "--agent-port", str(cluster.agent_port)]
        settings = [*SERVER, "timers.flag_poll=0.1", "timeouts.start_delay=0"]
        words += [word for setting in settings for word in ("--set", setting)]
        folder = os.path.join(cluster.folder, "waiting")
        host.server = Daemon("guestServer", cluster.server_module, folder, words, before)
        cluster._processes.append(host.server)
        wait_for(lambda: "waiting for" in host.server.log(), "it waits")
        enter = ["nsenter", "--uts", "--target", str(host.server.popen.pid), "hostname", host.name]
        subprocess.run(enter, check=True)
        (etc / "platform" / ".initial_config_complete").touch()
        (run / ".goenabled").touch()
        cluster.provision()
        cluster.await_heartbeats()
        host.guests.say(1, "hang")
        wait_for(lambda: cluster.vim.events("alarm"), "the alarm", 5)
    finally:
        cluster.stop()


UPPER = "ABCDEF00-0000-4000-8000-00000000ABCD"


@pytest.mark.parametrize(
    ("socket_name", "vim_name"),
    [(UPPER, UPPER.lower()), pytest.param(UPPER.lower(), UPPER, marks=pytest.mark.ci)],
    ids=["the socket in upper case", "the VIM in upper case"],
)
def test_a_uuid_in_upper_and_lower_case_is_one_instance(socket_name, vim_name):
    cluster = cloud()
    host = cluster.hosts[0]
    try:
        cluster.start_neighbours()
        cluster.start_guests(host)
        made = os.path.join(host.guests.folder, "cgcs.heartbeat.%s.sock" % uuid_of(1))
        wanted = os.path.join(host.guests.folder, "cgcs.heartbeat.%s.sock" % socket_name)
        os.rename(made, wanted)
        cluster.vim.hosts = {host.uuid: True}
        cluster.vim.instances = {host.uuid: [(vim_name, host.name, True)]}
        cluster.start_server(host)
        cluster.start_agent()
        challenged(host.guests)
        wait_for(cluster.heartbeating, "it heartbeats")
        assert cluster.client.set(vim_name, host.name, "enabled")[0] == 200
        time.sleep(1.5)  # an audit and a list pass
        assert len(cluster.agent.dump("instance")) == len(host.server.dump("guest")) == 1
        assert cluster.client.query(vim_name)[1]["uuid"].lower() == vim_name.lower()
        host.guests.say(1, "hang")
        wait_for(lambda: cluster.vim.events("alarm"), "the alarm", 5)
        os.rename(wanted, made)  # its process removes what it made
    finally:
        cluster.stop()


# --- the run folder --------------------------------------------------------------------------------


def cleaned(folder):
    """As `rm -rf /run/*` does; the log of the test stays."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif not name.endswith(".log"):
            os.unlink(path)


def removed(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize("clean", [cleaned, pytest.param(removed, marks=ci)])
def test_a_run_folder_that_is_cleaned_is_filled_again(clean):
    with cloud(2) as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        host, pid = cluster.hosts[0], cluster.hosts[0].server.popen.pid
        clean(host.server.folder)
        clean(cluster.agent.folder)
        began = time.monotonic()

        def is_back():
            pids = [Path(one.folder, one.name + ".pid") for one in (host.server, cluster.agent)]
            return all(path.exists() for path in pids) and remembered(host)

        wait_for(is_back, "pid files and memory", BACK_WITHIN)
        print("\n%s: back after %.1f s" % (clean.__name__, time.monotonic() - began))
        assert Path(host.server.folder, "guestServer.pid").read_text().split() == [str(pid)]
        # What is there is enough: an untold failure of before the kill is told after it.
        cluster.agent.kill()
        host.guests.say(1, "hang")
        wait_for(lambda: "loss" in host.server.dump("guest")[uuid_of(1)]["pending"], "lost")
        host.server.kill()
        cluster.start_server(host)
        cluster.vim.hosts = {host.uuid: True}
        cluster.vim.instances = {host.uuid: [(uuid, host.name, True) for uuid in cluster.uuids]}
        cluster.start_agent()
        wait_for(lambda: cluster.vim.events("alarm", uuid_of(1)), "the alarm")
        wait_for(lambda: cluster.heartbeating() == [uuid_of(2)], "the other heartbeats")


def remembered(host):
    folder = Path(host.server.folder, "guestServer.guests")
    return folder.is_dir() and all(any(uuid in one.name for one in folder.iterdir()) for uuid in uuids(host))


def uuids(host):
    return list(host.guests.status())


@apart.needs_root
def test_a_full_run_folder_is_named_by_its_file(alone):
    host = alone.hosts[0]
    folder = os.path.join(alone.folder, host.name)
    fill = "dd if=/dev/zero of='%s/fill' bs=4096 2>/dev/null || true" % folder
    alone.server_before = apart.mounted("mount -t tmpfs -o size=64k full '%s'" % folder, fill)
    os.makedirs(folder)
    output = os.path.join(alone.folder, "output")  # the log's own place is full, too
    alone.start_guests(host)
    words = [*alone.server_before, sys.executable, "-m", alone.server_module, "--foreground", "--no-wait"]
    words += ["--run-dir", folder, "--log-dir", folder, "--channel-dir", host.guests.folder]
    words += ["--bind", host.address, "--rx-port", str(alone.server_port), "--controller", AGENT_ADDRESS]
    with open(output, "wb") as file:
        server = subprocess.Popen(words, stderr=file, stdout=file)
    try:

        def decided():
            return server.poll() is not None or "started" in Path(output).read_text()

        wait_for(decided, "it starts or says why not")
        if server.poll() is None:
            challenged(host.guests)  # it serves all the same
        else:
            said = [line for line in Path(output).read_text().splitlines() if line.startswith("guestServer:")]
            assert server.returncode == 1 and len(said) == 1
            assert folder + os.sep in said[0] and "No space left on device" in said[0]
    finally:
        server.terminate()
        server.wait(60)


def test_what_a_kill_left_half_written_is_removed_at_the_start(alone):
    host = alone.hosts[0]
    folder = Path(alone.folder, host.name, "guestServer.guests")
    folder.mkdir(parents=True)
    left = [folder / ("%s.77.tmp" % uuid_of(5)), folder.parent / "guestServer.info.78.tmp"]
    for path in left:
        path.write_text("x")
    alone.start_guests(host)
    alone.start_server(host)
    challenged(host.guests)
    wait_for(lambda: not any(path.exists() for path in left), "they are gone", 5)


# --- files of others -------------------------------------------------------------------------------

MTC = b"[agent]\nmtc_to_guest_cmd_port = 42108\nhbs_to_mtc_event_port = 42107\n"
VIM = b"[guest-rest-api]\nhost=127.0.0.1\nport=43002\n"
OWN = b"[agent]\nrx_port = 42401\nvim_cmd_port = 42410\n"
FILES = {
    "latin-1 elsewhere in the VIM's file": (MTC, b"[other]\npassword = p\xe4ss\n" + VIM, OWN),
    "a stray line in mtc.conf": (MTC + b"oops\n", VIM, OWN),
    "a mark of byte order in mtc.conf": (b"\xef\xbb\xbf" + MTC, VIM, OWN),
    "a key before the first section of mtc.conf": (b"x = 1\n" + MTC, VIM, OWN),
    "an empty value in the VIM's file": (MTC, b"[guest-rest-api]\nhost=\nport=\n", OWN),
    "a mark of byte order in our own file": (MTC, VIM, b"\xef\xbb\xbf" + OWN),
    "a latin-1 comment in our own file": (MTC, VIM, b"# gr\xf6\xdfe\n" + OWN),
}


@apart.needs_root
@pytest.mark.parametrize("name", FILES)
def test_a_file_with_strange_bytes_stops_no_agent(tmp_path, name):
    mtc, vim, own = FILES[name]
    etc = apart.etc(tmp_path)
    (etc / "mtc.conf").write_bytes(mtc)
    plugins = etc / "nfv" / "nfv_plugins" / "nfvi_plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / "config.ini").write_bytes(vim)
    (tmp_path / "own.ini").write_bytes(own)
    words = ["--config", str(tmp_path / "own.ini"), "--mtc-address", AGENT_ADDRESS, "--bind", AGENT_ADDRESS]
    before = ["unshare", "--net", *apart.mounted(apart.loopback_up(), apart.bind(etc, "/etc"))]
    agent = Daemon("guestAgent", "guestmtce.agent.main", str(tmp_path / "run"), words, before)
    try:
        wait_for(lambda: "started, pid" in agent.log() or not agent.is_alive(), "it starts")
        assert agent.is_alive(), agent.log()
        if "our own" in name:
            enter = ["nsenter", "--net", "--target", str(agent.popen.pid), sys.executable, "-c", ASK]
            answer = subprocess.run(enter, stdout=subprocess.PIPE, check=True).stdout
            assert json.loads(answer)["status"] == "fail"  # it serves on the port that the file names
    finally:
        agent.stop()


ASK = """
import http.client
link = http.client.HTTPConnection("127.0.0.1", 42410, timeout=60)
link.request("GET", "/v1/instances/%s", headers={"User-Agent": "vim/1.0"})
print(link.getresponse().read().decode())
""" % host_uuid(0)


# --- a root that may not do what root does ---------------------------------------------------------


@apart.needs_root
@pytest.mark.parametrize("lost", ["-setuid,-setgid", "-all"])
def test_a_root_that_cannot_confine_its_children_says_so_and_does_not_serve(alone, lost):
    host = alone.hosts[0]
    alone.server_before = ["setpriv", "--bounding-set=" + lost, "--inh-caps=-all"]
    alone.start_guests(host)
    with pytest.raises(RuntimeError):
        alone.start_server(host)
    said = [line for line in host.server.log().splitlines() if line.startswith("guestServer:")]
    assert len(said) == 1 and "CAP_SET" in said[0]
    assert host.server.popen.returncode == 1
