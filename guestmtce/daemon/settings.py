"""The settings that both daemons have."""

from __future__ import annotations

import dataclasses
from typing import List

from guestmtce.daemon.config import Finding, setting

PORT_MAX = 65535
DAY = 86400.0  # s


@dataclasses.dataclass(frozen=True)
class DaemonSettings:
    """What every daemon of ours can be told. Times in s unless the name says ms."""

    foreground: bool = setting(False, flag="-f --foreground", help="stay in the foreground, log to stderr")
    run_dir: str = setting(
        "/var/run", flag="--run-dir", help="folder of the pid file, the reports and the memory"
    )
    log_dir: str = setting(
        "/var/log", flag="--log-dir", help="folder of the dump, and of the log without syslog"
    )
    log_file: bool = setting(False, flag="-l --log", help="log to a file in --log-dir, not to syslog")
    debug_level: int = setting(
        0, "debug.debug_level", 0, 255, flag="-d --debug", help="above 0: log every message and decision"
    )
    pmon_port: int = setting(0, "pmon.port", 0, PORT_MAX)  # 0: pmon watches in its passive mode
    pmon_reply_port: int = setting(2200, "pmon.reply_port", 1, PORT_MAX)

    def check(self) -> List[Finding]:
        """Look at what the values name: what is wrong with it, and what prevents a start."""
        return []
