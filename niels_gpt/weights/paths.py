"""Names of files in a phase's folder: checkpoints, one for each step, the latest and the best; its data."""

import os
import zipfile
from pathlib import Path

from niels_gpt.errors import CheckpointError

LATEST, BEST = "latest.pt", "best.pt"
DATA = "data.json"  # the shape of a phase's model, and the sources and token caches that it reads
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"  # of a Hugging Face folder
WEIGHTS = "model.safetensors"  # of one, too
HINT = "give a run folder, a phase's folder, a checkpoint or a Hugging Face folder"


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


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a phase's folder: the best, the latest, and those of steps, the highest first."""
    return [path for name in (BEST, LATEST) if (path := folder / name).exists()] + step_files(folder)


def find_phase(path: Path) -> Path | None:
    """Return the folder of a run's last phase that has saved a checkpoint, or `path` if it is such a folder."""
    return next((path / phase for phase in ("sft", "pretrain", ".") if list_checkpoints(path / phase)), None)


def locate_best(path: Path) -> Path:
    """Return the best checkpoint of a run's last phase, or of a phase's folder; a checkpoint stands for itself.

    CheckpointError says what else is at the path.
    """
    if (os.path.isfile(path) and zipfile.is_zipfile(path)) or (path.suffix == ".pt" and not os.path.isdir(path)):
        return path
    if not os.path.isdir(path) or not (phase := find_phase(path)):
        raise explain_path(path)
    if (phase / BEST).exists():
        return phase / BEST
    others = ", ".join(other.name for other in list_checkpoints(phase)[:5])
    raise CheckpointError(f"{phase} has no {BEST}; there are {others}", "name one of them")


def explain_path(path: Path) -> CheckpointError:
    """Return an error that says what is at a path where no weights can be read."""
    if not os.path.isdir(path):
        return CheckpointError(
            f"{path} {'is not a checkpoint' if os.path.exists(path) else 'does not exist'}", HINT
        )
    if runs := sorted(str(child) for child in path.iterdir() if find_phase(child)):
        named = ", ".join(runs[:3]) + f" and {len(runs) - 3} more" * (len(runs) > 3)
        hint = f"name one of them; niels_gpt compare {path} ranks them"
        return CheckpointError(f"{path} is a folder of runs: {named}", hint)
    if any(path.glob("*.gguf")):
        hint = "name the run that it is from, or export that with --to hf"
        return CheckpointError(f"{path} has a GGUF file, which cannot be read back", hint)
    what = f"{WEIGHTS}, but no {CONFIG}" if (path / WEIGHTS).exists() else "no checkpoints"
    return CheckpointError(f"{path} has {what}", HINT)


def is_hugging_face(path: Path) -> bool:
    """Return whether a path is a Hugging Face folder, ours or others'; a run may have a config.json of its own."""
    return os.path.exists(path / CONFIG) and not find_phase(path)
