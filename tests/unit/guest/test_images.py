"""guestClient in images: the installer, the program as one file, and what docs/guest-images.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from guest_process import Host
from places import REPOSITORY

from guestmtce.wire.guest_channel import Exit

GUEST = REPOSITORY / "scripts" / "guest"
ELEMENT = GUEST / "diskimage-builder" / "guest-client"
DOCS = (REPOSITORY / "docs" / "guest-images.md").read_text(encoding="utf-8")
PROGRAM = "usr/local/bin/guestClient"
OLDEST = 6


def run(*words, **more):
    """The status of a command and what it prints."""
    done = subprocess.run(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, **more
    )
    return done.returncode, done.stdout.decode()


def image(root, python="", link=""):
    """A guest's files: the program `python`, and /usr/bin/python3 as a link to it."""
    (root / "etc").mkdir(parents=True)
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "etc" / "os-release").write_text("ID=test\n")
    if python:
        (root / python).parent.mkdir(parents=True, exist_ok=True)
        (root / python).write_text("")
        (root / python).chmod(0o755)
    if link:
        (root / "usr" / "bin" / "python3").symlink_to(link)
    return root


# --- the installer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "python, link",
    [
        ("", ""),
        ("usr/bin/python3.5", "python3.5"),
        ("opt/python2.7", "/opt/python2.7"),
        ("", "python3.11"),
        ("", "python3"),
    ],
)
def test_without_python_nothing_is_installed_and_it_says_so(tmp_path, python, link):
    root = image(tmp_path / "root", python, link)
    status, said = run(GUEST / "install", root)
    assert status == 1
    assert "/usr/bin/python3 in %s" % root in said and "Python 3.6 or later is needed" in said
    assert not (root / "usr" / "local").exists()


@pytest.mark.parametrize(
    "python, link",
    [
        ("usr/bin/python3", ""),
        ("usr/bin/python3.6", "python3.6"),
        ("usr/bin/python3.13", "/usr/bin/python3.13"),
        ("opt/python3.10", "../../opt/python3.10"),
    ],
)
def test_an_image_with_python_gets_it(tmp_path, python, link):
    root = image(tmp_path / "root", python, link)
    assert run(GUEST / "install", str(root) + "/") == (0, "")
    assert (root / PROGRAM).read_text().startswith("#!/usr/bin/python3 -IS\n")


def test_another_python_can_be_named(tmp_path):
    name = "/usr/libexec/platform-python"
    root = image(tmp_path / "root", name[1:])
    assert run(GUEST / "install", root, env={**os.environ, "PYTHON": name}) == (0, "")
    assert (root / PROGRAM).read_text().startswith("#!%s -IS\n" % name)


def test_a_packages_folder_needs_no_python(tmp_path):
    assert run(GUEST / "install", tmp_path / "package") == (0, "")


@pytest.mark.parametrize("has_openrc", [True, False])
def test_a_guest_with_openrc_gets_a_script_for_it(tmp_path, has_openrc):
    root = image(tmp_path / "root", "usr/bin/python3")
    if has_openrc:
        (root / "sbin").mkdir()
        (root / "sbin" / "openrc-run").write_text("")
    assert run(GUEST / "install", root) == (0, "")
    script = root / "etc" / "init.d" / "guestClient"
    assert script.exists() == has_openrc
    assert not has_openrc or run("sh", "-n", script) == (0, "")


MANUAL = {
    "usr/share/man/man8/guestClient.8": GUEST / "guestClient.8",
    "usr/share/bash-completion/completions/guestClient": GUEST / "completions" / "guestClient",
}


def test_the_manual_page_and_the_completion_are_installed(tmp_path):
    assert run(GUEST / "install", tmp_path / "root") == (0, "")
    for path, source in MANUAL.items():
        assert (tmp_path / "root" / path).read_bytes() == source.read_bytes()
        assert (tmp_path / "root" / path).stat().st_mode & 0o777 == 0o644


def test_the_manual_page_and_the_completion_are_those_of_the_program(tmp_path):
    """A guest makes none: it has neither the maker nor its Python. Copy them from these when this fails."""
    share = tmp_path / "usr" / "share"
    words = [share / "man", share / "bash-completion" / "completions", "guestClient"]
    assert run(sys.executable, "-BS", "-m", "guestmtce.cli.manual", *words, cwd=REPOSITORY) == (0, "")
    for path, source in MANUAL.items():
        assert (tmp_path / path).read_text() == source.read_text(), source


# --- what is built ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    assert run(REPOSITORY / "scripts" / "dev" / "build-guest", folder) == (0, "")
    return folder


def pythons():
    """This Python, and the oldest that there is here, wherever such things are kept."""
    found = {"this": sys.executable}
    old = "python3.%d" % OLDEST
    kept = sorted(Path.home().glob(".pyenv/versions/3.%d.*/bin/%s" % (OLDEST, old)))
    for path in [*kept, shutil.which(old)]:
        if path and subprocess.call([str(path), "-c", ""], stderr=subprocess.DEVNULL) == 0:
            found["oldest"] = str(path)
    return found


@pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())
def test_the_single_file_heartbeats(built, tmp_path, python):
    words = [python, "-IS", str(built / "guestclient.pyz")]
    assert run(*words, "--no-such-option", cwd="/", env={})[0] == 2
    host = Host(tmp_path / "host")
    words += ["-f", "--device", host.path, "--socket", "", "--config", "/nonexistent"]
    with subprocess.Popen(words, cwd="/", env={}, stderr=subprocess.DEVNULL) as process:
        host.accept().heartbeat()
        process.terminate()
        assert host.hear(Exit)
        assert process.wait(60) == 0
    host.close()


def test_the_same_sources_give_the_same_bytes(built, tmp_path):
    assert run(REPOSITORY / "scripts" / "dev" / "build-guest", tmp_path) == (0, "")
    for name in ("guestclient.pyz", "guest-client.tar.gz"):
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes()


def installed(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_archive_installs_what_the_checkout_installs(built, tmp_path):
    with tarfile.open(built / "guest-client.tar.gz") as archive:
        archive.extractall(tmp_path)
    script = tmp_path / "guest-client" / "scripts" / "guest" / "install"
    assert run(script, tmp_path / "a") == (0, "") == run(GUEST / "install", tmp_path / "b")
    assert installed(tmp_path / "a") == installed(tmp_path / "b")


# --- the docs --------------------------------------------------------------------------------------


def blocks():
    """The indented blocks, each as one text."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", DOCS, re.M)
    return ["\n".join(line[4:] for line in block.strip("\n").split("\n")) for block in found]


def block_with(word):
    return next(block for block in blocks() if word in block)


def in_root(lines, root, built):
    """The commands of a block, with the guest's files at `root` and nothing else of this machine touched."""
    text = "\n".join(lines).replace("http://192.0.2.1", "file://%s" % built)
    text = text.replace("/tmp/guest-client.tar.gz", str(built / "guest-client.tar.gz"))
    text = text.replace("tar -C /tmp ", "tar -C %s " % root).replace(
        "/tmp/guest-client/", "%s/guest-client/" % root
    )
    text = re.sub(r"(guest/install)\b", r"\1 %s" % root, text)
    text = re.sub(r"&& rm -r .*", "", text)
    return "systemctl() { echo systemctl $*; }\n" + text


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_commands_for_cloud_init(built, tmp_path):
    root = image(tmp_path / "root", "usr/bin/python3")
    block = block_with("#cloud-config")
    kept = root / "etc" / "guest-client" / "heartbeat" / "guest_heartbeat.conf"
    kept.parent.mkdir(parents=True)
    kept.write_text("HB_INTERVAL=1000\n")
    assert "path: /%s\n" % kept.relative_to(root) in block
    lines = re.findall("^  - (.*)", block.split("runcmd:\n")[1], re.M)
    status, said = run("sh", "-ec", in_root(lines, root, built))
    assert status == 0, said
    assert said.split("\n")[-2] == "systemctl start --no-block guestClient"
    assert (root / PROGRAM).exists()
    assert kept.read_text() == "HB_INTERVAL=1000\n"


def test_the_command_for_virt_customize(built, tmp_path):
    root = image(tmp_path / "root", "usr/bin/python3")
    command = re.search("--run-command '(.*)'", block_with("virt-customize")).group(1)
    status, said = run("sh", "-ec", in_root([command], root, built))
    assert (status, said) == (0, "systemctl enable guestClient\n")
    assert (root / PROGRAM).exists()


def test_the_element_for_diskimage_builder(tmp_path):
    root = image(tmp_path / "root", "usr/bin/python3")
    hooks = tmp_path / "hooks"
    hook = ELEMENT / "extra-data.d" / "50-guest-client"
    assert run(hook, env={**os.environ, "TMP_HOOKS_PATH": str(hooks)}) == (0, "")
    assert run(hooks / "guestmtce" / "scripts" / "guest" / "install", root) == (0, "")
    assert (root / PROGRAM).exists()
    copy = shutil.copy(hook, tmp_path)
    status, said = run(copy, env={**os.environ, "TMP_HOOKS_PATH": str(hooks)})
    assert (status, "GUESTMTCE" in said) == (1, True)
    environment = {**os.environ, "TMP_HOOKS_PATH": str(hooks / "2"), "GUESTMTCE": str(REPOSITORY)}
    assert run(copy, env=environment) == (0, "")


def test_every_file_that_the_docs_name_is_there():
    names = re.findall(r"\b(?:scripts|docs)/[\w./-]*\w", DOCS)
    assert "scripts/guest/diskimage-builder" in names
    assert [name for name in names if not (REPOSITORY / name).exists()] == []
