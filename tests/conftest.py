"""Which tests run: the quick ones always, those marked `ci` or `full` in their tier (scripts/test)."""

from __future__ import annotations

import contextlib

import psutil
import pure_rooms
import pytest
from hypothesis import settings
from tiers import MARKS, examples


def pytest_configure(config):
    settings.register_profile("tier", max_examples=examples(100))
    settings.load_profile("tier")
    config.addinivalue_line("markers", "ci: takes long; runs in continuous integration")
    config.addinivalue_line("markers", "full: takes very long; runs with scripts/test --all")


def pytest_collection_modifyitems(config, items):
    left_out = [
        item
        for item in items
        if any(item.get_closest_marker(name) and name not in MARKS for name in ("ci", "full"))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


# What they fork outlives what forked it, on purpose.
LEAVE_PROCESSES = (
    "guest/test_scripts.py",
    "guest/test_waits.py",
    "guest/test_hostile.py",
    "guest/test_log.py",
)


@pytest.fixture(autouse=True)
def no_processes_left(request):
    """Other tests of this worker look at all of its children."""
    yield
    if str(request.fspath).endswith(LEAVE_PROCESSES):
        for process in [*psutil.Process().children(), *_of_folder(request.node.funcargs.get("tmp_path"))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            with contextlib.suppress(psutil.Error, ChildProcessError):
                process.wait(60)


def _of_folder(folder):
    """Processes that run a script of the test's folder, whoever is their parent by now."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if folder and any(str(folder) in word for word in process.info["cmdline"] or ())
    ]


# The tests of pure rooms run in a world that raises where a pure module looks at it.
OF_PURE_ROOMS = (
    *("/unit/wire/", "/unit/server/state/", "/unit/server/child/test_session"),
    *("/unit/agent/test_inventory", "/unit/agent/test_vim_queue"),
    *("/unit/guest/test_client", "/unit/guest/test_local_processes"),
)


@pytest.fixture
def world_that_raises(monkeypatch):
    """For pure modules alone; everybody else has clock, sockets, files and log as ever."""
    pure_rooms.raise_in_pure_rooms(monkeypatch)


@pytest.fixture(autouse=True)
def pure_rooms_are_pure(request):
    if any(part in str(request.fspath) for part in OF_PURE_ROOMS):
        request.getfixturevalue("world_that_raises")


@pytest.fixture
def no_tracebacks():
    """Gives a function that checks a cluster's daemons for tracebacks and defects."""

    def check(cluster):
        daemons = [cluster.agent, *(host.server for host in cluster.hosts)]
        for daemon in daemons:
            assert "Traceback" not in daemon.log()
            assert daemon.is_alive()

    return check
