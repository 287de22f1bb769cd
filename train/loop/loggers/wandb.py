"""Log to Weights & Biases: offline, unless WANDB_MODE says otherwise; `wandb sync` uploads it."""

import os
from pathlib import Path

import wandb

from train.loop.loggers.backend import PROJECT, LoggedPhase, Point


class Logger:
    """Each process makes an offline folder of the same run, whose steps go on through the phases."""

    repeated = "kept"

    def __init__(self, phase: LoggedPhase) -> None:
        self._phase, self._first = phase.phase, phase.first
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=phase.id,
            name=phase.name,
            group=phase.group,
            config=phase.config,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_stats=True),
        )
        self._run.define_metric(f"{phase.phase}/*", step_metric=f"{phase.phase}/step")

    def log(self, points: list[Point]) -> None:
        """Log the points; those of one step become a row, and the last row is written at once."""
        for point in points:
            numbers = point.numbers | {f"{self._phase}/step": point.step}
            self._run.log(numbers, step=self._first + point.step, commit=point is points[-1])

    def close(self, curves: Path | None, *, complete: bool) -> None:
        """Add the picture to the summary, and end this part of the run."""
        if curves:
            self._run.summary[f"{self._phase}/curves"] = wandb.Image(str(curves))
        self._run.finish(0 if complete else 1)
