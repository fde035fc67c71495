"""The table of the words of `guestmtce`, and what a module of a word has."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from places import REPOSITORY

from guestmtce.cli import lab, main
from guestmtce.wire.datagram import HostRecord


def names_in(parser, prefix=""):
    """The words with options of their own that a parser takes, as they are typed."""
    (choices,) = [
        action.choices
        for action in parser._subparsers._group_actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    for word, its in choices.items():
        yield from names_in(its, prefix + word + " ") if its._subparsers else [prefix + word]


def test_the_parser_takes_the_names_of_the_table_and_no_others():
    assert tuple(names_in(main.make_parser())) == main.NAMES


GIVEN = {
    "demo": "demo",
    "bench": "bench",
    "files": "files --to folder",
    "lab guests": "lab guests --dir folder --count 1",
    "lab vim": "lab vim --port 1",
    "lab mtcagent": "lab mtcagent",
}


@pytest.mark.parametrize("name", main.NAMES)
def test_a_word_runs_the_module_that_has_it(name):
    (module,) = [word for word in main.WORDS if name in word.NAMES]
    assert main.make_parser().parse_args(GIVEN[name].split()).run is module.run


def test_help_needs_neither_lab_nor_bench_nor_another_package():
    code = "import sys; from guestmtce.cli import main; main.make_parser().format_help()\n"
    code += "print(*(name for name in sys.modules if name.startswith('guestmtce')))"
    words = [sys.executable, "-S", "-c", code]
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, timeout=60)
    rooms = {".".join(name.split(".")[:2]) for name in done.stdout.decode().split()}
    assert rooms == {"guestmtce", "guestmtce.cli", "guestmtce.wire"}


def test_a_host_is_a_name_a_uuid_and_an_address(capsys):
    assert lab.parse_host_record("compute-0,uuid,10.0.0.1") == HostRecord("compute-0", "uuid", "10.0.0.1")
    with pytest.raises(SystemExit) as ended:
        main.main(["lab", "mtcagent", "--host", "compute-0,10.0.0.1"])
    assert ended.value.code == 2
    assert "--host: 'compute-0,10.0.0.1': write NAME,UUID,IP" in capsys.readouterr().err
