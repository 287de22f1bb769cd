"""Finds what a comparison of precisions computes on: a checkpoint of a run, its settings and its next batch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from niels_gpt.data.batches import Batch, require_ids
from niels_gpt.device import resolve_device
from niels_gpt.errors import CheckpointError, DataError
from niels_gpt.loss import IGNORE
from niels_gpt.plain import first_fault
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.weights import phase_folder
from train.fit import Found
from train.preflight import preflight
from train.result import RESULT, read_results
from train.resuming import checkpoint_path
from train.run import DATA
from train.schema import RunCfg


@dataclass(frozen=True)
class Subject:
    """What is studied: a checkpoint, its phase's settings and the device to compute on."""

    found: Found
    cfg: RunCfg
    device: torch.device


def chosen_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path stands for: of a run folder the best of its last phase.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir() or (path / "best.pt").exists():
        return checkpoint_path(str(path))
    results = read_results(path)
    last = results.get("sft") or results.get("pretrain")
    if last is None:
        raise CheckpointError(
            f"{path} has no {RESULT} that names a finished phase",
            "name a run folder, as runs/default, whose training has come to its end",
        )
    return checkpoint_path(str(path / last.checkpoint))


def opened(checkpoint: Path) -> Subject:
    """Return a checkpoint with the settings that gave it, for this machine's device."""
    found, cfg = Found.at(checkpoint), settings_behind(checkpoint)
    device = resolve_device("auto")
    preflight(device, cfg)
    return Subject(found, cfg, device)


def settings_behind(checkpoint: Path) -> RunCfg:
    """Return the settings of the phase that a checkpoint belongs to, from its run's results.

    Raises:
        CheckpointError: they are missing or of another version of the project.
    """
    out = phase_folder(checkpoint)
    folder, phase = out.parent, out.name
    result = {str(name): result for name, result in read_results(folder).items()}.get(phase)
    if result is None or not isinstance(result.settings, dict):
        raise CheckpointError(
            f"{folder / RESULT} has no settings of a phase {phase}, which {checkpoint} needs",
            "give a checkpoint that lies in its run folder, as runs/<name>/<phase>/best.pt, of a finished phase",
        )
    kept = {key: result.settings.get(key) for key in ("model", "data", "train")}
    return validated(folder, phase, kept)


def validated(folder: Path, phase: str, kept: dict[str, Any]) -> RunCfg:
    """Return kept settings as those of a run.

    Raises:
        CheckpointError: they are of another version of the project.
    """
    own = {"name": folder.name, "phase": phase, "dir": str(folder)}
    try:
        return RunCfg.model_validate_json(json.dumps(own | split(kept)))  # JSON's lists are the settings' tuples
    except ValidationError as error:
        what = ": ".join(first_fault(error))
        raise CheckpointError(
            f"{folder / RESULT}: the settings of {phase} cannot be used ({what})",
            "train again with this version of the project",
        ) from None


def split(kept: dict[str, Any]) -> dict[str, Any]:
    """Return kept settings with steps split again: batch=auto keeps only how many sequences they have."""
    train = kept["train"]
    if not isinstance(train, dict) or "effective_batch" not in train:
        return kept
    rest = {key: value for key, value in train.items() if key != "effective_batch"}
    return kept | {"train": rest | {"B": 1, "accum_steps": train["effective_batch"]}}


def next_batch(subject: Subject, sequences: int) -> tuple[Batch, int]:
    """Return the sequences that the step after the checkpoint would learn from, and their number of targets."""
    cfg = subject.cfg
    batch = DATA[cfg.phase](cfg, load_tokenizer(cfg.tokenizer_path)).train.draw(subject.found.sequences, sequences)
    require_ids(batch, cfg.model.V)
    targets = int((batch.y != IGNORE).sum())
    if not targets:
        raise DataError(f"the {sequences} sequences have nothing to learn", "give a larger --sequences")
    return batch, targets
