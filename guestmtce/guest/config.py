"""The configuration of the guest client: a file of shell-style `KEY=value` lines.

A value that cannot be used never keeps a guest from being watched: it is named, with its key and its line,
and the default is taken. Pure: `config_file` reads the file.
"""

import re
import shlex
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from guestmtce.guest.log_text import escape
from guestmtce.guest.settings import Settings
from guestmtce.wire import guest_channel

CONFIG_FILE = "/etc/guest-client/heartbeat/guest_heartbeat.conf"
ACTIONS = ("log", "reboot", "stop")
# One second is added to what is configured before the host is told, as the deployed client does; it is
# the margin that the guest keeps for its answer. The sum travels as ms in a signed 32-bit int.
EXTRA_SECS = 1
SECS_MAX = guest_channel.SECS_MAX - EXTRA_SECS
# Python takes more than people mean: 1_000, digits of other scripts, nan.
_NUMBER = re.compile(r"[0-9]{1,15}([.][0-9]{1,9})?\Z")
# Keys of the deployed client that mean nothing to this one.
NOT_USED = {
    "HB_INIT_RETRY": "this client says init again every 5 s until it is acknowledged",
    "HB_MIN_TIMEOUT": "this client waits for a challenge for two intervals, and 5 s at least",
}
_EXPORT = re.compile(r"export[ \t]+")
DAY = 86400.0  # s
LINE_WIDTH = 300  # characters of a line that tells what is in effect: the log cuts no line of that length


class Config(NamedTuple):
    """Times in s unless the name says otherwise; an empty script is none."""

    interval_ms: int = 1000
    corrective_action: str = "reboot"
    vote: int = 8
    shutdown_notice: int = 8
    suspend_notice: int = 8
    resume_notice: int = 13
    restart: int = 600
    health_check_interval: float = 30.0
    health_check_script: str = ""
    event_notification_script: str = ""
    run_on_host: bool = False

    def init(self, invocation_id: int, name: str) -> guest_channel.Init:
        """How the guest introduces itself."""
        return guest_channel.Init(
            invocation_id,
            name,
            self.interval_ms,
            self.vote + EXTRA_SECS,
            self.shutdown_notice + EXTRA_SECS,
            self.suspend_notice + EXTRA_SECS,
            self.resume_notice + EXTRA_SECS,
            self.restart + EXTRA_SECS,
            self.corrective_action,
        )


DEFAULTS = Config()

# Each takes a value's text and returns the value, or raises ValueError with what would be right.


def _between(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def validate(text: str) -> Any:
        expected = "a number from %g to %d expected" % (low, high)
        if _NUMBER.match(text) is None:
            raise ValueError(expected)
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= value <= high:
            raise ValueError(expected)
        return value

    return validate


def _validate_action(text: str) -> str:
    if text not in ACTIONS:
        raise ValueError("one of %s expected" % ", ".join(ACTIONS))
    return text


def _validate_yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("yes or no expected")
    return text == "yes"


def _validate_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("a full path expected")
    return text


def _keys(settings: Settings) -> Dict[str, Tuple[str, Callable[[str], Any]]]:
    """Key → field and how its text is validated."""
    secs = _between(int, 1, SECS_MAX)
    return {
        "HB_INTERVAL": ("interval_ms", _between(int, 1, guest_channel.INT32_MAX)),
        "CORRECTIVE_ACTION": ("corrective_action", _validate_action),
        "VOTE": ("vote", secs),
        "SHUTDOWN_NOTICE": ("shutdown_notice", secs),
        "SUSPEND_NOTICE": ("suspend_notice", secs),
        "RESUME_NOTICE": ("resume_notice", secs),
        "RESTART": ("restart", secs),
        "HEALTH_CHECK_INTERVAL": (
            "health_check_interval",
            _between(float, settings.health_floor, DAY),
        ),
        "HEALTH_CHECK_SCRIPT": ("health_check_script", _validate_path),
        "EVENT_NOTIFICATION_SCRIPT": ("event_notification_script", _validate_path),
        "RUN_ON_HOST": ("run_on_host", _validate_yes),
    }


def _floored(field: str, value: Any, settings: Settings) -> Any:
    """An interval that is too short means the shortest."""
    return max(value, settings.interval_floor_ms) if field == "interval_ms" else value


def describe(config: Config) -> List[str]:
    """The configuration as it is in effect, in the file's words: lines that the log does not cut.

    A value that is longer than a line goes on in the next, as `KEY (going on)=…`.
    """
    fields = {field: key for key, (field, _) in _keys(Settings()).items()}
    lines: List[str] = []
    for field, value in config._asdict().items():
        for index, piece in enumerate(_pieces(_word(value))):
            word = "%s%s=%s" % (fields[field], " (going on)" if index else "", piece)
            if lines and len(escape(lines[-1] + word)) < LINE_WIDTH:
                lines[-1] += " " + word
            else:
                lines.append(word)
    return lines


def _pieces(text: str) -> List[str]:
    """`text` in pieces that have no more than LINE_WIDTH characters in the log."""
    pieces, width = [""], 0
    for letter in text:
        width += len(escape(letter))
        if width > LINE_WIDTH:
            pieces.append("")
            width = len(escape(letter))
        pieces[-1] += letter
    return pieces


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "%g" % value if isinstance(value, float) else str(value)


def parse(text: str, name: str, settings: Settings, before: Config = DEFAULTS) -> Tuple[Config, List[str]]:
    """The configuration in `text`, and a line for the log for each thing in it that cannot be used.

    Where a value cannot be used, that of `before` stays in effect. `name` is the file's, for the log.
    Of a key given twice the last counts, as in a shell.
    """
    keys = _keys(settings)
    values: Dict[str, Any] = {}
    notes: List[str] = []
    for row, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        export = _EXPORT.match(line)
        # `export` is no fault: the lines are a shell's.
        key, value = line[export.end() if export else 0 :].partition("=")[::2]
        key = key.strip()
        if key in NOT_USED:
            notes.append("%s, line %d: %s is not used: %s" % (name, row, key, NOT_USED[key]))
            continue
        try:
            field, validate = keys[key]
            values[field] = validate(_unquoted(value))
            if values[field] != _floored(field, values[field], settings):
                values[field] = _floored(field, values[field], settings)
                text = "%s, line %d: %s=%s is too short: %s is taken"
                notes.append(text % (name, row, key, value, values[field]))
        except KeyError:
            notes.append("%s, line %d: %s: unknown key, ignored" % (name, row, key))
        except ValueError as error:
            # `field` is known here: only `validate` and `_unquoted` raise ValueError, after it was looked up.
            values[field] = getattr(before, field)
            fallback = values[field]
            notes.append("%s, line %d: %s=%s: %s; %r is taken" % (name, row, key, value, error, fallback))
    return Config(**values), notes


def _unquoted(value: str) -> str:
    """The one word that a shell would make of it. Raises ValueError."""
    try:
        words = shlex.split(value, comments=True)
    except ValueError:
        raise ValueError("a quote is missing") from None
    if len(words) > 1:
        raise ValueError("one word expected, or quotes around all of it")
    return words[0] if words else ""


def parse_bytes(data: bytes, path: str, settings: Settings, before: Config) -> Tuple[Config, List[str]]:
    """The configuration in what the file `path` holds, and lines for the log."""
    # Written on Windows, or by an editor that puts a byte order mark, it is the same file.
    text = data.decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return parse(text, path, settings, before)


def keep(before: Config, path: str, why: str) -> Tuple[Config, List[str]]:
    """The configuration when the file `path` cannot be used, and a line for the log."""
    kept = "the defaults are taken" if before == DEFAULTS else "what is in effect stays"
    return before, ["%s: %s: %s" % (path, why, kept)]
