"""The door of scripts/train.py: what a command line says, leaves and would run; in a process of its own or not."""

import contextlib
import importlib.util
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from conftest import ROOT, cli

from train.artifacts.run_folder import _held, unlock_folder
from train.cli.command import exit_on_error
from train.config.schema import RunCfg
from train.sweep.callback import PlanCallback
from train.sweep.launch import SweepRun

FOREVER = 180  # seconds


class Said(NamedTuple):
    """How a command ended, what it wrote to stderr, the plan it would carry out, the seconds of CPU it took."""

    code: int
    stderr: str
    plan: list[RunCfg] | None
    seconds: float


class Hangs(BaseException):
    """Something takes forever; no `except Exception` holds it up."""


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(ROOT / "scripts"), *sys.path]):
        spec.loader.exec_module(script)
    return script


SCRIPT = _script()


@contextlib.contextmanager
def never_forever() -> Iterator[None]:
    """Raise Hangs after minutes by the clock, as when a FIFO is waited for; the machine may be busy otherwise."""

    def ring(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, FOREVER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def train(*words: str) -> Said:
    """Do what `python scripts/train.py WORDS` does up to carrying out the plan, in the present folder."""
    plans: list[list[RunCfg]] = []
    stderr, started, code = io.StringIO(), time.process_time(), 0
    with (
        mock.patch.object(sys, "argv", ["train.py", *words]),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1", HYDRA_MAIN_MODULE="__main__"),
        mock.patch.object(SCRIPT, "carry_out", plans.append),
        mock.patch.object(
            SweepRun, "carry_out"
        ),  # of the launcher there is another copy: Hydra loads plugins itself
        mock.patch.object(PlanCallback, "on_multirun_end"),  # there is nothing to report
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
        never_forever(),
    ):
        try:
            with exit_on_error():
                SCRIPT.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    seconds = time.process_time() - started
    for folder in list(_held):
        unlock_folder(str(folder))
    logging.getLogger().handlers.clear()
    return Said(code, stderr.getvalue(), plans[0] if plans else None, seconds)


def command(*words: str, cwd: Path) -> Said:
    """Run `python scripts/train.py WORDS` in a folder, as a process of its own."""
    before = os.times()
    done = cli(*words, cwd=cwd)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Said(done.returncode, done.stderr, None, seconds)


def left(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
