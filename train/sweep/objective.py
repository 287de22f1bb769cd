"""What a sweeper minimises: a run's validation loss, or its loss and its peak memory."""

from collections.abc import Sequence
from pathlib import Path

from train.sweep.row import read_row


def reached(folder: Path, objective: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return the values that a run folder holds: nats a target, bytes; None where the run did not finish.

    None is what sweepers take for a failed trial and go on; nan ends an Optuna study.
    """
    row = read_row(folder)
    found = {"loss": row.val_loss, "memory": row.peak_memory}
    values = [float(value) for name in objective if (value := found[name]) is not None]
    if row.val_loss is None or len(values) < len(objective):
        return None
    return values[0] if len(values) == 1 else tuple(values)
