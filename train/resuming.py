"""How a run goes on from a checkpoint: its newest good one, or another's weights."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from niels_gpt.config import Cfg
from niels_gpt.errors import CheckpointError, is_out_of_memory
from train.checkpointing import TrainState, link
from train.fit import Found, require_same_model
from train.optim import load_averages
from train.step_files import BEST, LATEST, step_files, step_of, step_path

log = logging.getLogger("niels_gpt")


def newest(folder: Path) -> Found | None:
    """Return the checkpoint with the highest step that is undamaged, or None where there is none at all.

    Damaged ones are named, and set aside under another name, where they are in nobody's way.

    Raises:
        CheckpointError: there are checkpoints, but every one is damaged.
    """
    refused: list[tuple[Path, CheckpointError]] = []
    for path in _candidates(folder):
        try:
            found = _read_step(path)
        except CheckpointError as error:
            refused.append((path, error))
        else:
            for damaged, why in refused:
                log.warning("warning: %s; using step %d", why, found.saved["step"])
                _set_aside(damaged)
            return found
    if refused:
        lines = [str(error) for _, error in refused]
        raise CheckpointError("\n".join(lines), "choose another name=... to start anew, or init_from=PATH")
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints, the latest step first; latest.pt and best.pt where they are files of their own.

    latest.pt mostly is a second name of the newest step, and damaged with it, unless one was copied.
    """
    steps = step_files(folder)
    seen: list[Path] = []
    for path in [*steps[:1], folder / LATEST, *steps[1:], folder / BEST]:
        if path.exists() and not any(path.samefile(other) for other in seen):
            seen.append(path)
            yield path


def _read_step(path: Path) -> Found:
    """Return a checkpoint; one named by its step has to be of that step."""
    found = Found.at(path)
    if (named := step_of(path)) is not None and (step := found.saved["step"]) != named:
        raise CheckpointError(f"{path} is damaged (it holds step {step})", "use an earlier checkpoint")
    return found


def _set_aside(path: Path) -> None:
    """Keep a damaged file for who wants to look at it, but count it as a step no more."""
    if step_of(path) is not None:
        path.replace(path.with_name(f"{path.name}.damaged"))


def mend_names(state: TrainState, folder: Path) -> Found | None:
    """Let latest.pt mean the step that a run goes on from, and return best.pt if there is a good one.

    A kill may have come between a step and its second name. Without a good best.pt this step stands in, and it is
    evaluated again if an evaluation is due.
    """
    own = step_path(folder, state.step)
    if own.exists() and not ((folder / LATEST).exists() and own.samefile(folder / LATEST)):
        link(own, folder / LATEST)
    if state.best_val_loss is None:
        return None
    try:
        return Found.at(folder / BEST)
    except CheckpointError as error:
        state.best_val_loss, state.evaluated = None, False
        if (folder / LATEST).exists():
            log.warning("warning: %s; step %d stands in until the next evaluation", error, state.step)
            link(folder / LATEST, folder / BEST)
        return None


def mend_best(folder: Path) -> None:
    """Let the newest good step of a finished phase stand in for a best.pt that is no good, for the next phase.

    Raises:
        CheckpointError: none of its checkpoints is good.
    """
    try:
        Found.at(folder / BEST)
    except CheckpointError as error:
        if found := newest(folder):
            log.warning("warning: %s; step %d stands in", error, found.saved["step"])
            link(found.path, folder / BEST)


def resume(state: TrainState, found: Found) -> None:
    """Go on from a checkpoint: weights, optimizer, step and best loss.

    Raises:
        CheckpointError: the checkpoint is of another model; the message is a table of what differs.
    """
    warm_start(state, found)
    try:
        load_averages(state.optimizer, found.saved["optimizer_state"], found.saved["step"])
    except Exception as error:  # torch looks at little of what it loads, and trips over the rest in any way
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{found.path}: its optimizer_state does not fit its model ({error})",
            "use init_from=PATH to take the weights alone",
        ) from error
    state.step, state.best_val_loss = found.saved["step"], found.saved["best_val_loss"]
    state.sequences = found.sequences
    state.evaluated = bool(found.saved["train_cfg"].get("evaluated"))  # an older one does not say: once more, then


def warm_start(state: TrainState, found: Found) -> None:
    """Take the weights alone from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another model; the message is a table of what differs.
    """
    require_same_model(found, state.model.cfg)
    state.model.load_state_dict(found.saved["model_state"])


def changed_settings(saved: dict[str, Any], **now: Cfg) -> Iterator[dict[str, Any]]:
    """Yield the settings in which a resumed run's `model` and `train` differ from those that were saved."""
    for part, cfg in now.items():
        then = saved[f"{part}_cfg"]
        for key, value in cfg.model_dump().items():
            if key in then and then[key] != value:
                yield {"step": saved["step"], "setting": f"{part}.{key}", "before": then[key], "after": value}
