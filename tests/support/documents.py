"""Reading the documents: their texts, tables and words in code."""

from __future__ import annotations

import glob
import os
import re

from places import REPOSITORY

ROOT = str(REPOSITORY)
DOCUMENTS = sorted(
    os.path.relpath(path, ROOT)
    for path in [ROOT + "/README.md", *glob.glob(ROOT + "/docs/**/*.md", recursive=True)]
)
GUEST_CHANNEL, DATAGRAMS, VIM_HTTP, HOST = (
    "docs/protocol/" + name for name in ("1-guest-channel.md", "2-datagrams.md", "3-vim-http.md", "4-host.md")
)
CODE = re.compile("`([^`\n]+)`")


def text_of(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def between(path, first, last):
    """What stands in a document behind one text and before the next."""
    return text_of(path).split(first, 1)[1].split(last, 1)[0]


def section(path, heading):
    """What stands under a heading, up to the next one of any level."""
    return re.split(r"(?m)^#+ ", text_of(path).split("# %s\n" % heading, 1)[1], maxsplit=1)[0]


def in_code(text):
    return set(CODE.findall(text))


def cells_in(text):
    """The cells of each row of the tables in it, without their heads."""
    lines = text.splitlines()
    found = []
    for before, line in zip(["", "", *lines], ["", *lines]):
        if line.startswith("|") and before.startswith("|") and not line.startswith("|---"):
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return found


def rows(text):
    """The tables in it: the first cell's code → the other cells."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found
