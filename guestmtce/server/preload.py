"""What the spawner needs beside our own code, imported before it: see `compact`.

Every child carries it. No module that registers at-fork hooks may be among it: threading, random,
logging. setproctitle imports logging, whose hooks would cost every child 450 kB.
"""

# ruff: noqa: F401
from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import re
import select
import signal
import socket
import struct
import typing
from typing import Any


def _import_setproctitle() -> Any:
    hooked = os.register_at_fork
    os.register_at_fork = lambda **_: None
    try:
        import setproctitle
    finally:
        os.register_at_fork = hooked
    return setproctitle.setproctitle


set_title = _import_setproctitle()
