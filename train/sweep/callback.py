"""Check a run, or every job of a sweep, before Hydra writes anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from train.artifacts.run_folder import claim, hold
from train.cli.command import exit_codes
from train.config import load_plan
from train.sweep.checks import require_a_device_each, require_possible
from train.sweep.jobs import PlannedJob, batch_of, planned_jobs, require_distinct


class Gate(Callback):
    """It refuses by SystemExit, since Hydra only warns of other exceptions."""

    def __init__(self) -> None:
        self.jobs: list[PlannedJob] = []  # of a sweep, where they can be known from the start

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a plan that cannot be carried out."""
        with exit_codes():
            claim(load_plan(config))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a sweep if any of its jobs cannot be carried out."""
        with exit_codes():
            loader = GlobalHydra.instance().config_loader()
            require_possible(config)
            if batch := batch_of(config, loader):
                require_distinct(self.planned(config, loader, batch, 0))
            require_a_device_each(config, self.jobs)
            hold(Path(config.hydra.sweep.dir))

    def planned(
        self, config: DictConfig, loader: ConfigLoader, batch: Sequence[Sequence[str]], first: int
    ) -> list[PlannedJob]:
        """Return the jobs of a batch, which have been checked before or are checked now."""
        known = {job.overrides: job for job in self.jobs}
        if all(tuple(overrides) in known for overrides in batch):
            return [known[tuple(overrides)] for overrides in batch]
        new = planned_jobs(config, loader, batch, first)
        self.jobs += new
        return new

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show the table, and end with exit code 1 if any job failed."""
        from rich import get_console

        from train.report.rows import read_row
        from train.report.tables import console_table
        from train.report.write import rewrite
        from train.sweep.launch import require_all_finished

        sweep = Path(config.hydra.sweep.dir)
        with exit_codes():
            rows = rewrite(sweep, config.memory_budget_gb)
            get_console().print(console_table(rows))
            own = [read_row(job.folder) for job in self.jobs]
            require_all_finished(sweep, own or rows)
