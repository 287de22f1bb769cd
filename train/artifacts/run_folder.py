"""Lock the run folder for one process, and remove the stale files of killed ones."""

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from niels_gpt.errors import CheckpointError, RunFolderInUse
from train.artifacts.disk import explained_disk
from train.artifacts.results import has_begun, require_unchanged
from train.config.schema import RunCfg

LOCK = "run.lock"
PATIENCE = 0.5  # seconds: a report may just be asking for the lock, and a new owner has yet to write its name
_held: dict[Path, FileLock] = {}  # the kernel drops a lock when its process ends, however it ends
log = logging.getLogger("niels_gpt")


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
    if folder.resolve() in _held:
        return
    path = folder / LOCK
    with explained_disk(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, PATIENCE, poll_interval=0.02, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
            way_out = "wait for it to end, or choose another name=..."
            raise RunFolderInUse(f"{folder} is in use by {owner}", way_out) from None
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    _held[folder.resolve()] = lock


def is_held(folder: Path) -> bool:
    """Return whether a living process has made a folder its own."""
    try:
        with (folder / LOCK).open("rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except FileNotFoundError:
        return False


def release(folder: str) -> None:
    """Give the run folder back, as the end of the process does."""
    if lock := _held.pop(Path(folder).resolve(), None):
        lock.release()


def sweep_leftovers(plan: Sequence[RunCfg]) -> None:
    """Remove them from a run folder that this process holds: whoever wrote them has ended."""
    found = list(Path(plan[0].dir).glob(".*.json.part"))  # no others: the folder may be one in which others write
    found += [path for cfg in plan for path in cfg.out.glob(".*.part")]
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(path.name for path in found)
        log.info("removed what a killed process left half written: %s", names)
