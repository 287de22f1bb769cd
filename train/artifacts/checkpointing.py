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
from niels_gpt.storage import beside, part_of, sync_folder, to_platter
from niels_gpt.weights.checkpoint import walk_values
from train.artifacts.disk import explained_disk, writing
from train.artifacts.paths import BEST, LATEST, step_files, step_path

RECORD = 512  # bytes of the file beside each tensor's own: a record's header, its name twice, its alignment
OTHER = 64  # bytes of any other value, with its key


@dataclass
class TrainState:
    """All that changes while a phase learns.

    `step` counts optimizer updates, `sequences` those learned from; `evaluated` tells whether this step was.
    """

    model: GPT
    optimizer: Optimizer
    step: int = 0
    best_val_loss: float | None = None
    sequences: int = 0
    evaluated: bool = True


def save(path: Path, state: TrainState, train_cfg: dict[str, Any]) -> None:
    """Write the six keys to `path`: what is visible under that name is complete.

    Raises:
        NonFiniteError: a weight is nan or inf; nothing is written.
        DiskError: it cannot be written; what was there before is as it was.
    """
    _require_finite(state.model, state.step)
    content = {
        "model_cfg": state.model.cfg.model_dump(),
        "train_cfg": train_cfg | {"sequences": state.sequences, "evaluated": state.evaluated},
        "model_state": _on_cpu(state.model.state_dict()),
        "optimizer_state": _on_cpu(state.optimizer.state_dict()),
        "step": state.step,
        "best_val_loss": state.best_val_loss,
    }
    with beside(path) as part, writing(part, _bytes(content)) as file:
        torch.save(content, file)
        file.flush()
        to_platter(file.fileno())
    sync_folder(path.parent)


def save_step(folder: Path, state: TrainState, train_cfg: dict[str, Any], *, best: bool, keep_last: int) -> None:
    """Save this step, let latest.pt (and best.pt) mean it, and drop all but the last `keep_last` steps."""
    path = step_path(folder, state.step)
    if best:  # best.pt comes first: whoever resumes from this step finds the best that it speaks of
        save(folder / BEST, state, train_cfg)
        link(folder / BEST, path)
    else:
        save(path, state, train_cfg)
    link(path, folder / LATEST)
    sync_folder(folder)  # what is new has to be there before anything old goes
    for old in step_files(folder)[keep_last:]:
        old.unlink()


def saved_size(model: GPT) -> int:
    """Return about how many bytes a checkpoint takes: the weights, and AdamW's two averages of each."""
    return 3 * _bytes(dict(model.named_parameters()))


def _bytes(content: Any) -> int:
    """Return about how many bytes torch.save makes of nested values."""
    return sum(
        value.nbytes + RECORD if isinstance(value, torch.Tensor) else OTHER for value in walk_values(content)
    )


def _require_finite(model: GPT, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"weight {name} is not finite at step {step}; no checkpoint was written",
                "go on from the last good checkpoint with a lower train.base_lr, or with precision=off",
            )


def _on_cpu(value: Any) -> Any:
    """Copy nested tensors to the CPU, so that every machine can load them."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def link(path: Path, name: Path) -> None:
    """Let `name` mean the file at `path`, without a moment in which it means nothing."""
    with explained_disk(part_of(name), path.stat().st_size), beside(name) as part:
        try:
            os.link(path, part)
        except OSError:  # a file system without hard links
            _copy(path, part)


def _copy(path: Path, target: Path) -> None:
    with path.open("rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        to_platter(file.fileno())
