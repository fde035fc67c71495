"""The program guestClient: ties the client to its port, its scripts and the local processes."""

import functools
import os
import signal
import sys
import time
from typing import FrozenSet, List, Optional, Sequence

from guestmtce import __version__
from guestmtce.common.background import reset_signals
from guestmtce.common.log_line import LogLine
from guestmtce.guest import ask, background, client, config, config_file, endurance, errand, host, options
from guestmtce.guest.ballot import SCRIPT
from guestmtce.guest.config_file import ConfigFile
from guestmtce.guest.health import Illness, gravest
from guestmtce.guest.local_socket import LocalSocket, SocketListener
from guestmtce.guest.log import Log, keep_time_zone, open_log
from guestmtce.guest.loop import Loop
from guestmtce.guest.options import Options
from guestmtce.guest.port import PortListener, VirtioPort
from guestmtce.guest.runner import Runner
from guestmtce.guest.scripts import EventScript, HealthScript
from guestmtce.guest.settings import Settings, overridden
from guestmtce.wire import guest_channel

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
UNUSABLE = 2  # exit status for a command line or a place that cannot be used
ON_HOST = 6  # exit status of a service that has no place here; LSB: not configured. The unit knows it

NO_SUBREAPER = (
    "prctl(PR_SET_CHILD_SUBREAPER) is not to be had: when a script is killed, processes of it that moved to "
    "another session and whose parent has ended go on"
)


def random_id() -> int:
    """An invocation id: at random, so that it tells one start of a guest from another."""
    return int.from_bytes(os.urandom(4), "big") & guest_channel.INT32_MAX


class Program:
    """Everything that runs, wired together."""

    def __init__(self, given: Options, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._given = given
        self._log = log
        self._loop = Loop()
        self._loop.on_signal(signal.SIGCHLD, self._reap)  # served in the loop, and noted from here on
        # Before all else: the client begins with the configuration, or with what stands in for a file that is
        # late.
        self._config_file = ConfigFile(self._loop, given.config, settings, log, self._configure)
        self._config_file.load()
        self._illness: Optional[Illness] = None  # what the health script found
        self.client = client.Client(self._config, settings, os.uname().nodename, random_id, self._voters)
        self._port = self._make_port(given.device)
        self._local_socket = self._make_local_socket(given)
        # One for each purpose: a question's script does not end a run of the health script.
        self._runners = [self._make_runner(), self._make_runner()]
        self._health = HealthScript(self._runners[0], self._config, self._note_script_health, log)
        path = self._config.event_notification_script
        self._event = EventScript(self._runners[1], path, self._count_script_vote, log)
        # The client comes last: what the port and the processes bring at this moment is heard before its
        # deadline is judged.
        self._loop.parts = [self._port, self._local_socket, self._health, self._config_file, _Ticking(self)]
        self._loop.on_signal(signal.SIGHUP, self._config_file.reload)
        self._loop.on_signal(signal.SIGUSR1, self._log_state)
        for signum in SIGNALS:
            self._loop.on_signal(signum, functools.partial(self._stop, signum))

    def _make_port(self, path: str) -> VirtioPort:
        listener = PortListener(
            lambda: self._carry_out(self.client.note_opened(self._loop.now)),
            lambda: self._carry_out(self.client.note_closed(self._loop.now)),
            lambda data: self._carry_out(self.client.receive(data, self._loop.now)),
        )
        return VirtioPort(self._loop, path, self._settings, self._log, listener)

    def _make_runner(self) -> Runner:
        return Runner(lambda: self._log(NO_SUBREAPER, "subreaper"))

    def _make_local_socket(self, given: Options) -> LocalSocket:
        """The socket for local processes; a guest is watched without it, too."""
        listener = SocketListener(
            self._set_health, self._count_vote, lambda voter: self._carry_out(self.client.remove_voter(voter))
        )
        try:
            return LocalSocket(self._loop, given.socket, given.group, self._settings, self._log, listener)
        # KeyError is grp's, for a group that does not exist.
        except (OSError, KeyError) as error:
            self._log("no local process can register: %s: %s" % (given.socket, error))
            # With an empty path: a registry that nobody can reach, so that no caller has to ask for it.
            return LocalSocket(self._loop, "", "", self._settings, self._log, listener)

    def run(self) -> None:
        """Until a signal ends it. A defect of ours is logged: whoever supervises us starts us again."""
        self._log("started, pid %d" % os.getpid())
        try:
            self._loop.run()
            self._linger()
        except Exception:
            self._log_defect()
            self._log.close()
            raise
        self._close()
        self._log("ended")
        self._log.close()

    def _log_defect(self) -> None:
        import traceback  # for this only

        for line in traceback.format_exc().splitlines():
            self._log(line)

    def _close(self) -> None:
        for runner in self._runners:
            runner.stop()  # what a notice's script has begun goes on: it was left by the goodbye
        self._local_socket.close()
        self._port.close()
        self._loop.close()

    def _linger(self) -> None:
        """Give the host a moment to read our last words."""
        until = time.monotonic() + self._settings.goodbye
        # The other parts rest: no new script and no new init after the goodbye.
        self._loop.parts = [_Deadline(until)]
        # `exit` tells the host that the silence is no failure. Unsent, it would be a loss.
        while self._port.waits and time.monotonic() < until:
            self._loop.run_once()

    def _stop(self, signum: int) -> None:
        name = signal.Signals(signum).name
        self._carry_out(self.client.say_goodbye("guestClient was ended by " + name, self._loop.now))
        self._loop.running = False

    @property
    def _config(self) -> config.Config:
        return self._config_file.config

    def _configure(self) -> None:
        """The configuration was read again."""
        self._health.configure(self._config)
        self._event.configure(self._config.event_notification_script)
        self._carry_out(self.client.configure(self._config, self._loop.now))

    def _log_state(self) -> None:
        """USR1: for whoever looks into this guest."""
        mine: List[Illness] = [] if self._illness is None else [self._illness]
        illness = gravest(mine + self._local_socket.registry.illnesses)
        health = "healthy" if illness is None else "ill, corrective action %s: %s" % illness
        text = "state: %s at %s, %d challenges answered, %d messages dropped; %s"
        self._log(
            text % (self.client.state, self._given.device, self.client.answers, self._port.dropped, health)
        )
        self._config_file.log_config()
        for member in self._local_socket.registry.described:
            facts = ["%s=%s" % pair for pair in member.items()]
            self._log("local process: " + " ".join(facts))

    # --- what the client wants ---------------------------------------------------------------------

    def _carry_out(self, output: client.Output) -> None:
        for message in output.messages:
            self._port.send(message)
        for effect in output.effects:
            if isinstance(effect, LogLine):
                self._log.write(effect)
            elif isinstance(effect, client.AskVoters):
                self._ask_voters(effect)
            else:
                self._event.withdraw_question(effect.question_id, effect.expired)
                self._local_socket.withdraw_question(effect.question_id)

    def _ask_voters(self, question: client.AskVoters) -> None:
        if self._config.event_notification_script:
            self._event.ask_script(question.question_id, question.notification_type, question.event_type)
        self._local_socket.ask_members(*question)

    def tick(self, now: float) -> None:
        """The client's time has come."""
        self._carry_out(self.client.tick(now))

    # --- what scripts and processes say ------------------------------------------------------------

    def _voters(self) -> FrozenSet[str]:
        script = [SCRIPT] if self._config.event_notification_script else []
        return self._local_socket.registry.voters.union(script)

    def _count_vote(self, question_id: int, voter: str, result: str, reason: str) -> None:
        self._carry_out(self.client.count_vote(question_id, voter, result, reason))

    def _count_script_vote(self, question_id: int, result: str, reason: str) -> None:
        self._count_vote(question_id, SCRIPT, result, reason)

    def _note_script_health(self, illness: Optional[Illness]) -> None:
        self._illness = illness
        self._set_health()

    def _set_health(self) -> None:
        mine: List[Illness] = [] if self._illness is None else [self._illness]
        self._carry_out(self.client.set_health(gravest(mine + self._local_socket.registry.illnesses)))

    def _reap(self) -> None:
        errand.reap()
        for runner in self._runners:
            runner.reap()


class _Ticking:
    """The client as a part of the loop."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @property
    def deadline(self) -> float:
        return self._program.client.deadline

    def tick(self, now: float) -> None:
        self._program.tick(now)


class _Deadline:
    """A part that only ends the loop's waiting."""

    def __init__(self, when: float) -> None:
        self.deadline = when

    def tick(self, _now: float) -> None:
        pass


def _start(given: Options) -> int:
    """Raises OSError, ValueError, daemon.AlreadyRunning."""
    if given.members or given.forget:
        ask.print_members(given.socket, given.forget)
        return 0
    settings = overridden(given.settings)
    if (given.service or given.may_start) and _is_kept_out(given, settings):
        return ON_HOST
    if given.may_start:
        return 0
    log = _open_log(given, settings)
    if given.foreground:
        _run(given, settings, log)
        return 0
    # In the foreground a supervisor sees to it that there is one only, so there is no pid file.
    pid_file = _claim(given, log)
    background.go_background(pid_file)
    try:
        _run(given, settings, log)
    finally:
        if pid_file is not None:
            pid_file.remove()
    return 0


def _claim(given: Options, log: Log) -> Optional[background.PidFile]:
    """The pid file. Raises OSError, AlreadyRunning; but no guest is lost for it: a service does without."""
    try:
        return background.PidFile(given.pid_file)
    except OSError as error:
        if not given.service:
            raise
        log("%s: %s: there is no pid file" % (given.pid_file, error.strerror))
        return None


def _open_log(given: Options, settings: Settings) -> Log:
    """Raises OSError; but no guest is lost for its log: a service whose file cannot be opened uses syslog."""
    try:
        return open_log(given.foreground, given.log, settings.log_period)
    except OSError as error:
        if not given.service:
            raise
        log = open_log(False, "", settings.log_period)
        log("%s: %s: the log goes to syslog" % (given.log, error.strerror))
        return log


def _is_kept_out(given: Options, settings: Settings) -> bool:
    """Whether this is a host of guests that is not to be watched as a guest; says so."""
    evidence = host.host_evidence()
    if evidence is None or config_file.load(given.config, settings)[0].run_on_host:
        return False
    remedy = "if it is a guest as well, put RUN_ON_HOST=yes into %s" % given.config
    print("guestClient: not started, %s: a host is no guest; %s" % (evidence, remedy), file=sys.stderr)
    return True


def _run(given: Options, settings: Settings, log: Log) -> None:
    if given.service:
        endurance.take_precedence()
    # After the fork into the background, over which a lock on memory does not last.
    locked = endurance.lock_memory()
    if locked:
        log(locked)
    Program(given, settings, log).run()


def _wait_out(arguments: Sequence[str]) -> None:
    """A supervisor starts us again at once, and a fault of the configuration is still there then."""
    if "--service" in arguments and not {"--foreground", "-f"}.isdisjoint(arguments):
        time.sleep(options.FAULT_WAIT)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    # First: whoever started this may have blocked signals or ignored SIGCHLD over exec.
    reset_signals()
    keep_time_zone()
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        given = options.parse(arguments)
        if given.help or given.version:
            print(options.HELP if given.help else "guestClient %s\n" % __version__, end="")
            return 0
        return _start(given)
    except background.AlreadyRunning as error:
        print("guestClient: %s" % error, file=sys.stderr)
        return 0
    except (OSError, ValueError) as error:
        print("guestClient: %s" % error, file=sys.stderr)
        _wait_out(arguments)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
