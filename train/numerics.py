"""Compares the precisions on a run's own weights: what each of them leaves of the gradient of one step."""

from dataclasses import dataclass
from pathlib import Path

import torch

from niels_gpt.data.batches import Batch
from train.numerics_batch import Subject, chosen_checkpoint, next_batch, opened
from train.numerics_pass import FP32, PRECISIONS, computed
from train.numerics_rows import Row, compared
from train.numerics_verdict import with_verdicts


@dataclass(frozen=True)
class Numerics:
    """What was compared, on what, and what came out, the verdicts included."""

    checkpoint: str
    step: int
    device: str
    how: str
    torch: str
    sequences: int
    tokens: int
    targets: int
    rows: list[Row]


def numerics(path: Path, sequences: int | None = None) -> Numerics:
    """Compare the precisions on a batch that a run would learn from next.

    `path` is a run folder, a phase's folder or a checkpoint in one. fp32 is computed twice: its own row is what
    the device does not repeat exactly, 0 on the CPU. Dropout is off, since other masks are another gradient.

    Raises:
        NielsError: the checkpoint, its settings or its data cannot be used.
    """
    subject = opened(chosen_checkpoint(path))
    batch, targets = next_batch(subject, sequences or subject.cfg.train.effective_batch)
    reference = computed(FP32, subject, batch, targets)
    rows = [compared(p, computed(p, subject, batch, targets), reference) for p in PRECISIONS]
    return described(subject, batch, targets, list(with_verdicts(rows, targets)))


def described(subject: Subject, batch: Batch, targets: int, rows: list[Row]) -> Numerics:
    """Return rows with what they were computed on."""
    return Numerics(
        checkpoint=str(subject.found.path),
        step=subject.found.saved["step"],
        device=subject.device.type,
        how=how(subject.device),
        torch=torch.__version__,
        sequences=len(batch.x),
        tokens=batch.x.numel(),
        targets=targets,
        rows=rows,
    )


def how(device: torch.device) -> str:
    """Say whether these are the numbers of a Mac."""
    if device.type == "mps":
        return "low precision is the device's own"
    return f'low precision is emulated with torch.autocast("{device.type}"): near what mps does, not to the bit'
