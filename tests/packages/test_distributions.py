"""A sample of scripts/dev/try-distributions: what a minimal Debian without python3-venv is told."""

from __future__ import annotations

import os
import subprocess

import pytest
from tree import REPOSITORY


@pytest.mark.ci
def test_a_debian_without_venv_is_told_what_to_install_and_nothing_is_installed(bookworm):
    words = [os.path.join(REPOSITORY, "scripts/dev/try-distributions"), "--what", "venv", "bookworm"]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    rows = [[word.strip() for word in line.split("|")[1:5]] for line in said.splitlines() if "| venv" in line]
    assert rows == [["bookworm", who, "venv", "0"] for who in ("root", "user")]
