"""Datagrams of a guestServer that come late or out of order: which of them still counts, as a table.

docs/protocol/2-datagrams.md#late-and-out-of-order. The facts:

- UDP keeps no order, and a message that is not confirmed is repeated: an old one may come after a new one, or
  twice. Each bears its sender and a sequence number, which grows; numbers compare modulo 2³², and only within
  one sender. An old guestServer sends no numbers: its order of arrival counts.
- What a datagram *shows* makes an older one about the same void. A RUNNING shows a start, and a start ends an
  illness. RUNNING, STOPPED and an answer that says *heartbeating* show a beat, and a beat ends a loss. An ill
  guest heartbeats too, so a beat does not end an illness.
- The STOPPED that comes with a LOSS is sent after it but has the smaller number. A STOPPED that is newer than
  a LOSS belongs to a later life of the guest, whose RUNNING has not arrived: it shows a beat, and the loss is
  void as by that RUNNING. Without numbers this cannot be told, and an old server's STOPPED ends nothing.
- An answer to a query is a picture of a moment. Anything newer makes it void, and it ends no illness.

The alternative, one number per instance that only grows, is wrong: a LOSS whose STOPPED has overtaken it
would be dropped, and with it the alarm.

For each kind of datagram a rule says
    overtaken_by   what must not have been shown by this or a newer datagram, else this one has no effect;
    shows          what this one shows, unless a newer one has shown it already;
    ends           failures that are over, unless a newer one has told of them;
    state_shows    what its state shows if that counts, which it does unless STATE was shown since.
"""

from __future__ import annotations

import enum
from typing import Dict, NamedTuple, Optional, Tuple

from guestmtce.agent.model import (
    ANYTHING,
    BEAT,
    FAILED,
    START,
    STATE,
    UNHEALTHY,
    Aspect,
    FailureState,
    Origin,
)
from guestmtce.wire import datagram_ext

Newest = Dict[Aspect, Origin]  # of one instance: the newest datagram that showed this


class Said(enum.Enum):
    """What a guestServer says of an instance, as far as its order matters."""

    RUNNING = "RUNNING"
    RUNNING_STILL_ILL = "RUNNING that bears flag 32"
    STOPPED = "STOPPED"
    STOPPED_WITHOUT_NUMBER = "STOPPED of an old server"
    ANSWER_BEATING = "answer to a query, heartbeating"
    ANSWER_SILENT = "answer to a query, not heartbeating"
    ILL_BEATING = "ILLHEALTH, heartbeating"
    ILL_SILENT = "ILLHEALTH, not heartbeating"
    LOSS = "LOSS"
    LOSS_THAT_WAITS = "the LOSS that waits here, again"


class Rule(NamedTuple):
    """See the module's text."""

    overtaken_by: Tuple[Aspect, ...] = ()
    shows: Tuple[Aspect, ...] = ()
    ends: Tuple[FailureState, ...] = ()
    state_shows: Tuple[Aspect, ...] = ()


_NEWS_OF_ILLNESS: Tuple[Aspect, ...] = (START, UNHEALTHY)
# RUNNING and STOPPED are overtaken by nothing: an old one still ends a failure that is older than it. LOSS
# and ILLHEALTH are overtaken by a newer one of themselves: an older alarm behind a newer one would be a
# second repair. Of an old server's STOPPED the state counts and no more: it may be the one that comes with a
# LOSS.
_STATE: Tuple[Aspect, ...] = (STATE, ANYTHING)

RULES: Dict[Said, Rule] = {
    #                                 overtaken_by        shows              ends                 state_shows
    Said.RUNNING:                Rule((),                (START, BEAT),     (FAILED, UNHEALTHY), _STATE),
    Said.RUNNING_STILL_ILL:      Rule((),                (BEAT,),           (FAILED,),           _STATE),
    Said.STOPPED:                Rule((),                (BEAT,),           (FAILED,),           _STATE),
    Said.STOPPED_WITHOUT_NUMBER: Rule((),                (),                (),                  _STATE),
    Said.ANSWER_BEATING:         Rule((ANYTHING,),       (BEAT, ANYTHING),  (FAILED,)),
    Said.ANSWER_SILENT:          Rule((ANYTHING,),       (ANYTHING,)),
    Said.ILL_BEATING:            Rule(_NEWS_OF_ILLNESS,  (UNHEALTHY, BEAT, ANYTHING)),
    Said.ILL_SILENT:             Rule(_NEWS_OF_ILLNESS,  (UNHEALTHY, ANYTHING)),
    Said.LOSS:                   Rule((BEAT, FAILED),    (FAILED, ANYTHING)),
    Said.LOSS_THAT_WAITS:        Rule((BEAT,),           (FAILED, ANYTHING)),
}  # fmt: skip


class Verdict(NamedTuple):
    """What a datagram may still do.

    `counts`: it has an effect at all. `ends`: the failures that are over by it. `state_counts`: its state is
    to be believed.
    """

    counts: bool
    ends: Tuple[FailureState, ...] = ()
    state_counts: bool = False


def judge_datagram(newest: Newest, said: Said, origin: Optional[Origin]) -> Verdict:
    """Judge a datagram by the rule of its kind, and note in `newest` what it shows. No origin: no number."""
    rule = RULES[said]
    # All is judged before anything is noted: a datagram would be overtaken by what it shows itself.
    if any(is_overtaken(newest, aspect, origin) for aspect in rule.overtaken_by):
        return Verdict(False)
    verdict = Verdict(
        True,
        tuple(state for state in rule.ends if not is_overtaken(newest, state, origin)),
        not is_overtaken(newest, STATE, origin),
    )
    _note_shown(newest, rule.shows, origin)
    if verdict.state_counts:
        _note_shown(newest, rule.state_shows, origin)
    return verdict


def is_overtaken(newest: Newest, aspect: Aspect, origin: Optional[Origin]) -> bool:
    """Whether this datagram, or a newer one of the same sender, has shown this already."""
    known = newest.get(aspect)
    # Another sender is another guestServer: an exchanged one, or one that lost its run folder and its numbers
    # with it. Old servers (no origin) are judged by the order of arrival.
    return (
        origin is not None
        and known is not None
        and known.sender == origin.sender
        and not datagram_ext.is_newer(origin.sequence, known.sequence)
    )


def _note_shown(newest: Newest, aspects: Tuple[Aspect, ...], origin: Optional[Origin]) -> None:
    if origin is None:
        return
    for aspect in aspects:
        if not is_overtaken(newest, aspect, origin):
            newest[aspect] = origin
