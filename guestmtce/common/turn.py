"""The turn of an event loop: one wait, one moment, and what can be read at that moment.

What can be read is read before any deadline is judged: after a pause of the whole machine, or a callback that
stood still, nobody is late whose word has arrived.
"""

import selectors
import time
from typing import List, Tuple

from guestmtce.common import NEVER

WAIT_MAX = 3600.0  # s; epoll takes no more than 24 days

Ready = List[Tuple[selectors.SelectorKey, int]]


def wait_until(selector: selectors.BaseSelector, deadline: float) -> Ready:
    """What can be read, as soon as something can; nothing at `deadline` (s, monotonic), or a while before."""
    if deadline == NEVER:
        return selector.select(None)
    return selector.select(min(deadline - time.monotonic(), WAIT_MAX))  # below 0 it does not wait


def begin_turn(selector: selectors.BaseSelector, deadline: float, ready: Ready) -> Tuple[float, Ready]:
    """The turn's moment (s, monotonic), and what can be read at it; `ready` is what a wait gave.

    Between the wait and the moment something may have arrived. It matters where a deadline is judged by that
    moment, so the selector is asked again then.
    """
    now = time.monotonic()
    # Level-triggered: what `ready` had and nobody has read yet is in the second answer, too.
    return now, selector.select(0) if deadline <= now else ready
