"""CONTRIBUTING.md: what its lists name is in the files that they name."""

from __future__ import annotations

import re

import pytest
from places import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLLOWED = ("stop", "resize_begin", "broken-rules", "losses", "nack_period")
ITEMS = re.findall(r"(?m)^\d\. .*(?:\n {3}.*)*", TEXT.split("## Add …")[1].split("## Style")[0])


def _codes(text):
    return re.findall("`([^`]+)`", text)


def _files(text):
    return [path for path in (REPOSITORY / code for code in _codes(text)) if path.is_file()]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.splitlines()[0][:60])
def test_names_of_an_item_are_in_one_of_its_files(item):
    names = [code for code in _codes(item) if re.fullmatch(r"[A-Za-z_.]+", code) and "/" not in code]
    names = [name.split(".")[-1] for name in names if not name.endswith((".md", ".ini"))]
    texts = [path.read_text(encoding="utf-8") for path in _files(item)]
    if texts:
        assert [name for name in names if not any(name in text for text in texts)] == []


@pytest.mark.parametrize("word", FOLLOWED)
def test_what_is_to_be_followed_is_there_and_in_many_files(word):
    assert "`%s`" % word in TEXT
    files = [path for room in ("guestmtce", "docs", "scripts") for path in (REPOSITORY / room).rglob("*.*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".ini")]
    assert sum(word in text for text in texts) >= 3
