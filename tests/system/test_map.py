"""docs/map.md, and what documents name: each section, module and test is there, and none is missing."""

from __future__ import annotations

import ast
import re

import pytest
from places import REPOSITORY

MAP = REPOSITORY / "docs" / "map.md"
PACKAGE = REPOSITORY / "guestmtce"
TESTS = REPOSITORY / "tests"
PAGES = sorted((REPOSITORY / "docs" / "protocol").glob("*.md"))
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
# Where what the protocol says is decided: each of these modules has a row.
DECIDING = ("wire/*.py", "server/child/session*.py", "server/state/*.py", "agent/inventory*.py")


def rows():
    """The cells of every row of the map that has some."""
    lines = re.findall(r"(?m)^\| (.*) \|$", MAP.read_text(encoding="utf-8"))
    return [line.split(" | ") for line in lines if "`" in line or "](" in line]


def code_in(column):
    """What stands as code in a column, 0 to 2, of the map."""
    return sorted({code for cells in rows() for code in re.findall("`([^`]+)`", cells[column])})


def anchors_of(page):
    """The anchors that the headings of a page have."""
    headings = re.findall("(?m)^#{2,} (.*)$", page.read_text(encoding="utf-8"))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def anchors_in_map(page):
    text = MAP.read_text(encoding="utf-8")
    return re.findall(r"\]\(protocol/%s#([\w-]+)\)" % re.escape(page.name), text)


# --- the map -------------------------------------------------------------------------------------------


def test_every_row_has_a_section_or_question_a_module_and_a_test():
    assert len(rows()) > 70
    assert [cells for cells in rows() if len(cells) != 3] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_section_of_a_page_has_one_row(page):
    assert anchors_in_map(page) == anchors_of(page), "in the order of the page"


def test_the_map_names_no_page_that_there_is_not():
    named = set(re.findall(r"\]\(protocol/([\w.-]+\.md)#", MAP.read_text(encoding="utf-8")))
    assert not PAGES or named == {page.name for page in PAGES}


@pytest.mark.parametrize("module", code_in(1))
def test_a_module_of_the_map_is_there(module):
    folder = REPOSITORY if module.startswith("scripts/") else PACKAGE
    assert (folder / module).is_file()


@pytest.mark.parametrize("test", code_in(2))
def test_a_test_of_the_map_is_there(test):
    path, _, name = test.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in names if name else any(each.startswith("test_") for each in names)


def test_no_module_that_decides_is_missing():
    modules = {path for pattern in DECIDING for path in PACKAGE.glob(pattern)}
    named = {PACKAGE / module for module in code_in(1)}
    missing = sorted(str(path.relative_to(PACKAGE)) for path in modules - named)
    assert [path for path in missing if not path.endswith("__init__.py")] == []


def modules_of_sections():
    """PAGE#anchor → the modules in its row."""
    found = {}
    for cells in rows():
        link = re.search(r"\]\(protocol/([\w.-]+#[\w-]+)\)", cells[0])
        if link:
            found[link[1]] = set(re.findall("`([^`]+)`", cells[1]))
    return found


@pytest.mark.parametrize("pattern", DECIDING)
def test_a_module_stands_in_the_row_of_each_section_that_it_says_it_implements(pattern):
    sections, missing = modules_of_sections(), []
    for path in PACKAGE.glob(pattern):
        module = str(path.relative_to(PACKAGE))
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for section in re.findall(r"docs/protocol/([\w.-]+#[\w-]+)", said):
            if module not in sections.get(section, ()):
                missing.append("%s: %s" % (section, module))
    assert missing == []


# --- paths in all documents ----------------------------------------------------------------------------

NAMED = re.compile(r"(?:guestmtce|tests|scripts|docs)/[\w./-]*\w/?|(?:server|agent|guest)/[\w/]+\.py")


def paths_in(document):
    """The paths within the checkout that stand as code in a document."""
    for code in re.findall("`([^`\n]+)`", document.read_text(encoding="utf-8")):
        match = NAMED.fullmatch(code.partition("::")[0].partition("#")[0])
        if match:
            yield match[0]


def is_there(path):
    """A path may leave out `guestmtce/`."""
    return (REPOSITORY / path).exists() or (PACKAGE / path).exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_path_that_a_document_names_is_there(document):
    missing = {path for path in paths_in(document) if not is_there(path)}
    assert {path for path in missing if PAGES or not path.startswith("docs/protocol")} == set()


def test_every_room_is_in_the_table_of_rooms():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| room | holds |")[1].split("\n\n")[0]
    rooms = [str(path.parent.relative_to(PACKAGE)) + "/" for path in PACKAGE.rglob("__init__.py")]
    assert sorted(re.findall(r"(?m)^\| `([a-z/]+)` \|", table)) == sorted(set(rooms) - {"./"})
