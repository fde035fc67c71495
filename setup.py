"""Packaging of guestmtce."""

import os
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))


def _read(*path: str) -> str:
    with open(os.path.join(HERE, *path), encoding="utf-8") as file:
        return file.read()


class BuildWithFiles(build_py):
    """The modules, and guestmtce/data for `guestmtce files`. What is editable has the checkout."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            data = os.path.join(self.build_lib, "guestmtce", "data")
            shutil.rmtree(data, ignore_errors=True)
            for name in ("scripts", "docs"):
                shutil.copytree(os.path.join(HERE, name), os.path.join(data, name))
            for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
                shutil.copy(os.path.join(HERE, name), data)


setup(
    cmdclass={"build_py": BuildWithFiles},
    name="guestmtce",
    version=re.findall('__version__ = "(.+)"', _read("guestmtce", "__init__.py"))[0],
    description="Guest heartbeat service for compute clouds",
    long_description=_read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["guestmtce", "guestmtce.*"]),
    package_data={"guestmtce": ["py.typed"]},
    python_requires=">=3.9",
    install_requires=[
        "cherrypy",
        "psutil",
        "pyasyncore; python_version >= '3.12'",
        "pyinotify",
        "requests",
        "setproctitle",
    ],
    extras_require={
        # hypothesis finds the inputs that nobody thought of; mypy and ruff keep the working agreement;
        # pytest-xdist runs tests, which mostly wait, side by side.
        "test": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff", "types-psutil", "types-requests"],
    },
    entry_points={
        "console_scripts": [
            "guestServer = guestmtce.server.master:main",
            "guestAgent = guestmtce.agent.main:main",
            "guestClient = guestmtce.guest.main:main",
            "guestmtce = guestmtce.cli.main:main",
        ]
    },
)
