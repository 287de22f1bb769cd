"""What a sweeper minimises: a run's validation loss, its peak memory, or both."""

from collections.abc import Sequence
from pathlib import Path

from train.sweep.row import read_row


def reached(folder: Path, objective: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return the values that a run folder holds; None where the run did not finish.

    A loss is in bits per byte, since trials may differ in their tokenizers; memory is in bytes.
    None is what sweepers take for a failed trial and go on; nan ends an Optuna study.
    """
    row = read_row(folder)
    found = {"loss": row.bits_per_byte, "memory": row.peak_memory}
    values = [float(value) for name in objective if (value := found[name]) is not None]
    if row.val_loss is None or len(values) < len(objective):
        return None
    return values[0] if len(values) == 1 else tuple(values)
