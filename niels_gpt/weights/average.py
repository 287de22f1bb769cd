"""Choose the weights of a run: the best, those of a step, the mean of the last ones, or train.ema's average."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import find_misfit, read_checkpoint
from niels_gpt.weights.paths import BEST, find_phase, step_files, step_path

NAME_A_RUN = "name the folder of a trained run, such as runs/default, or a checkpoint in it"


def read_weights(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint with the chosen weights as its model_state, after the path that it was read from.

    `path` is a checkpoint, or the folder of a phase or of a run, whose last phase counts. Without a choice its
    best weights are returned. `step` chooses those of a step; `average` the mean of so many kept steps, up to
    `step` or the last (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018); `ema` the averages of
    train.ema in these checkpoints.

    CheckpointError if there are no such weights, or a checkpoint is damaged. OSError as of `read_checkpoint`.
    """
    checkpoint, *others = find_checkpoints(path, step=step, average=average, ema=ema)
    chosen = read_checkpoint(checkpoint)
    mean = _get_weights(chosen, checkpoint, chosen, ema=ema)
    for n, other in enumerate(others, 2):
        weights = _get_weights(read_checkpoint(other), other, chosen, ema=ema)
        mean = {name: weight.float().lerp(weights[name].float(), 1 / n) for name, weight in mean.items()}
    return checkpoint, chosen | {"model_state": mean}


def find_checkpoints(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> list[Path]:
    """Return the checkpoints that `read_weights` reads, the newest first. CheckpointError as above."""
    if not os.path.exists(path):
        raise CheckpointError(f"{path} does not exist", NAME_A_RUN)
    if not path.is_dir():
        if step is not None or average is not None:
            raise CheckpointError(f"{path} is a single checkpoint", f"to choose others, name {path.parent}")
        return [path]
    wanted = BEST if step is None and average is None and not ema else "step_*.pt"
    if (folder := find_phase(path, wanted)) is None:
        raise CheckpointError(f"{path} has no sft/{wanted} or pretrain/{wanted}", NAME_A_RUN)
    if wanted == BEST:
        return [folder / BEST]
    files, best = step_files(folder), folder / BEST
    if step is not None:
        if (asked := step_path(folder, step)) not in files:
            if average is None and best.exists() and read_checkpoint(best)["step"] == step:
                return [best]
            hint = f"niels_gpt checkpoints {path} lists its steps; train.ckpt_every and train.keep_last keep more"
            raise CheckpointError(f"{folder} has no step {step}", hint)
        files = files[files.index(asked) :]
    if len(files) < (count := average or 1):
        hint = f"train with train.keep_last={count}, and train.ckpt_every small enough for as many"
        raise CheckpointError(f"{folder} has {len(files)} of the {count} checkpoints to average", hint)
    return files[:count]


def _get_weights(saved: dict[str, Any], path: Path, chosen: dict[str, Any], *, ema: bool) -> dict[str, Tensor]:
    """Return the weights in the content of a checkpoint, or their average, if they fit the `chosen` checkpoint."""
    weights = saved["model_state"]
    if ema:
        try:  # the last part of the optimizer numbers the weights in the order of the model
            averages = saved["optimizer_state"]["parts"][-1]["state"]
            weights = {name: averages[n]["ema"] for n, name in enumerate(weights)}
        except (LookupError, TypeError):
            raise CheckpointError(f"{path} has no average of the weights", "train with train.ema=0.999") from None
    if reason := find_misfit(chosen["model_cfg"], weights):
        raise CheckpointError(f"{path}: {reason}", "choose other weights")
    return dict(weights)
