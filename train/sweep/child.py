"""Run a job of a sweep in its own process, stop it after its time, and classify its exit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from niels_gpt.errors import TimeIsUp
from train.artifacts.job_record import Job, Status
from train.cli.signals import ENDING
from train.cli.subprocesses import GRACE

STDERR, CONSOLE = "stderr.log", "console.log"  # in the job's folder
RESUMABLE = (TimeIsUp.exit_code, *(128 + signum for signum in ENDING))  # exit codes


@dataclass(eq=False)
class JobProcess:
    """A process that Ctrl-C in the terminal does not reach: only the sweep stops or kills it."""

    command: Sequence[str]
    folder: Path
    record: Job
    variables: Mapping[str, str]
    pipe: int  # that it inherits
    minutes: float | None  # after which it is stopped
    quiet: bool  # its output goes to console.log
    _stopped: bool = False
    _timed_out: bool = False
    _kill_at: float = inf
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Start it."""
        with ExitStack() as files:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=files.enter_context((self.folder / CONSOLE).open("wb")) if self.quiet else None,
                stderr=files.enter_context((self.folder / STDERR).open("wb")),
                env=os.environ | dict(self.variables) | {"PYTHONFAULTHANDLER": "1"},
                pass_fds=(self.pipe,),
                start_new_session=True,
            )

    def stop(self) -> None:
        """Let the run finish its step and save it. SIGTERM, since SIGINT may be ignored in the background."""
        if not self._stopped:  # a second signal would end it at once
            self._stopped = True
            self._process.terminate()

    def kill(self) -> None:
        """End the process, and all processes that it started, at once."""
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a group that has ended
            os.killpg(self._process.pid, signal.SIGKILL)

    def poll(self) -> Job | None:
        """Return the record of how it ended, None while it runs; stop it after its time."""
        code = self._process.poll()
        now = time.monotonic()
        if code is None:
            if now > self._kill_at:
                self.kill()
            elif self.minutes and not self._stopped and now - self._started > self.minutes * 60:
                self._timed_out, self._kill_at = True, now + GRACE
                self.stop()
            return None
        self.kill()  # processes that it started may still run
        stderr = self._take_stderr()
        status, reason = self._classify(code, stderr)
        seconds = round(self.record.seconds + now - self._started, 1)
        return replace(self.record, status=status, exit_code=code, reason=reason, seconds=seconds)

    def _classify(self, code: int, stderr: str) -> tuple[Status, str]:
        """Return the status that an exit code stands for, and the reason in a line."""
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        message = (errors[:1] or lines[-1:] or [""])[0][:300]
        if code == 0:
            return "finished", ""
        if self._timed_out:
            return "timed out", f"stopped after {self.minutes:g} minutes"
        if code in RESUMABLE or (self._stopped and code < 0):
            return "interrupted", message or "stopped"
        if code < 0:
            name = {int(known): known.name for known in signal.Signals}.get(-code, f"signal {-code}")
            hint = ", possibly out of memory" if -code == signal.SIGKILL else ""
            return "killed", f"killed by {name}{hint}"
        return "failed", message or f"exited with code {code} and no message"

    def _take_stderr(self) -> str:
        """Return and show what the process wrote to stderr; the file stays only if it is not empty."""
        path = self.folder / STDERR
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # the folder has been removed
            return ""
        print(text, end="", file=sys.stderr, flush=True)
        if not text:
            path.unlink(missing_ok=True)
        return text
