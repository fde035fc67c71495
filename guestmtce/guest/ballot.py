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

    def count_vote(self, voter: str, result: str, reason: str) -> None:
        """`voter` says `result`. One that was not asked, or has answered already, does not count."""
        if voter in self._missing:
            self._missing.remove(voter)
            self._said[voter] = (result, reason)

    def remove_voter(self, voter: str) -> None:
        """`voter` is gone: its answer is not missing any more."""
        self._missing.discard(voter)

    @property
    def outcome(self) -> Optional[Outcome]:
        """What the host is to be answered; None while the ballot is open."""
        rejected = self._first_with(REJECT)
        if rejected and (self._vote or not self._missing):
            return rejected
        if self._missing:
            return None
        # A crashed script is no veto (`error` is passed on), and no agreement either.
        return self._first_with(ERROR) or self._agreed_outcome()

    def outcome_at_deadline(self) -> Outcome:
        """What the host is to be answered when no time is left."""
        late = "no answer in time from " + ", ".join(sorted(self._missing))
        # One that said no outweighs those that said nothing.
        return self._first_with(REJECT) or (TIMEOUT, late)

    def _first_with(self, result: str) -> Optional[Outcome]:
        for voter, (said, reason) in self._said.items():
            if said == result:
                return result, reason if voter == SCRIPT else ": ".join(filter(None, (voter, reason)))
        return None

    def _agreed_outcome(self) -> Outcome:
        """The script's words go along with an agreement too, as the deployed client's do."""
        return ACCEPT if self._vote else COMPLETE, self._said.get(SCRIPT, ("", ""))[1]
