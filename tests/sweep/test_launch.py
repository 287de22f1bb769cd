"""F17, F18: a sweep survives its jobs, continues where it stopped, and leaves no process behind."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import ANY

import pytest
from conftest import ROOT, jobs_of
from support.processes import Child, announce, cli, start, wait_until

from train.artifacts.job_record import Job, write_job
from train.loop.steps import optimizer_step

slow = pytest.mark.slow
SMOKE = ["-m", "experiment=smoke_pretrain", "name=sweep", "train.total_steps=2", "train.ckpt_every=1"]
FAULTY = [*SMOKE, "hydra.launcher.n_jobs=2"]
SWEEP = Path("runs", "sweep")


def by_seed(folder: Path) -> dict[str, Job]:
    return {job.overrides[-1].removeprefix("train.seed="): job for job in jobs_of(folder).values()}


def statuses(folder: Path) -> list[str]:
    """Return the statuses in the jobs' records, which are those of the report."""
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        reported = [row["status"] for row in csv.DictReader(file)]
    found: list[str] = [job.status for job in jobs_of(folder).values()]
    assert sorted(found) == sorted(reported)
    return found


def go_wrong() -> None:
    """Put the fault that a job's seed stands for, if it does for one, before its second step."""

    def faulty(state: Any, *arguments: Any) -> Any:
        if state.step == 1:
            if "train.seed=1001" in sys.argv:
                raise RuntimeError("a fault of the test")
            if "train.seed=1002" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
            if "train.seed=1003" in sys.argv:
                next(state.model.parameters()).data.fill_(float("nan"))
            if "train.seed=1004" in sys.argv:
                os._exit(0)
        return optimizer_step(state, *arguments)

    mock.patch("train.loop.steps.optimizer_step", faulty).start()


@slow
def test_a_sweep_outlives_its_jobs_and_run_again_does_only_what_is_left(tmp_path: Path) -> None:
    done = cli(*FAULTY, "train.seed=1001,1002,1003,1004,1", cwd=tmp_path, before=go_wrong)
    assert done.returncode == 1 and "4 of 5 jobs did not finish" in done.stderr
    assert "Traceback" not in done.stderr
    first, folder = by_seed(tmp_path / SWEEP), tmp_path / SWEEP
    assert statuses(folder) == ["failed", "killed", "failed", "failed", "finished"]
    assert (first["1001"].exit_code, first["1001"].reason) == (1, "RuntimeError: a fault of the test")
    assert "SIGKILL" in first["1002"].reason
    assert first["1003"].exit_code == 5 and "step 2" in first["1003"].reason
    assert "no result.json" in first["1004"].reason
    assert cli(*FAULTY, "train.seed=1002,1", cwd=tmp_path).returncode == 0
    again = by_seed(folder)
    assert (again["1002"].status, again["1002"].attempts, again["1"].attempts) == ("finished", 2, 1)


def note_calls() -> None:
    """Note each planning of a job and each reading of all runs; no report gets old."""
    mock.patch("train.report.write.REWRITE_EVERY", 1e9).start()
    announce("train.sweep.jobs.load_plan")
    announce("train.report.write.analyze_runs")


@pytest.mark.parametrize("launcher", [pytest.param("isolated", marks=slow), "basic"])
def test_a_sweep_plans_each_job_once_shares_reports_and_ends_with_its_best_run(
    tmp_path: Path, launcher: str
) -> None:
    done = cli(*SMOKE, f"hydra/launcher={launcher}", "train.seed=1,2", cwd=tmp_path, before=note_calls)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "reached").read_text()
    assert calls.count("load_plan") == calls.count("analyze_runs") == 2, "reports: after the first job, at the end"
    if launcher == "isolated":
        assert re.findall(r"^job (.*)$", done.stdout, re.M) == [f"{n} of 2: 0{n}-seed{n}" for n in (1, 2)]
        assert re.findall(r"^0\d-seed(\d): finished, val loss", done.stdout, re.M) == ["1", "2"]
    assert statuses(tmp_path / SWEEP) == ["finished"] * 2
    end, lowest, *_ = done.stdout.splitlines()[-6:]
    assert re.fullmatch(r"sweep ended after \d+ s: 2 of 2 jobs finished", end)
    best = json.loads((tmp_path / SWEEP / "sweep.json").read_text(encoding="utf-8"))["best"][0]["job"]
    assert re.search(rf"best +val loss \d\.\d{{4}} after 1,024 tokens: runs/sweep/{best}$", lowest)
    assert done.stdout.count("talk to it") == done.stdout.count("train more") == 1, "the jobs give no advice"


@slow
def test_a_job_is_known_by_the_hash_of_its_settings(tmp_path: Path) -> None:
    words = [*SMOKE, "train.seed=1"]
    assert cli(*words, cwd=tmp_path).returncode == 0
    ((folder, job),) = jobs_of(tmp_path / SWEEP).items()
    write_job(folder, replace(job, config_hash="0" * 16))
    assert cli(*words, cwd=tmp_path).returncode == 0
    assert jobs_of(folder.parent)[folder] == replace(job, attempts=2, seconds=ANY)
    write_job(folder, replace(job, config_hash="0" * 16, status="failed"))
    (folder / "result.json").unlink()
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 2 and "started with different settings" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.B=2,0", "train.accum_steps=1,-1"], ["train.B=0", "train.accum_steps=-1", "none was started"]),
        (["train.B=2,4", "hydra.launcher.timeout_minutes=nan"], ["timeout_minutes must be positive"]),
        (["hydra/sweeper=search", "objective=[loss,memory]"], ["objective has 2 values", "direction has 1"]),
    ],
)
def test_a_sweep_that_cannot_be_carried_out_is_refused_before_anything_is_made(
    overrides: list[str], said: list[str], tmp_path: Path
) -> None:
    if "hydra/sweeper=search" in overrides:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = cli(*SMOKE, *overrides, cwd=tmp_path)
    assert done.returncode == 2 and all(part in done.stderr for part in said), done.stderr
    assert not list(tmp_path.iterdir())


@slow
def test_a_sweep_outlives_a_report_that_cannot_be_written_and_its_reader(tmp_path: Path) -> None:
    (tmp_path / SWEEP / "sweep.csv").mkdir(parents=True)
    words = [*SMOKE, "model.V=60000,512"]  # the text has too few words for the first
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
    assert [job.status for job in jobs_of(tmp_path / SWEEP).values()] == ["failed", "finished"]


def step_slowly() -> None:
    """Let a step take a while and nothing of the processor."""

    def slow_step(*arguments: Any) -> Any:
        time.sleep(0.05)
        return optimizer_step(*arguments)

    mock.patch("train.loop.steps.optimizer_step", slow_step).start()


@contextmanager
def endless(cwd: Path, *overrides: str) -> Iterator[Child]:
    """A sweep whose first job would take long, and has taken a step."""
    child = start(*SMOKE, "train.total_steps=1000000,1", *overrides, cwd=cwd, before=step_slowly)
    try:
        wait_until(lambda: any((cwd / SWEEP).glob("*/pretrain/step_*.pt")))
        yield child
    finally:
        child.process.kill()


@slow
def test_ctrl_c_stops_the_current_job_resumably_and_leaves_a_valid_report(tmp_path: Path) -> None:
    with endless(tmp_path) as child:
        (tmp_path / SWEEP / "sweep.json").touch()  # a report of this moment, which the end must replace
        child.send(signal.SIGINT)
        done = child.end()
    assert done.returncode == 130 and "1 of 2 jobs were not started" in done.stderr, done.stderr
    assert statuses(tmp_path / SWEEP) == ["interrupted", "waiting"]
    report = json.loads((tmp_path / SWEEP / "sweep.json").read_text(encoding="utf-8"))
    assert report["differing_settings"].keys() == {"train.total_steps"}, "known though neither has a result"
    (saved,) = (tmp_path / SWEEP).glob("*/pretrain/latest.pt")
    assert saved.stat().st_size > 0


@slow
def test_a_job_past_its_time_is_stopped_after_saving_and_the_next_one_starts(tmp_path: Path) -> None:
    with endless(tmp_path, "hydra.launcher.timeout_minutes=0.25") as child:
        assert child.end().returncode == 1
    statuses(tmp_path / SWEEP)
    first, second = jobs_of(tmp_path / SWEEP).values()
    assert (first.status, first.reason) == ("timed out", "stopped after 0.25 minutes")
    assert second.status in ("finished", "timed out"), "a busy machine may need all of that time to start"


def processes_in(folder: Path) -> list[Path]:
    """Return the processes whose working folder this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink() == folder:
                found.append(path)
    return found


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_no_process_outlives_a_sweep_that_is_killed(tmp_path: Path) -> None:
    with endless(tmp_path) as child:
        assert len(processes_in(tmp_path)) == 2
        child.send(signal.SIGKILL)
        child.end()
    wait_until(lambda: not processes_in(tmp_path))
    assert any((tmp_path / SWEEP).glob("*/pretrain/latest.pt"))
