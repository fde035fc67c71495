"""What stands still beside a daemon must not stop it: name server, HTTP client, VIM, syslog, its own loop."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import apart
import slowed

from guestmtce.lab.cluster import AGENT_ADDRESS, Cluster, wait_for
from guestmtce.lab.pace import stretched, within

pytestmark = pytest.mark.ci  # whole daemons, and many of them

INTERVAL = 0.2  # s
SERVER = ["client.hbs_pulse_period=50", "timers.guest_patience=0.5", "timers.stopped_grace=0.4"]
AGENT = ["timers.audit_first=0.2", "timers.audit_period=1", "timers.mtc_ask_period=0.3"]
ENDED_WITHIN = 2.5  # s; whoever stops a daemon waits for 2 s
STARTED_WITHIN = 4.0  # s
COMMAND_MAX = 1.0  # s
MANY = 40  # guests


def cloud(guests=1, agent=()):
    return Cluster(
        guests, 1, int(INTERVAL * 1000), SERVER, [*AGENT, *agent], ["--scale", "0.1", "--secs", "1"]
    )


def alarms(cluster, uuid=""):
    return cluster.vim.events("alarm", uuid)


def hang_is_told(cluster, number, within):
    """The guest hangs; how long the alarm took."""
    began, uuid = time.monotonic(), cluster.uuids[number]
    cluster.hosts[0].guests.say(uuid, "hang")
    wait_for(lambda: alarms(cluster, uuid), "the alarm of %s" % uuid, within)
    return time.monotonic() - began


def ends(daemon):
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    daemon.popen.wait(60)
    return time.monotonic() - began


# --- a name server that is silent ------------------------------------------------------------------


@pytest.fixture
def silent_names(tmp_path):
    with apart.SilentNameServer(tmp_path / "names") as server:
        yield server


@apart.needs_root
def test_an_agent_whose_name_server_is_silent_tells_alarms_and_ends(silent_names):
    cluster = cloud()
    host = cluster.hosts[0]
    cluster._agent_settings.append("agent.hosts=%s %s %s" % (host.name, host.uuid, host.address))
    cluster.mtc_address, cluster.agent_before = "controller", silent_names.before
    began = time.monotonic()
    with cluster:
        assert time.monotonic() - began < STARTED_WITHIN
        cluster.provision()
        cluster.await_heartbeats()
        wait_for(lambda: silent_names.asked, "a name is looked up")  # and takes 10 s
        assert hang_is_told(cluster, 0, 5) < 2 * INTERVAL + 1.5
        assert within(ENDED_WITHIN, ends(cluster.agent))


@apart.needs_root
def test_a_server_whose_name_server_is_silent_serves_guests_through_a_strangers_datagram(silent_names):
    cluster = cloud(3)
    cluster.server_before, cluster.hosts[0].controller = silent_names.before, "controller"
    host = cluster.hosts[0]
    try:
        cluster.start_neighbours()
        cluster.start_guests(host)
        began = time.monotonic()
        cluster.start_server(host)
        assert time.monotonic() - began < STARTED_WITHIN
        beat_together(host, time.monotonic())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.99", 0))
            stranger.sendto(b"\0" * 1060, (host.address, cluster.server_port))
        beat_together(host, time.monotonic())
        assert silent_names.asked
        assert within(ENDED_WITHIN, ends(host.server))
    finally:
        cluster.stop()


def beat_together(host, since):
    def all_beat():
        return all(facts["last_beat"] > since for facts in host.guests.status().values())

    wait_for(all_beat, "all guests are challenged", 2.0)


# --- HTTP clients that take their time -------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    with cloud() as cluster:
        cluster.provision()
        cluster.await_heartbeats()
        yield cluster


@contextlib.contextmanager
def connections(cluster, count, said=b""):
    opened = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((AGENT_ADDRESS, cluster.http_port), 5))
            opened[-1].sendall(said)
        yield opened
    finally:
        for one in opened:
            one.close()


def command_takes(cluster):
    began = time.monotonic()
    status, _ = cluster.client.set(cluster.uuids[0], cluster.hosts[0].name, "enabled")
    assert status == 200
    return time.monotonic() - began


HALF = b"GET /v1/hosts/x HTTP/1.1\r\nHost: x\r\n"
HALF_BODY = b"PATCH /v1/instances/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


CROWDS = {"100 silent": (100, b""), "500 silent": (500, b""), "4 half heads": (4, HALF)}
CROWDS["8 half bodies"] = (8, HALF_BODY)


@pytest.mark.parametrize(("count", "said"), CROWDS.values(), ids=CROWDS)
def test_a_command_is_served_beside_connections_that_say_no_more(served, count, said):
    with connections(served, count, said):
        assert command_takes(served) < COMMAND_MAX


def test_a_command_is_served_beside_idle_and_dripping_connections(served):
    stopped = threading.Event()

    def drip(opened):
        while not stopped.wait(0.1):
            for one in opened:
                with contextlib.suppress(OSError):  # the agent may have had enough of it
                    one.sendall(b"X-A: b\r\n")

    with connections(served, 500), connections(served, 50, HALF) as dripping:
        thread = threading.Thread(target=drip, args=(dripping,))
        thread.start()
        try:
            for _ in range(5):
                assert command_takes(served) < COMMAND_MAX
        finally:
            stopped.set()
            thread.join()


# --- a VIM whose answer does not end ---------------------------------------------------------------


class EndlessVim:
    """A VIM whose answer to the first alarm never ends; each other request has its answer at once."""

    def __init__(self, head, drop, pause):
        self.record, self.endless = [], 0
        self.changed = threading.Lock()
        self._head, self._drop, self._pause = head, drop, pause
        vim = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PATCH(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                first = vim._note(body)
                if first:
                    vim._drip(self)
                elif body["event-type"] == "alarm":
                    self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}")

            do_GET = do_POST = lambda self: None

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer((AGENT_ADDRESS, 0), Handler)
        self._server.daemon_threads = True
        self.url = "http://%s:%d" % (AGENT_ADDRESS, self._server.server_address[1])

    def _note(self, body):
        with self.changed:
            self.record.append(body)
            first = body["event-type"] == "alarm" and not self.endless
            self.endless += first
            return first

    def _drip(self, handler):
        try:
            handler.wfile.write(self._head)
            while True:
                handler.wfile.write(self._drop)
                handler.wfile.flush()
                time.sleep(self._pause)
        except OSError:
            pass

    def events(self, kind="", uuid=""):
        with self.changed:
            return [
                one for one in self.record if kind in ("", one["event-type"]) and uuid in ("", one["uuid"])
            ]

    def start(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


ENDLESS = {
    "body drips": (b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ", 0.3),
    "header drips": (b"HTTP/1.0 200 OK\r\n", b"X-A: b\r\n", 0.3),
    "chunks without end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"10000\r\n" + b" " * 0x10000 + b"\r\n",
        0.002,
    ),
    "nothing": (b"", b"", 0.3),
}  # fmt: skip


QUICK = ("body drips",)


@pytest.mark.parametrize(
    "kind", [one if one in QUICK else pytest.param(one, marks=pytest.mark.ci) for one in ENDLESS]
)
def test_an_answer_of_the_vim_that_does_not_end_holds_up_no_other_alarm(kind):
    cluster = cloud(3)
    cluster.vim = EndlessVim(*ENDLESS[kind])
    with cluster:
        cluster.provision()
        cluster.await_heartbeats()
        before = psutil.Process(cluster.agent.popen.pid).memory_info().rss
        hang_is_told(cluster, 0, 5)
        assert cluster.vim.endless == 1
        for number in (1, 2):
            assert hang_is_told(cluster, number, 5) < 2 * INTERVAL + 1.5
        grown = psutil.Process(cluster.agent.popen.pid).memory_info().rss - before
        assert grown < 16_000_000
        assert within(ENDED_WITHIN, ends(cluster.agent))


# --- signals that come while the loop is away ------------------------------------------------------


@pytest.mark.parametrize("name", ["guestServer", "guestAgent"])
def test_a_term_after_a_burst_of_other_signals_is_served(name):
    cluster = cloud()
    for daemon in ("server", "agent"):
        setattr(cluster, daemon + "_before", slowed.before(getattr(cluster, daemon + "_module")))
        setattr(cluster, daemon + "_module", "slowed")
    with cluster:
        daemon = cluster.agent if name == "guestAgent" else cluster.hosts[0].server
        daemon.health()
        slowed.slow(daemon.folder, 2.0)
        back_at = time.monotonic() + 2.0
        for _ in range(3000):
            daemon.signal(signal.SIGUSR1)
            time.sleep(0.0002)
        daemon.signal(signal.SIGTERM)
        assert daemon.popen.wait(60) == 0
        assert within(ENDED_WITHIN, time.monotonic() - back_at)


# --- a syslog that does not read -------------------------------------------------------------------


@pytest.fixture
def deaf_syslog(tmp_path):
    """Words for a world whose /dev/log is a stream socket (as syslog-ng's) that nobody accepts from."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "log"))
    listener.listen(0)
    waiting = []
    for _ in range(3):
        waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting[-1].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            waiting[-1].connect(str(tmp_path / "log"))
    dev = tmp_path / "dev"
    dev.mkdir()
    yield apart.mounted(
        "mount -t tmpfs dev '%s'" % dev,
        "cp -a /dev/null /dev/zero /dev/random /dev/urandom '%s'" % dev,
        "touch '%s/log'" % dev,
        apart.bind(tmp_path / "log", "%s/log" % dev),
        "mount --rbind '%s' /dev" % dev,
    )
    for one in [listener, *waiting]:
        one.close()


@apart.needs_root
def test_a_syslog_that_accepts_nobody_costs_lines_and_nothing_else(deaf_syslog, tmp_path):
    cluster = cloud()
    host, run = cluster.hosts[0], tmp_path / "run"
    pid = 0
    try:
        cluster.start_guests(host)
        words = ["--run-dir", str(run), "--log-dir", str(tmp_path), "--channel-dir", host.guests.folder]
        words += ["--no-wait", "--bind", host.address, "--controller", AGENT_ADDRESS, "--hostname", host.name]
        words += ["--rx-port", str(cluster.server_port), "--agent-port", str(cluster.agent_port)]
        program = [*deaf_syslog, sys.executable, "-m", cluster.server_module, *words]
        subprocess.run(program, timeout=60, check=True)
        pid = int((run / "guestServer.pid").read_text())
        beat_together(host, time.monotonic())
        for _ in range(20):
            os.kill(pid, signal.SIGHUP)  # a line each
            time.sleep(0.01)
        beat_together(host, time.monotonic())
    finally:
        end(pid or started_in(str(run)))
        cluster.stop()


def started_in(run_dir):
    """The process that has this run folder on its command line, if it got no further than that."""
    for process in psutil.process_iter(["cmdline"]):
        if run_dir in (process.info["cmdline"] or ()):
            return process.pid
    return 0


def end(pid):
    if pid:
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(stretched(ENDED_WITHIN))
        except psutil.TimeoutExpired:
            process.kill()


# --- an agent whose loop stands still --------------------------------------------------------------


def test_a_guest_that_was_lost_and_came_back_while_the_agent_stood_still_is_not_repaired():
    """All the datagrams lie unread, losses before others: the VIM is told what is true at the end."""
    cluster = cloud(MANY)
    cluster.agent_module, cluster.agent_before = "slowed", slowed.before(Cluster.agent_module)
    with cluster:
        cluster.provision()
        cluster.await_heartbeats()
        host = cluster.hosts[0]
        slowed.slow(cluster.agent.folder, 4.0)
        stands_still_until = time.monotonic() + 4.0

        def all_are(name, value):
            return all(value in row[name] for row in host.server.dump("guest").values())

        host.guests.say("all", "hang")
        wait_for(lambda: all_are("pending", "loss"), "the losses are told")
        host.guests.say("all", "healthy")
        wait_for(lambda: all_are("heartbeating", "enabled"), "they are back")
        assert time.monotonic() < stands_still_until, "this machine is too slow for this test"
        wait_for(lambda: "stood still" in cluster.agent.log(), "the agent goes on")
        wait_for(lambda: "pending 0" in cluster.agent.health()["events"], "the VIM has heard all")
        assert alarms(cluster) == []
