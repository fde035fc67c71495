"""guestServer: watches the guests of one compute host."""
