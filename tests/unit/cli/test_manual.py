"""Manual pages, completion, and the files that pip brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from places import REPOSITORY

from guestmtce.cli import main, manual, product_files

ROOT = str(REPOSITORY)
MODULES = {
    "guestServer": "guestmtce.server.master",
    "guestAgent": "guestmtce.agent.main",
    "guestClient": "guestmtce.guest.main",
    "guestmtce": "guestmtce.cli.main",
}
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z-]*")


def said_by(name, *words):
    command = [sys.executable, "-m", MODULES[name], *words, "--help"]
    environment = {**os.environ, "COLUMNS": manual.WIDE}
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, timeout=60, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with man1, man8 and completions, made without any module that is not the system's own."""
    folder = str(tmp_path_factory.mktemp("manual"))
    words = ["-m", "guestmtce.cli.manual", folder, folder + "/completions"]
    subprocess.run([sys.executable, "-S", *words], cwd=ROOT, check=True, timeout=60)
    return folder


def page(written, name):
    section = manual.PAGES[name].section
    with open("%s/man%d/%s.%d" % (written, section, name, section), encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("name", MODULES)
def test_a_manual_page_has_the_options_of_the_program_and_no_other(written, name):
    shown = page(written, name).replace("\\-", "-")
    heads = re.findall(r"^\.TP\n\.B (-.*)$", shown, re.M)
    told = [
        option
        for words in manual.help_of(name)
        for option in manual.options_in(said_by(name, *words.split()))
    ]
    assert heads == [option.shown for option in told]
    for option in told:
        assert option.text in shown.replace("\\e", "\\").replace("\\&", "")
    assert set(OPTION.findall(said_by(name))) >= {
        one for one in OPTION.findall(" ".join(heads)) if name != "guestmtce"
    }


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_a_manual_page_is_right_roff(written, name):
    words = ["groff", "-man", "-Tutf8", "-ww", "-z"]
    done = subprocess.run(words, input=page(written, name).encode(), stderr=subprocess.PIPE, check=True)
    assert done.stderr == b""


# Words on the command line, the last being completed → what is offered.
COMPLETED = {
    ("guestServer", "--cont"): ["--controller"],
    ("guestAgent", "--vim"): ["--vim-url"],
    ("guestClient", "--pid"): ["--pid-file"],
    ("guestServer", "--run-dir", "/us"): ["/usr"],
    ("guestServer", "--config", "/etc/passw"): ["/etc/passwd"],
    ("guestmtce", "be"): ["bench"],
    ("guestmtce", "bench", "--cy"): ["--cycles"],
    ("guestmtce", "lab", "vim", "--re"): ["--record"],
    ("guestmtce", "files", "--t"): ["--to"],
}


@pytest.mark.parametrize("words", COMPLETED)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(written, words):
    script = 'set -eu; name=$1; . "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
    script += '"_$name" "$name" "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", script, "%s/completions/%s" % (written, words[0]), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    assert set(done.stdout.decode().split()) >= set(COMPLETED[words])
    assert all(one.startswith(words[-1]) for one in done.stdout.decode().split())


def test_the_writer_of_pages_says_how_it_is_called(capsys):
    assert manual.main(["one"]) == 2 and manual.main(["a", "b", "guestNobody"]) == 2
    assert "usage: " in capsys.readouterr().err


# --- files ---------------------------------------------------------------------------------------------


def test_the_files_are_laid_out_and_the_scripts_work_from_there(tmp_path, capsys):
    folder = tmp_path / "files"
    assert main.main(["files", "--to", str(folder)]) == 0
    assert "%s/scripts/host/install server" % folder in capsys.readouterr().out
    for path in (
        "scripts/host/guestServer.ini",
        "scripts/host/guestServer.service",
        "docs/install.md",
        "LICENSE",
    ):
        assert (folder / path).is_file()
    root = tmp_path / "guest"
    root.mkdir()
    subprocess.run([str(folder / "scripts/guest/install"), str(root)], check=True, timeout=60)
    assert (root / "usr/local/bin/guestClient").is_file()


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    assert main.main(["files", "--to", str(tmp_path)]) == 1
    assert "File exists" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_where_a_package_has_put_them_in_place_that_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(product_files, "PACKAGE", str(tmp_path / "guestmtce"))
    monkeypatch.setattr(product_files, "DATA", str(tmp_path / "guestmtce/data"))
    assert main.main(["files", "--to", str(tmp_path / "to")]) == 1
    assert "its files are in place" in capsys.readouterr().err


def test_a_wheel_has_the_files(tmp_path):
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "-e",
        str(tmp_path),
        "build",
        "-b",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, stderr=subprocess.DEVNULL)
    data = tmp_path / "lib/guestmtce/data"
    for path in (
        "scripts/host/install",
        "scripts/host/guestAgent.ini",
        "scripts/guest/guestClient.service",
        "docs/install.md",
        "CHANGELOG.md",
    ):
        assert (data / path).is_file()
    assert (tmp_path / "lib/guestmtce/py.typed").is_file(), "who imports it sees its types"
    assert os.access(str(data / "scripts/host/install"), os.X_OK)
