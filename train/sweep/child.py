"""Run a job of a sweep in its own process: start it, end it in time, judge its exit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from train.artifacts.job_record import Status
from train.cli.subprocesses import GRACE

STDERR, CONSOLE = "stderr.log", "console.log"  # in the job's folder
LONGEST_REASON = 300  # characters
SAVED = (75, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP)  # exit codes of runs that can go on


@dataclass(frozen=True)
class Ended:
    """How a process ended; the exit code is negative for a signal, the reason empty when all went well."""

    status: Status
    exit_code: int
    reason: str
    seconds: float


class Child:
    """A process that hears no Ctrl-C of the terminal: it is stopped, or killed, by the sweep alone."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        pass_fds: Sequence[int],
        *,
        minutes: float | None,
        quiet: bool,
    ) -> None:
        """Start it. After `minutes` it is asked to stop; with `quiet`, its output goes to console.log."""
        self.folder, self.minutes = folder, minutes
        self._asked = self._timed_out = False
        self._kill_at = float("inf")
        self._started = time.monotonic()
        with ExitStack() as files:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=files.enter_context((folder / CONSOLE).open("wb")) if quiet else None,
                stderr=files.enter_context((folder / STDERR).open("wb")),
                env=os.environ | dict(variables) | {"PYTHONFAULTHANDLER": "1"},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask the run to finish its step and save it, by SIGTERM: SIGINT may be ignored in the background."""
        self._asked = True
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End the process, and all that it started, at once."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group that has ended
            os.killpg(self._process.pid, signal.SIGKILL)

    def ended(self) -> Ended | None:
        """Return how it ended, None while it runs; keeps it to its time."""
        exit_code = self._process.poll()
        if exit_code is None:
            self._keep_to_its_time()
            return None
        self.kill()  # what it may have left behind
        status, reason = self._judged(exit_code)
        self._hand_on_errors()
        return Ended(status, exit_code, reason, round(time.monotonic() - self._started, 1))

    def _keep_to_its_time(self) -> None:
        now = time.monotonic()
        if now > self._kill_at:
            self.kill()
        elif self.minutes and not self._timed_out and now - self._started > self.minutes * 60:
            self._timed_out, self._kill_at = True, now + GRACE
            self._process.terminate()

    def _judged(self, exit_code: int) -> tuple[Status, str]:
        """Return the status that an exit code stands for, and the reason in a line."""
        if exit_code == 0:
            return "finished", ""
        if self._timed_out:
            return "timed out", f"stopped after {self.minutes:g} minutes"
        if exit_code in SAVED or (self._asked and exit_code < 0):
            return "interrupted", self._last_words() or "stopped"
        if exit_code < 0:
            name = {int(known): known.name for known in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
            hint = ", as the system does when memory runs out" if -exit_code == signal.SIGKILL else ""
            return "killed", f"killed by {name}{hint}"
        return "failed", self._last_words() or f"exit code {exit_code}, without a word"

    def _last_words(self) -> str:
        """Return the first error that the process told of, else the last line it wrote to stderr."""
        lines = [line.strip() for line in self._stderr().splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors[:1] or lines[-1:] or [""])[0][:LONGEST_REASON]

    def _hand_on_errors(self) -> None:
        """Show what the process wrote to stderr; the file stays only if there was anything."""
        text = self._stderr()
        with suppress(OSError, ValueError):  # nobody may be reading any more
            sys.stderr.write(text)
            sys.stderr.flush()
        if not text:
            (self.folder / STDERR).unlink(missing_ok=True)

    def _stderr(self) -> str:
        try:
            return (self.folder / STDERR).read_text(encoding="utf-8", errors="replace")
        except OSError:  # someone has cleared the folder away
            return ""
