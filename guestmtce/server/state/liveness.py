"""Whether a guest lives, as a table of states: what is known, what the world is told, what may be judged.

docs/protocol/1-guest-channel.md#misses-and-losses
docs/protocol/1-guest-channel.md#when-reporting-becomes-enabled
docs/protocol/1-guest-channel.md#expected-silence

Three facts about a guest's life are easily confused, and a state says all three:

- *running*: its present child says that it answers. Only such a guest is asked questions.
- *heartbeating*: what the world is told (RUNNING, STOPPED). It outlasts a broken connection by
  `stopped_grace`: of a guest that is back within that time nobody hears anything.
- *owes an answer*: it has answered, and nothing has explained a silence since. Only such a guest can be lost.
  Its session finds that, or, where there is none, that QEMU has refused connections for its patience.

    state          running  heartbeating  owes an answer
    BEATING        yes      yes           yes
    UNPROVEN       yes      yes           no     reporting became enabled, or a pause was agreed to
    INTERRUPTED    no       yes           yes    its child is gone; the next one judges it
    LEAVING        no       yes           no     its child is gone, and its silence would be explained
    OVERDUE        no       no            yes    told as stopped, and nothing has explained that
    SILENT         no       no            no     nobody expects anything of it
    LOST           no       no            no     it owed an answer and gave none

Whoever runs heartbeats, which leaves six combinations of the facts; LOST differs from SILENT in that a loss
was found. An input that a state does not name leaves it as it is.
"""

from __future__ import annotations

from typing import Dict

BEATING = "beating"
UNPROVEN = "unproven"
INTERRUPTED = "interrupted"
LEAVING = "leaving"
OVERDUE = "overdue"
SILENT = "silent"
LOST = "lost"

RUNNING_STATES = frozenset((BEATING, UNPROVEN))
HEARTBEATING_STATES = frozenset((BEATING, UNPROVEN, INTERRUPTED, LEAVING))
OWING_STATES = frozenset((BEATING, INTERRUPTED, OVERDUE))

# Inputs.
ANSWERED = "the child says that it answers"
ANSWERED_TOO_EARLY = "it answered before its child knew that reporting became enabled"
CHILD_GONE = "no child serves it"
EXCUSED = "its silence is explained: it owes no answer until it has answered anew"
GRACE_OVER = "it has not come back in its grace"
SAID_STOPPED = "the child says that it does not answer, and that this is no loss"
JUDGED_LOST = "the child says that it owed an answer and gave none, and nothing excuses that"
SAID_HEALTH = "the child says whether it is ill: it speaks"
MADE_ANEW = "another guest stands behind its socket"

STATES = (BEATING, UNPROVEN, INTERRUPTED, LEAVING, OVERDUE, SILENT, LOST)

TRANSITIONS: Dict[str, Dict[str, str]] = {
    ANSWERED: dict.fromkeys(STATES, BEATING),
    ANSWERED_TOO_EARLY: dict.fromkeys(STATES, UNPROVEN),
    # A debt outlasts the child and, below, the grace: both say something of this host and nothing of the
    # guest.
    CHILD_GONE: {BEATING: INTERRUPTED, UNPROVEN: LEAVING},
    # All others owe nothing already.
    EXCUSED: {BEATING: UNPROVEN, INTERRUPTED: LEAVING, OVERDUE: SILENT},
    GRACE_OVER: {INTERRUPTED: OVERDUE, LEAVING: SILENT},
    # The debt stays: a stop that ends it (`gone`) is EXCUSED first.
    SAID_STOPPED: {
        BEATING: OVERDUE, INTERRUPTED: OVERDUE, UNPROVEN: SILENT, LEAVING: SILENT, LOST: SILENT,
    },
    SAID_HEALTH: {LOST: SILENT},
    JUDGED_LOST: dict.fromkeys(STATES, LOST),
    # A loss that is not confirmed yet is withdrawn with it: it was another guest's.
    MADE_ANEW: {BEATING: UNPROVEN, INTERRUPTED: LEAVING, OVERDUE: SILENT, LOST: SILENT},
}  # fmt: skip


def recalled_state(heartbeating: bool, owes_answer: bool) -> str:
    """The state of a guest that was remembered: it has no child, and was not remembered as lost."""
    if heartbeating:
        return INTERRUPTED if owes_answer else LEAVING
    return OVERDUE if owes_answer else SILENT
