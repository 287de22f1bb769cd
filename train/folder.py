"""The run folder: which one, and that only one process writes to it."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from niels_gpt.errors import CheckpointError, RunFolderInUse
from train.config import RunCfg
from train.links import require_no_links
from train.result import has_begun, require_unchanged

LOCK = "run.lock"
_held: dict[Path, TextIO] = {}  # open locks: the kernel drops them when the process ends, however it ends


def claim(plan: list[RunCfg]) -> None:
    """Make the plan's run folder this process's own until it ends.

    Raises:
        RunFolderInUse: another process has it.
        CheckpointError: there is a run in it, and resume=never was asked for or the settings do not fit it.
    """
    folder = Path(plan[0].dir)
    if folder.resolve() in _held:
        return
    if plan[0].resume == "never" and has_begun(plan):
        raise CheckpointError(
            f"resume=never was asked for, but {plan[0].dir} holds a run already",
            "choose another name=..., or resume=auto to go on with this one",
        )
    require_unchanged(plan)
    hold(folder)


def hold(folder: Path) -> None:
    """Make a folder this process's own until it ends.

    Raises:
        RunFolderInUse: another process has it.
        ConfigError: a link in it leads elsewhere.
    """
    if folder.resolve() not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        require_no_links(folder)
        _held[folder.resolve()] = _lock(folder / LOCK, folder)


def is_held(folder: Path) -> bool:
    """Return whether some process has made a folder its own, and lives."""
    path = folder / LOCK
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(path: Path, folder: Path) -> TextIO:
    """Return the locked file; it says who holds it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise RunFolderInUse(
            f"{folder} is in use by {owner}", "wait for it to end, or choose another name=..."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def release(folder: str) -> None:
    """Give the run folder back, as the end of the process does."""
    if held := _held.pop(Path(folder).resolve(), None):
        held.close()
