"""The run folder: which one, and that only one process writes to it."""

import fcntl
import os
import re
import socket
import time
from pathlib import Path
from typing import TextIO

from niels_gpt.errors import CheckpointError, RunFolderInUse
from train.disk import explained_disk
from train.result import has_begun, require_unchanged
from train.schema import RunCfg

LOCK = "run.lock"
TRIES, MOST_TRIES, PAUSE = 5, 100, 0.02  # seconds between tries
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
        DiskError: it cannot be made or written to.
    """
    if folder.resolve() not in _held:
        with explained_disk(folder / LOCK):
            folder.mkdir(parents=True, exist_ok=True)
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
    """Return the locked file; it says who holds it.

    A lock that is taken is tried for a moment longer: whoever only asks whether it is held takes it too, and a new
    owner has yet to write its name over that of one which has ended.
    """
    file, owner = path.open("a+", encoding="utf-8"), ""
    for attempt in range(MOST_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _living_owner(file)
            if owner and attempt >= TRIES:
                break
            time.sleep(PAUSE)
        else:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return file
    file.close()
    raise RunFolderInUse(
        f"{folder} is in use by {owner or 'another process'}", "wait for it to end, or choose another name=..."
    )


def _living_owner(file: TextIO) -> str:
    """Return who wrote its name into the lock, nothing if that process, on this machine, has ended."""
    file.seek(0)
    owner = file.read().strip()
    if (said := re.fullmatch(r"process (\d+) on (.+)", owner)) and said[2] == socket.gethostname():
        try:
            os.kill(int(said[1]), 0)
        except ProcessLookupError:
            return ""
        except (PermissionError, OverflowError):
            return owner
    return owner


def release(folder: str) -> None:
    """Give the run folder back, as the end of the process does."""
    if held := _held.pop(Path(folder).resolve(), None):
        held.close()
