"""What belongs to the programs beside their modules: scripts, units, configuration, documents.

A checkout has these files in its folders; a wheel brings them as `guestmtce/data` (setup.py). They are laid
out as in the checkout, with the modules, so that scripts/host/install and scripts/guest/install work there.
"""

from __future__ import annotations

import os
import shutil
import sys

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(PACKAGE, "data")

_NEXT = """\
%(to)s has the files. As root, in a virtual environment that all may read:

  a compute host    PYTHON=%(python)s %(to)s/scripts/host/install functions ''
                    PYTHON=%(python)s %(to)s/scripts/host/install server ''
  a controller      the same with agent in place of server
  a guest           %(to)s/scripts/guest/install

%(to)s/docs/install.md has the rest.
"""


def find_source() -> str:
    """The folder that has scripts/ and docs/. Raises OSError where there is none."""
    # A wheel has the first; in a checkout only the second has the files.
    for folder in (DATA, os.path.dirname(PACKAGE)):
        if os.path.exists(os.path.join(folder, "scripts", "host/install")):
            return folder
    raise OSError(
        "this guestmtce is a package of the system's: its files are in place, dpkg or rpm lists them"
    )


def lay_out(folder: str) -> None:
    """Put the files into `folder`, which is made. Raises OSError where it is there, or cannot be made."""
    origin = find_source()
    # Without exist_ok: files of the user's are never mixed with ours.
    os.makedirs(folder)
    for name in ("scripts", "docs"):
        shutil.copytree(os.path.join(origin, name), os.path.join(folder, name))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        shutil.copy(os.path.join(origin, name), folder)
    # `data` is where the files above came from: they would be laid out twice.
    unwanted = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(PACKAGE, os.path.join(folder, "guestmtce"), ignore=unwanted)


def run(folder: str) -> int:
    """The command `guestmtce files`. Returns the exit status."""
    path = os.path.abspath(folder)
    try:
        lay_out(path)
    except OSError as error:
        print("guestmtce files: %s" % error, file=sys.stderr)
        return 1
    print(_NEXT % {"to": path, "python": sys.executable}, end="")
    return 0
