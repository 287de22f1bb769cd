"""The front door for tests: compose a config, load its plan, run it in a folder of the test's own."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.job_record import JOB, Job, read_job
from train.artifacts.run_folder import unlock_folder
from train.config import load_plan
from train.config.hydra_schema import register
from train.config.schema import RunCfg
from train.loop.logger import RunLogger
from train.loop.steps import optimizer_step
from train.run import run

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
Compose = Callable[..., DictConfig]
Plan = Callable[..., list[RunCfg]]
Run = Callable[..., Path]
TIMED = ("time", "tokens_per_second", "memory")  # what a metrics event says of the machine


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token cache for all tests of a worker: what is built is the same for all."""
    return tmp_path_factory.mktemp("cache")


@contextmanager
def composing() -> Iterator[Compose]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.fixture
def composed() -> Iterator[Compose]:
    """Compose a config from overrides."""
    with composing() as composed:
        yield composed


def smoke(experiment: str, folder: Path, cache_dir: Path) -> list[str]:
    return [f"experiment={experiment}", f"name={folder.name}", f"dir={folder}", f"data.cache_dir={cache_dir}"]


def carry_out(plan: list[RunCfg]) -> Path:
    """Run a plan and return its run folder."""
    try:
        run(plan)
    finally:
        unlock_folder(plan[0].dir)
    return Path(plan[0].dir)


@pytest.fixture
def plan(composed: Compose, tmp_path: Path, cache_dir: Path) -> Plan:
    """Load the plan of a smoke experiment with overrides; its run folder is tmp_path/NAME."""

    def load(*overrides: str, experiment: str = "smoke_pretrain", name: str = "run") -> list[RunCfg]:
        words = [*smoke(experiment, tmp_path / name, cache_dir), *overrides]
        return load_plan(composed(*words), words)

    return load


@pytest.fixture
def run_folder(plan: Plan) -> Run:
    """Carry out a smoke experiment with overrides and return its run folder.

    It draws no curves and shows no sample: they take half of the time, and change nothing (promise 9).
    """

    def go(*overrides: str, **which: str) -> Path:
        with mock.patch.object(RunLogger, "draw_curves"), mock.patch("train.run.runner.log_sample"):
            return carry_out(plan(*overrides, **which))

    return go


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Path]:
    """A smoke pipeline that has finished, for the tests that only read a run: none writes into it."""
    with composing() as composed:
        folder = carry_out(
            load_plan(composed(*smoke("smoke_pipeline", tmp_path_factory.mktemp("finished") / "run", cache_dir)))
        )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    yield folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "a test wrote into it"


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it where `run_folder` works, for the tests that go on with a run or change its files."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two workers share two cores: with a thread each they do not wait for one another."""
    gc.freeze()  # a run collects garbage, and need not look at the imports
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("NIELS_DEBUG", "HYDRA_FULL_ERROR", "FORCE_COLOR", "COLUMNS"):  # the shell's would change output
        os.environ.pop(name, None)


def cli(*arguments: str, cwd: Path, script: str = "train", **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run scripts/train.py, or another command of niels_gpt, as its user would, from another folder."""
    program = [str(ROOT / "scripts" / "train.py")] if script == "train" else ["-m", "niels_gpt", script]
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **keywords)


def same(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a phase's metrics say of the training, not of the machine."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def final(folder: Path) -> dict[str, Any]:
    """Return the state that a phase ended in."""
    saved = read_checkpoint(folder / "latest.pt")
    return {key: saved[key] for key in ("model_state", "optimizer_state", "step", "best_val_loss")}


def jobs_of(sweep: Path) -> dict[Path, Job]:
    """Return the jobs of a sweep's folder by their folders, in the order of their numbers."""
    found = {path.parent: job for path in sweep.glob(f"*/{JOB}") if (job := read_job(path.parent))}
    return dict(sorted(found.items(), key=lambda item: (item[1].number, item[0].name)))


def stopped_at(function: Callable[..., Any], number: int) -> Any:
    """Raise SIGTERM when the training loop calls a function for this time, from 1."""
    calls = count(1)

    def call_and_count(*arguments: Any) -> Any:
        if next(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return function(*arguments)

    return mock.patch(f"train.loop.steps.{function.__name__}", call_and_count)


def stopped_after(steps: int) -> Any:
    """Raise SIGTERM during the last of so many steps."""
    return stopped_at(optimizer_step, steps)


def pytest_sessionfinish() -> None:
    """Wait for the parent of warm starts, so that its children's time counts below."""
    if server := sys.modules.get("multiprocessing.forkserver"):
        vars(server)["_forkserver"]._stop()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{sum(os.times()[:4]):.0f} CPU seconds, those of all processes together")
