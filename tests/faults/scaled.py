"""Every period of a daemon, scaled down together: the shipped defaults, tenfold faster."""

from __future__ import annotations

import dataclasses
from typing import Any, List

# Periods of this machine, not of the peers: they stay as they are.
UNSCALED = {
    "wake_slack", "phase_spread", "reconnect_first", "spawn_timeout", "child_patience", "child_rest",
    "answer_pace", "note_period", "flag_poll",
}  # fmt: skip


def words(settings: Any, scale: float, **others: float) -> List[str]:
    """`SECTION.KEY=VALUE` for each period of the settings class, times `scale`; `others` have their own."""
    found = []
    for field in dataclasses.fields(settings):
        place = field.metadata["place"]
        if place is None or (field.name not in others and place.section != "timers"):
            continue
        if field.name in others:
            value = others[field.name]
        elif field.name in UNSCALED:
            continue
        else:
            value = max(0.001, field.default * scale)
        found.append("%s.%s=%g" % (place.section, place.key, value))
    return found
