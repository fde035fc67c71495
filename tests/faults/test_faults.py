"""Random lives among faults, a seed each. The seeds that found something stand first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fault_run

QUICK = [2]
CI = [7, *range(100, 106)]
FULL = range(1000, 1180)


@pytest.mark.parametrize(
    "seed",
    [
        *QUICK,
        *(pytest.param(seed, marks=pytest.mark.ci) for seed in CI),
        *(pytest.param(seed, marks=pytest.mark.full) for seed in FULL),
    ],
)
def test_nothing_is_lost_and_nothing_false(seed):
    status, output = fault_run.live_apart(seed)
    assert status == 0, output
