"""Tell the loggers of a phase, each in a process of its own, which steps a checkpoint covers."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.artifacts.job_record import JOB
from train.config.schema import RunCfg

FOLDER = "loggers"  # in the run folder: what each has logged, and its output
CALL_SECONDS = 60  # that a call of a logger may take
END_SECONDS = 30.0  # that all may take at the end of a phase
QUIET = {
    "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "OMP_NUM_THREADS": "1",
}
log = logging.getLogger("niels_gpt")


class Loggers:
    """The loggers of a phase. One that fails or takes too long is warned of once and left behind."""

    def __init__(self, cfg: RunCfg) -> None:
        self._folder, self._processes = Path(cfg.dir, FOLDER), dict[str, subprocess.Popen[bytes]]()
        in_sweep = Path(cfg.dir, JOB).exists()
        request = {
            "folder": cfg.dir,
            "phase": cfg.phase,
            "group": Path(cfg.dir).resolve().parent.name if in_sweep else None,
            "config": cfg.model_dump(mode="json"),
            "seconds": CALL_SECONDS,
        }
        for name in dict.fromkeys(cfg.logger):
            try:
                self._start(name, request)
            except OSError as error:
                self._leave(name, str(error))

    def _start(self, name: str, request: dict[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True)
        with (self._folder / f"{name}.log").open("wb") as output:
            process = self._processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "train.loop.loggers.worker"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=QUIET | os.environ,
                start_new_session=True,  # Ctrl-C is meant for the run
            )
        assert process.stdin
        process.stdin.write(json.dumps(request | {"logger": name}).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)

    def forward(self, step: int) -> None:
        """Say that the events up to `step` are final. Nothing waits: the pipe of a slow logger overflows."""
        for name, process in [*self._processes.items()]:
            assert process.stdin
            try:
                process.stdin.write(b"%d\n" % step)
            except BrokenPipeError:
                self._leave(name, self._explain_end(name))

    def close(self) -> None:
        """Let the loggers finish, within a limited time."""
        for process in self._processes.values():
            assert process.stdin
            process.stdin.close()
        until = time.monotonic() + END_SECONDS
        for name, process in [*self._processes.items()]:
            with suppress(subprocess.TimeoutExpired):
                if process.wait(max(0.0, until - time.monotonic())) == 0:
                    continue
            self._leave(name, self._explain_end(name))

    def _explain_end(self, name: str) -> str:
        """Return why a process failed, in a line."""
        with suppress(subprocess.TimeoutExpired):
            if self._processes[name].wait(1.0) == -signal.SIGALRM:
                return f"no answer for {CALL_SECONDS} s"
            with suppress(OSError):
                lines = (self._folder / f"{name}.log").read_text("utf-8", "replace").split("\n")
                return lines[-2][:300] if len(lines) > 1 else f"exit code {self._processes[name].returncode}"
        return f"not done {END_SECONDS:.0f} s after the phase"

    def _leave(self, name: str, reason: str) -> None:
        log.warning("warning: logger %s failed (%s); continuing without it", name, reason)
        if process := self._processes.pop(name, None):
            with suppress(ProcessLookupError, PermissionError):  # those that it started may still run
                os.killpg(process.pid, signal.SIGKILL)
