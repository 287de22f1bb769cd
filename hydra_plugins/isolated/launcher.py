"""Hydra's launcher `isolated`: a sweep continues when one of its jobs crashes."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class IsolatedConf:
    """Settings of the launcher: hydra.launcher.n_jobs=2, hydra.launcher.timeout_minutes=30."""

    _target_: str = "hydra_plugins.isolated.launcher.IsolatedLauncher"
    n_jobs: int = 1
    timeout_minutes: float | None = None


class IsolatedLauncher(Launcher):
    """Runs the script anew for each job; what a job leaves behind is read from its folder."""

    def __init__(self, n_jobs: int, timeout_minutes: float | None) -> None:
        self.n_jobs, self.timeout_minutes = n_jobs, timeout_minutes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to a launcher."""
        self.context, self.config = hydra_context, config
        self.script = Path(inspect.getfile(task_function)).resolve()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Carry out a batch of jobs; a failed one returns None, so that the sweep goes on."""
        from train.report.rows import reached
        from train.sweep.callback import Gate  # here: Hydra imports all plugins, even for --help
        from train.sweep.launch import SweepRun

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        gates = [callback for callback in self.context.callbacks.callbacks if isinstance(callback, Gate)]
        gate = gates[0] if gates else Gate()
        jobs = gate.planned(self.config, self.context.config_loader, job_overrides, initial_job_idx)
        sweep = Path(self.config.hydra.sweep.dir)
        SweepRun(self.script, sweep, jobs, self.n_jobs, self.timeout_minutes).carry_out()
        return [_returned(reached(job.folder, job.objective), job.overrides) for job in jobs]


def _returned(value: Any, overrides: Sequence[str]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = value
    return done


ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=IsolatedConf, provider="niels_gpt")
