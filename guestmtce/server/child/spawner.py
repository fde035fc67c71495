"""The quiet process that forks the children.

Started afresh by the master (`python -I -S -c BOOT …`), it holds the warmed-up child code and nothing
else, so that a child shares nearly all of its memory for ever. Its first packet is what this kernel has to
confine a child with, as JSON. Then one request, one packet, with the guest's socket and the child's end of
the pipe; one answer: the request's serial and the child's pid, or why none was born. The master, not this
process, is the child's parent (`fork_sibling`).

Two things make a child cheap: what the spawner has done once, no child does again (`warm_up`), and what a
child uses lies on few pages (`page_layout`, which can be switched off). Whatever this module imports, every
child carries: our own modules stand here, all else in `preload`.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import signal
import socket
import struct
from marshal import dumps, loads
from os import _exit, close
from typing import Any, List, Optional, Tuple

from guestmtce.server.child import confine, page_layout, pipe_protocol, process, sandbox
from guestmtce.server.child.fork_sibling import fork_sibling
from guestmtce.server.child.pipe_protocol import END_BOOT_FAILURE, END_DEFECT
from guestmtce.server.child.preload import set_title
from guestmtce.server.child.process import Child
from guestmtce.server.child.session_types import Note, Resume, SessionSettings
from guestmtce.wire import guest_channel, json_lines
from guestmtce.wire.guest_channel import Init

# argv: the import path, then main's arguments, of which the last is for `page_layout`. -S leaves out site and
# what it drags in. Our own modules come last, side by side: what a child uses then lies on few pages.
BOOT = (
    "import sys; sys.path[:0] = sys.argv[1].split(':');"
    "from guestmtce.server.child import preload, page_layout;"
    "page_layout.choose(sys.argv[-1]); page_layout.fill_holes();"
    "from guestmtce.server.child.spawner import main; main(sys.argv[2:])"
)
TITLE = "guestServer: spawner"
REQUEST_MAX = 440  # bytes; more than any request, and CPython has the room for it at hand
DESCRIPTORS = struct.Struct("=ii")  # with a request: the guest's socket, the child's end of the pipe
DESCRIPTORS_SPACE = socket.CMSG_SPACE(DESCRIPTORS.size)
BIRTH = struct.Struct("=qi")  # the answer: the request's serial; the child's pid, or minus errno

WARM_UP_LIVES = 12  # CPython 3.11 adapts a function's code to what it works on from its 8th call on
WARM_UP_ODD = 3  # of them with what seldom happens
WARM_UP_BEATS = 3
WARM_UP_INTERVAL_MS = 1
_CHALLENGE = re.compile(b'"heartbeat_challenge":([0-9]+)}')


def main(arguments: List[str]) -> None:
    """`arguments`: the control socket's descriptor; the master's pid; settings and means, both as JSON; and
    what `page_layout.choose` was given.
    """
    descriptor, master, settings_json, means_json, _layout = arguments
    settings = SessionSettings(**json.loads(settings_json))
    means = decode_means(means_json)
    control = socket.socket(fileno=int(descriptor))
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # a terminal sends them to the whole group
    confine.die_with(int(master))
    confine.close_all_but([control.fileno()])
    confine.redirect_standard()
    set_title(TITLE)
    page_layout.gather(list_codes_of_a_life())
    warm_up()
    confine.warm_up()
    gc.collect()
    page_layout.fill_holes()
    newborn = Child(settings)
    confinement = prepare_confinement(control, int(master), means)
    # A collection writes to the header of each object it visits, and so would unshare the pages of all.
    gc.freeze()
    gc.disable()
    serve_requests(control, confinement, newborn)


def encode_means(means: confine.Means) -> str:
    """What a child is confined with, as an argument."""
    program, install_call, absence = means.filter
    return json.dumps([means.identity, program.hex(), install_call, absence])


def decode_means(text: str) -> confine.Means:
    """What `encode_means` made."""
    identity, program, install_call, absence = json.loads(text)
    wanted = sandbox.Filter(bytes.fromhex(program), install_call, absence)
    return confine.Means(None if identity is None else confine.Identity(*identity), wanted)


def prepare_confinement(control: socket.socket, master: int, means: confine.Means) -> confine.Confinement:
    """Find out what a child can be confined with, and tell the master."""
    confinement = confine.Confinement(master, means)
    process.random_bytes = confinement.random_bytes
    means_in_use = {**confinement.means, "oom": confine.prefer_as_oom_victim()}
    try:
        control.send(json.dumps(means_in_use).encode("ascii"))
    except OSError:
        pass  # the master has gone, which `serve_requests` notices
    return confinement


def serve_requests(control: socket.socket, confinement: confine.Confinement, newborn: Child) -> None:
    """Fork a child per request, until the master goes. `newborn` is made once, and every child's.

    It does as little as can be: what it writes to, no child shares any more.
    """
    while True:
        try:
            packet, ancillary, _, _ = control.recvmsg(REQUEST_MAX, DESCRIPTORS_SPACE)
        except ConnectionResetError:
            return  # it went with answers unread
        if not packet:
            return
        received = DESCRIPTORS.unpack(ancillary[0][2])
        serial, uuid, uid, resume = loads(packet)
        try:
            pid = fork_sibling()
        except OSError as error:
            # The errno, negated, is the answer: the master says why, and tries again (FORK_FAILED).
            pid = -(error.errno or errno.EAGAIN)
        if pid == 0:
            be_child(received, uuid, uid, resume, confinement, newborn)
        # The spawner keeps no copy: QEMU would not see the end of a connection that is open here.
        close(received[0])
        close(received[1])
        control.send(BIRTH.pack(serial, pid))


def be_child(
    received: Tuple[int, int],
    uuid: str,
    uid: Optional[int],
    resume: Any,
    confinement: confine.Confinement,
    newborn: Child,
) -> None:
    """Does not return: nothing may run on as a second spawner."""
    # Until it is confined its end counts as a failed start, and after that as a defect of the code.
    status = END_BOOT_FAILURE
    report_pipe = received[1]
    try:
        set_title("guestServer: " + uuid)
        confinement.keep_only(received)
        # `keep_only` has moved the pipe there: last words go where it is now.
        report_pipe = 1
        confinement.apply(uid)
        status = END_DEFECT
        status = _live_life(newborn, 0, 1, resume)
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends
        send_last_words(report_pipe, error)
    finally:
        _exit(status)


def send_last_words(descriptor: int, error: BaseException) -> None:
    """Why the child ends, over its pipe: a confined child has no other way to say it."""
    text = json_lines.clean_text("the child failed: %r" % (error,))
    os.write(descriptor, pipe_protocol.encode(Note(text, 0)))


def _live_life(newborn: Child, guest: int, report_pipe: int, resume: Any) -> int:
    """A child's life from the first byte on, and that of the warm-up; returns the exit status."""
    known = None if resume is None else Resume(Init(*resume[0]), *resume[1:])
    return newborn.run(guest, report_pipe, known)


def encode_request(serial: int, uuid: str, uid: Optional[int], resume: Optional[Resume]) -> bytes:
    """What the master sends for a child; `uid` None: the user of all. Raises OSError for what is no uuid."""
    known = None if resume is None else (tuple(resume.init), *resume[1:])
    packet = dumps((serial, uuid, uid, known))  # type: ignore[arg-type]
    if len(packet) > REQUEST_MAX:
        raise OSError(errno.EMSGSIZE, "the uuid is too long: " + uuid)
    return packet


def warm_up() -> None:
    """Live guests' lives, so that the code's caches are written here and not in every child."""
    _live_lives([_Life(turn < WARM_UP_ODD) for turn in range(WARM_UP_LIVES)])


def list_codes_of_a_life() -> List[Any]:
    """The code that a child runs through whose guest is well, and that which makes it."""
    makes = (serve_requests, fork_sibling, be_child, _live_life)
    confines = (confine.Confinement.keep_only, confine.Confinement.apply, confine.become)
    lives = page_layout.list_codes_run_by(lambda: _live_lives([_Life(False)]))
    return [function.__code__ for function in (*makes, *confines, confine.run_steps)] + lives


def _live_lives(lives: List[_Life]) -> None:
    # Both ends live here, in two processes: a life that blocks on its own answer would never end.
    guest = os.fork()
    if guest == 0:
        try:
            for life in lives:
                life.play_guest()
        finally:
            os._exit(0)
    for life in lives:
        life.live_as_child()
    os.waitpid(guest, 0)


class _Life:
    """One connection of a guest that does not exist, from its first word to its end."""

    def __init__(self, odd: bool) -> None:
        self._odd = odd
        self._near = socket.socketpair()
        self._pipe = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._init = guest_channel.DEFAULT_INIT._replace(
            invocation_id=guest_channel.INT32_MAX, name="warm-up", heartbeat_interval_ms=WARM_UP_INTERVAL_MS
        )

    def live_as_child(self) -> None:
        """The child's part."""
        (guest, far), (pipe, far_pipe) = self._near, self._pipe
        far.close()
        far_pipe.close()
        settings = SessionSettings(
            interval_floor_ms=WARM_UP_INTERVAL_MS, failure_threshold=guest_channel.INT32_MAX
        )
        resume = (tuple(self._init), False, 0.0, False, 0.0, False) if self._odd else None
        _live_life(Child(settings), guest.fileno(), pipe.fileno(), resume)
        guest.close()
        pipe.close()

    def play_guest(self) -> None:
        """The guest's part, and the master's."""
        (guest, far), (pipe, far_pipe) = self._near, self._pipe
        guest.close()
        pipe.close()
        if self._odd:
            far.send(b"no message\n")
            far_pipe.send(
                pipe_protocol.encode(
                    pipe_protocol.AskGuest(1, guest_channel.VOTE, "stop", WARM_UP_INTERVAL_MS)
                )
            )
        far.send(guest_channel.build(self._init, 0))
        for beat in range(WARM_UP_BEATS):
            health = guest_channel.UNHEALTHY if self._odd and beat == 0 else guest_channel.HEALTHY
            for challenge in _await_challenges(far):
                far.send(
                    guest_channel.build(guest_channel.ChallengeResponse(challenge, health, "none", ""), beat)
                )
            if beat == 0:  # a guest that heartbeats, as it is in most children's lives
                far_pipe.send(pipe_protocol.ENABLE_REPORTING_PACKET)
        far.close()
        far_pipe.close()


def _await_challenges(far: socket.socket) -> List[int]:
    """The next that come; none at the connection's end."""
    while True:
        data = far.recv(REQUEST_MAX)
        challenges = [int(digits) for digits in _CHALLENGE.findall(data)]
        if challenges or not data:
            return challenges
