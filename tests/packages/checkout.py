"""The checkout that is tested."""

from __future__ import annotations

import subprocess

from tree import REPOSITORY


def git_status() -> str:
    """What differs in it from what is committed, in whatever way."""
    words = ["git", "-C", REPOSITORY, "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode()
