"""Which tests run: the quick ones always, those marked `ci` or `full` in their tier (scripts/test)."""

from __future__ import annotations

import os

import pytest

TIERS = {"quick": (), "ci": ("ci",), "all": ("ci", "full")}


def pytest_configure(config):
    config.addinivalue_line("markers", "ci: takes long; runs in continuous integration")
    config.addinivalue_line("markers", "full: takes very long; runs with scripts/test --all")


def pytest_collection_modifyitems(config, items):
    wanted = TIERS[os.environ.get("GUESTMTCE_TIER", "quick")]
    left_out = [
        item
        for item in items
        if any(item.get_closest_marker(name) and name not in wanted for name in ("ci", "full"))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def no_tracebacks():
    """Gives a function that checks a cluster's daemons for tracebacks and defects."""

    def check(cluster):
        daemons = [cluster.agent, *(host.server for host in cluster.hosts)]
        for daemon in daemons:
            assert "Traceback" not in daemon.log()
            assert daemon.alive()

    return check
