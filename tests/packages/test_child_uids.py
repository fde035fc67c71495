"""The range of uids that the packages reserve: one that nobody has, once, given back with the user."""

from __future__ import annotations

import os
import subprocess

import pytest
from scripted import SCRIPTS

SCRIPT = os.path.join(SCRIPTS, "child-uids")
COUNT = 12288
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"


def choose(etc):
    return subprocess.run(
        [SCRIPT, "choose"],
        env={**os.environ, "ETC": str(etc)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "subuid, users, first",
    [
        (None, "", 70000),
        ("", "", 70000),
        ("bob:100000:65536\neve:165536:65536\n", "", 70000),
        ("bob:70000:1\n", "", 70001),
        ("bob:82287:1\n", "", 82288),
        ("bob:82288:1\n", "", 70000),
        ("bob:60000:10000\n", "", 70000),
        ("bob:60000:10001\n", "", 70001),
        ("b:90000:5\na:70000:15000\nc:75000:1\n", "", 90005),
        ("bob:65536:400000\n", "", 465536),
        ("bob:65536:458752\n", "", 1879048192),  # what follows is systemd's, for its containers
        ("guestmtce:70000:12288\n", "", 70000),  # its own is not in its way
        ("", "eve:x:70100:100::/:/bin/sh\n", 70101),
    ],
)
def test_the_range_overlaps_nobody(tmp_path, subuid, users, first):
    (tmp_path / "passwd").write_text(PASSWD + users)
    if subuid is not None:
        (tmp_path / "subuid").write_text(subuid)
    assert choose(tmp_path).stdout.decode() == "%d:%d\n" % (first, COUNT)


def test_a_host_without_room_is_told_so(tmp_path):
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "subuid").write_text("root:65536:4294901760\n")
    done = choose(tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "no 12288 free uids" in done.stderr.decode()


# In a mount namespace with an /etc of its own; $1 is a copy of /etc, $2 the script.
STORY = """
set -e
mount --bind "$1" /etc
rm -f /etc/subuid
say() { echo "$1 $(stat -c %a /etc/subuid) $(tr '\\n' ' ' </etc/subuid)"; }
"$2" reserve; say first
getent passwd guestmtce | cut -d: -f6,7
"$2" reserve; say again
echo bob:75000:10 >>/etc/subuid
"$2" reserve 2>&1 || echo "status $?"
userdel guestmtce; say after
! getent passwd guestmtce && ! getent group guestmtce
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes users")
def test_a_range_is_reserved_once_and_given_back(tmp_path):
    subprocess.run(["cp", "-a", "/etc", str(tmp_path / "etc")], check=True)
    words = ["unshare", "-m", "sh", "-c", STORY, "sh", str(tmp_path / "etc"), SCRIPT]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode().splitlines()
    assert done.returncode == 0, said
    assert said == [
        "first 644 guestmtce:70000:12288 ",
        "/nonexistent:/usr/sbin/nologin",
        "again 644 guestmtce:70000:12288 ",
        "child-uids: guestmtce:70000:12288 of /etc/subuid overlaps with bob:75000:10: "
        "give one of them other uids",
        "status 1",
        "after 644 bob:75000:10 ",
    ]
