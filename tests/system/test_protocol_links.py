"""Links between documents, code and tests lead somewhere; pure rooms name what of the protocol they serve.

Two kinds of links there are: `docs/NAME.md#anchor`, in any file, counted from the checkout's root; and
`[text](target)` in a document, counted from its own folder. An anchor is GitHub's of a heading.
"""

from __future__ import annotations

import ast
import os
import re

import pytest
from places import REPOSITORY

SOURCES = ("guestmtce", "tests", "scripts", "docs", "deb_folder", "rpm")
SUFFIXES = ("", ".py", ".md", ".ini", ".conf", ".service", ".toml", ".spec", ".cfg", ".ocf", ".docs", ".in")
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
PROTOCOL = REPOSITORY / "docs" / "protocol"

# A module of these rooms names in its docstring the section that it implements, or that it serves.
BOUND = (
    "wire/*.py",
    "server/child/session*.py",
    "server/state/*.py",
    "agent/hosts*.py",
    "agent/inventory*.py",
    "agent/ledger*.py",
    "agent/model*.py",
)

FROM_ROOT = re.compile(r"(?<![\w/.-])docs/[\w/-]+\.md(?:#[\w-]+)?")
INLINE = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w/-]+\.md)`")
SECTION = re.compile(r"docs/protocol/[\w-]+\.md#[\w-]+")
OUTSIDE = re.compile(r"\b[Ss]pec [1-9]|`DESIG[N]`")
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:")  # a scheme


# --- anchors -------------------------------------------------------------------------------------------


def anchor_of(heading):
    """The anchor that GitHub makes of a heading's text: punctuation goes, each space becomes a hyphen."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors_in(text):
    """The anchors of a document; a heading that comes again has -1, -2 … behind it."""
    anchors = set()
    for heading in re.findall(r"^#{1,6} (.+?)(?: #+)?$", without_blocks(text), re.M):
        first = anchor_of(heading)
        anchor, more = first, 0
        while anchor in anchors:
            more += 1
            anchor = "%s-%d" % (first, more)
        anchors.add(anchor)
    return anchors


def without_blocks(text):
    """The text without fenced and indented blocks, in which there are no headings and no links."""
    text = re.sub(r"(?ms)^```.*?^```\s*$", "", text)
    return re.sub(r"(?m)^(?: {4}|\t).*$", "", text)


def fault_of(path, anchor):
    """What is wrong with a link to this place; empty if it leads there."""
    if not path.exists():
        return "there is no such file"
    anchors = anchors_in(path.read_text(encoding="utf-8")) if path.suffix == ".md" else ()
    if anchor and anchor not in anchors:
        return "there is no such heading, of %s" % ", ".join(sorted(anchors))
    return ""


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Votes and notices", "votes-and-notices"),
        ("How the VIM's server behaves", "how-the-vims-server-behaves"),
        ("1. The guest channel", "1-the-guest-channel"),
        ("`init` and `init_ack`, in order", "init-and-init_ack-in-order"),
        ("AppArmor & SELinux", "apparmor--selinux"),
        ("See [the seal](2-datagrams.md#the-seal)", "see-the-seal"),
    ],
)
def test_an_anchor_is_made_as_github_makes_it(heading, anchor):
    assert anchor_of(heading) == anchor


def test_a_heading_that_comes_again_has_a_number_and_one_in_a_block_is_none():
    text = "# Addresses\n\n```sh\n# no heading\n```\n\n## Addresses\n\n    # nor this\n\n## Addresses\n"
    assert anchors_in(text) == {"addresses", "addresses-1", "addresses-2"}


# --- links ---------------------------------------------------------------------------------------------


def sources():
    """The files of the checkout that people write, as paths and texts."""
    paths = [path for path in REPOSITORY.iterdir() if path.is_file() and not path.name.startswith(".")]
    for name in SOURCES:
        for folder, folders, files in os.walk(REPOSITORY / name):
            folders[:] = [one for one in folders if one not in ("__pycache__", "data")]
            paths += [REPOSITORY / folder / file for file in files]
    for path in paths:
        if path.suffix in SUFFIXES:
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a recording, not a text


def test_every_symbolic_link_of_the_packaging_leads_somewhere():
    links = [path for path in (REPOSITORY / "deb_folder").iterdir() if path.is_symlink()]
    assert [path.name for path in links if not path.exists()] == []


def line_of(text, place):
    return text.count("\n", 0, place) + 1


def test_every_document_and_anchor_that_is_named_exists():
    faults, found = [], 0
    for path, text in sources():
        if path.name == os.path.basename(__file__):
            continue
        for link in FROM_ROOT.finditer(text):
            found += 1
            name, _, anchor = link.group().partition("#")
            fault = fault_of(REPOSITORY / name, anchor)
            if fault:
                place = "%s:%d" % (path.relative_to(REPOSITORY), line_of(text, link.start()))
                faults.append("%s: %s: %s" % (place, link.group(), fault))
    assert found > 100
    assert faults == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_of_a_document_leads_somewhere(document):
    text = without_blocks(document.read_text(encoding="utf-8"))
    faults = []
    for target in INLINE.findall(re.sub("`[^`\n]*`", "", text)):
        if ELSEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        fault = fault_of(document.parent / name if name else document, anchor)
        if fault:
            faults.append("%s: %s" % (target, fault))
    assert faults == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_document_that_a_document_names_exists(document):
    places = (document.parent, REPOSITORY, REPOSITORY / "docs")
    named = NAMED.findall(without_blocks(document.read_text(encoding="utf-8")))
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_no_document_outside_of_the_repository_is_referred_to():
    faults = []
    for path, text in sources():
        for link in OUTSIDE.finditer(text):
            faults.append("%s:%d" % (path.relative_to(REPOSITORY), line_of(text, link.start())))
    assert faults == []


# --- who implements what -------------------------------------------------------------------------------


def bound_modules():
    package = REPOSITORY / "guestmtce"
    found = {path for pattern in BOUND for path in package.glob(pattern) if path.name != "__init__.py"}
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)


def has_public_names(tree):
    """Whether the module has a function or a class for others."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


def test_the_rooms_that_are_bound_to_the_protocol_are_there():
    names = " ".join(bound_modules())
    for word in ("wire/", "child/session", "server/state/", "agent/inventory"):
        assert word in names


@pytest.mark.parametrize("module", bound_modules())
def test_a_module_names_the_section_of_the_protocol_that_it_implements(module):
    tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
    if has_public_names(tree):
        said = ast.get_docstring(tree) or ""
        assert SECTION.search(said), "its docstring names no docs/protocol/PAGE.md#SECTION"


@pytest.mark.parametrize("page", sorted(PROTOCOL.glob("*.md")), ids=lambda path: path.name)
def test_no_two_sections_of_a_page_have_the_same_heading(page):
    """A link to the second one would change its meaning when the first one goes."""
    headings = re.findall(r"^#{1,6} (.+)$", without_blocks(page.read_text(encoding="utf-8")), re.M)
    assert sorted({anchor_of(heading) for heading in headings}) == sorted(map(anchor_of, headings))
