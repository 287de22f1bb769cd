"""Log to TensorBoard, in event files beside the checkpoints of the phase."""

import json
from pathlib import Path

from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from train.loop.loggers.backend import LoggedPhase, Point


class Logger:
    """Each process writes an event file, whose start drops the points from `since` on in older ones."""

    repeated = "replaced"

    def __init__(self, phase: LoggedPhase) -> None:
        self._phase, self._step = phase.phase, phase.since
        self._writer = SummaryWriter(str(phase.out), purge_step=phase.since)
        text = f"```json\n{json.dumps(phase.config, indent=2)}\n```"
        self._writer.add_text(f"{phase.phase}/config", text, phase.since)

    def log(self, points: list[Point]) -> None:
        """Add a scalar for each number."""
        for point in points:
            self._step = point.step
            for name, number in point.numbers.items():
                self._writer.add_scalar(name, number, point.step, point.time)
        self._writer.flush()

    def close(self, curves: Path | None, *, complete: bool) -> None:
        """Add the picture, and close the file."""
        if curves:
            self._writer.add_image(f"{self._phase}/curves", imread(curves), self._step, dataformats="HWC")
        self._writer.close()
