"""Check a run, or every job of a sweep, before Hydra writes anything."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import configure_log
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from niels_gpt.errors import ConfigError, NielsError
from train.artifacts.run_folder import claim_run_folder, lock_folder
from train.cli.command import exit_on_error
from train.config import load_plan
from train.config.schema import RunCfg
from train.sweep.jobs import PLANNED, PlannedJob, begin_sweep, plan_jobs, require_distinct

log = logging.getLogger("niels_gpt")


class PlanCallback(Callback):
    """Refuse by SystemExit, since Hydra only warns of other exceptions."""

    plan: ClassVar[list[RunCfg]] = []  # of this process's run; the command carries it out
    started: float  # of the sweep

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a plan that cannot be carried out."""
        with exit_on_error():
            folder = config.hydra.run.dir
            folder = os.path.abspath(folder) if config.hydra.job.chdir else folder
            PlanCallback.plan = load_plan(config, config.hydra.overrides.task, folder)
            claim_run_folder(PlanCallback.plan)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a sweep if any of its jobs cannot be carried out."""
        self.started = time.monotonic()
        with exit_on_error():
            loader = GlobalHydra.instance().config_loader()
            require_valid_limits(config)
            if batch := begin_sweep(config, loader):
                configure_log(config.hydra.hydra_logging, config.hydra.verbose)
                log.info("%s: checking %d jobs", config.hydra.sweep.dir, len(batch))
                jobs = plan_jobs(config, loader, batch, 0)
                require_distinct(jobs)
                require_a_device_each(config, jobs)
            lock_folder(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the report, show its table and a summary, and exit with code 1 if any job failed."""
        from rich import get_console

        from train.report.rows import read_row
        from train.report.tables import draw_console_table
        from train.report.write import rewrite_report
        from train.sweep.summary import log_summary

        sweep = Path(config.hydra.sweep.dir)
        with exit_on_error():
            findings = rewrite_report(sweep, config.memory_budget_gb)
            get_console().print(draw_console_table(findings, get_console().width))
            trials = OmegaConf.select(config, "hydra.sweeper.n_trials")
            log_summary(sweep, findings, time.monotonic() - self.started, trials)
            rows = [read_row(job.folder) for job in PLANNED.values()] or findings.rows
            if failed := [row for row in rows if row.status != "finished"]:
                lines = [f"{len(failed)} of {len(rows)} jobs did not finish; see {sweep}/sweep.html"]
                lines += [f"{row.name}: {row.status}: {row.reason}" for row in failed]
                hint = "rerun the same command to retry them; finished jobs are skipped"
                raise NielsError("\n".join(lines), hint)


def require_valid_limits(config: DictConfig) -> None:
    """Refuse limits that are not positive, and an objective without a direction."""
    limits = [f"hydra.sweeper.{name}" for name in ("max_batch_size", "n_jobs", "n_trials")]
    if "timeout_minutes" in config.hydra.launcher:  # to joblib, -1 jobs are as many as there are cores
        limits += ["hydra.launcher.n_jobs", "hydra.launcher.timeout_minutes"]
    for setting in limits:
        value = OmegaConf.select(config, setting)
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"{setting} must be positive, got {value}", "change it, or leave it out")
    asked = OmegaConf.select(config, "hydra.sweeper.direction")
    directions, wanted = asked if OmegaConf.is_list(asked) else [asked], ["minimize"] * len(config.objective)
    if asked is not None and len(directions) != len(wanted):  # every trial would fail
        raise ConfigError(
            f"objective has {len(wanted)} values, and hydra.sweeper.direction has {len(directions)}",
            f"add 'hydra.sweeper.direction=[{','.join(wanted)}]'",
        )


def require_a_device_each(config: DictConfig, jobs: Sequence[PlannedJob]) -> None:
    """Refuse jobs that share an mps device: they slow each other, and can exhaust its memory."""
    n_jobs = config.hydra.launcher.n_jobs if "timeout_minutes" in config.hydra.launcher else 1
    if n_jobs > 1 and sys.platform == "darwin" and any(cfg.device != "cpu" for job in jobs for cfg in job.plan):
        raise ConfigError(
            f"jobs on mps cannot share the device, got hydra.launcher.n_jobs={n_jobs}",
            "use device=cpu, or hydra.launcher.n_jobs=1",
        )
