"""What the tests with virtual machines need, got by the script that installs it."""

from __future__ import annotations

import os
import subprocess

import initramfs
import pytest


def _set_up(script):
    """Run scripts/dev/SCRIPT. What it lacks is a failure in continuous integration, else a reason to skip."""
    path = os.path.join(initramfs.REPOSITORY, "scripts", "dev", script)
    result = subprocess.run([path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        _lack(result.stdout.decode(errors="replace").strip())


def _lack(words):
    pytest.fail(words) if os.environ.get("CI") == "true" else pytest.skip(words.split("\n")[-1])


@pytest.fixture(scope="session")
def qemu():
    """QEMU and what a guest boots from."""
    _set_up("setup-vm")


@pytest.fixture(scope="session")
def libvirt(qemu):
    """A libvirtd that can be started."""
    if os.geteuid() != 0:
        _lack("a libvirtd of the test's own needs root")
    _set_up("setup-libvirt")
