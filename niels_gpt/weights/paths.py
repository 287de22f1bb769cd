"""Names of files in a phase's folder: checkpoints, one for each step, the latest and the best; its data."""

import os
from pathlib import Path

LATEST, BEST = "latest.pt", "best.pt"
DATA = "data.json"  # the shape of a phase's model, and the sources and token caches that it reads
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"  # of a Hugging Face folder


def step_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:07d}.pt"


def step_files(folder: Path) -> list[Path]:
    """Return the step checkpoints of a folder, the highest step first, whatever their times."""
    steps = {path: step for path in folder.glob("step_*.pt") if (step := parse_step(path)) is not None}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def parse_step(path: Path) -> int | None:
    """Return the step in a checkpoint's name, or None if it has another name."""
    number = path.stem.removeprefix("step_")
    return int(number) if path.stem != number and number.isdecimal() else None


def find_phase(path: Path, wanted: str = BEST) -> Path | None:
    """Return the folder of a run's last phase that has `wanted` checkpoints, or `path` if it is such a folder."""
    return next((path / phase for phase in ("sft", "pretrain", ".") if any((path / phase).glob(wanted))), None)


def is_hugging_face(path: Path) -> bool:
    """Return whether a path is a Hugging Face folder, ours or others'; a run may have a config.json of its own."""
    return os.path.exists(path / CONFIG) and not find_phase(path)


def has_checkpoint(folder: Path) -> bool:
    """Return whether a phase has saved a checkpoint in this folder."""
    return any(folder.glob("*.pt"))
