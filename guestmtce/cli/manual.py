"""Manual pages, and bash's completion, of all programs.

What a program is for, its files, signals and exit statuses stand here; its options are those of its --help.

`python -m guestmtce.cli.manual PAGES COMPLETIONS [PROGRAM …]` writes them into two folders. It needs the
standard library only: packages are built where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from guestmtce import __version__
from guestmtce.agent import settings as agent
from guestmtce.cli import main as command
from guestmtce.daemon import config
from guestmtce.guest import config as guest_config
from guestmtce.guest import local_socket
from guestmtce.guest import options as guest
from guestmtce.server import settings as server

WIDE = "1000"  # columns: an option's text stays in its line
_HEAD = re.compile(r" {2}(-\S.*?)(?: {2,}(\S.*))?")
_MORE = re.compile(r" {10,}(\S.*)")
FOLDERS = {"--run-dir", "--log-dir", "--channel-dir", "--dir", "--to"}  # options whose value is a folder
FILES = {"--config", "--record", "--device", "--socket", "--pid-file", "--log"}


class Option(NamedTuple):
    """As --help shows it: `-l, --log FILE`, and what it does."""

    shown: str
    text: str

    @property
    def names(self) -> List[str]:
        """`-l` and `--log`."""
        return [word.split()[0] for word in self.shown.split(", ")]


class Page(NamedTuple):
    """What a program's page says beside its options."""

    section: int
    purpose: str
    description: str
    files: Dict[str, str]
    signals: Dict[str, str]
    statuses: Dict[str, str]
    see: str


_DAEMON_SIGNALS = {
    "HUP": "read the configuration again; the log says what waits for a restart",
    "USR1": "write the health report",
    "USR2": "write all state, one line per guest, instance or host",
    "TERM, INT": "end, within 2 s",
}
_DAEMON_STATUSES = {
    "0": "it serves, or one is running already; with --check-config: it would start",
    "1": "it cannot start, or has ended over a failure: a line says why; with --check-config: it would not "
    "start, and a line for each fault names the file, the key, the value and what to write instead",
    "2": "the command line is wrong",
}


def _daemon_files(name: str) -> Dict[str, str]:
    return {
        "/etc/mtc/%s.ini" % name: "every setting, commented out with its default",
        "/var/run/%s.pid" % name: "its pid",
        "/var/run/%s.info" % name: "the health report (docs/reports.md)",
        "/var/log/%s.dump" % name: "all state",
    }


PAGES = {
    "guestServer": Page(
        8,
        "heartbeat of the guests of a compute host",
        "guestServer challenges the heartbeat client in each virtual machine of its host, in a "
        "process of its own for each, and tells guestAgent which do not answer, are ill, or have a "
        "say in what is to be done with them. It goes into the background and returns when it serves "
        "or has said why not.",
        {**_daemon_files("guestServer"), "/etc/subuid": "the uids of its children, in the line of guestmtce"},
        _DAEMON_SIGNALS,
        _DAEMON_STATUSES,
        "guestAgent(8), guestClient(8), guestmtce(1)",
    ),
    "guestAgent": Page(
        8,
        "heartbeat of guests: the controller's side",
        "guestAgent takes the commands of the cloud's manager (the VIM) by HTTP, passes them on to "
        "the guestServers, and tells the VIM what these hear of their guests. It goes into the "
        "background and returns when it serves or has said why not.",
        {
            **_daemon_files("guestAgent"),
            "/etc/mtc.conf": "the ports of mtcAgent",
            "/etc/nfv/nfv_plugins/nfvi_plugins/config.ini": "where the VIM listens",
        },
        _DAEMON_SIGNALS,
        _DAEMON_STATUSES,
        "guestServer(8), guestmtce(1)",
    ),
    "guestClient": Page(
        8,
        "heartbeat of a guest: its own side",
        "guestClient runs inside a virtual machine, answers the host's challenges, and passes votes "
        "and notices on to a script and to local processes. It goes into the background.",
        {
            guest_config.CONFIG_FILE: "the configuration, KEY=value",
            guest.DEVICE: "the port to the host",
            local_socket.SOCKET: "the socket for local processes",
            guest.PID_FILE: "its pid",
        },
        {
            "HUP": "read the configuration again; the log says what is in effect",
            "USR1": "write the state, the configuration and the local processes to the log",
            "TERM, INT, QUIT": "say goodbye to the host, and end: no failure of the guest",
        },
        {
            "0": "it is in the background, has ended as it was told to, or one is running already",
            "1": "it ended on its way into the background",
            "2": "a command line or a file cannot be used",
            "6": "with --service or --may-start: this is a host of guests, where it is not to run",
        },
        "guestServer(8)",
    ),
    "guestmtce": Page(
        1,
        "guest heartbeat: demo, bench and laboratory",
        "guestmtce runs a whole cloud on this machine (demo), measures real daemons (bench), stands "
        "in for a neighbour of the daemons (lab), and lays out the files of guestmtce (files).",
        {},
        {"TERM, INT": "demo and bench: stop all that they have started, and end"},
        {
            "0": "all went as it should",
            "1": "something was missed or could not be had, which is said",
            "2": "the command line is wrong",
            "130": "it was interrupted",
        },
        "guestServer(8), guestAgent(8)",
    ),
}


def help_of(name: str) -> Dict[str, str]:
    """The words behind the program's name ("" for none) → what it prints with them and --help."""
    if name == "guestClient":
        # guestClient has no argparse: its text stands in the module.
        return {"": guest.HELP}
    if name == "guestmtce":
        return {words: _capture_help(words) for words in ("", *command.NAMES)}
    kind = {"guestServer": server.ServerSettings, "guestAgent": agent.AgentSettings}[name]
    return {"": config.help_text(kind, name)}


def _capture_help(words: str) -> str:
    """What `guestmtce WORDS --help` prints."""
    output = io.StringIO()
    # argparse prints the help and exits.
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        command.main([*words.split(), "--help"])
    return output.getvalue()


def options_in(text: str) -> List[Option]:
    """The options that a program's --help lists, in its order."""
    options: List[Option] = []
    for line in text.splitlines():
        head, more = _HEAD.fullmatch(line), _MORE.fullmatch(line)
        if head:
            options.append(Option(head[1], head[2] or ""))
        elif more and options:
            options[-1] = options[-1]._replace(text=(options[-1].text + " " + more[1]).strip())
    return options


# --- pages ---------------------------------------------------------------------------------------------


def _quote(text: str) -> str:
    """`text` as roff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def _list_terms(title: str, pairs: Sequence[Tuple[str, str]]) -> List[str]:
    lines = [".SH " + title] if pairs else []
    for term, text in pairs:
        # "\\&" is a line without a glyph: roff takes an empty one for a break.
        lines += [".TP", ".B " + _quote(term), _quote(text) or "\\&"]
    return lines


def page_of(name: str) -> str:
    """The manual page in roff."""
    page, helps = PAGES[name], help_of(name)
    lines = ['.TH %s %d "" "guestmtce %s"' % (name.upper(), page.section, __version__)]
    lines += [".SH NAME", "%s \\- %s" % (name, _quote(page.purpose)), ".SH SYNOPSIS"]
    for words in [words for words in helps if words] or [""]:
        lines += [".B " + " ".join([name, words]).strip(), "[\\fIoption\\fR ...]", ".br"]
    lines += [".SH DESCRIPTION", _quote(page.description)]
    for words, text in helps.items():
        lines += _list_terms(("options of %s" % words if words else "options").upper(), options_in(text))
    sections = {"FILES": page.files, "SIGNALS": page.signals, "EXIT STATUS": page.statuses}
    for title, texts in sections.items():
        lines += _list_terms(title, list(texts.items()))
    see = re.sub(r"(\w+)\((\d)\)", r"\\fB\1\\fR(\2)", page.see)
    return "\n".join([*lines, ".SH SEE ALSO", see]) + "\n"


# --- completion ----------------------------------------------------------------------------------------

_COMPLETION = """\
# bash's completion of %(name)s, made of what it says with --help.
_%(name)s() {
    case $3 in
%(values)s    esac
    case "${COMP_WORDS[*]:1:COMP_CWORD}" in
%(options)s    esac
}
complete -F _%(name)s %(name)s
"""
_VALUE = '        %s) mapfile -t COMPREPLY < <(compgen -%s -- "$2"); return ;;\n'
_OFFER = '        %s) mapfile -t COMPREPLY < <(compgen -W "%s" -- "$2") ;;\n'


def completion_of(name: str) -> str:
    """A file for bash-completion: options by the words before them, and folders and files as values."""
    options = {words: options_in(text) for words, text in help_of(name).items()}
    values = "".join(_complete_values([option for listed in options.values() for option in listed]))
    first_words = sorted({word for words in options for word in words.split()})
    offers = ""
    for words in sorted(options, key=len, reverse=True):  # the longest pattern that fits counts
        names = sorted(name for option in options[words] for name in option.names)
        offers += _OFFER % (
            '"%s "*' % words if words else "*",
            " ".join(names if words else names + first_words),
        )
    return _COMPLETION % {"name": name, "values": values, "options": offers}


def _complete_values(options: Sequence[Option]) -> Iterator[str]:
    """The lines of the completion for options whose value is a folder or a file."""
    with_value = {name for option in options if " " in option.shown.split(", ")[-1] for name in option.names}
    for kind, known in (("d", FOLDERS), ("f", FILES)):
        names = sorted(known & with_value)
        if names:
            yield _VALUE % ("|".join(names), kind)


def write(pages: str, completions: str, names: Sequence[str]) -> None:
    """A page as PAGES/manN/NAME.N and a completion as COMPLETIONS/NAME for each. Raises OSError."""
    # argparse folds its text at the terminal's width otherwise, and the pages would depend on it.
    os.environ["COLUMNS"] = WIDE
    os.makedirs(completions, exist_ok=True)
    for name in names:
        section = PAGES[name].section
        folder = os.path.join(pages, "man%d" % section)
        os.makedirs(folder, exist_ok=True)
        _write(os.path.join(folder, "%s.%d" % (name, section)), page_of(name))
        _write(os.path.join(completions, name), completion_of(name))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) < 2 or set(words[2:]) - set(PAGES):
        print("usage: python -m guestmtce.cli.manual PAGES COMPLETIONS [PROGRAM ...]", file=sys.stderr)
        return 2
    write(words[0], words[1], words[2:] or list(PAGES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
