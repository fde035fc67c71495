"""Configuration from INI files and the command line (spec 4, "Configuration files").

A daemon declares its settings once, as the fields of a dataclass made with `setting`: default, range,
where it stands in which file, and its flag. `load` turns files and arguments into such a dataclass.
"""

from __future__ import annotations

import argparse
import configparser
import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, TypeVar

MAIN = "main"  # the daemon's own file, among those a setting may stand in

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
) -> Any:
    """A field of a settings class. `place` is `section.key`; `low` and `high` (included) bound a number."""
    section, _, key = place.partition(".")
    where = Place(file, section, key) if place else None
    data = {"place": where, "low": low, "high": high, "flag": flag, "help": help}
    return dataclasses.field(default=default, metadata=data)


def load(
    kind: Type[Settings], name: str, files: Dict[str, str], arguments: Optional[Sequence[str]] = None
) -> Tuple[Settings, List[str]]:
    """The settings of the daemon `name`, and lines for its log about what was not configured.

    `files` maps a file's name, as settings use it, to its path; `--config` replaces the main one's. Raises
    ConfigError; exits as argparse does for a wrong command line and for --help.
    """
    given = vars(_parser(kind, name).parse_args(arguments))
    files = dict(files)
    if given["config"]:
        files[MAIN] = given["config"]
    parsers, notes = _read(files, explicit=given["config"])
    settable = _overrides(kind, given["set"])
    values, absent = {}, []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = field.metadata["place"]
        if given.get(field.name) is not None:
            values[field.name] = _convert(field, given[field.name], field.metadata["flag"])
        elif field.name in settable:
            values[field.name] = _convert(field, settable[field.name], "--set %s.%s" % place[1:])
        elif place and parsers[place.file].has_option(place.section, place.key):
            source = "%s: [%s] %s" % (files[place.file], place.section, place.key)
            values[field.name] = _convert(field, parsers[place.file].get(place.section, place.key), source)
        elif place and place.file not in notes:
            absent.append("%s.%s" % (place.section, place.key))
    lines = [*notes.values()]
    unused = _unused(kind, parsers[MAIN])
    if unused:
        lines.append("%s: not used: %s" % (files[MAIN], ", ".join(unused)))
    if absent:
        lines.append("not configured, default taken: " + ", ".join(absent))
    return kind(**values), lines


def _unused(kind: Any, parser: configparser.ConfigParser) -> List[str]:
    """What stands in the daemon's own file and is none of its settings: of old, or mistyped."""
    places = {f.metadata["place"] for f in dataclasses.fields(kind)}
    found = [Place(MAIN, section, key) for section in parser.sections() for key in parser.options(section)]
    return ["%s.%s" % place[1:] for place in found if place not in places]


def _parser(kind: Any, name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="the INI file to read")
    parser.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="any value of the INI file"
    )
    for field in dataclasses.fields(kind):
        flags = field.metadata["flag"].split()
        if not flags:
            continue
        options: Dict[str, Any] = {"dest": field.name, "default": None, "help": field.metadata["help"]}
        if isinstance(field.default, bool):
            options.update(action="store_const", const=not field.default)
        else:
            options.update(metavar=field.name.upper())
        parser.add_argument(*flags, **options)
    for flag in ("-v", "--verbose"), ("-V", "--Virtual"), ("-t", "--test"), ("-a", "--active"):
        parser.add_argument(*flag, action="store_true", help=argparse.SUPPRESS)
    return parser


def _read(
    files: Dict[str, str], explicit: str
) -> Tuple[Dict[str, configparser.ConfigParser], Dict[str, str]]:
    """A parser per file, and a line for each file that is not there."""
    parsers, notes = {}, {}
    for name, path in files.items():
        parsers[name] = parser = configparser.ConfigParser(
            interpolation=None, strict=False, inline_comment_prefixes=(";",), comment_prefixes=(";", "#")
        )
        try:
            with open(path, encoding="utf-8") as file:
                parser.read_file(file)
        except FileNotFoundError:
            if path == explicit:
                raise ConfigError("%s: there is no such file" % path) from None
            notes[name] = "%s is not there: defaults" % path
        except (OSError, configparser.Error, UnicodeDecodeError) as error:
            raise ConfigError("%s: %s" % (path, " ".join(str(error).split()))) from None
    return parsers, notes


def _overrides(kind: Any, words: List[str]) -> Dict[str, str]:
    places = {
        "%s.%s" % f.metadata["place"][1:]: f.name for f in dataclasses.fields(kind) if f.metadata["place"]
    }
    values = {}
    for word in words:
        place, equals, value = word.partition("=")
        if not equals or place not in places:
            raise ConfigError(
                "--set %s: SECTION.KEY=VALUE expected, of %s" % (word, ", ".join(sorted(places)))
            )
        values[places[place]] = value
    return values


def _convert(field: Any, value: Any, source: str) -> Any:
    """`value` as the field's type. `source` says where it was found."""
    shown = " ".join(str(value).split())  # an INI value may go on over lines
    if isinstance(field.default, bool) or isinstance(value, bool):
        words = {"1": True, "yes": True, "true": True, "0": False, "no": False, "false": False}
        if str(value).lower() not in words:
            raise ConfigError("%s = %s: neither 1 nor 0" % (source, shown))
        return words[str(value).lower()]
    if isinstance(field.default, str):
        return value.strip()
    try:
        number = type(field.default)(value)
    except ValueError:
        raise ConfigError("%s = %s: no number" % (source, shown)) from None
    low, high = field.metadata["low"], field.metadata["high"]
    if not (low is None or low <= number) or not (high is None or number <= high):
        raise ConfigError("%s = %s: not in %s to %s" % (source, shown, low, high))
    return number
