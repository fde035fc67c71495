"""What guestAgent can be told, where, and within which limits.

docs/protocol/4-host.md#configuration-files
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import List
from urllib.parse import urlsplit

from guestmtce.agent.http.users import look_up_users
from guestmtce.daemon.config import MAIN, Finding, setting
from guestmtce.daemon.settings import DAY, PORT_MAX, DaemonSettings
from guestmtce.peer.authentication import Keys, check_keys, read_keys
from guestmtce.wire.datagram import HostRecord

NAME = "guestAgent"
MTC = "mtc"
VIM = "vim"
FILES = {
    MAIN: "/etc/mtc/guestAgent.ini",
    MTC: "/etc/mtc.conf",
    VIM: "/etc/nfv/nfv_plugins/nfvi_plugins/config.ini",
}

SHORTEST = 0.001  # s


@dataclasses.dataclass(frozen=True)
class AgentSettings(DaemonSettings):
    """Times in s."""

    bind: str = setting("", flag="--bind", help="address to listen on for guestServers; default: all")
    # The ports are those of docs/protocol/2-datagrams.md#ports and docs/protocol/3-vim-http.md#commands.
    rx_port: int = setting(
        2401, "agent.rx_port", 1, PORT_MAX, "--rx-port", "UDP port for guestServers' events"
    )
    server_port: int = setting(
        2411, "client.rx_port", 1, PORT_MAX, "--server-port", "UDP port of guestServers"
    )
    http_address: str = setting("127.0.0.1", flag="--http-address", help="address to listen on for the VIM")
    http_port: int = setting(2410, "agent.vim_cmd_port", 1, PORT_MAX, "--http-port", "TCP port for the VIM")
    vim_url: str = setting(
        "", flag="--vim-url", help="where the VIM listens; default: as its own config.ini says"
    )
    vim_host: str = setting("127.0.0.1", "guest-rest-api.host", file=VIM)
    vim_port: int = setting(30002, "guest-rest-api.port", 1, PORT_MAX, file=VIM)
    mtc_address: str = setting(
        "controller", "agent.mtc_address", flag="--mtc-address", help="address or name of mtcAgent"
    )
    mtc_cmd_port: int = setting(
        2108,
        "agent.mtc_to_guest_cmd_port",
        1,
        PORT_MAX,
        "--mtc-cmd-port",
        "UDP port to hear mtcAgent",
        file=MTC,
    )
    mtc_event_port: int = setting(
        2107, "agent.hbs_to_mtc_event_port", 1, PORT_MAX, "--mtc-event-port", "UDP port of mtcAgent", file=MTC
    )
    key_file: str = setting("", "security.key_file", help="file of the key shared with guestServers")
    old_key_file: str = setting("", "security.old_key_file", help="file of a second key that is accepted")
    hosts: str = setting("", "agent.hosts")  # NAME UUID ADDRESS, …
    http_threads: int = setting(4, "agent.http_threads", 1, 64)
    vim_users: str = setting("", "agent.vim_users")  # names or uids, …

    audit_first: float = setting(2.0, "timers.audit_first", SHORTEST, DAY)
    audit_period: float = setting(10.0, "timers.audit_period", SHORTEST, DAY)
    mtc_ask_period: float = setting(10.0, "timers.mtc_ask_period", SHORTEST, DAY)
    command_timeout: float = setting(10.0, "timers.command_timeout", SHORTEST, DAY)  # the VIM waits for 20
    mtc_refresh: float = setting(60.0, "timers.mtc_refresh", SHORTEST, DAY)
    resolve_first: float = setting(1.0, "timers.resolve_first", SHORTEST, DAY)
    resolve_period: float = setting(30.0, "timers.resolve_period", SHORTEST, DAY)
    # A VIM that stands still answers late; a dead one resets at once
    # (docs/protocol/3-vim-http.md#how-events-are-delivered).
    vim_timeout: float = setting(20.0, "timers.vim_timeout", SHORTEST, DAY)
    vim_alarm_timeout: float = setting(100.0, "timers.vim_alarm_timeout", SHORTEST, DAY)
    vim_retry_first: float = setting(0.5, "timers.vim_retry_first", SHORTEST, DAY)
    vim_retry_max: float = setting(10.0, "timers.vim_retry_max", SHORTEST, DAY)

    def keys(self) -> Keys:
        """The shared keys, or nothing. Raises OSError for a file that holds none."""
        return read_keys(self.key_file, self.old_key_file)

    def check(self) -> List[Finding]:
        """The keys, the hosts that are known without mtcAgent, the VIM's address and its users."""
        findings = check_keys(self.key_file, self.old_key_file)
        try:
            self.known_hosts()
        except OSError as error:
            why = str(error).partition("hosts: ")[2]  # what it is about is said before
            findings.append(Finding("hosts", why))
        if self.vim_url and not _is_url(self.vim_url):
            findings.append(Finding("vim_url", "write http://HOST:PORT"))
        for name in look_up_users(self.vim_users)[1]:
            text = "there is no user %s: it may not command: make it, or write another name or uid" % name
            # Ignored: the daemon starts without that user, because root and its own may command.
            findings.append(Finding("vim_users", text, ignored=True))
        return findings

    @property
    def vim_base(self) -> str:
        """The VIM's base URL."""
        host = "[%s]" % self.vim_host if ":" in self.vim_host else self.vim_host
        return self.vim_url.rstrip("/") or "http://%s:%d" % (host, self.vim_port)

    def known_hosts(self) -> List[HostRecord]:
        """The hosts that are known without mtcAgent. Raises OSError for words that name none."""
        return [_parse_host(words) for words in self.hosts.split(",") if words.strip()]


def _parse_host(words: str) -> HostRecord:
    try:
        name, uuid, address = words.split()
        return HostRecord(name, uuid, str(ipaddress.ip_address(address)))
    except ValueError:
        text = "[agent] hosts: %s: NAME UUID ADDRESS expected, for each host, with commas between them"
        raise OSError(text % words.strip()) from None


def _is_url(text: str) -> bool:
    """Whether something can listen there, without TLS: the VIM has none."""
    try:
        url = urlsplit(text)
        return url.scheme == "http" and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
