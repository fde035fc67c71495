"""guestServer with the spawner of `hostile_spawner`. With OLD_KERNEL it has nothing but what 3.10 had."""

from __future__ import annotations

import errno
import os
import sys

import hostile_spawner

from guestmtce.server import confine, master, sandbox, spawner, spawnerlink, syscalls

# seccomp, close_range, landlock_create_ruleset, landlock_add_rule, landlock_restrict_self
SINCE = {"x86_64": (317, 436, 444, 445, 446), "aarch64": (277, 436, 444, 445, 446)}
PRCTL = {"x86_64": 157, "aarch64": 167}
OLD_KERNEL = "--old-kernel"
ENOSYS = 0x00050000 | errno.ENOSYS
EINVAL = 0x00050000 | errno.EINVAL


def forget_what_came_later() -> None:
    """This process, and all it starts, finds a kernel without filters, Landlock and getrandom."""
    machine = sandbox.machine_name()
    missing = [*SINCE[machine], getattr(syscalls.NEEDED["getrandom"], machine)]
    code = [(sandbox.LOAD, None, None, sandbox.NUMBER_AT)]
    code += [(sandbox.JUMP_EQUAL, "missing", None, number) for number in missing]
    code += [(sandbox.JUMP_EQUAL, None, "allow", PRCTL[machine])]
    code += [(sandbox.LOAD, None, None, sandbox.ARGUMENTS_AT)]
    code += [(sandbox.JUMP_EQUAL, "invalid", "allow", sandbox.PR_SET_SECCOMP)]
    code += ["missing", (sandbox.RETURN, None, None, ENOSYS)]
    code += ["invalid", (sandbox.RETURN, None, None, EINVAL)]
    code += ["allow", (sandbox.RETURN, None, None, sandbox.ALLOW)]
    confine.prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
    confine.take([sandbox.install_step(machine, sandbox.assemble(code))])


def main() -> int:
    if OLD_KERNEL in sys.argv:
        sys.argv.remove(OLD_KERNEL)
        forget_what_came_later()
    real = spawnerlink.import_path
    spawnerlink.import_path = lambda: os.path.dirname(os.path.abspath(__file__)) + ":" + real()
    spawner.BOOT = hostile_spawner.BOOT
    return master.main()


if __name__ == "__main__":
    sys.exit(main())
