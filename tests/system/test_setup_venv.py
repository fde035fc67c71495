"""scripts/dev/setup-venv: what it says where something is missing. It installs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from places import REPOSITORY

# A Python of this version that has no venv, as Debian's without python3-venv.
WITHOUT_VENV = (
    """#!/bin/sh
case "$*" in *"import ensurepip, venv"*) exit 1 ;; esac
exec %s "$@"
"""
    % sys.executable
)
OLD = """#!/bin/sh
case "$*" in *version_info*) exit 1 ;; --version) echo Python 3.6.8; exit 0 ;; esac
case "$*" in *_base_executable*) echo "$0"; exit 0 ;; esac
exit 1
"""


@pytest.fixture
def setup(tmp_path):
    """Gives a function that runs it in a copy of what it reads, with a Python of this text; what it says."""
    (tmp_path / "scripts" / "dev").mkdir(parents=True)
    shutil.copy(os.path.join(REPOSITORY, "scripts/dev/setup-venv"), tmp_path / "scripts" / "dev")
    (tmp_path / "setup.py").touch()

    def run(text):
        python = tmp_path / "python"
        python.write_text(text)
        python.chmod(0o755)
        done = subprocess.run(
            [str(tmp_path / "scripts/dev/setup-venv")],
            env={**os.environ, "PYTHON": str(python)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert not (tmp_path / ".venv").exists()
        return done.returncode, done.stderr.splitlines()

    return run


def test_a_python_without_venv_is_one_line_with_the_remedy(setup):
    # The script asks for the base of a virtual environment, which is the stand-in itself here.
    text = WITHOUT_VENV.replace("exec", 'case "$*" in *_base_executable*) echo "$0"; exit 0 ;; esac\nexec')
    status, said = setup(text)
    assert (status, len(said)) == (1, 1)
    assert "venv or ensurepip is missing" in said[0] and "install" in said[0]


def test_a_python_that_is_too_old_is_one_line(setup):
    status, said = setup(OLD)
    assert (status, len(said)) == (1, 1)
    assert "Python 3.6.8 is too old: Python 3.9 or later is needed" in said[0]
