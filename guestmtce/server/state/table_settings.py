"""What the guests' table is told of the configuration (docs/protocol/4-host.md#configuration-files).

The daemon's settings fit this as they are: the table does not import them, because they read files. Times in
s. docs/protocol/1-guest-channel.md#connection-upkeep and #time-is-judged-fairly name most of them where they
count.
"""

from __future__ import annotations

from typing import Protocol


class TableSettings(Protocol):
    """See the module's text."""

    @property
    def hostname(self) -> str:
        """As guestAgent knows this host."""

    @property
    def max_guests(self) -> int:
        """Guests that are known at once, of those that guestAgent names."""

    @property
    def failure_threshold(self) -> int:
        """Misses in a row that are no loss yet."""

    # --- connections -------------------------------------------------------------------------------

    @property
    def reconnect_first(self) -> float:
        """The first wait after a connection that failed."""

    @property
    def reconnect_max(self) -> float:
        """The longest one."""

    @property
    def stable_after(self) -> float:
        """A connection that lasted so long is made anew without a wait."""

    @property
    def idle_reconnect(self) -> float:
        """A guest that is connected and does not heartbeat for so long gets a new connection."""

    # --- children that die -------------------------------------------------------------------------

    @property
    def child_deaths_max(self) -> int:
        """Children of a guest that may die within a minute."""

    @property
    def child_rest(self) -> float:
        """A guest whose children died more often has none for so long,"""

    @property
    def child_rest_watched_max(self) -> float:
        """and for so long at the most if it may hang meanwhile."""

    @property
    def child_patience(self) -> float:
        """A child may wake up later than it should by so much."""

    # --- silence -----------------------------------------------------------------------------------

    @property
    def guest_patience(self) -> float:
        """A guest has so long to answer on a new connection, at the least."""

    @property
    def expected_silence(self) -> float:
        """From a guest's agreement to be silent."""

    @property
    def stopped_grace(self) -> float:
        """A guest that is back within this time has never stopped."""

    # --- what guestAgent hears ---------------------------------------------------------------------

    @property
    def state_period(self) -> float:
        """A guest that comes and goes is told twice in this time."""

    @property
    def ill_repeat(self) -> float:
        """Between two reports of the same illness."""

    @property
    def question_grace(self) -> float:
        """The table ends a question so long after its deadline, if nobody else has."""

    @property
    def outcome_valid(self) -> float:
        """An outcome is of use for so long after its question's deadline."""

    # --- our own restarts --------------------------------------------------------------------------

    @property
    def short_absence(self) -> float:
        """A guest cannot restart unseen within this time."""

    @property
    def memory_valid(self) -> float:
        """What was remembered of a guest's health is believed for so long."""
