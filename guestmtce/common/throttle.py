"""Which of many lines about the same subject are logged: one per period, with the number of those held back.

Pure: whoever logs passes the time. Subjects come from guests and networks, so their number is bounded.
"""

from typing import Dict, Optional, Tuple


class Throttle:
    """Lets one line per subject and `period` (s) pass. It remembers `subjects_max` subjects at once."""

    __slots__ = ("_passed", "_period", "_subjects_max")

    def __init__(self, period: float, subjects_max: int) -> None:
        self._period = period
        self._subjects_max = subjects_max
        self._passed: Dict[
            str, Tuple[float, int]
        ] = {}  # when the last one passed; how many were held back since

    def admit(self, subject: str, now: float) -> Optional[int]:
        """How many lines about this were held back since the last; None: this one is held back, too.

        `now` is in s, monotonic.
        """
        last, held_back = self._passed.get(subject, (-self._period, 0))
        if now - last < self._period:
            self._passed[subject] = (last, held_back + 1)
            return None
        if len(self._passed) >= self._subjects_max:
            # All at once: no order of age has to be kept. It costs one line more of each subject that was
            # held back.
            self._passed.clear()
        self._passed[subject] = (now, 0)
        return held_back
