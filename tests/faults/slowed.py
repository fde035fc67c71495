"""A daemon whose loop stands still on demand: `python -m slowed` in the place of its own module.

SLOWED names the module. What is written to the FIFO beside its run folder, `RUN_DIR.slow`, is how many
seconds the next callback takes. REPEATED_AFTER is the shortest period, in s, after which a datagram is sent
again: no setting scales it.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import List

from guestmtce.daemon import loop
from guestmtce.peer import retransmit

_run = loop.Loop.run


def before(module: str, repeated_after: float = retransmit.REPEAT_FIRST) -> List[str]:
    """The words before the command line of `slowed`."""
    here, inherited = os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")
    path = here + os.pathsep + inherited if inherited else here
    return ["env", "PYTHONPATH=" + path, "SLOWED=" + module, "REPEATED_AFTER=%g" % repeated_after]


def slow(run_dir: str, seconds: float) -> None:
    """Have the loop of the daemon stand still for so long, from now on."""
    descriptor = os.open(run_dir + ".slow", os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, b"%g\n" % seconds)
    os.close(descriptor)


def _run_slowed(self: loop.Loop) -> None:
    path = sys.argv[sys.argv.index("--run-dir") + 1] + ".slow"
    if not os.path.exists(path):
        os.mkfifo(path)
    fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    self.watch(fifo, lambda: time.sleep(sum(map(float, os.read(fifo, 4096).split()))))
    _run(self)


if __name__ == "__main__":
    loop.Loop.run = _run_slowed  # type: ignore[method-assign]
    retransmit.REPEAT_MAX *= float(os.environ["REPEATED_AFTER"]) / retransmit.REPEAT_FIRST
    retransmit.REPEAT_FIRST = float(os.environ["REPEATED_AFTER"])
    sys.exit(importlib.import_module(os.environ["SLOWED"]).main())
