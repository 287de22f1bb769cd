"""Runs in processes of their own, to be killed: forked from a parent that has imported torch, but not used it."""

import logging
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from support.warm import context

from train.config.schema import RunCfg
from train.run import run

KILLED = -signal.SIGKILL
LONGEST = 120.0  # seconds that a run of the harness may take


def start(plan: list[RunCfg], said: Path, before: Callable[[], object] | None = None) -> BaseProcess:
    """Start a run in a child, which does `before` first and logs to the file `said`."""
    child = context().Process(target=_carry_out, args=(plan, said, before))
    child.start()
    return child


def exit_of(child: BaseProcess) -> int | None:
    """Wait for a child and return its exit code, negative for a signal."""
    child.join(LONGEST)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"a run took more than {LONGEST} s")
    return child.exitcode


def carried_out(plan: list[RunCfg], said: Path, before: Callable[[], object] | None = None) -> int | None:
    """Carry out a plan in a child and return how it ended."""
    return exit_of(start(plan, said, before))


def _carry_out(plan: list[RunCfg], said: Path, before: Callable[[], object] | None) -> None:
    torch.set_num_threads(1)
    log = logging.getLogger("niels_gpt")
    log.addHandler(logging.FileHandler(said))
    log.setLevel(logging.INFO)
    if before:
        before()
    run(plan)
