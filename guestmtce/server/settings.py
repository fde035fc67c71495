"""What guestServer can be told, where, and within which limits.

docs/protocol/4-host.md#configuration-files
"""

from __future__ import annotations

import dataclasses
import os
import pwd
from typing import ClassVar, Dict, List, Tuple

from guestmtce.daemon.config import MAIN, Finding, setting
from guestmtce.daemon.settings import DAY, PORT_MAX, DaemonSettings
from guestmtce.peer.authentication import Keys, check_keys, read_keys
from guestmtce.server.child import session_types
from guestmtce.server.supervise import seccomp, uid_pool

NAME = "guestServer"
FILES = {MAIN: "/etc/mtc/guestServer.ini"}

PLATFORM = "/etc/platform"  # a folder that every host of StarlingX has
CONFIGURED_FLAG = "/etc/platform/.initial_config_complete"
GO_FLAG = "/var/run/.goenabled"

SHORTEST = 0.001  # s; timers can be scaled down to this in tests


@dataclasses.dataclass(frozen=True)
class ServerSettings(DaemonSettings):
    """Times in s unless the name says ms. `OLD_DEFAULTS`: what the INI file of an old release has set."""

    OLD_DEFAULTS: ClassVar[Dict[str, Tuple[float, ...]]] = {
        "timers.expected_silence": (60.0,),
        "timers.memory_valid": (30.0,),
        "timers.question_grace": (1.0,),
    }

    channel_dir: str = setting(
        "/var/lib/libvirt/qemu", flag="--channel-dir", help="folder of the guests' sockets"
    )
    bind: str = setting("", flag="--bind", help="address to listen on; default: all")
    rx_port: int = setting(2411, "client.rx_port", 1, PORT_MAX, "--rx-port", "UDP port to listen on")
    agent_port: int = setting(2401, "agent.rx_port", 1, PORT_MAX, "--agent-port", "UDP port of guestAgent")
    hostname: str = setting(
        "", flag="--hostname", help="this host's name; default: the system's when it starts to serve"
    )
    controller: str = setting("controller", flag="--controller", help="address or name of the controller")
    no_wait: bool = setting(
        False, flag="--no-wait", help="do not wait for the host to be configured and go-enabled"
    )
    child_user: str = setting("nobody", flag="--child-user", help="the user that children become")
    child_uids: str = setting(
        "auto",
        "client.child_uids",
        flag="--child-uids",
        help="A-B: each child has a uid of its own, of these; auto: those of guestmtce in /etc/subuid; none",
    )
    page_layout: bool = setting(True, "debug.page_layout")
    no_seccomp: bool = setting(
        False, flag="--no-seccomp", help="children without a filter of system calls, even as root"
    )

    key_file: str = setting("", "security.key_file", help="file of the key shared with guestAgent")
    old_key_file: str = setting("", "security.old_key_file", help="file of a second key that is accepted")
    agents: str = setting("", "security.agents", help="more addresses of agents, separated by commas")

    failure_threshold: int = setting(1, "client.hbs_failure_threshold", 0, 1000)
    pulse_period_ms: int = setting(400, "client.hbs_pulse_period", 1, 3_600_000)
    start_delay: float = setting(1.0, "timeouts.start_delay", 0, 3600)

    idle_reconnect: float = setting(120.0, "timers.idle_reconnect", SHORTEST, DAY)
    child_deaths_max: int = setting(5, "supervision.child_deaths_max", 1, 1000)
    max_guests: int = setting(10_000, "supervision.max_guests", 1, 1_000_000)

    guest_patience: float = setting(5.0, "timers.guest_patience", SHORTEST, DAY)
    expected_silence: float = setting(15.0, "timers.expected_silence", SHORTEST, DAY)
    ill_repeat: float = setting(55.0, "timers.ill_repeat", SHORTEST, DAY)
    nack_period: float = setting(1.0, "timers.nack_period", SHORTEST, DAY)
    ack_period: float = setting(0.1, "timers.ack_period", SHORTEST, DAY)
    note_period: float = setting(10.0, "timers.note_period", SHORTEST, DAY)
    wake_slack: float = setting(0.02, "timers.wake_slack", SHORTEST, DAY)
    phase_spread: float = setting(1.0, "timers.phase_spread", 0, 1)
    reconnect_first: float = setting(0.01, "timers.reconnect_first", SHORTEST, DAY)
    reconnect_max: float = setting(60.0, "timers.reconnect_max", SHORTEST, DAY)
    stable_after: float = setting(1.0, "timers.stable_after", SHORTEST, DAY, formerly="timers.settled")
    state_period: float = setting(2.0, "timers.state_period", SHORTEST, DAY)
    stopped_grace: float = setting(2.0, "timers.stopped_grace", SHORTEST, DAY)
    question_grace: float = setting(0.5, "timers.question_grace", SHORTEST, DAY)
    outcome_valid: float = setting(1.0, "timers.outcome_valid", SHORTEST, DAY)
    rescan: float = setting(180.0, "timers.rescan", SHORTEST, DAY)
    folder_check: float = setting(2.0, "timers.folder_check", SHORTEST, DAY)
    folder_retry: float = setting(1.0, "timers.folder_retry", SHORTEST, DAY)
    ready_repeat: float = setting(5.0, "timers.ready_repeat", SHORTEST, DAY)
    answer_pace: float = setting(0.005, "timers.answer_pace", SHORTEST, DAY)
    agent_silence: float = setting(20.0, "timers.agent_silence", SHORTEST, DAY)
    old_agent_grace: float = setting(1.0, "timers.old_agent_grace", SHORTEST, DAY)
    unconfirmed_warn: float = setting(30.0, "timers.unconfirmed_warn", SHORTEST, DAY)
    resolve_first: float = setting(1.0, "timers.resolve_first", SHORTEST, DAY)
    resolve_period: float = setting(30.0, "timers.resolve_period", SHORTEST, DAY)
    child_patience: float = setting(10.0, "timers.child_patience", SHORTEST, DAY)
    child_rest_watched_max: float = setting(8.0, "timers.child_rest_watched_max", SHORTEST, DAY)
    child_rest: float = setting(60.0, "timers.child_rest", SHORTEST, DAY)
    spawn_timeout: float = setting(5.0, "timers.spawn_timeout", SHORTEST, DAY)
    alive_mark: float = setting(5.0, "timers.alive_mark", SHORTEST, DAY)
    short_absence: float = setting(30.0, "timers.short_absence", SHORTEST, DAY)
    memory_valid: float = setting(300.0, "timers.memory_valid", SHORTEST, DAY)
    flag_poll: float = setting(1.0, "timers.flag_poll", SHORTEST, DAY)

    def keys(self) -> Keys:
        """The shared keys, or nothing. Raises OSError for a file that holds none."""
        return read_keys(self.key_file, self.old_key_file)

    def check(self) -> List[Finding]:
        """The keys, the users that children become, the folder of sockets, and what makes the filter."""
        findings = check_keys(self.key_file, self.old_key_file)
        is_root = os.geteuid() == 0
        try:
            # AUTO is never an error: where it finds no range the children share one user.
            if self.child_uids != uid_pool.AUTO:
                uid_pool.choose_uids(self.child_uids)
        except OSError as error:
            why = str(error).partition(": ")[2]  # what it is about is said before
            findings.append(Finding("child_uids", why + ": name uids that nobody has, or auto, or none"))
        if is_root and not _is_user(self.child_user):
            findings.append(Finding("child_user", "there is no such user: make it, or name another"))
        try:
            seccomp.choose_filter(self.no_seccomp, required=is_root)
        except OSError as error:
            findings.append(Finding("no_seccomp", str(error)))
        if not os.path.isdir(self.channel_dir):
            text = "there is no such folder: no guest is found until libvirt makes it, or name another"
            findings.append(Finding("channel_dir", text, ignored=True))
        return findings

    def agent_names(self) -> List[str]:
        """Who may command us where no key is configured: a controller has a floating and an own address."""
        names = [name.strip() for name in self.agents.split(",") if name.strip()]
        return [self.controller, *self.controller_hosts(), *names]

    def controller_hosts(self) -> List[str]:
        """The controllers' own names; a site may have only one of them."""
        return ["controller-0", "controller-1"] if self.controller == "controller" else []

    def session(self) -> session_types.SessionSettings:
        """The part that a child's session needs."""
        return session_types.SessionSettings(
            interval_floor_ms=self.pulse_period_ms,
            failure_threshold=self.failure_threshold,
            guest_patience=self.guest_patience,
            idle_reconnect=self.idle_reconnect,
            expected_silence=self.expected_silence,
            ill_repeat=self.ill_repeat,
            nack_period=self.nack_period,
            ack_period=self.ack_period,
            note_period=self.note_period,
            wake_slack=self.wake_slack,
            phase_spread=self.phase_spread,
        )


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
        return True
    except KeyError:
        return False
