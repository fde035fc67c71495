"""guestServer with the spawner of `hostile_spawner`. With OLD_KERNEL it has nothing but what 3.10 had."""

from __future__ import annotations

import errno
import os
import sys

import hostile_spawner

from guestmtce.server import master
from guestmtce.server.child import confine, sandbox, spawner
from guestmtce.server.supervise import seccomp, spawner_code, stuck_children

LATER = ("seccomp", "close_range", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
OLD_KERNEL = "--old-kernel"
ENOSYS = 0x00050000 | errno.ENOSYS
EINVAL = 0x00050000 | errno.EINVAL


def forget_what_came_later() -> None:
    """This process, and all it starts, finds a kernel without filters, Landlock and getrandom."""
    library = seccomp._load()
    context = library.seccomp_init(seccomp.ACT_ALLOW)
    for name in (*LATER, "getrandom"):
        seccomp._add(library, context, ENOSYS, name)
    to_filter = seccomp._Comparison(0, seccomp.COMPARE_MASKED_EQUAL, seccomp.LOW_WORD, sandbox.PR_SET_SECCOMP)
    seccomp._add(library, context, EINVAL, "prctl", [to_filter])
    program = seccomp._export(library, context)
    library.seccomp_release(context)
    confine.prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
    confine.run_steps([sandbox.install_step(sandbox.Filter(program, seccomp._resolve(library, "seccomp")))])


def main() -> int:
    if OLD_KERNEL in sys.argv:
        sys.argv.remove(OLD_KERNEL)
        forget_what_came_later()
    real = spawner_code.import_path
    spawner_code.import_path = lambda: os.path.dirname(os.path.abspath(__file__)) + ":" + real()
    stuck_children.CPU_DEBT_MAX = 0.5
    stuck_children.ROUND = 0.2
    spawner.BOOT = hostile_spawner.BOOT
    return master.main()


if __name__ == "__main__":
    sys.exit(main())
