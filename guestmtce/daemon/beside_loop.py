"""Work that may wait for a file system, done beside the loop: whatever stands still holds up nothing else."""

from __future__ import annotations

import functools
import threading
from typing import Callable, Generic, NoReturn, Optional, TypeVar

from guestmtce.daemon.loop import Loop, Timer

Result = TypeVar("Result")


class BesideLoop(Generic[Result]):
    """Calls `work` in a thread of its own, one at a time, and then `finish` in the loop.

    `finish` gets a call that gives the result of `work`, or raises what it raised. Where that takes longer
    than `patience` s, `be_late` is called in the loop. A thread whose file system stands still for ever
    stays, and no second one is made.
    """

    def __init__(
        self,
        loop: Loop,
        work: Callable[[], Result],
        finish: Callable[[Callable[[], Result]], None],
        patience: float,
        be_late: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._work = work
        self._finish = finish
        self._patience = patience
        self._be_late = be_late
        self._timer: Optional[Timer] = None
        self.is_asked_again = False
        self._runs = False

    def start(self) -> None:
        """Do it. Who asks while it is done is given a later run: what it looks at may have changed."""
        if self._timer is not None:
            self._timer.cancel()
        # Also for a run that was under way: whoever asked now is told within `patience` s.
        self._timer = self._loop.after(self._patience, self._be_late)
        # Not a second thread: with each HUP one more would hang on a file system that stands still.
        if self._runs:
            self.is_asked_again = True
            return
        self._runs = True
        try:
            threading.Thread(target=self._run, name="reader", daemon=True).start()
        # No thread can be made, as at the limit of processes: an error of the system's, and no defect.
        except RuntimeError as error:
            self._end(functools.partial(_fail, OSError("no thread can be made: %s" % error)))

    def _run(self) -> None:
        """The thread's life."""
        try:
            give: Callable[[], Result] = functools.partial(_give, self._work())
        except BaseException as error:  # noqa: BLE001 - raised again in the loop
            # Whatever it is, the loop must hear of the end: else no later run would ever begin.
            give = functools.partial(_fail, error)
        self._loop.call_from_thread(lambda: self._end(give))

    def _end(self, give: Callable[[], Result]) -> None:
        """It has been done; in the loop."""
        self._runs = False
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._finish(give)
        finally:
            # Even if `finish` raised: the file may be sound again.
            if self.is_asked_again:
                self.is_asked_again = False
                self.start()


def _give(result: Result) -> Result:
    return result


def _fail(error: BaseException) -> NoReturn:
    raise error
