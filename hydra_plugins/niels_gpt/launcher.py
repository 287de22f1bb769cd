"""Hydra's launcher `isolated`: a sweep continues when one of its jobs crashes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class IsolatedConf:
    """Settings of the launcher: hydra.launcher.n_jobs=2, hydra.launcher.timeout_minutes=30."""

    _target_: str = "hydra_plugins.niels_gpt.launcher.IsolatedLauncher"
    n_jobs: int = 1
    timeout_minutes: float | None = None


class IsolatedLauncher(Launcher):
    """Run a process per job, and read the results from the job folders."""

    def __init__(self, n_jobs: int, timeout_minutes: float | None) -> None:
        self.n_jobs, self.timeout_minutes = n_jobs, timeout_minutes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands to a launcher."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Carry out a batch of jobs; a failed one returns None, and the sweep continues."""
        from train.report.rows import read_objective  # here: Hydra imports all plugins, even for --help
        from train.sweep.jobs import plan_jobs
        from train.sweep.launch import SweepRun

        hydra = self.config.hydra
        configure_log(hydra.hydra_logging, hydra.verbose)
        jobs = plan_jobs(self.config, self.context.config_loader, job_overrides, initial_job_idx)
        SweepRun(
            Path(hydra.sweep.dir),
            jobs,
            self.n_jobs,
            self.timeout_minutes,
            initial_job_idx,
            OmegaConf.select(hydra, "sweeper.n_trials"),
        ).carry_out()
        returns = []
        for job in jobs:
            returns.append(JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED))
            returns[-1].return_value = read_objective(job.folder, job.objective)
        return returns


ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=IsolatedConf, provider="niels_gpt")
