"""What the tests of the packages need, got by the scripts that install or build it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

import pytest
from checkout import git_status
from installed import NEXT, Installed
from scripted import Daemon
from tree import REPOSITORY, Tree


def _script(*words, **environment):
    """What a script of the checkout prints. What it lacks is a failure in CI, else a reason to skip."""
    path = os.path.join(REPOSITORY, "scripts", "dev", words[0])
    environment = {**os.environ, **environment}
    result = subprocess.run(
        [path, *words[1:]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if result.returncode:
        _lack(result.stderr.decode(errors="replace").strip())
    return result.stdout.decode()


def _lack(words):
    pytest.fail(words) if os.environ.get("CI") == "true" else pytest.skip(words.split("\n")[-1])


@pytest.fixture(scope="session")
def version():
    """That of the checkout."""
    text = open(os.path.join(REPOSITORY, "guestmtce", "__init__.py"), encoding="utf-8").read()
    return text.split('__version__ = "')[1].split('"')[0]


@pytest.fixture(scope="session")
def checkout_before():
    """`git_status` before anything is built."""
    return git_status()


@pytest.fixture(scope="session")
def linters():
    """lintian and rpmlint are there."""
    _script("setup-packages", "lint")


@pytest.fixture(scope="session")
def debs(version, checkout_before, tmp_path_factory):
    """A folder with the Debian packages of two versions, built afresh."""
    folder = str(tmp_path_factory.mktemp("debs"))
    for one in (version, NEXT):
        _script("build-deb", one, folder)
    return folder


@pytest.fixture(scope="session")
def rpms(version, checkout_before, tmp_path_factory):
    """A folder with the RPMs of both flavours, built afresh."""
    folder = str(tmp_path_factory.mktemp("rpms"))
    for flavour in ("9", "8"):
        _script("build-rpm", version, folder, EL=flavour)
    return folder


def _base(suite):
    if os.geteuid() != 0:
        _lack("a tree is booted by root only")
    _script("setup-packages", "boot")
    return _script("setup-tree", suite).strip()


@pytest.fixture(scope="session")
def bookworm():
    """The folder of a Debian 12 tree that is not to be changed."""
    return _base("bookworm")


SUITES = [
    pytest.param("bookworm", marks=pytest.mark.ci),
    pytest.param("trixie", marks=pytest.mark.full),
    pytest.param("bullseye", marks=pytest.mark.full),
]


@pytest.fixture(scope="module", params=SUITES)
def place(request, debs, version):
    """Our packages in a booted tree of each suite, for the tests of a file in turn."""
    base = _base(request.param)
    with Tree(base) as tree:
        tree.boot()
        installed = Installed(tree)
        try:
            installed.offer(debs, version)
            installed.apt("install mtce-guest-server mtce-guest-agent mtce-guest-client")
            yield installed
        finally:
            installed.close_cloud()


@pytest.fixture
def cloud(place):
    """The same with guestAgent started and all guests heartbeating; no alarm was raised so far."""
    if place.guests is None:
        place.open_cloud()
    place.tree.run("systemctl start guestServer guestAgent")
    place.provision()
    place.vim.record.clear()
    return place


@pytest.fixture
def make():
    """Gives a function that makes a daemon of a name, to be started by its scripts in a folder of its own."""
    made = []

    def of(name):
        made.append(Daemon(name, tempfile.mkdtemp(prefix="guestmtce-scripts-")))
        return made[-1]

    yield of
    for daemon in made:
        daemon.init("stop")
        shutil.rmtree(daemon.folder)
