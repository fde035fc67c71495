"""A question of the host's, put to several voters in the guest: the event script and local processes.

Any one rejecting rejects. A vote is decided by the first that rejects; a notice is over when all have done
what they had to do, whatever one of them says. Who has not answered when the time is up is named.
"""

from typing import Dict, Iterable, Optional, Set, Tuple

from guestmtce.wire import guest_channel

ACCEPT, REJECT, COMPLETE, TIMEOUT, ERROR = "accept", "reject", "complete", "timeout", "error"
SCRIPT = "script"  # the event script as a voter; a local process votes as its name with a prefix
PROCESS = "process "

Outcome = Tuple[str, str]  # vote_result and log_msg of the action_response


class Ballot:
    """The voters of one question and what they said."""

    def __init__(self, notification_type: str, voters: Iterable[str]) -> None:
        self._vote = notification_type == guest_channel.VOTE
        self._missing: Set[str] = set(voters)
        self._said: Dict[str, Outcome] = {}

    def vote(self, voter: str, result: str, reason: str) -> None:
        """`voter` says `result`. Who was not asked, or has answered, is not heard."""
        if voter in self._missing:
            self._missing.remove(voter)
            self._said[voter] = (result, reason)

    def leave(self, voter: str) -> None:
        """`voter` is gone: nobody waits for it."""
        self._missing.discard(voter)

    @property
    def outcome(self) -> Optional[Outcome]:
        """What the host is to be answered; None while that is open."""
        rejected = self._first(REJECT)
        if rejected and (self._vote or not self._missing):
            return rejected
        if self._missing:
            return None
        return self._first(ERROR) or self._agreed()

    def time_is_up(self) -> Outcome:
        """What the host is to be answered now that no more time is left."""
        late = "no answer in time from " + ", ".join(sorted(self._missing))
        return self._first(REJECT) or (TIMEOUT, late)

    def _first(self, result: str) -> Optional[Outcome]:
        for voter, (said, reason) in self._said.items():
            if said == result:
                return result, reason if voter == SCRIPT else ": ".join(filter(None, (voter, reason)))
        return None

    def _agreed(self) -> Outcome:
        """The script's words go along with an agreement too, as the deployed client's do."""
        return ACCEPT if self._vote else COMPLETE, self._said.get(SCRIPT, ("", ""))[1]
