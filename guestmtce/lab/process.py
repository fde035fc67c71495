"""A process of the lab, and the one that has the guests of a host."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any, Dict, List, Sequence

from guestmtce.server.child import confine

STOP_WAIT = 5.0  # s


def _die_with_us() -> None:
    confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)


class LabProcess:
    """A process of the lab: in a session of its own, its stderr in the file `output`; it dies with us.

    It is Python, unless `program` says else. `before` are the words of a command that becomes the program:
    `env`, `unshare`, `setpriv`. `options` are Popen's.
    """

    def __init__(
        self,
        arguments: List[str],
        output: str,
        program: str = sys.executable,
        before: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.output = output
        # Appended: a daemon that is started again goes on in the log of the one before.
        with open(output, "ab") as file:
            self.popen = subprocess.Popen(
                [*before, program, *arguments],
                stderr=file,
                # Ctrl-C at the terminal is for the lab alone, which stops its processes in their order.
                start_new_session=True,
                # Whatever ends the lab, kill -9 included, no daemon stays behind.
                preexec_fn=_die_with_us,
                **options,
            )

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.popen.poll() is None

    def signal(self, signum: int) -> None:
        """Send a signal."""
        self.popen.send_signal(signum)

    def kill(self) -> None:
        """kill -9, and reap it."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Ask it to end; kill it if it has not after STOP_WAIT."""
        if self.is_alive():
            # A process that a test has stopped would not get the TERM.
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(STOP_WAIT)
            except subprocess.TimeoutExpired:
                self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()

    def log(self) -> str:
        """What it wrote so far."""
        with open(self.output, encoding="utf-8", errors="replace") as file:
            return file.read()


class GuestsProcess(LabProcess):
    """The guests of one host; see `guestmtce.lab.crowd` for the words."""

    def __init__(self, folder: str, count: int, first: int, options: List[str], output: str) -> None:
        self.folder = folder
        arguments = ["-m", "guestmtce.cli.main", "lab", "guests", "--dir", folder, "--count", str(count)]
        arguments += ["--first", str(first), *options]
        super().__init__(arguments, output, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read_answer()

    def _read_answer(self) -> Any:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        # The end of its output: it has ended, and its log says why.
        if not line:
            raise RuntimeError("the guests ended: " + self.log())
        return json.loads(line)

    def say(self, who: Any, *words: Any) -> Any:
        """Say a word to a guest (a number, a uuid or `all`); returns its answer, a value of JSON.

        Raises ValueError for what it does not understand.
        """
        assert self.popen.stdin is not None
        self.popen.stdin.write((" ".join(map(str, (who, *words))) + "\n").encode())
        self.popen.stdin.flush()
        answer = self._read_answer()
        if isinstance(answer, dict) and "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def status(self) -> Dict[str, Dict[str, Any]]:
        """Every guest's own view, by uuid."""
        return {facts["uuid"]: facts for facts in self.say("status")}
