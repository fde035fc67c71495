"""guestmtce: the guest heartbeat service of a compute cloud."""

__version__ = "1.0.0"
