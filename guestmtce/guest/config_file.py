"""The configuration's file as a part of the loop: read by a process of its own, one at a time.

A file system that stands still, a device or a huge file in the file's place delay nothing. At the start the
file has a moment. A client that goes on without it asks for no reboot that nobody may have wanted: until the
file is read CORRECTIVE_ACTION is `log`.
"""

import errno
import os
import stat
from typing import Callable, List, Optional, Tuple

from guestmtce.common import NEVER
from guestmtce.guest import config
from guestmtce.guest.config import DEFAULTS, Config
from guestmtce.guest.errand import Errand
from guestmtce.guest.log import Log
from guestmtce.guest.loop import Loop
from guestmtce.guest.settings import Settings

FILE_MAX = 65536  # bytes
NOT_READ = DEFAULTS._replace(corrective_action="log")


class ConfigFile:
    """`config` is what is in effect. `on_read` is called in the loop once a late file has been read."""

    def __init__(
        self, loop: Loop, path: str, settings: Settings, log: Log, on_read: Callable[[], None]
    ) -> None:
        self.config = DEFAULTS
        self._on_read = on_read
        self.deadline = NEVER  # when to say that the file is not read yet
        self._loop = loop
        self._path = path
        self._settings = settings
        self._log = log
        self._errand: Optional[Errand] = None
        self._again = False  # it may have changed since the reading began

    def load(self) -> None:
        """At the start."""
        try:
            self._errand = Errand(lambda: read_file(self._path))
        except OSError:  # a guest without a process to spare is watched all the same
            self._take_config(*load(self._path, self._settings))
            return
        # The only wait of the client, before its loop runs: a host may know this guest and challenge already.
        if self._errand.wait(self._settings.config_wait):
            self._take_result(DEFAULTS)
            return
        self._watch(self._errand)
        # CORRECTIVE_ACTION's default is reboot: a wrong reset is worse than an illness that is only logged.
        self.config = NOT_READ
        text = (
            "%s: not read within %g s, its file system stands still: until it is read the defaults are taken"
        )
        self._log((text + ", but CORRECTIVE_ACTION=log") % (self._path, self._settings.config_wait))
        self.log_config()

    def reload(self) -> None:
        """HUP: read it again. Who asks while it is read is given a later reading."""
        if self._errand is not None:
            self._again = True
            return
        try:
            self._errand = Errand(lambda: read_file(self._path))
        except OSError as error:
            self._log("%s: cannot be read now: %s: what is in effect stays" % (self._path, error.strerror))
            return
        self._watch(self._errand)
        self.deadline = self._loop.now + self._settings.config_patience

    def tick(self, _now: float) -> None:
        """It takes long."""
        self.deadline = NEVER
        self._log("%s: its file system stands still: what is in effect stays until it is read" % self._path)

    def log_config(self) -> None:
        """Say what is in effect."""
        for line in config.describe(self.config):
            self._log("configuration: " + line)

    def _watch(self, errand: Errand) -> None:
        # What is in effect when the reading begins: that stays where a value cannot be used.
        before = self.config
        self._loop.watch(errand.descriptor, lambda: self._receive(errand, before))

    def _receive(self, errand: Errand, before: Config) -> None:
        if not errand.receive():
            return
        self.deadline = NEVER
        self._loop.unwatch(errand.descriptor)
        self._take_result(before)
        self._on_read()
        if self._again:
            self._again = False
            self.reload()

    def _take_result(self, before: Config) -> None:
        assert self._errand is not None
        errand, self._errand = self._errand, None
        errand.close()
        try:
            data = errand.result()
        except OSError as error:
            self._take_config(*config.keep(before, self._path, str(error.strerror)))
        else:
            self._take_config(*config.parse_bytes(data, self._path, self._settings, before))

    def _take_config(self, taken: Config, notes: List[str]) -> None:
        self.config = taken
        for line in notes:
            self._log(line)
        self.log_config()


def load(path: str, settings: Settings, before: Config = DEFAULTS) -> Tuple[Config, List[str]]:
    """The configuration in the file `path`, and lines for the log; this waits for its file system.

    `before` is what is in effect: it stays where the file, or a value in it, cannot be used. So a slip of the
    pen, or a file that is just being replaced, does not make a `reboot` of a `log`.
    """
    try:
        data = read_file(path)
    except OSError as error:
        return config.keep(before, path, str(error.strerror))
    return config.parse_bytes(data, path, settings, before)


def read_file(path: str) -> bytes:
    """What is in the file; this waits for its file system. Raises OSError.

    A pipe is refused: who opens it would wait for a writer.
    """
    # O_NONBLOCK for a pipe in the file's place, O_NOCTTY for a terminal, which would become ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, and no file")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            data = b""
            # One byte beyond the limit shows that there is more.
            while len(data) <= FILE_MAX:
                more = file.read(FILE_MAX + 1 - len(data))
                if not more:
                    return data
                data += more
    finally:
        os.close(descriptor)
    raise OSError(errno.EFBIG, "it has more than %d bytes" % FILE_MAX)
