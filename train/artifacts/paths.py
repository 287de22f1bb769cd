"""Names of checkpoint files: one for each step, and second names for the latest and the best."""

from pathlib import Path

LATEST, BEST = "latest.pt", "best.pt"


def step_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step stands."""
    return folder / f"step_{step:07d}.pt"


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the latest step first; the clock is never asked."""
    steps = {path: step for path in folder.glob("step_*.pt") if (step := step_of(path)) is not None}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint is named by, or None where it has another name."""
    number = path.stem.removeprefix("step_")
    return int(number) if path.stem != number and number.isdecimal() else None


def any_saved(folder: Path) -> bool:
    """Return whether a phase has saved anything here."""
    return any(folder.glob("*.pt"))
