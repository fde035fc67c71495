"""How the guest feels, from all that may feel ill: the health script and the local processes."""

from typing import Iterable, NamedTuple, Optional

# From the least to the gravest: what is done is what the gravest illness asks for.
GRAVITY = ("none", "log", "reboot", "stop")


class Illness(NamedTuple):
    """Something is wrong in the guest, what the VIM is to do about it, and why in words."""

    corrective_action: str
    reason: str


def gravest(illnesses: Iterable[Illness]) -> Optional[Illness]:
    """The gravest illness; of equally grave ones the first. None: all is well."""
    return max(illnesses, key=lambda illness: GRAVITY.index(illness.corrective_action), default=None)
