"""The user's scripts: what the health script says of the guest, and the event script of a question."""

import errno
import time
from typing import Callable, Optional

from guestmtce.common import NEVER
from guestmtce.guest.ballot import ACCEPT, ERROR, REJECT
from guestmtce.guest.config import Config
from guestmtce.guest.health import Illness
from guestmtce.guest.log import Log
from guestmtce.guest.runner import Ended, Runner
from guestmtce.wire import guest_channel

LOOK_PERIOD = 0.25  # s; while the health script runs we look so often whether we stood still
STALL = 0.1  # s; a look that is later than that was missed by us
# Why no process can be made, or become a script, in a guest that is not well. All else is a fault of the
# configuration, for which nobody is rebooted.
GUEST_IS_ILL = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)


class HealthScript:
    """Runs the health script every `interval` s and calls `set_health` with what it found: None is well.

    A script that hangs is killed when the next run is due, and that is an illness; time in which we stood
    still is not counted. So is one for which no process can be made: a guest that cannot fork is not well.
    One that cannot be executed is a fault of the configuration, which no corrective action would cure: it is
    only logged, and what it said before counts no more.
    """

    def __init__(
        self, runner: Runner, config: Config, set_health: Callable[[Optional[Illness]], None], log: Log
    ) -> None:
        self._due = time.monotonic() if config.health_check_script else NEVER  # the next run
        self._looked_at = 0.0
        self._runner = runner
        self._config = config
        self._set_health = set_health
        self._log = log

    @property
    def deadline(self) -> float:
        """When to look next."""
        return min(self._due, self._looked_at + LOOK_PERIOD) if self._runner.runs else self._due

    def configure(self, config: Config) -> None:
        """From now on this configuration counts: another script runs at once, and none says nothing more.

        A run of the same script goes on to its end: it is not late because the configuration was read.
        """
        before, self._config = self._config, config
        if before.health_check_script != config.health_check_script:
            self._runner.stop()
        if not config.health_check_script:
            self._due = NEVER
            self._set_health(None)
        # Due at once: what the changed values say of the guest is not known yet.
        elif before != config and not self._runner.runs:
            self._due = time.monotonic()

    def tick(self, now: float) -> None:
        """The next run is due, or it is time to see whether we, and perhaps the script, stood still."""
        if self._runner.runs:
            late = now - self._looked_at - LOOK_PERIOD
            # The guest was paused, or starved: the script had no more time than we had.
            if late > STALL:
                self._due += late
        self._looked_at = now
        if now >= self._due:
            self._run(now)

    def _run(self, now: float) -> None:
        self._due = now + self._config.health_check_interval
        # The run before is late by now: its time is one interval.
        self._runner.expire()
        try:
            self._runner.start([self._config.health_check_script], self._ended)
        except OSError as error:
            self._handle_start_failure(error.errno or errno.EIO, str(error.strerror))

    def _handle_start_failure(self, code: int, why: str) -> None:
        if code in GUEST_IS_ILL:
            self._report_illness("cannot start the health script: " + why)
        else:
            path = self._config.health_check_script
            self._log("HEALTH_CHECK_SCRIPT %s cannot be started: %s" % (path, why), "check")
            self._set_health(None)

    def _ended(self, ended: Ended) -> None:
        if ended.error:
            self._handle_start_failure(ended.error, ended.reason)
        elif ended.killed or ended.status != 0:
            self._report_illness(ended.reason)
        else:
            self._set_health(None)

    def _report_illness(self, reason: str) -> None:
        self._set_health(Illness(self._config.corrective_action, reason))


class EventScript:
    """Runs the event script for the open question and tells what it says: (question, result, reason).

    Exit status 0 agrees, any other up to 125 rejects. What has crashed, was not found or cannot be executed
    has said nothing: that is an error, and no veto.
    """

    def __init__(
        self, runner: Runner, path: str, count_vote: Callable[[int, str, str], None], log: Log
    ) -> None:
        self._runner = runner
        self._path = path
        self._count_vote = count_vote
        self._log = log
        self._question_id = 0
        self._is_notice = False

    def ask_script(self, question_id: int, notification_type: str, event_type: str) -> None:
        """Ask the script. It may run until the question is withdrawn."""
        self._question_id = question_id
        self._is_notice = notification_type == guest_channel.NOTICE
        try:
            arguments = [self._path, notification_type, event_type]
            self._runner.start(arguments, self._ended, outlives_us=self._is_notice)
        except OSError as error:
            self._report_error(str(error.strerror))

    def _ended(self, ended: Ended) -> None:
        if ended.error:
            self._report_error(ended.reason)
        # A crash is no veto, and neither are 126 and 127, by which a shell says that it could not run the
        # script.
        elif ended.failed:
            self._log("EVENT_NOTIFICATION_SCRIPT %s failed: %s" % (self._path, ended.reason), "event")
            self._count_vote(self._question_id, ERROR, ended.reason)
        elif ended.status == 0:
            self._count_vote(self._question_id, ACCEPT, ended.line)
        else:
            self._count_vote(self._question_id, REJECT, ended.reason)

    def _report_error(self, why: str) -> None:
        text = "EVENT_NOTIFICATION_SCRIPT %s cannot be started: %s" % (self._path, why)
        self._log(text, "event")
        self._count_vote(self._question_id, ERROR, text)

    def configure(self, path: str) -> None:
        """The next question is put to this script."""
        self._path = path

    def withdraw_question(self, question_id: int, expired: bool) -> None:
        """The answer to this question does not count any more.

        A notice's script is in the middle of what the notice is for, and goes on, unless its time is up.
        """
        # The script that runs may be of a later question by now.
        if question_id != self._question_id:
            return
        if self._is_notice and not expired:
            self._runner.leave()
        else:
            self._runner.stop()
