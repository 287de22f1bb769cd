"""Save checkpoints: the state of a run, whole or not at all."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from niels_gpt.errors import NonFiniteError
from niels_gpt.model.gpt import GPT
from niels_gpt.storage import flush_to_disk, make_part_path, replace_atomically, sync_folder
from niels_gpt.weights.checkpoint import walk_values
from niels_gpt.weights.paths import BEST, LATEST, step_files, step_path
from train.artifacts.disk import explain_disk_errors, open_to_write

TENSOR_OVERHEAD = 512  # bytes that a tensor takes besides its numbers: header, name (twice), alignment


@dataclass
class TrainState:
    """The state of a phase: `step` counts optimizer updates, `sequences` the sequences trained on.

    `evaluated` is false until this step has been evaluated; `best_step` is the step in best.pt. `loss_sum`
    and `loss_steps` belong to the steps since the last logged one; the sum stays on the device.
    """

    model: GPT
    optimizer: Optimizer
    step: int = 0
    best_val_loss: float | None = None
    best_step: int = 0
    sequences: int = 0
    evaluated: bool = True
    loss_sum: torch.Tensor | float = 0.0
    loss_steps: int = 0

    def add_loss(self, loss: torch.Tensor) -> None:
        """Count the loss of a step, a 0-d tensor, without waiting for the device."""
        self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1

    def take_mean_loss(self) -> float:
        """Return the mean loss of the steps since the last call."""
        mean = float(self.loss_sum) / self.loss_steps
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean


def save_checkpoint(path: Path, state: TrainState, train_cfg: dict[str, Any]) -> None:
    """Write a checkpoint. A file that is visible under `path` is complete.

    NonFiniteError if a weight is nan or inf; nothing is written. DiskError if it cannot be written; the file that
    was there is intact.
    """
    _require_finite(state.model, state.step)
    content = {
        "model_cfg": state.model.cfg.model_dump(),
        "train_cfg": train_cfg
        | {
            "sequences": state.sequences,
            "evaluated": state.evaluated,
            "loss_sum": float(state.loss_sum),
            "loss_steps": state.loss_steps,
        },
        "model_state": _copy_to_cpu(state.model.state_dict()),
        "optimizer_state": _copy_to_cpu(state.optimizer.state_dict()),
        "step": state.step,
        "best_val_loss": state.best_val_loss,
    }
    with replace_atomically(path) as part, open_to_write(part, _estimate_bytes(content)) as file:
        torch.save(content, file)
        file.flush()
        flush_to_disk(file.fileno())
    sync_folder(path.parent)


def save_step(folder: Path, state: TrainState, train_cfg: dict[str, Any], *, best: bool, keep_last: int) -> None:
    """Save this step, point latest.pt (and best.pt) at it, and delete all but the last `keep_last` steps."""
    path = step_path(folder, state.step)
    if best:  # first, so that a run resumed from this step finds the best that it refers to
        save_checkpoint(folder / BEST, state, train_cfg)
        link_checkpoint(folder / BEST, path)
    else:
        save_checkpoint(path, state, train_cfg)
    link_checkpoint(path, folder / LATEST)
    sync_folder(folder)  # the new file is on the disk before an old one goes
    for old in step_files(folder)[keep_last:]:
        old.unlink()


def estimate_size(model: GPT, *, ema: bool) -> int:
    """Estimate the bytes of a checkpoint: the weights, AdamW's two averages of each, and theirs with `ema`."""
    return (3 + ema) * _estimate_bytes(dict(model.named_parameters()))


def _estimate_bytes(content: Any) -> int:
    """Estimate the bytes that torch.save writes for the tensors among nested values."""
    return sum(value.nbytes + TENSOR_OVERHEAD for value in walk_values(content) if isinstance(value, torch.Tensor))


def _require_finite(model: GPT, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"weight {name} is not finite at step {step}; no checkpoint was written",
                "resume from the last checkpoint, which is intact, with a lower train.base_lr or precision=off",
            )


def _copy_to_cpu(value: Any) -> Any:
    """Copy nested tensors to the CPU, so that every machine can load them."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().cpu()
    if isinstance(value, dict):
        return {key: _copy_to_cpu(item) for key, item in value.items()}
    return [_copy_to_cpu(item) for item in value] if isinstance(value, list) else value


def link_checkpoint(path: Path, name: Path) -> None:
    """Make `name` a second name of the file at `path`, in one step."""
    with explain_disk_errors(make_part_path(name), path.stat().st_size), replace_atomically(name) as part:
        try:
            os.link(path, part)
        except OSError:  # a file system without hard links
            with path.open("rb") as source, part.open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                flush_to_disk(file.fileno())
