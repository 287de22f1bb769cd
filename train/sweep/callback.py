"""Check a run, or every job of a sweep, before Hydra writes anything."""

import os
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from niels_gpt.printable import escape_line
from train.artifacts.run_folder import claim_run_folder, lock_folder
from train.cli.command import exit_on_error
from train.config import load_plan
from train.config.schema import RunCfg
from train.sweep.checks import require_a_device_each, require_valid_limits
from train.sweep.jobs import PLANNED, list_overrides, plan_new_jobs, require_distinct


class PlanCallback(Callback):
    """Refuse by SystemExit, since Hydra only warns of other exceptions."""

    plan: ClassVar[list[RunCfg]] = []  # of this process's run; scripts/train.py carries it out

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a plan that cannot be carried out."""
        with exit_on_error():
            folder = config.hydra.run.dir
            PlanCallback.plan = load_plan(config, os.path.abspath(folder) if config.hydra.job.chdir else folder)
            claim_run_folder(PlanCallback.plan)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a sweep if any of its jobs cannot be carried out."""
        with exit_on_error():
            PLANNED.clear()
            loader = GlobalHydra.instance().config_loader()
            require_valid_limits(config)
            if batch := list_overrides(config, loader):
                jobs = plan_new_jobs(config, loader, batch, 0)
                require_distinct(jobs)
                require_a_device_each(config, jobs)
            lock_folder(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the report, show its table, and exit with code 1 if any job failed."""
        from rich import get_console

        from train.report.rows import read_row
        from train.report.tables import draw_console_table
        from train.report.write import rewrite_report
        from train.sweep.launch import require_all_finished

        sweep = Path(config.hydra.sweep.dir)
        with exit_on_error():
            findings = rewrite_report(sweep, config.memory_budget_gb)
            get_console().print(draw_console_table(findings))
            rows = {row.folder: row for row in findings.rows}
            own = [rows.get(escape_line(str(job.folder))) or read_row(job.folder) for job in PLANNED.values()]
            require_all_finished(sweep, own or findings.rows)
