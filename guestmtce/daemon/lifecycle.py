"""The life of a daemon of ours, from its command line to its end (docs/protocol/4-host.md#signals)."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import signal
import sys
import threading
import time
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Generic,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Type,
    TypeVar,
)

import setproctitle

from guestmtce.common.background import fill_standard_descriptors, reset_signals
from guestmtce.daemon import atomic_file, config, pmon, sd_notify
from guestmtce.daemon import log as logs
from guestmtce.daemon.beside_loop import BesideLoop
from guestmtce.daemon.daemonise import Foreground, daemonise
from guestmtce.daemon.loop import Loop
from guestmtce.daemon.pid_file import AlreadyRunning, PidFile
from guestmtce.daemon.settings import DaemonSettings

log = logging.getLogger(__name__)

END_WITHIN = 1.5  # s; what stops a daemon of mtce waits for 2 s
LAST_LINE_WAIT = 0.2  # s that the last lines have to reach the log
DESCRIPTORS_MIN = 128  # open files that a daemon without guests may need, its spawner included
STATUS_PERIOD = 2.0  # s between two looks whether systemd is to be told of another status
RELOAD_PATIENCE = 5.0  # s; a configuration that takes longer to be read stands on a file system that hangs
PRESENCE_CHECK = 5.0  # s between two looks whether our files are still in the run folder

Settings = TypeVar("Settings", bound=DaemonSettings)


class Service(Generic[Settings]):
    """What a daemon does; `run` below calls these.

    `failed`: it ends by itself, for a reason that it has logged. `reloadable`: the names of the settings that
    `reload` makes take effect.
    """

    failed = False
    reloadable: FrozenSet[str] = frozenset()

    def open(self) -> None:
        """Bind, start, watch. Raises OSError with a text for the operator."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop everything; called once, also after a failed `open`."""
        raise NotImplementedError

    def read_files(self, settings: Settings) -> Any:
        """HUP, in a thread of its own: what stands in the files that `settings` names and `reload` takes.

        Raises OSError for one that cannot be used.
        """

    def reload(self, settings: Settings, files: Any) -> None:
        """HUP: these were read, whatever has changed; `files` is what `read_files` gave. Does not wait.

        Raises OSError if one of them cannot be used.
        """

    def status(self) -> str:
        """One line for `systemctl status`: what it does now."""
        raise NotImplementedError

    def health(self) -> List[str]:
        """The lines of the health report."""
        raise NotImplementedError

    def dump(self) -> List[str]:
        """All state, for a reader."""
        raise NotImplementedError


def run(
    name: str,
    kind: Type[Settings],
    paths: Dict[str, str],
    make: Callable[[Loop, Settings], Service[Settings]],
    arguments: Optional[Sequence[str]] = None,
) -> int:
    """Be the daemon `name`. Returns the exit status."""
    # Before anything is opened: a socket as descriptor 2 would get every traceback.
    fill_standard_descriptors()
    reset_signals()
    try:
        settings, notes = config.load(kind, name, paths, arguments)
        # Before going into the background: the caller hears at once that one runs already.
        # docs/protocol/4-host.md#pid-file
        pid_file = _claim(settings.run_dir, name)
    except AlreadyRunning as running:
        print("%s is already running, pid %s" % (name, running))
        return 0
    except (config.ConfigError, OSError) as error:
        sys.stderr.write("%s: %s\n" % (name, error))
        return 1
    # Before the log's thread and the loop are made: a fork keeps no thread but the one that calls it.
    starter = Foreground() if settings.foreground else daemonise()
    # pidof finds the daemon by it.
    # docs/protocol/4-host.md#names-of-processes
    setproctitle.setproctitle(name)
    try:
        set_up_log(name, settings)
        # A daemon that was killed in the middle of a report leaves a file with its pid in the name.
        atomic_file.remove_leftovers(settings.log_dir, name + ".dump.")
        if not atomic_file.is_title(name):
            text = (
                "setproctitle has no effect here: pidof does not find %s by its name; the init scripts do, by"
                " its pid file (its wheel without compiled code is installed: a C compiler makes the other)"
            )
            log.warning(text, name)
        for note in notes:
            log.info("%s", note)
        _raise_descriptor_limit()
        return _Life(name, kind, paths, arguments, settings, pid_file, starter).live(make)
    except OSError as error:
        # In the foreground `failed` writes the same line to stderr, which is the log there.
        if not settings.foreground and log.hasHandlers():
            log.error("cannot start: %s", error)
        pid_file.release()  # before the failure is reported: the caller may try again at once
        starter.failed("%s: %s" % (name, error))
        return 1
    # No OSError: the operator cannot help it, so the log gets the traceback and the caller one line.
    except Exception as error:
        log.exception("a defect in guestmtce")
        pid_file.release()
        starter.failed("%s: a defect in guestmtce: %r" % (name, error))
        return 1
    finally:
        pid_file.release()


def _claim(run_dir: str, name: str) -> PidFile:
    """Raises AlreadyRunning; OSError with the remedy."""
    folder = os.path.abspath(run_dir)
    pid_file = PidFile(folder, name)
    try:
        os.makedirs(folder, exist_ok=True)
        pid_file.claim()
    except OSError as error:
        text = "%s: is there room, and may it write there? --run-dir names another folder" % error
        raise OSError(text) from None
    atomic_file.remove_leftovers(folder, name + ".")
    return pid_file


def set_up_log(name: str, settings: DaemonSettings) -> None:
    """Log as the settings say."""
    logs.set_up(name, settings.foreground, settings.log_file, settings.log_dir, _level(settings))


def _level(settings: DaemonSettings) -> int:
    return logging.DEBUG if settings.debug_level else logging.INFO


class _Life(Generic[Settings]):
    """From the pid file to the last signal."""

    def __init__(
        self,
        name: str,
        kind: Type[Settings],
        paths: Dict[str, str],
        arguments: Optional[Sequence[str]],
        settings: Settings,
        pid_file: PidFile,
        starter: Foreground,
    ) -> None:
        self._name = name
        self._kind = kind
        self._paths = paths
        self._arguments = arguments
        self._settings = settings
        self._pid_file = pid_file
        self._starter = starter
        self._throttle = logs.Throttle(log)
        self._started = time.monotonic()
        self._status = 1  # until it serves
        self._told_status = ""  # to systemd
        self._info_path = os.path.join(os.path.abspath(settings.run_dir), name + ".info")

    def live(self, make: Callable[[Loop, Settings], Service[Settings]]) -> int:
        loop = Loop()
        service = make(loop, self._settings)
        try:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.on_signal(signum, loop.stop)
            loop.on_signal(signal.SIGHUP, self._reloading(loop, service))
            loop.on_signal(signal.SIGUSR1, lambda: self._write_info(service))
            loop.on_signal(signal.SIGUSR2, lambda: self._write_dump(service))
            # The pid file comes last: a supervisor that finds it reads the report, and may send signals.
            self._write_info(service)
            self._pid_file.write()
            service.open()
            if self._settings.pmon_port:
                pmon.serve(loop, self._name, self._settings.pmon_port, self._settings.pmon_reply_port)
            self._told_status = service.status()
            sd_notify.ready(self._told_status)
            if sd_notify.is_listened_to():
                loop.after(STATUS_PERIOD, lambda: self._tell_status(loop, service))
            # Once the daemon serves: until READY systemd counts no watchdog, but the time of the start.
            sd_notify.feed_watchdog(loop.after)
            loop.after(PRESENCE_CHECK, lambda: self._keep_files(loop, service))
            # The caller's command returns 0 now: everything that can fail has been done.
            self._starter.ready()
            log.info("started, pid %d", os.getpid())
            # The exit status until the loop ends by itself: a daemon that serves has not failed to start.
            self._status = 0
            loop.run()
            # systemd starts a service again whose status is not 0 (Restart=on-failure).
            self._status = int(service.failed)
        finally:
            # First: whatever below hangs is ended, and the files are removed.
            self._end_in_time()
            log.info("stopping")
            sd_notify.tell(sd_notify.STOPPING)
            service.close()
            atomic_file.remove(self._info_path)
            self._pid_file.release()
            loop.close()  # from now on a second signal would kill
        return self._status

    def _tell_status(self, loop: Loop, service: Service[Settings]) -> None:
        """Tell systemd what has changed since it was last told."""
        loop.after(STATUS_PERIOD, lambda: self._tell_status(loop, service))
        status = service.status()
        if status != self._told_status:
            self._told_status = status
            sd_notify.tell(sd_notify.status(status))

    def _end_in_time(self) -> None:
        """End this process in time, whatever hangs (a handler of the VIM's, say). It forks no more."""

        def end() -> None:
            try:
                atomic_file.remove(self._info_path)
                self._pid_file.release()
                log.error("stopping takes too long: ended")
                logs.flush(LAST_LINE_WAIT)
            finally:
                # No exit handlers and no waiting for threads: one of them is what hangs.
                os._exit(self._status)

        guard = threading.Timer(END_WITHIN, end)
        guard.daemon = True
        guard.start()

    def _keep_files(self, loop: Loop, service: Service[Settings]) -> None:
        """A supervisor finds the daemon by these files: one that was cleaned away is made again."""
        loop.after(PRESENCE_CHECK, lambda: self._keep_files(loop, service))
        try:
            restored = self._pid_file.restore()
        except AlreadyRunning as running:
            text = "%s was cleaned away, and another %s has started since, pid %s: stop one of them"
            self._throttle.warning("other", text, self._pid_file.path, self._name, str(running))
        except OSError as error:
            self._throttle.warning("file", "a file that was cleaned away cannot be made again: %s", error)
        else:
            if restored:
                log.warning("%s was cleaned away: it is there again", self._pid_file.path)
            if not os.path.exists(self._info_path):
                self._write_info(service)

    def _write_info(self, service: Service[Settings]) -> None:
        up = "up %d s" % (time.monotonic() - self._started)
        first = "%s %s pid %d" % (self._name, up, os.getpid())
        self._write(self._info_path, [first, *service.health(), "log lost %d" % logs.lost()])

    def _write_dump(self, service: Service[Settings]) -> None:
        path = os.path.join(self._settings.log_dir, self._name + ".dump")
        if self._write(path, [*service.health(), *service.dump()]):
            log.info("all state is in %s", path)

    def _write(self, path: str, lines: List[str]) -> bool:
        try:
            atomic_file.write_atomically(path, "".join(line + "\n" for line in lines))
        except OSError as error:
            self._throttle.warning(path, "cannot write %s: %s", path, error.strerror)
            return False
        return True

    def _reloading(self, loop: Loop, service: Service[Settings]) -> Callable[[], None]:
        """What HUP does: read the configuration beside the loop, and take it in the loop when it has come."""

        def read() -> _Configuration:
            fresh, notes = config.load(self._kind, self._name, self._paths, self._arguments)
            return _Configuration(fresh, notes, service.read_files(fresh))

        def take(read: Callable[[], _Configuration]) -> None:
            try:
                self._take_configuration(service, read)
            finally:
                # Else a second HUP is under way: READY now would tell systemd that it is done.
                if not reading.is_asked_again:
                    sd_notify.tell(sd_notify.READY)

        reading = BesideLoop(loop, read, take, RELOAD_PATIENCE, _note_late_configuration)

        def reload() -> None:
            sd_notify.tell(sd_notify.RELOADING, "MONOTONIC_USEC=%d" % (time.monotonic() * sd_notify.USEC))
            reading.start()

        return reload

    def _take_configuration(self, service: Service[Settings], read: Callable[[], _Configuration]) -> None:
        """Take the new configuration as far as that can be done while running."""
        try:
            fresh, notes, files = read()
            service.reload(fresh, files)
        # SystemExit is argparse's, which reads the same command line again.
        except (config.ConfigError, OSError, SystemExit) as error:
            log.error("the configuration is left as it was: %s", error)
            return
        logs.set_level(_level(fresh))
        for note in notes:
            log.info("%s", note)
        # What waits for a restart keeps its old value here, so that each later reload names it again.
        taken = {key: getattr(fresh, key) for key in {"debug_level", *service.reloadable}}
        self._settings = dataclasses.replace(self._settings, **taken)
        changed = [key for key, value in vars(fresh).items() if value != getattr(self._settings, key)]
        text = "reloaded; these take effect at the next start: %s" if changed else "reloaded%s"
        log.info(text, ", ".join(changed))


class _Configuration(NamedTuple):
    """What was read at HUP: the settings, lines for the log, and what the service reads of files."""

    settings: Any
    notes: List[str]
    files: Any


def _note_late_configuration() -> None:
    """systemd is not to wait for what may take for ever."""
    text = "the configuration is not read within %g s, its file system hangs: until then it stays as it was"
    log.warning(text, RELOAD_PATIENCE)
    sd_notify.tell(sd_notify.READY)


def _raise_descriptor_limit() -> None:
    """Some descriptors per guest: take what the system allows. Raises OSError if that is far too little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_MIN:
        text = (
            "%d files may be open at once, and %d are needed: raise `ulimit -Hn`, or LimitNOFILE= of the unit"
        )
        raise OSError(text % (hard, DESCRIPTORS_MIN))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
