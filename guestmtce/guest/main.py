"""The program guestClient: ties the client to its port, its scripts and the local processes."""

import argparse
import functools
import os
import signal
import sys
import time
from typing import Dict, FrozenSet, Optional, Sequence

from guestmtce.guest import client, config, daemon
from guestmtce.guest.ballot import SCRIPT
from guestmtce.guest.health import Illness, worst
from guestmtce.guest.log import Log, open_log
from guestmtce.guest.loop import Loop
from guestmtce.guest.port import Port
from guestmtce.guest.scripts import EventScript, HealthScript, Runner
from guestmtce.guest.settings import Settings, overridden
from guestmtce.wire import channel

DEVICE = "/dev/virtio-ports/cgcs.heartbeat"
PID_FILE = "/run/guestClient.pid"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UNUSABLE = 2  # exit status for a command line or a place that cannot be used


def random_id() -> int:
    """An invocation id: at random, so that it tells one start of a guest from another."""
    return int.from_bytes(os.urandom(4), "big") & channel.INT32_MAX


class Program:
    """Everything that runs, wired together."""

    def __init__(self, given: argparse.Namespace, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._loop = Loop()
        self._config, notes = config.load(given.config, settings)
        for note in notes:
            log(note)
        self._illnesses: Dict[str, Illness] = {}
        self.client = client.Client(self._config, settings, os.uname().nodename, random_id, self._voters)
        self._port = Port(self._loop, given.device, settings, log)
        self._port.on_open = lambda: self._act(self.client.opened(time.monotonic()))
        self._port.on_close = lambda: self._act(self.client.closed(time.monotonic()))
        self._port.on_data = lambda data: self._act(self.client.receive(data, time.monotonic()))
        self._runners = [Runner(self._loop), Runner(self._loop)]
        self._health = HealthScript(self._runners[0], self._config, self._feel, log)
        self._event = EventScript(self._runners[1], self._config.event_notification_script, self._vote, log)
        self._loop.parts = [self._port, self._health, _Ticking(self)]
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        for number in SIGNALS:
            self._loop.on_signal(number, functools.partial(self._stop, number))

    def run(self) -> None:
        """Until a signal ends it."""
        self._log("started, pid %d" % os.getpid())
        self._loop.run()
        self._linger()
        for runner in self._runners:
            runner.stop()
        self._port.close()
        self._loop.close()
        self._log("ended")

    def _linger(self) -> None:
        """Give the host a moment to read our last words."""
        until = time.monotonic() + self._settings.goodbye
        self._loop.parts = [_Deadline(until)]
        while self._port.waits and time.monotonic() < until:
            self._loop.run_once()

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        self._act(self.client.exit("guestClient was ended by " + name, time.monotonic()))
        self._loop.running = False

    # --- what the client wants ---------------------------------------------------------------------

    def _act(self, output: client.Output) -> None:
        for message in output.messages:
            self._port.send(message)
        for report in output.reports:
            if isinstance(report, client.Note):
                self._log(report.text, report.about)
            elif isinstance(report, client.Put):
                self._put(report)
            else:
                self._event.withdraw(report.number)

    def _put(self, question: client.Put) -> None:
        if self._config.event_notification_script:
            self._event.put(question.number, question.notification_type, question.event_type)

    def tick(self, now: float) -> None:
        """The client's time has come."""
        self._act(self.client.tick(now))

    # --- what scripts and processes say ------------------------------------------------------------

    def _voters(self) -> FrozenSet[str]:
        return frozenset([SCRIPT] if self._config.event_notification_script else [])

    def _vote(self, number: int, result: str, reason: str) -> None:
        self._act(self.client.vote(number, SCRIPT, result, reason))

    def _feel(self, illness: Optional[Illness]) -> None:
        self._illnesses.pop(SCRIPT, None)
        if illness is not None:
            self._illnesses[SCRIPT] = illness
        self._act(self.client.feel(worst(self._illnesses.values())))

    def _reap(self) -> None:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="guestClient", description="the heartbeat client of a guest")
    add = parser.add_argument
    add("--device", metavar="PATH", default=DEVICE, help="port to the host, or a UNIX socket (%(default)s)")
    add("--config", metavar="FILE", default=config.CONFIG_FILE, help="default: %(default)s")
    add("--foreground", "-f", action="store_true", help="stay in front, without a pid file; log to stderr")
    add("--log", "-l", metavar="FILE", default="", help="log to FILE instead of syslog")
    add("--pid-file", metavar="FILE", default=PID_FILE, help="default: %(default)s")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="a setting for developers")
    return parser


def _start(given: argparse.Namespace) -> int:
    """Raises OSError, ValueError, daemon.AlreadyRunning."""
    settings = overridden(given.set)
    log = open_log(given.foreground, given.log, settings.log_period)
    if given.foreground:
        Program(given, settings, log).run()
        return 0
    pid_file = daemon.PidFile(given.pid_file)
    daemon.go_background(pid_file)
    try:
        Program(given, settings, log).run()
    finally:
        pid_file.remove()
    return 0


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return _start(given)
    except daemon.AlreadyRunning as error:
        print("guestClient: %s" % error, file=sys.stderr)
        return 0
    except (OSError, ValueError) as error:
        print("guestClient: %s" % error, file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
