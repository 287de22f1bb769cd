"""A sweep survives its jobs, goes on where it stopped, and leaves no process behind."""

import csv
import json
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import ANY

import pytest
from conftest import ROOT, jobs_of
from support import warm
from support.faulty import go_wrong

from train.artifacts.job_record import Job, read_job, write_job
from train.loop.steps import optimizer_step

SMOKE = ["-m", "experiment=smoke_pretrain", "name=sweep", "train.total_steps=2", "train.ckpt_every=1"]
SEEDS = "train.seed=1,1001,1002,1003,1004,1005,2"
ENDED = {"1": "finished", "1001": "failed", "1002": "failed", "1003": "killed", "1004": "failed", "1005": "failed"}


def by_seed(folder: Path) -> dict[str, Job]:
    return {job.overrides[-1].removeprefix("train.seed="): job for job in jobs_of(folder).values()}


def test_a_sweep_outlives_its_jobs_and_run_again_does_only_what_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweep"
    done = warm.cli(*SMOKE, "hydra.launcher.n_jobs=2", SEEDS, cwd=tmp_path, before=go_wrong)
    assert done.returncode == 1 and "5 of 7 jobs have not finished" in done.stderr
    assert "Traceback" not in done.stderr
    require_told_apart(first := by_seed(folder))
    require_reported(folder)
    assert warm.cli(*SMOKE, "hydra.launcher.n_jobs=2", SEEDS, cwd=tmp_path).returncode == 0
    second = by_seed(folder)
    assert all(job.status == "finished" for job in second.values())
    again = {seed for seed, job in second.items() if job.attempts > first[seed].attempts}
    assert again == {"1001", "1002", "1003", "1004", "1005"}


def require_told_apart(jobs: dict[str, Job]) -> None:
    assert {seed: job.status for seed, job in jobs.items()} == ENDED | {"2": "finished"}
    assert (jobs["1001"].exit_code, jobs["1001"].reason) == (1, "RuntimeError: a fault of the test")
    assert jobs["1002"].exit_code == 23
    assert "SIGKILL" in jobs["1003"].reason
    assert jobs["1004"].exit_code == 5 and "step 2" in jobs["1004"].reason
    assert "no result.json" in jobs["1005"].reason


def note_calls() -> None:
    """Write each planning of a job and each reading of a run to the file `calls`; no report gets old."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with Path("calls").open("a") as file:
                file.write(f"{name}\n")
            return function(*arguments)

        return call

    mock.patch("train.report.write.REWRITE_EVERY", 1e9).start()
    for name in ("train.sweep.jobs.load_plan", "train.report.write.analyze_runs"):
        mock.patch(name, noted(name.rpartition(".")[2], pkgutil.resolve_name(name))).start()


@pytest.mark.parametrize("launcher", ["isolated", "basic"])
def test_each_job_is_planned_once_and_jobs_that_end_quickly_share_a_report(tmp_path: Path, launcher: str) -> None:
    words = [*SMOKE, f"hydra/launcher={launcher}", "train.seed=1,2,3"]
    done = warm.cli(*words, cwd=tmp_path, before=note_calls)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().split()
    assert calls.count("load_plan") == 3
    assert calls.count("analyze_runs") == 2, "after the first job and at the end"
    if launcher == "isolated":
        assert re.findall(r"^job (.*)$", done.stdout, re.M) == [f"{n} of 3: 0{n}-seed{n}" for n in (1, 2, 3)]
        assert re.findall(r"^0\d-seed(\d): finished, val loss", done.stdout, re.M) == ["1", "2", "3"]
    require_summary(done.stdout, tmp_path)
    rows = list(csv.DictReader((tmp_path / "runs" / "sweep" / "sweep.csv").open(encoding="utf-8")))
    assert [row["status"] for row in rows] == ["finished"] * 3


def require_summary(output: str, cwd: Path) -> None:
    """Its last lines name the best result, the time, and commands that work; the jobs give no advice."""
    rows = list(csv.DictReader((cwd / "runs" / "sweep" / "sweep.csv").open(encoding="utf-8")))
    best = min(rows, key=lambda row: float(row["val_loss"]))["job"]
    end, lowest, talk, train_on, extend, compare = output.splitlines()[-6:]
    assert re.fullmatch(r"sweep ended after \d+ s: 3 of 3 jobs finished", end)
    assert re.search(rf"best +val loss \d\.\d{{4}} after 1,024 tokens: runs/sweep/{best}$", lowest)
    assert talk.endswith(f'python scripts/sample.py runs/sweep/{best} --prompt "..."') and "more values" in extend
    assert compare.endswith("open runs/sweep/sweep.html in a browser")
    assert output.count("talk to it") == output.count("train on") == 1
    command = shlex.split(train_on.partition("scripts/train.py ")[2])
    done = warm.cli(*command, cwd=cwd)
    assert done.returncode == 0 and "resumed from step 2" in done.stdout, done.stderr


def test_a_finished_job_is_known_by_the_hash_of_its_settings(tmp_path: Path) -> None:
    assert warm.cli(*SMOKE, "train.seed=1", cwd=tmp_path).returncode == 0
    ((folder, job),) = jobs_of(tmp_path / "runs" / "sweep").items()
    write_job(folder, replace(job, config_hash="0" * 16))
    assert warm.cli(*SMOKE, "train.seed=1", cwd=tmp_path).returncode == 0
    assert jobs_of(folder.parent)[folder] == replace(job, attempts=2, seconds=ANY)


def require_reported(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "sweep.csv").open(encoding="utf-8")))
    assert len(rows) == 7
    assert sum(row["status"] == "finished" for row in rows) == 2
    assert len(json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["rows"]) == 7
    assert "python scripts/train.py" in (folder / "sweep.md").read_text(encoding="utf-8")
    assert (folder / "sweep.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["train.B=2,0", "train.accum_steps=1,-1"], ["train.B=0", "train.accum_steps=-1"]),
        (["model.H=2,3"], ["(in model.H=3)"]),
    ],
)
def test_every_bad_combination_is_listed_and_nothing_is_run(
    overrides: list[str], lines: list[str], tmp_path: Path
) -> None:
    done = warm.cli(*SMOKE, *overrides, cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(any(line in error for error in errors) for line in lines)
    assert "none was started" in done.stderr
    assert not list(tmp_path.iterdir())


SEARCH = ["hydra/sweeper=search", "train.B=choice(2,4)"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.B=2,4", "hydra.sweeper.max_batch_size=0"],
            "hydra.sweeper.max_batch_size must be positive, got 0",
        ),
        (["train.B=2,4", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs must be positive, got 0"),
        (["train.B=2,4", "hydra.launcher.timeout_minutes=nan"], "hydra.launcher.timeout_minutes must be positive"),
        (["train.B=2,4", "hydra.launcher.timeout_minutes=0"], "hydra.launcher.timeout_minutes must be positive"),
        (["train.seed=1", "train.B=range(1,1)"], "this sweep has no jobs"),
        ([*SEARCH, "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs must be positive, got 0"),
        ([*SEARCH, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be positive, got 0"),
        ([*SEARCH, "objective=[loss,memory]"], "objective has 2 values, and hydra.sweeper.direction has 1"),
    ],
)
def test_what_would_hang_a_sweep_or_lose_its_trials_is_refused_before_anything_is_made(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    if SEARCH[0] in overrides:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = warm.cli(*SMOKE, *overrides, cwd=tmp_path)
    assert done.returncode == 2 and f"error: {said}" in done.stderr
    assert done.stderr.count("error: ") == 1 and "it is a bug" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", ["hydra.sweeper.direction=foo", "hydra.sweeper.storage=study.db"])
def test_what_optuna_refuses_itself_is_an_error_line_too(bad: str, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = warm.cli(*SMOKE, *SEARCH, bad, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and "it is a bug" not in done.stderr


def test_a_job_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweep"
    assert warm.cli(*SMOKE, "train.seed=1", cwd=tmp_path).returncode == 0
    job_folder, job = next(iter(jobs_of(folder).items()))
    record = json.loads((job_folder / "job.json").read_text(encoding="utf-8"))
    (job_folder / "job.json").write_text(json.dumps(record | {"config_hash": "0" * 16, "status": "failed"}))
    (job_folder / "result.json").unlink()
    done = warm.cli(*SMOKE, "train.seed=1", cwd=tmp_path)
    assert done.returncode == 2 and "started with different settings" in done.stderr
    assert read_job(job_folder) != job


def test_a_sweep_outlives_a_vanished_folder_a_report_that_cannot_be_written_and_its_reader(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "train.py")]
    folder = tmp_path / "runs" / "sweep"
    (folder / "sweep.csv").mkdir(parents=True)
    command = [*script, *SMOKE, "resume=never", "model.V=60000,512"]  # the first has not so many entries
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        process.wait(timeout=120)
    assert [job.status for job in jobs_of(folder).values()] == ["failed", "finished"]


ENDLESS = [*SMOKE, "train.total_steps=1000000", "train.seed=1,2"]  # of two jobs that would go on for long


def slowly() -> None:
    """Let a step take a while and nothing of the processor."""

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return optimizer_step(*arguments)

    mock.patch("train.loop.steps.optimizer_step", slow).start()


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Callable[..., tuple[warm.Script, Path]]]:
    """Start a sweep of slow jobs that would go on for long, and wait until the first has taken a step."""
    started: list[warm.Script] = []

    def start(*overrides: str) -> tuple[warm.Script, Path]:
        (streams := tmp_path / "streams").mkdir()
        started.append(warm.Script(*ENDLESS, *overrides, cwd=tmp_path, streams=streams, before=slowly))
        folder = tmp_path / "runs" / "sweep"
        waited_for(lambda: any(folder.glob("*/pretrain/step_*.pt")))
        return started[-1], folder

    yield start
    for script in started:
        script.process.kill()


def waited_for(there: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose command line names the folder's path."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink() == folder:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_ctrl_c_stops_the_current_job_resumably_and_leaves_a_valid_report(
    endless: Callable[..., tuple[warm.Script, Path]],
) -> None:
    script, folder = endless()
    (folder / "sweep.json").touch()  # a report of this moment, which the end must replace
    os.kill(script.pid, signal.SIGINT)
    done = script.end()
    assert done.returncode == 130, done.stderr
    assert [job.status for job in jobs_of(folder).values()] == ["interrupted", "waiting"]
    assert "1 of 2 jobs were not started" in done.stderr
    rows = list(csv.DictReader((folder / "sweep.csv").open(encoding="utf-8")))
    assert [row["status"] for row in rows] == ["interrupted", "waiting"]
    (saved,) = folder.glob("*/pretrain/latest.pt")
    assert saved.stat().st_size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_no_process_outlives_a_sweep_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *ENDLESS]
    nowhere, folder = subprocess.DEVNULL, tmp_path / "runs" / "sweep"
    with subprocess.Popen(command, cwd=tmp_path, stdout=nowhere, stderr=nowhere) as process:
        try:
            waited_for(lambda: any(folder.glob("*/pretrain/step_*.pt")))
            assert len(processes_in(tmp_path)) == 2
        finally:
            process.kill()
    waited_for(lambda: not processes_in(tmp_path), 30)
    assert any(folder.glob("*/pretrain/latest.pt"))


def test_a_job_past_its_time_is_stopped_after_saving_and_the_next_one_starts(
    endless: Callable[..., tuple[warm.Script, Path]],
) -> None:
    script, folder = endless("hydra.launcher.timeout_minutes=0.1")
    assert script.end().returncode == 1
    for job_folder, job in jobs_of(folder).items():
        assert (job.status, job.reason) == ("timed out", "stopped after 0.1 minutes")
        assert list(job_folder.glob("pretrain/step_*.pt"))
    report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert report["differing_settings"] == {"train.seed": [1, 2]}, "known though neither has a result"
