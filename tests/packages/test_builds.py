"""The packages as files: what is in them with which modes, and what the linters say."""

from __future__ import annotations

import glob
import os
import subprocess

import pytest
from checkout import git_status
from tree import REPOSITORY

FOLDER = os.path.join(REPOSITORY, "docs")
PRIVATE, PLAIN, PROGRAM = "-rwx------", "-rw-r--r--", "-rwxr-xr-x"
DOCUMENTS = [
    "README.md",
    *(os.path.relpath(path, FOLDER) for path in glob.glob(FOLDER + "/**/*.md", recursive=True)),
]
DOCS = "/usr/share/doc/python3-guestmtce"
DEPENDENCIES = {"cherrypy3", "psutil", "pyinotify", "requests", "setproctitle"}


def daemon_files(name, units):
    """What every daemon's package brings: path → mode."""
    return {
        "/usr/local/bin/" + name: PROGRAM,
        "/etc/init.d/" + name: PRIVATE,
        "/etc/mtc/%s.ini" % name: PLAIN,
        "/etc/mtc/tmp": "drwxr-xr-x",
        "/etc/logrotate.d/" + name: PLAIN,
        "%s-generators/%s" % (units, name): PROGRAM,
        "%s/%s.service" % (units, name): PLAIN,
        **manual(name, 8),
    }


def manual(name, section):
    """A manual page, which Debian packs, and a completion."""
    return {
        "/usr/share/man/man%d/%s.%d.gz" % (section, name, section): PLAIN,
        "/usr/share/bash-completion/completions/" + name: PLAIN,
    }


def wanted(units, pmon, modules):
    """Package → path → mode: the paths that others rely on."""
    shared = {
        modules + "/guestmtce/%s/__init__.py" % part: PLAIN
        for part in ("common", "daemon", "wire", "peer", "server", "agent", "lab")
    }
    return {
        "mtce-guest-server": {
            **daemon_files("guestServer", units),
            pmon + "/guestServer.conf": PLAIN,
            "/usr/share/guestmtce/child-uids": PROGRAM,
        },
        "mtce-guest-agent": {
            **daemon_files("guestAgent", units),
            "/usr/lib/ocf/resource.d/platform/guestAgent": PROGRAM,
        },
        "mtce-guest-client": {
            "/usr/local/bin/guestClient": PROGRAM,
            "/usr/local/lib/guest-client/guestmtce/guest/main.py": PLAIN,
            "/usr/local/lib/guest-client/guestmtce/wire/guest_channel.py": PLAIN,
            "/usr/local/lib/guest-client/guestmtce/wire/json_lines.py": PLAIN,
            **{
                "/usr/local/lib/guest-client/guestmtce/common/%s.py" % name: PLAIN
                for name in (
                    "back_off",
                    "background",
                    "lock_file",
                    "log_line",
                    "rate_limit",
                    "throttle",
                    "turn",
                )
            },
            "/etc/guest-client/heartbeat/guest_heartbeat.conf": PLAIN,
            "/etc/init.d/heartbeat_init": PROGRAM,
            units + "/guestClient.service": PLAIN,
            **manual("guestClient", 8),
        },
        "python3-guestmtce": {
            **shared,
            **manual("guestmtce", 1),
            modules + "/guestmtce/cli/main.py": PLAIN,
            "/usr/bin/guestmtce": PROGRAM,
            "/usr/share/guestmtce/daemon-functions": PLAIN,
            **{DOCS + "/" + name: PLAIN for name in DOCUMENTS},
        },
    }


def _said(*words):
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode()


def _deb_files(package):
    rows = [line.split() for line in _said("dpkg-deb", "-c", package).splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    return {row[5].rstrip("/")[1:]: row[0] for row in rows}


def _rpm_files(package):
    form = "[%{FILEMODES:perms} %{FILENAMES} %{FILEUSERNAME}/%{FILEGROUPNAME}\n]"
    rows = [line.split() for line in _said("rpm", "-qp", "--queryformat", form, package).splitlines()]
    assert {row[2] for row in rows} == {"root/root"}
    return {row[1]: row[0] for row in rows}


def _check(files, expected):
    assert {path: files.get(path) for path in expected} == expected
    assert [path for path in files if "__pycache__" in path or "manual.py" in path] == []


@pytest.mark.ci
def test_the_debian_packages_hold_every_file_in_its_place(debs, version):
    packages = wanted("/lib/systemd/system", "/usr/share/starlingx/pmon.d", "/usr/lib/python3/dist-packages")
    for name, expected in packages.items():
        _check(_deb_files("%s/%s_%s_all.deb" % (debs, name, version)), expected)


@pytest.mark.ci
def test_the_debian_packages_need_what_every_debian_has(debs, version):
    def field(package, name):
        return _said("dpkg-deb", "-f", "%s/%s_%s_all.deb" % (debs, package, version), name)

    needed = {one.split()[0].strip() for one in field("python3-guestmtce", "Depends").split(",")}
    assert needed - {"python3", "python3:any"} == {"python3-" + name for name in DEPENDENCIES}
    server = {one.split()[0].strip() for one in field("mtce-guest-server", "Depends").split(",")}
    assert {"libseccomp2", "passwd", "python3-guestmtce"} <= server
    client = {one.split()[0].strip() for one in field("mtce-guest-client", "Depends").split(",")}
    assert client <= {"python3", "python3:any"}


@pytest.mark.ci
def test_lintian_finds_nothing_that_is_not_explained(debs, version, linters):
    changes = glob.glob("%s/mtce-guest_%s_*.changes" % (debs, version))
    words = ["lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", *changes]
    found = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (found.returncode, found.stdout.decode()) == (0, "")


@pytest.mark.ci
def test_the_builds_leave_the_checkout_as_it_was(checkout_before, debs, rpms):
    assert git_status() == checkout_before
    assert not os.path.exists(os.path.join(REPOSITORY, "debian"))


@pytest.mark.ci
def test_the_rpms_hold_every_file_in_its_place(rpms, version):
    packages = wanted("/usr/lib/systemd/system", "/etc/pmon.d", "/usr/lib/python3.9/site-packages")
    for name, expected in packages.items():
        _check(_rpm_files("%s/%s-%s-1.el9.noarch.rpm" % (rpms, name, version)), expected)


@pytest.mark.ci
def test_rpmlint_finds_nothing_that_is_not_explained(rpms, version, linters):
    reasons, spec = (os.path.join(REPOSITORY, "rpm", one) for one in ("rpmlint.toml", "mtce-guest.spec"))
    packages = glob.glob("%s/*-%s-1.el9.noarch.rpm" % (rpms, version))
    found = subprocess.run(["rpmlint", "-c", reasons, spec, *packages], stdout=subprocess.PIPE)
    assert " 0 errors, 0 warnings" in found.stdout.decode()


def _launcher(package, folder):
    """The first line of the program in it."""
    contents = subprocess.run(["rpm2cpio", package], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], input=contents, cwd=folder, check=True)
    (program,) = glob.glob("%s/usr/local/bin/*" % folder)
    with open(program, encoding="utf-8") as file:
        return file.readline().rstrip()


@pytest.mark.ci
@pytest.mark.parametrize(
    "flavour, python, needed", [("8", "python3.9", "python39"), ("9", "python3", "python3 >= 3.9")]
)
def test_the_rpms_are_for_the_python_of_their_release(rpms, version, tmp_path, flavour, python, needed):
    def package(name):
        return "%s/%s-%s-1.el%s.noarch.rpm" % (rpms, name, version, flavour)

    assert needed in _said("rpm", "-qp", "--requires", package("python3-guestmtce")).splitlines()
    for name in ("server", "agent"):
        folder = tmp_path / name
        folder.mkdir()
        assert _launcher(package("mtce-guest-" + name), str(folder)) == "#!/usr/bin/%s -I" % python
