"""Other engines carry out a sweep too: joblib, submitit on this machine and on Slurm; Optuna searches."""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, cli, final, jobs_of, same
from omegaconf import OmegaConf
from support import processes
from support.fake_slurm import put_on_path

from train.artifacts.job_record import Job

pytestmark = pytest.mark.slow
SMOKE = ["-m", "experiment=smoke_pretrain", "name=sweep"]
SHORT = [*SMOKE, "train.total_steps=2"]
LONGER = [  # enough to be preempted in
    *("train.total_steps=100", "train.eval_every=50", "train.ckpt_every=50"),
    *("train.accum_steps=1", "train.eval_sequences=16", "data.size=200", "model.V=300"),
]
TOO_MANY = 60000  # entries that the text does not give, so that the job fails


def plugin(name: str) -> pytest.MarkDecorator:
    """Return the mark of a test that needs a plugin of Hydra."""
    return pytest.mark.skipif(not find_spec(f"hydra_plugins.{name}"), reason=f"needs {name}")


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["rows"]
    return found


@plugin("hydra_joblib_launcher")
def test_joblib_runs_two_at_once_and_a_failed_job_is_a_row(tmp_path: Path) -> None:
    done = cli(*SHORT, "hydra/launcher=parallel", f"model.V=512,{TOO_MANY}", cwd=tmp_path)
    assert done.returncode == 1 and "1 of 2 jobs did not finish" in done.stderr, done.stderr
    assert "Joblib.Parallel(n_jobs=2" in done.stdout
    finished, failed = rows(tmp_path / "runs" / "sweep")
    assert (finished["status"], failed["status"]) == ("finished", "failed")
    assert f"model.V={TOO_MANY}" in failed["reason"] and finished["val_loss"] > 0


def preempt(cwd: Path, *overrides: str, env: Mapping[str, str] = os.environ) -> dict[Path, Job]:
    """Preempt the job with seed 1 of a sweep after its first step; return all jobs at the end."""

    def first(name: str) -> list[Path]:
        jobs = jobs_of(cwd / "runs" / "sweep").items()
        folders = [folder for folder, job in jobs if "train.seed=1" in job.overrides]
        return [path for folder in folders for path in folder.rglob(name) if path.stat().st_size]

    unlimited = {key: value for key, value in env.items() if key != "OMP_NUM_THREADS"}
    sweep = processes.start(*SMOKE, *LONGER, *overrides, cwd=cwd, env=unlimited)
    processes.wait_until(lambda: first("metrics.jsonl"))
    (lock,) = first("run.lock")
    pid = lock.read_text(encoding="utf-8").partition("process ")[2].split()[0]
    os.kill(int(pid), signal.SIGUSR2)
    done = sweep.end()
    assert done.returncode == 0, done.stderr
    log = (lock.parent / "train.log").read_text(encoding="utf-8")
    assert "resumed from step" in log and "threads=1\n" in log
    return jobs_of(cwd / "runs" / "sweep")


@plugin("hydra_submitit_launcher")
def test_a_preempted_job_is_saved_queued_again_and_ends_as_if_it_had_not_been(
    run_folder: Run, tmp_path: Path
) -> None:
    ((folder, job),) = preempt(tmp_path, "hydra/launcher=queue", "train.seed=1").items()
    assert (job.status, job.attempts) == ("finished", 2)
    assert same(final(folder / "pretrain"), final(run_folder(*LONGER, "train.seed=1") / "pretrain"))


@plugin("hydra_submitit_launcher")
def test_slurm_is_asked_for_what_the_preset_says_and_queues_a_preempted_job_again(tmp_path: Path) -> None:
    """Proves the script, the signal, the cores and the requeue; Slurm itself is a stand-in."""
    words = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "train.seed=1,2"]
    jobs = preempt(tmp_path, *words, env=put_on_path(tmp_path / "slurm"))
    assert [job.status for job in jobs.values()] == ["finished", "finished"]
    script = (tmp_path / "slurm" / "submitted.sh").read_text(encoding="utf-8")
    for line in ("--requeue", "--signal=USR2@120", "--time=240", "--array=0-1%2", "--mem=8GB"):
        assert f"#SBATCH {line}\n" in script


@plugin("hydra_optuna_sweeper")
def test_a_search_finds_the_lowest_loss_outlives_a_failed_trial_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweep"
    search = ["hydra/sweeper=search", f"model.V=choice(300,512,{TOO_MANY})"]
    processes.cli(*SHORT, *search, "hydra.sweeper.n_trials=1", cwd=tmp_path)
    done = processes.cli(*SHORT, *search, "hydra.sweeper.n_trials=3", cwd=tmp_path)
    assert done.returncode == 1 and "complete, skipped" in done.stdout, done.stderr
    assert "Best parameters" not in done.stdout, "the summary names the best"
    found = rows(folder)
    assert {row["status"] for row in found} == {"finished", "failed"}
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == min(row["bits_per_byte"] for row in found if row["status"] == "finished")
    with sqlite3.connect(folder / "study.db") as study:
        assert {state for (state,) in study.execute("SELECT state FROM trials")} == {"COMPLETE", "FAIL"}


@plugin("hydra_optuna_sweeper")
def test_a_search_whose_trials_all_fail_says_so_plainly_and_has_them_in_its_report(tmp_path: Path) -> None:
    search = ["hydra/sweeper=search", "hydra.sweeper.n_trials=2", f"model.V=range({TOO_MANY},{TOO_MANY + 9})"]
    done = processes.cli(*SHORT, *search, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "error: no trial of the search has finished; see sweep.html\nhint: the same command retries them\n"
    )
    assert [row["status"] for row in rows(tmp_path / "runs" / "sweep")] == ["failed", "failed"]


@plugin("hydra_optuna_sweeper")
def test_a_search_for_loss_and_memory_counts_its_trials_and_gives_solutions_with_both(tmp_path: Path) -> None:
    two = ["hydra.sweeper.n_trials=2", "objective=[loss,memory]", "hydra.sweeper.direction=[minimize,minimize]"]
    rate = "train.base_lr=tag(log,interval(1e-4,1e-2))"
    done = processes.cli(*SHORT, "hydra/sweeper=search", *two, rate, "hydra.sweeper.n_jobs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "runs" / "sweep")
    names = re.findall(r"^trial [12] of 2: (0[12]-base_lr0\.0*[1-9]\d{0,2})$", done.stdout, re.M)
    assert names == [row["job"] for row in found], "with three digits"
    assert "the same command with hydra.sweeper.n_trials=4" in done.stdout
    solutions = OmegaConf.load(tmp_path / "runs" / "sweep" / "optimization_results.yaml").solutions
    measured = [(row["bits_per_byte"], row["peak_memory_gib"] * 2**30) for row in found]
    assert solutions and all(tuple(solution["values"]) in measured for solution in solutions)


@pytest.mark.skipif(bool(find_spec("hydra_plugins.hydra_ray_launcher")), reason="needs to miss a plugin")
def test_an_engine_that_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    done = processes.cli(*SHORT, "hydra/launcher=ray_local", "train.seed=1,2", cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'niels_gpt[ray]'" in done.stderr
    assert not list(tmp_path.iterdir())
