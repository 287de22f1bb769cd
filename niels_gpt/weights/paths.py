"""Names of files in a phase's folder: checkpoints, one for each step, the latest and the best; its data."""

from pathlib import Path

LATEST, BEST = "latest.pt", "best.pt"
DATA = "data.json"  # the sources and token caches that a phase reads


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


def has_checkpoint(folder: Path) -> bool:
    """Return whether a phase has saved a checkpoint in this folder."""
    return any(folder.glob("*.pt"))
