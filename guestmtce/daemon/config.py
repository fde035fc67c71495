"""Configuration from INI files and the command line (docs/protocol/4-host.md#configuration-files).

A daemon declares its settings once, as the fields of a dataclass made with `setting`: default, range,
where it stands in which file, and its flag. `load` turns files and arguments into such a dataclass.

What stands in the daemon's own file must be right, or it does not start. The other files are others', who may
put anything there: what cannot be read in them is named, and the default holds.
"""

from __future__ import annotations

import argparse
import configparser
import dataclasses
import difflib
import math
import re
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar

from guestmtce import __version__
from guestmtce.daemon import ini_file
from guestmtce.daemon.log import printable

MAIN = "main"  # the daemon's own file, among those a setting may stand in

# Python takes more than people mean: 1_000, digits of other scripts, nan, inf.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)

LIKENESS = 0.85  # of a key to a setting, from 0 to 1, at which it is taken for misspelt

Settings = TypeVar("Settings")


class ConfigError(Exception):
    """A value that cannot be used; the text names file, section, key and value."""


class Place(NamedTuple):
    """Where a setting stands: which file, and `section.key` in it."""

    file: str
    section: str
    key: str


def setting(
    default: Any,
    place: str = "",
    low: Optional[float] = None,
    high: Optional[float] = None,
    flag: str = "",
    help: str = "",
    file: str = MAIN,
    formerly: str = "",
) -> Any:
    """A field of a settings class. `place` is `section.key`; `low` and `high` (included) bound a number.

    `formerly` is another `section.key`, which an earlier release had in its place: it goes on working.
    """
    where = _parse_place(file, place) if place else None
    old = _parse_place(file, formerly) if formerly else None
    data = {"place": where, "formerly": old, "low": low, "high": high, "flag": flag, "help": help}
    return dataclasses.field(default=default, metadata=data)


def _parse_place(file: str, place: str) -> Place:
    section, _, key = place.partition(".")
    return Place(file, section, key)


def load(
    kind: Type[Settings], name: str, files: Dict[str, str], arguments: Optional[Sequence[str]] = None
) -> Tuple[Settings, List[str]]:
    """The settings of the daemon `name`, and lines for its log about what was not configured.

    `files` maps a file's name, as settings use it, to its path; `--config` replaces the main one's. Raises
    ConfigError, the first of all; exits as argparse does for a wrong command line and for --help, and for
    --check-config with 0 or 1 after it has named every fault.
    """
    given = vars(_parser(kind, name).parse_args(arguments))
    read = _read_values(kind, files, given)
    if given["check_config"]:
        sys.exit(_tell_check(name, kind, read))
    # All values were looked at before: --check-config names each fault, a start only the first.
    if read.faults:
        raise ConfigError(read.faults[0])
    return kind(**read.values), read.notes


class Finding(NamedTuple):
    """What a settings class's `check` finds about one of its fields: why, and what to do.

    A value that is `ignored` prevents no start.
    """

    field: str
    why: str
    ignored: bool = False


class Read(NamedTuple):
    """What is configured by field, and where; lines for the log; a line for each value that is no value."""

    values: Dict[str, Any]
    sources: Dict[str, str]
    notes: List[str]
    faults: List[str]


def _tell_check(name: str, kind: Any, read: Read) -> int:
    """--check-config: a line for each fault, which would keep the daemon from starting, and each note."""
    notes, faults = list(read.notes), list(read.faults)
    # `check` compares fields with each other, so all of them must be values.
    if not faults:
        settings = kind(**read.values)
        for finding in settings.check():
            line = "%s: %s" % (_shown(settings, finding.field, read), finding.why)
            (notes if finding.ignored else faults).append(line)
    for note in notes:
        print("%s: note: %s" % (name, note))
    for fault in faults:
        print("%s: fault: %s" % (name, fault))
    print("%s: %s" % (name, "%d faults: it would not start" % len(faults) if faults else "it would start"))
    return int(bool(faults))


def _shown(settings: Any, name: str, read: Read) -> str:
    """Where a value stands, and the value."""
    field = next(field for field in dataclasses.fields(settings) if field.name == name)
    place = field.metadata["place"]
    spelled = "[%s] %s" % place[1:] if place else field.metadata["flag"]
    source = read.sources.get(name, "default of " + spelled)
    return "%s = %s" % (source, printable(getattr(settings, name)))


def _read_values(kind: Any, files: Dict[str, str], given: Dict[str, Any]) -> Read:
    """What is configured. Raises ConfigError for what cannot even be read."""
    files = dict(files)
    if given["config"]:
        files[MAIN] = given["config"]
    parsers, missing, notes = _read(files, explicit=given["config"])
    settable = _overrides(kind, given["set"])
    values: Dict[str, Any] = {}
    sources: Dict[str, str] = {}
    absent, faults = [], []
    for field in dataclasses.fields(kind):
        place, old = field.metadata["place"], field.metadata["formerly"]
        # From the strongest to the weakest: option, --set, the file, the file's old name for it.
        if given.get(field.name) is not None:
            found, source = given[field.name], field.metadata["flag"]
        elif field.name in settable:
            found, source = settable[field.name], "--set %s.%s" % place[1:]
        elif place and parsers[place.file].has_option(place.section, place.key):
            found = parsers[place.file].get(place.section, place.key)
            source = "%s: [%s] %s" % (files[place.file], place.section, place.key)
        elif old and parsers[old.file].has_option(old.section, old.key):
            found = parsers[old.file].get(old.section, old.key)
            source = "%s: [%s] %s" % (files[old.file], old.section, old.key)
            notes.append("%s is old and still works: write [%s] %s instead" % (source, *place[1:]))
        else:
            if place and place.file not in missing:
                absent.append("%s.%s" % (place.section, place.key))
            continue
        sources[field.name] = source
        try:
            values[field.name] = _convert(field, found, source)
        except ConfigError as error:
            # A value in another program's file is not ours to correct: the default is better than no daemon.
            if place and place.file != MAIN and source.startswith(files[place.file]):
                notes.append("%s: ignored, %s is taken" % (error, field.default))
            else:
                faults.append("%s: %s" % (error, _remedy(field)))
    # Of the daemon's own file only: the others hold settings of other programs, which we do not know.
    notes.extend("%s: %s" % (files[MAIN], text) for text in _unused(kind, parsers[MAIN]))
    notes.extend(_outdated(kind, parsers[MAIN], files[MAIN], values))
    if absent:
        notes.append("not configured, default taken: " + ", ".join(absent))
    return Read(values, sources, notes, faults)


def _outdated(kind: Any, parser: configparser.ConfigParser, path: str, values: Dict[str, Any]) -> List[str]:
    """A line for each value that was once shipped as a default, and is none any more."""
    lines = []
    for field in dataclasses.fields(kind):
        place, value = field.metadata["place"], values.get(field.name)
        if place and place.file == MAIN and parser.has_option(place.section, place.key):
            old = getattr(kind, "OLD_DEFAULTS", {}).get("%s.%s" % place[1:], ())
            # A site that copied the shipped file keeps an old default without wanting it.
            if value in old and value != field.default:
                text = (
                    "%s: [%s] %s = %s was the default once, and is %s now: remove the line unless it is meant"
                )
                lines.append(text % (path, place.section, place.key, value, field.default))
    return lines


def _unused(kind: Any, parser: configparser.ConfigParser) -> List[str]:
    """A line for the keys of the daemon's own file that no setting reads, and one for each misspelt one."""
    fields = dataclasses.fields(kind)
    places = [f.metadata["place"] for f in fields if f.metadata["place"]]
    old = ["%s.%s" % f.metadata["formerly"][1:] for f in fields if f.metadata["formerly"]]
    known = ["%s.%s" % place[1:] for place in places if place.file == MAIN]
    found = ["%s.%s" % (section, key) for section in parser.sections() for key in parser.options(section)]
    unused = [key for key in found if key not in known and key not in old]
    lines = ["not used: " + ", ".join(unused)] if unused else []
    for key in unused:
        # Its section is right or its key is: what old releases had is like none.
        near = difflib.get_close_matches(key, [one for one in known if one not in found], 1, LIKENESS)
        if near:
            section, name = near[0].split(".")
            lines.append("%s is no setting: write [%s] %s if that is meant" % (key, section, name))
    return lines


def _parser(kind: Any, name: str) -> argparse.ArgumentParser:
    # No abbreviations: a script's `--re` would change its meaning with the next option that is added.
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("--version", action="version", version="%s %s" % (name, __version__))
    parser.add_argument(
        "--check-config", action="store_true", help="name each fault of the configuration, and do not start"
    )
    parser.add_argument("--config", metavar="FILE", help="the INI file to read")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="any value of the INI file"
    )
    for field in dataclasses.fields(kind):
        flags = field.metadata["flag"].split()
        if not flags:
            continue
        # None says that the option was not given: a default here would win over the file.
        options: Dict[str, Any] = {"dest": field.name, "default": None, "help": field.metadata["help"]}
        if isinstance(field.default, bool):
            # The flag of a switch turns its default over.
            options.update(action="store_const", const=not field.default)
        else:
            options.update(metavar=field.name.upper())
        parser.add_argument(*flags, **options)
    # Taken without effect, for command lines of the original daemons.
    # docs/protocol/4-host.md#command-line
    for flag in ("-v", "--verbose"), ("-V", "--Virtual"), ("-t", "--test"), ("-a", "--active"):
        parser.add_argument(*flag, action="store_true", help=argparse.SUPPRESS)
    for letter in "mniupcg":  # of every mtce daemon; with a value or without
        parser.add_argument("-" + letter, nargs="?", help=argparse.SUPPRESS)
    return parser


def help_text(kind: Any, name: str) -> str:
    """What the daemon `name` says with --help."""
    return _parser(kind, name).format_help()


def _read(
    files: Dict[str, str], explicit: str
) -> Tuple[Dict[str, configparser.ConfigParser], List[str], List[str]]:
    """A parser per file, the names of the files that cannot be read, and lines about what is odd."""
    parsers: Dict[str, configparser.ConfigParser] = {}
    missing, notes = [], []
    for name, path in files.items():
        try:
            read = ini_file.read_own if name == MAIN else ini_file.read_others
            parsers[name], more = read(path)
            notes += ["%s: %s" % (path, each) for each in more]
        except FileNotFoundError:
            # A file that somebody named must be there; the standard one may be missing.
            if path == explicit:
                raise ConfigError("%s: there is no such file" % path) from None
            notes.append("%s is not there: defaults" % path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            if name == MAIN:
                raise ConfigError("%s: %s" % (path, why)) from None
            notes.append("%s: %s: defaults" % (path, why))
        if name not in parsers:
            # An empty one: every setting of the file has its default.
            parsers[name] = ini_file.parser()
            missing.append(name)
    return parsers, missing, notes


def _overrides(kind: Any, overrides: List[str]) -> Dict[str, str]:
    fields = dataclasses.fields(kind)
    places = {"%s.%s" % f.metadata["place"][1:]: f.name for f in fields if f.metadata["place"]}
    old = {"%s.%s" % f.metadata["formerly"][1:]: f.name for f in fields if f.metadata["formerly"]}
    values = {}
    for override in overrides:
        place, equals, value = override.partition("=")
        name = places.get(place) or old.get(place)
        if not equals or name is None:
            raise ConfigError(
                "--set %s: SECTION.KEY=VALUE expected, of %s" % (override, ", ".join(sorted(places)))
            )
        values[name] = value
    return values


def _convert(field: Any, value: Any, source: str) -> Any:
    """`value` as the field's type. `source` says where it was found."""
    shown = printable(" ".join(str(value).split()))  # an INI value may go on over lines
    # Before the numbers: bool is a kind of int.
    if isinstance(field.default, bool) or isinstance(value, bool):
        means = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
        if str(value).lower() not in means:
            raise ConfigError("%s = %s: neither 1 nor 0" % (source, shown))
        return means[str(value).lower()]
    if isinstance(field.default, str):
        return _text(value, source, shown)
    kind = type(field.default)
    text = str(value).strip()
    if (_INTEGER if kind is int else _NUMBER).fullmatch(text) is None:
        raise ConfigError("%s = %s: no number" % (source, shown))
    converted = kind(text)
    low, high = field.metadata["low"], field.metadata["high"]
    if (
        not (low is None or low <= converted)
        or not (high is None or converted <= high)
        or not math.isfinite(converted)
    ):
        raise ConfigError("%s = %s: not in %s to %s" % (source, shown, low, high))
    return converted


def _remedy(field: Any) -> str:
    """What to write in place of a value that cannot be used."""
    if isinstance(field.default, str):
        return "write it in UTF-8"
    if isinstance(field.default, bool):
        return "write 1 or 0, or leave it out for %d" % field.default
    kind = "a whole number" if isinstance(field.default, int) else "a number"
    low, high = field.metadata["low"], field.metadata["high"]
    return "write %s from %s to %s, or leave it out for %s" % (kind, low, high, field.default)


def _text(value: str, source: str, shown: str) -> str:
    try:
        # The file's bytes that are no UTF-8 are lone surrogates by now, which cannot be encoded.
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError("%s = %s: no UTF-8" % (source, shown)) from None
    return value.strip()
