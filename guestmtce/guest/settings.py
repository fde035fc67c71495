"""Every period, time-out, floor and limit of the guest client, with its unit and where it comes from.

What a user configures is in `guestmtce.guest.config`; these are for developers: `--set NAME=VALUE` lets
tests run faster than life.
"""

from typing import NamedTuple, Sequence


class Settings(NamedTuple):
    """Times in s unless the name says otherwise."""

    # towards the host (docs/protocol/1-guest-channel.md#what-real-guests-do)
    init_period: float = 5.0  # between two inits that nobody acknowledges
    patience: float = 5.0  # without a challenge, at least, before the guest introduces itself again
    return_patience: float = 1.0  # without a challenge after the host hung up and came back
    action_repeat: float = 60.0  # an ill guest asks for its corrective action so often
    answer_margin: float = 1.0  # before the host's time-out a question is answered, whatever is known
    interval_floor_ms: int = 400  # the smallest HB_INTERVAL
    # the configuration's file
    config_wait: float = 0.25  # at the start it is waited for, at most; a host may know this guest already
    config_patience: float = 5.0  # before the log says that it is still being read
    # the port
    reopen_first: float = 0.05  # before a device that cannot be opened is tried again; doubles
    reopen_max: float = 2.0
    probe_first: float = 0.05  # before an open port without a host is looked at again; doubles
    probe_max: float = 0.5
    # scripts
    health_floor: float = 1.0  # the smallest HEALTH_CHECK_INTERVAL
    # local processes
    member_floor_ms: int = 100  # the smallest interval of their heartbeats
    remember_failed: float = 300.0  # a failed one that is gone makes the guest ill for so long
    accept_pause: float = 1.0  # before connections are taken again where no descriptor was left for one
    register_within: float = 5.0  # a connection that has not registered by then is closed
    # the log
    log_period: float = 10.0  # between two lines about the same thing
    # ending
    goodbye: float = 0.5  # how long the last words may take


def overridden(overrides: Sequence[str]) -> Settings:
    """The defaults with `NAME=VALUE` overrides applied. Raises ValueError that names the override."""
    settings = Settings()
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in Settings._fields:
            raise ValueError("--set %s: NAME=VALUE expected, of %s" % (override, ", ".join(Settings._fields)))
        try:
            settings = settings._replace(**{name: type(getattr(settings, name))(value)})
        except ValueError:
            raise ValueError("--set %s: no number" % override) from None
    return settings
