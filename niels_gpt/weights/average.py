"""Choose the weights of a run: the best, those of a step, the mean of the last ones, or train.ema's average."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import find_misfit, get_phase_folder, read_checkpoint
from niels_gpt.weights.paths import BEST, explain_path, find_phase, locate_best, parse_step, step_files, step_path


def read_weights(
    path: Path, *, step: int | None = None, average: int | None = None, ema: bool = False
) -> tuple[Path, dict[str, Any], str]:
    """Return the path of a checkpoint, its content with the chosen weights as model_state, and what they are.

    `path` is a checkpoint, or the folder of a phase or of a run, whose last phase counts. Without a choice its
    best weights are returned. `step` chooses those of a step; `average` the mean of so many kept steps, up to
    `step` or the last (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018); `ema` the averages of
    train.ema in these checkpoints.

    CheckpointError if there are no such weights, or a checkpoint is damaged. OSError as of `read_checkpoint`.
    """
    checkpoint, *others = _find_checkpoints(path, step, average, ema=ema)
    chosen = read_checkpoint(checkpoint)
    mean = _get_weights(chosen, checkpoint, chosen, ema=ema)
    for n, other in enumerate(others, 2):
        weights = _get_weights(read_checkpoint(other), other, chosen, ema=ema)
        mean = {name: weight.float().lerp(weights[name].float(), 1 / n) for name, weight in mean.items()}
    at = f"{get_phase_folder(checkpoint).name}/{checkpoint.name}, step {chosen['step']}"
    at = f"the moving average in {at}" if ema else at
    at = f"the mean of {len(others) + 1} checkpoints up to {at}" if others else at
    return checkpoint, chosen | {"model_state": mean}, at


def _find_checkpoints(path: Path, step: int | None, average: int | None, *, ema: bool) -> list[Path]:
    """Return the checkpoints that `read_weights` reads, the newest first. CheckpointError as above."""
    chooses = step is not None or average is not None
    if chooses and os.path.isfile(path):
        raise CheckpointError(f"{path} is a single checkpoint", f"to choose others, name {path.parent}")
    if not os.path.isdir(path) or not (chooses or ema):
        return [locate_best(path)]
    if (folder := find_phase(path)) is None:
        raise explain_path(path)
    files, best = step_files(folder), folder / BEST
    if step is not None:
        if (asked := step_path(folder, step)) not in files:
            if average is None and best.exists() and read_checkpoint(best)["step"] == step:
                return [best]
            steps = sorted(filter(None, map(parse_step, files)), key=lambda kept: abs(kept - step))[:5]
            near = ", ".join(map(str, sorted(steps))) or "none"
            hint = f"niels_gpt checkpoints {path} lists its steps; train.ckpt_every and train.keep_last keep more"
            raise CheckpointError(f"{folder} has no step {step}; nearest: {near}", hint)
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
