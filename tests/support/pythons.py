"""Other Pythons that this machine has: in the path, or kept by pyenv or uv."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from typing import Iterator, Optional

PLACES = ("~/.pyenv/versions/%s.*/bin/python%s", "~/.local/share/uv/python/cpython-%s.*/bin/python%s")


def find_python(version: str) -> Optional[str]:
    """The path of a Python `version` ("3.6") that starts; None: there is none.

    A name in the path may stand for one that is not installed, as pyenv's do.
    """
    for path in _candidates(version):
        try:
            if subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
                return path
        except OSError:
            continue
    return None


def _candidates(version: str) -> Iterator[str]:
    in_path = shutil.which("python" + version)
    if in_path:
        yield in_path
    for place in PLACES:
        yield from sorted(glob.glob(os.path.expanduser(place) % (version, version)))
