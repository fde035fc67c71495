"""The pure modules of the house, and a world that raises where they look at it."""

from __future__ import annotations

import builtins
import io
import logging
import os
import socket
import sys
import time

from places import REPOSITORY

PACKAGE = REPOSITORY / "guestmtce"

# What they are told comes as arguments, and what they want done goes back as values.
PURE = [
    *sorted(PACKAGE.glob("wire/*.py")),
    *sorted(PACKAGE.glob("server/state/*.py")),
    *sorted(PACKAGE.glob("server/child/session*.py")),
    *sorted(PACKAGE.glob("agent/inventory*.py")),
    *(PACKAGE / "agent" / (name + ".py") for name in ("command_rules", "effects", "held_origins", "hosts")),
    *(PACKAGE / "agent" / (name + ".py") for name in ("ledger", "model")),
    *(PACKAGE / "agent" / (name + ".py") for name in ("vim_lanes", "vim_pace", "vim_queue", "vim_request")),
    *(PACKAGE / "guest" / (name + ".py") for name in ("ballot", "client", "config", "health")),
    *(PACKAGE / "guest" / (name + ".py") for name in ("local_processes", "log_text", "member")),
    *(PACKAGE / "common" / (name + ".py") for name in ("back_off", "log_line", "rate_limit", "throttle")),
]
_NAMES = {
    "guestmtce." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).replace(".__init__", "")
    for path in PURE
}

_WORLD = (
    *((time, name) for name in ("monotonic", "time", "sleep", "perf_counter", "localtime", "strftime")),
    *((os, name) for name in ("open", "read", "write", "urandom", "stat", "fork", "pipe")),
    (socket, "socket"),
    (builtins, "open"),
    (io, "open"),
    (logging.Logger, "_log"),
)


class LookedAtTheWorld(AssertionError):
    """A pure module has called what it must not know."""


def raise_in_pure_rooms(monkeypatch):
    """From now on a call of a clock, a socket, a file or the log raises, if a pure module made it."""
    for owner, name in _WORLD:
        monkeypatch.setattr(owner, name, _guarded(getattr(owner, name), name))


def _guarded(real, name):
    def call(*values, **named):
        caller = _nearest_of_ours()
        if caller in _NAMES:
            raise LookedAtTheWorld("%s calls %s" % (caller, name))
        return real(*values, **named)

    return call


def _nearest_of_ours():
    """The module of ours in whose function, or on whose behalf, this happens; empty: a test's."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("guestmtce."):
            return module
        if module.partition(".")[0] in ("test", "tests", "hypothesis", "_pytest") or module.startswith(
            "test_"
        ):
            return ""
        frame = frame.f_back
    return ""
