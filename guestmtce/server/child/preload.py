"""What the spawner needs beside our own code, imported before it so that ours lies together (`page_layout`).

Every child carries these modules. What they register to run at a fork is dropped, for two reasons. After
clone(2) it does not run (`fork_sibling`). After os.fork, which the warm-up and the double fork call, it
would write to memory that children share: setproctitle imports logging, whose hooks would cost every child
450 kB. Which modules of the library have hooks changes from one Python to another.
"""

from __future__ import annotations

import os
from importlib import import_module

MODULES = (
    *("ctypes", "errno", "gc", "json", "re", "select", "signal", "socket", "struct", "time", "typing"),
    "setproctitle",
)


def _import_without_hooks() -> None:
    register = os.register_at_fork
    os.register_at_fork = lambda **_: None
    try:
        for name in MODULES:
            import_module(name)
    finally:
        os.register_at_fork = register


_import_without_hooks()
set_title = import_module("setproctitle").setproctitle
