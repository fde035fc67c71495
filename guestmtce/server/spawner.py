"""The quiet process that forks the children.

Started afresh by the master (`python -I -S -c BOOT …`), it holds the warmed-up child code and nothing
else, so that a child shares nearly all of its memory for ever. Its first packet is `[0, words]`: what this
kernel has to confine a child with. Then one request, one packet: `[serial, uuid, uid, resume]` with the
guest's socket and the child's end of the pipe (uid null: the one user of all children); one answer:
`[serial, pid]`. The fork is double, and the master is our subreaper: so the master, not this process,
becomes the child's parent.

Whatever this module imports, every child carries. No module that registers at-fork hooks may be among
it: threading, random, logging (see `_import_setproctitle`).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from typing import Any, List, Optional

from guestmtce.server import child, confine, pipe
from guestmtce.server.reports import Note, Resume, Settings
from guestmtce.wire import channel

# argv: the import path, then main's arguments. -S leaves out site and what it drags in.
BOOT = (
    "import sys; sys.path[:0] = sys.argv[1].split(':');"
    "from guestmtce.server.spawner import main; main(sys.argv[2:])"
)
TITLE = "guestServer: spawner"
REQUEST_MAX = 4096  # bytes
GREETING = 0  # the serial of no request
WARM_UP_BEATS = 40
WARM_UP_INTERVAL_MS = 1


def _import_setproctitle() -> Any:
    """setproctitle pulls in logging, whose at-fork hooks would cost every child 450 kB."""
    hooked = os.register_at_fork
    os.register_at_fork = lambda **_: None
    try:
        import setproctitle
    finally:
        os.register_at_fork = hooked
    return setproctitle.setproctitle


def main(arguments: List[str]) -> None:
    """`arguments`: the control socket's descriptor, the master's pid, uid and gid or -1, the settings."""
    descriptor, master, uid, gid, settings_json = arguments
    settings = Settings(*json.loads(settings_json))
    identity = confine.Identity(int(uid), int(gid)) if int(uid) >= 0 else None
    control = socket.socket(fileno=int(descriptor))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to the whole group
    confine.die_with(int(master))
    confine.close_all_but([control.fileno()])
    confine.null_standard()
    title = _import_setproctitle()
    title(TITLE)
    warm_up()
    confinement = prepare(control, int(master))
    gc.collect()
    gc.freeze()
    gc.disable()
    serve(control, confinement, identity, settings, title)


def prepare(control: socket.socket, master: int) -> confine.Confinement:
    """Find out what a child can be confined with, and tell the master."""
    confine.warm_up()
    confinement = confine.Confinement(master)
    child.random_bytes = confinement.random_bytes
    words = {**confinement.words, "oom": confine.go_before_the_master()}
    try:
        control.send(json.dumps([GREETING, words]).encode("ascii"))
    except OSError:
        pass  # the master has gone, which `serve` notices
    return confinement


def serve(
    control: socket.socket,
    confinement: confine.Confinement,
    identity: Optional[confine.Identity],
    settings: Settings,
    title: Any,
) -> None:
    """Fork a child per request until the master goes."""
    while True:
        try:
            packet, descriptors, _, _ = socket.recv_fds(control, REQUEST_MAX, 2)
        except ConnectionError:
            return  # the master has gone, and had not read all that we said
        if not packet:
            return
        middle = os.fork()
        if middle == 0:
            _middle(control, packet, descriptors, confinement, identity, settings, title)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(middle, 0)


def _middle(
    control: socket.socket,
    packet: bytes,
    descriptors: List[int],
    confinement: confine.Confinement,
    identity: Optional[confine.Identity],
    settings: Settings,
    title: Any,
) -> None:
    """Fork once more and go, so that the child becomes the master's. Does not return."""
    status = child.END_BOOT_FAILURE
    speaks_on = 2
    try:
        speaks_on = descriptors[1]
        serial, uuid, uid, resume = json.loads(packet)
        middle = os.getpid()
        pid = os.fork()
        if pid:
            control.send(json.dumps([serial, pid]).encode("ascii"))
            status = 0
        else:
            title("guestServer: " + uuid)
            if identity is not None and uid is not None:
                identity = identity._replace(uid=uid)
            confinement.keep_only(descriptors)
            speaks_on = 1
            confinement.apply(middle, identity)
            guest, results = socket.socket(fileno=0), socket.socket(fileno=1)
            status = child.END_DEFECT
            status = child.Child(guest, results, settings).run(load_resume(resume))
    except BaseException as error:  # noqa: BLE001 - nothing may run on as a second spawner
        last_words(speaks_on, error)
    finally:
        os._exit(status)


def last_words(descriptor: int, error: BaseException) -> None:
    """Why the child ends, over its pipe: a confined child has no other way to say it."""
    text = channel.clean("the child failed: %r" % (error,))
    os.write(descriptor, pipe.encode(Note(text, 0)))


def dump_resume(resume: Optional[Resume]) -> Any:
    """A `Resume` as JSON values."""
    return None if resume is None else [list(resume.init), resume.heartbeating, resume.silence]


def load_resume(values: Any) -> Optional[Resume]:
    """The reverse of `dump_resume`."""
    return None if values is None else Resume(channel.Init(*values[0]), values[1], values[2])


def warm_up() -> None:
    """Live a guest's life once, so that the code's caches are written here and not in every child."""
    guest, far = socket.socketpair()
    results, far_results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    far_results.setblocking(False)
    init = channel.DEFAULT_INIT._replace(name="warm-up", heartbeat_interval_ms=WARM_UP_INTERVAL_MS)
    worker = child.Child(guest, results, Settings(interval_floor_ms=WARM_UP_INTERVAL_MS))
    worker.start(Resume(init, False, 0.0))
    far.send(b"no message\n" + channel.build(init, 0))
    for beat in range(WARM_UP_BEATS):
        if beat == 3:
            far_results.send(pipe.encode(pipe.Ask(1, channel.VOTE, "stop", WARM_UP_INTERVAL_MS)))
        health = channel.UNHEALTHY if beat % 8 == 7 else channel.HEALTHY
        for line in _received(far).split(b"\n"):
            if b'"challenge"' in line:
                number = json.loads(line)["heartbeat_challenge"]
                far.send(channel.build(channel.ChallengeResponse(number, health, "none", ""), beat))
        _received(far_results)
        worker.step()
    for end in (guest, far, results, far_results):
        end.close()


def _received(far: socket.socket) -> bytes:
    try:
        return far.recv(65536)
    except BlockingIOError:
        return b""
