"""A stand-in for the daemon that guestmtce replaces: a compiled program of the name with a pid file.

Python's own program, copied under the daemon's name, is one as the kernel shows it: /proc/PID/exe and the
first word of /proc/PID/cmdline are the path of the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tree import Tree

# argv: run folder. It goes into the background and returns with its pid file there. TERM and INT end it and
# leave the file; with `--again` another has started by then. USR1 writes the report into the file that is
# there, and HUP notes that it came. It is named by its source's file.
SOURCE = """
import os, signal, sys, time

name, run_dir = os.path.basename(__file__)[:-3], sys.argv[1]

def write(kind, text):
    with open(os.path.join(run_dir, name + kind), "w") as file:
        file.write(text)

def live():
    os.setsid()
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR1, lambda *_: write(".info", "healthy at %f" % time.time()))
    signal.signal(signal.SIGHUP, lambda *_: write(".hup", ""))
    write(".pid", "%d" % os.getpid())
    os.write(ready, b"1")
    while True:
        signal.pause()

def end(*_):
    if "--again" not in sys.argv:
        os._exit(0)
    if os.fork():
        os.read(parent, 1)  # the other one has its pid file before this one has ended
        os._exit(0)
    live()

parent, ready = os.pipe()
if os.fork():
    os.read(parent, 1)
    os._exit(0)
live()
"""


SOURCES = "/usr/lib/original"  # where a tree has it
UNIT = """[Service]
Type=forking
PIDFile=/run/{name}.pid
ExecStart=/usr/local/bin/{name} {sources}/{name}.py /run
"""
INI = "[agent]\nrx_port = 2401\n[client]\nrx_port = 2411\n"


def put_program(path: str) -> None:
    """Make the compiled program at `path`."""
    shutil.copy(os.path.realpath(sys.executable), path + ".new")
    os.replace(path + ".new", path)


def start(program: str, run_dir: str, *options: str, argv0: str = "") -> int:
    """Start it in the background; its pid. `argv0` is what its caller has called it, if not by its path."""
    write(program + ".py", SOURCE)
    words = [argv0 or program, program + ".py", run_dir, *options]
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
    subprocess.run(words, executable=program, env=environment, check=True, timeout=20)
    with open(os.path.join(run_dir, os.path.basename(program) + ".pid"), encoding="ascii") as file:
        return int(file.read())


def write(path: str, text: str) -> None:
    """Make a file, and its folder."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def put_into(tree: Tree, root: str, name: str) -> None:
    """Make its program, unit and ini file below `root`, which is the tree's or a package's."""
    program = os.path.join(root, "usr/local/bin", name)
    os.makedirs(os.path.dirname(program), exist_ok=True)
    shutil.copy(tree.path(tree.run("readlink -f /usr/bin/python3").strip()), program)
    write("%s%s/%s.py" % (root, SOURCES, name), SOURCE)
    write("%s/lib/systemd/system/%s.service" % (root, name), UNIT.format(name=name, sources=SOURCES))
    write("%s/etc/mtc/%s.ini" % (root, name), INI)


def runs(tree: Tree, pid: int) -> bool:
    """Whether a process of the tree is one, whose program may have been replaced since."""
    return "python" not in tree.run("readlink /proc/%d/exe" % pid)
