"""niels_gpt train in this process, up to carrying out its plan; or in a fresh one, with its time."""

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from conftest import cli

from train.artifacts.run_folder import LOCK, unlock_folder
from train.cli.command import exit_on_error
from train.commands import train as command
from train.config.schema import RunCfg
from train.sweep.callback import PlanCallback
from train.sweep.launch import SweepRun

FOREVER = 180  # seconds


class Said(NamedTuple):
    """The exit code of a command, its stderr, and the plan it would carry out."""

    code: int
    stderr: str
    plan: list[RunCfg] | None = None


class Hangs(BaseException):
    """Something takes forever; no `except Exception` stops it."""


@contextlib.contextmanager
def never_forever() -> Iterator[None]:
    """Raise Hangs after minutes, as when a FIFO is waited for."""

    def ring(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(FOREVER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def train(*words: str) -> Said:
    """Do what `niels_gpt train WORDS` does up to carrying out the plan, in the present folder."""
    plans: list[list[RunCfg]] = []
    stderr, code = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["niels_gpt train", *words]),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1", HYDRA_MAIN_MODULE="__main__"),
        mock.patch.object(command, "carry_out", plans.append),
        mock.patch.object(SweepRun, "carry_out"),
        mock.patch.object(PlanCallback, "on_multirun_end"),  # there is nothing to report
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
        never_forever(),
    ):
        try:
            with exit_on_error():
                command.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    for lock in Path().rglob(LOCK):
        unlock_folder(str(lock.parent))
    logging.getLogger().handlers.clear()
    return Said(code, stderr.getvalue(), plans[0] if plans else None)


def run_timed(*words: str, cwd: Path) -> tuple[Said, float]:
    """Run `python scripts/train.py WORDS` in a fresh process; return its seconds of CPU, too."""
    before = os.times()
    done = cli(*words, cwd=cwd)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Said(done.returncode, done.stderr), seconds


def files_in(folder: Path) -> list[str]:
    """Return the names of everything in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
